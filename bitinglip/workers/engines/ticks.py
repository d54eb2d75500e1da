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
    thoughts: list[str] = field(default_factory=list)
    preview: str | None = None
    first_step: int = 0
    first_at: float = 0.0
    due_at: float = 0.0

    def left_ms(self, now: float) -> int | None:
        """Return an estimate of what is left, by the pace since the first step."""
        done = self.step - self.first_step
        if self.total is None or done <= 0 or now <= self.first_at:
            return None
        return round(max(0, self.total - self.step) * (now - self.first_at) / done * 1000)


class Ticks:
    """What is to be told of each task's progress, and when: at once, but no more often than the two rates allow.

    `per_s` is the most for one task; `total_per_s` is shared by those that run: of a batch of many, each is told less
    often, in larger pieces.
    """

    def __init__(self, per_s: float, total_per_s: float) -> None:
        self._per_s = per_s
        self._total_per_s = total_per_s
        self._ticks: dict[str, _Tick] = {}
        self._kept: dict[str, _Tick] = {}

    def add(
        self,
        now: float,
        task_id: str,
        step: int,
        total: int | None,
        unit: str,
        text: str | None,
        reasoning: str | None = None,
    ) -> bool:
        """Take a step; texts are joined. Tells whether the next due time may have changed."""
        tick = self._ticks.get(task_id)
        if tick is None:
            tick = self._ticks[task_id] = _Tick(due_at=now, first_step=step, first_at=now)
        tick.step, tick.total, tick.unit = step, total, unit
        if text:
            tick.texts.append(text)
        if reasoning:
            tick.thoughts.append(reasoning)
        if task_id in self._kept:
            return False
        self._kept[task_id] = tick
        return True

    def show(self, now: float, task_id: str, picture: str) -> None:
        """Keep a picture for a task's next step."""
        tick = self._ticks.setdefault(task_id, _Tick(due_at=now, first_at=now))
        tick.preview = picture

    def due(self, now: float) -> list[JobProgressed]:
        """Take out what is due."""
        return [self._take(task_id, now) for task_id, tick in list(self._kept.items()) if tick.due_at <= now]

    def end(self, now: float, task_id: str) -> JobProgressed | None:
        """Forget a task; returns what was kept of it."""
        kept = self._take(task_id, now) if task_id in self._kept else None
        self._ticks.pop(task_id, None)
        return kept

    def next_due(self) -> float | None:
        """Return when the next kept tick is due; none if none is kept."""
        return min((tick.due_at for tick in self._kept.values()), default=None)

    def _take(self, task_id: str, now: float) -> JobProgressed:
        tick = self._kept.pop(task_id)
        text, reasoning = "".join(tick.texts) or None, "".join(tick.thoughts) or None
        preview, tick.preview = tick.preview, None
        tick.texts.clear()
        tick.thoughts.clear()
        tick.due_at = now + max(1 / self._per_s, len(self._ticks) / self._total_per_s)
        return JobProgressed(
            task_id=task_id,
            step=tick.step,
            total=tick.total,
            unit=tick.unit,
            text=text,
            reasoning=reasoning,
            left_ms=tick.left_ms(now),
            preview=preview,
        )
