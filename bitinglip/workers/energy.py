"""How much energy each attempt took: the power that the card tells, shared by what runs on it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from bitinglip.errors import DeviceLost

SAMPLE_S = 1.0
"""Seconds between two readings while something runs."""
STALE_S = 30.0
"""A power that was told longer ago than this says nothing about now."""


class EnergyMeter:
    """Adds up power over time. A share is what one of several attempts took that ran at the same time: all alike."""

    def __init__(self) -> None:
        self._share_j = 0.0
        """What an attempt would have taken that ran ever since the beginning."""
        self._begun: dict[str, float] = {}
        self._at_s = 0.0
        self._power_w: float | None = None
        self._told_s = 0.0
        self._blind_s = float("-inf")
        """Up to when the power was not known while something ran."""
        self._since: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._begun)

    def tell(self, power_w: float | None, now_s: float) -> None:
        """Say what the card draws now; none: it does not tell."""
        self._advance(now_s, power_w)
        self._power_w, self._told_s = power_w, now_s

    def begin(self, task_id: str, now_s: float) -> None:
        """Say that an attempt runs from now on."""
        self._advance(now_s)
        self._begun[task_id], self._since[task_id] = self._share_j, now_s

    def end(self, task_id: str, now_s: float) -> float | None:
        """Say that it has ended; returns its energy in joules, none if the power was not known all the time."""
        self._advance(now_s)
        begun_j, since_s = self._begun.pop(task_id, None), self._since.pop(task_id, now_s)
        if begun_j is None or since_s < self._blind_s:
            return None
        return round(self._share_j - begun_j, 3)

    def _advance(self, now_s: float, told_w: float | None = None) -> None:
        """Share out what was drawn since the last step: at the power that was told last, or is told now."""
        took_s = now_s - self._at_s
        if self._begun and took_s > 0:
            power_w = self._power_w if now_s - self._told_s <= STALE_S else told_w
            power_w = told_w if power_w is None else power_w
            if power_w is None or took_s > STALE_S:
                self._blind_s = now_s
            else:
                self._share_j += power_w * took_s / len(self._begun)
        self._at_s = max(self._at_s, now_s)


class Energy:
    """The meter of a worker's devices, and what keeps it informed."""

    def __init__(self) -> None:
        self._meter = EnergyMeter()
        self._woken = asyncio.Event()

    def begin(self, task_id: str) -> None:
        """Say that an attempt runs from now on."""
        self._meter.begin(task_id, time.monotonic())
        self._woken.set()

    def end(self, task_id: str) -> float | None:
        """Say that it has ended; returns its energy in joules, none if that is not known or it was told before."""
        return self._meter.end(task_id, time.monotonic())

    async def follow(self, read_power: Callable[[], Awaitable[float | None]]) -> None:
        """Read the power for ever, often while something runs; a lost device is told by who watches for that."""
        while True:
            try:
                self._meter.tell(await read_power(), time.monotonic())
            except DeviceLost:
                self._meter.tell(None, time.monotonic())
            await asyncio.sleep(SAMPLE_S)
            if not self._meter.busy:
                self._woken.clear()
                await self._woken.wait()
