"""Progress, coalesced: pure, the time is given."""

from __future__ import annotations

from dataclasses import dataclass, field

from bitinglip.workers.engine import JobProgressed


@dataclass(slots=True)
class _Tick:
    step: int = 0
    total: int | None = None
    unit: str = "step"
    texts: list[str] = field(default_factory=list)
    due_at: float = 0.0


class Ticks:
    """What is to be told of each task's progress, and when: at once, but no sooner than `pause_s` after the last."""

    def __init__(self, pause_s: float) -> None:
        self._pause_s = pause_s
        self._ticks: dict[str, _Tick] = {}
        self._kept: dict[str, _Tick] = {}

    def add(self, now: float, task_id: str, step: int, total: int | None, unit: str, text: str | None) -> bool:
        """Take a step; texts are joined. Tells whether the next due time may have changed."""
        tick = self._ticks.get(task_id)
        if tick is None:
            tick = self._ticks[task_id] = _Tick(due_at=now)
        tick.step, tick.total, tick.unit = step, total, unit
        if text:
            tick.texts.append(text)
        if task_id in self._kept:
            return False
        self._kept[task_id] = tick
        return True

    def due(self, now: float) -> list[JobProgressed]:
        """Take out what is due."""
        return [self._take(task_id, now) for task_id, tick in list(self._kept.items()) if tick.due_at <= now]

    def end(self, task_id: str) -> JobProgressed | None:
        """Forget a task; returns what was kept of it."""
        kept = self._take(task_id, 0.0) if task_id in self._kept else None
        self._ticks.pop(task_id, None)
        return kept

    def next_due(self) -> float | None:
        """Return when the next kept tick is due; none if none is kept."""
        return min((tick.due_at for tick in self._kept.values()), default=None)

    def _take(self, task_id: str, now: float) -> JobProgressed:
        tick = self._kept.pop(task_id)
        text = "".join(tick.texts) or None
        tick.texts.clear()
        tick.due_at = now + self._pause_s
        return JobProgressed(task_id=task_id, step=tick.step, total=tick.total, unit=tick.unit, text=text)
