"""The time, as the log's server has it: what a process says and decides does not depend on its machine's own clock.

The server dates what it stores, ends leases and fires timers. Between two looks at its clock the time is carried on by
the monotonic one, so a clock that is set, or jumps, while a process runs changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from bitinglip.errors import NoServer
from bitinglip.events.connection import Connection
from bitinglip.events.consumers import ask
from bitinglip.events.ending import end
from bitinglip.events.streams import TASKS

log = logging.getLogger(__name__)

MEASURE_S = 30.0
"""Seconds between two looks at the server's clock."""
SLOW_S = 0.5
"""An answer that takes longer tells too little: the time is off by up to half of it."""
SKEW_MOST_S = 5.0
"""A machine's clock that differs by more is warned of: its own logs, and times that people take from it, mislead."""


def system_clock() -> datetime:
    """Return the time now by this machine's clock, aware, in UTC."""
    return datetime.fromtimestamp(time.time(), UTC)


class ServerClock:
    """Tells the time by the server's clock; until that was heard of, by this machine's."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._base, self._since = system_clock(), time.monotonic()
        self._measured = False
        self._warned = False
        self._wake = asyncio.Event()
        self._forget = connection.on_reconnect(self._wake.set)
        self._task: asyncio.Task[None] | None = None

    def __call__(self) -> datetime:
        """Return the time now, aware, in UTC."""
        return self._base + timedelta(seconds=time.monotonic() - self._since)

    def seconds(self) -> float:
        """Return the time now in seconds since 1970."""
        return self._base.timestamp() + time.monotonic() - self._since

    @property
    def skew_s(self) -> float:
        """How far this machine's clock is ahead of the server's; less than 0: behind."""
        return (system_clock() - self()).total_seconds()

    async def start(self) -> None:
        """Measure, and go on doing so."""
        await self.measure()
        self._task = asyncio.create_task(self._run(), name="server clock")

    async def close(self) -> None:
        """Measure no more."""
        self._forget()
        await end(lambda: [self._task])

    async def measure(self) -> None:
        """Ask the server for its time; what it said before holds if it does not tell."""
        asked = time.monotonic()
        try:
            told = await ask(self._connection, f"STREAM.INFO.{TASKS}", {})
        except NoServer as error:
            log.debug("the server's clock could not be read: %s", error)
            return
        heard = time.monotonic()
        if "ts" in told and (not self._measured or heard - asked <= SLOW_S):
            self._base, self._since = datetime.fromisoformat(told["ts"]), (asked + heard) / 2
            self._measured = True
            self._warn()

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(MEASURE_S):
                    await self._wake.wait()
            self._wake.clear()
            await self.measure()

    def _warn(self) -> None:
        off = abs(self.skew_s) > SKEW_MOST_S
        if off and not self._warned:
            log.warning("%s; the server's counts", told_skew(self.skew_s))
        self._warned = off


def skew_of(clock: Callable[[], datetime]) -> float:
    """Return how far this machine's clock is ahead of the one that a log goes by."""
    return clock.skew_s if isinstance(clock, ServerClock) else 0.0


def seconds_of(clock: Callable[[], datetime]) -> Callable[[], float]:
    """Return a clock that tells the same time in seconds since 1970."""
    return clock.seconds if isinstance(clock, ServerClock) else lambda: clock().timestamp()


def told_skew(skew_s: float) -> str:
    """Return what is said of a clock that is off."""
    way = "ahead of" if skew_s > 0 else "behind"
    return f"this machine's clock is {abs(skew_s):.0f} s {way} the NATS server's"
