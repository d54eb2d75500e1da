"""Passes side by side on a CPU, each in a lane: a thread that takes the next pass whenever it is free.

The threads that share one operation wait for each other at the end of each of its parts, so whatever else wants a core
holds up all of them. Passes that share nothing wait for nothing (benchmarks/README.md has what that is worth).
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, Protocol

import torch

MOST_LANES = 8
"""Each has memory of its own for a pass, and fewer threads make it longer: of more threads, several share a lane."""


@dataclass(frozen=True)
class Lanes:
    """How passes share the threads of torch."""

    count: int
    """Passes that run side by side."""
    threads: int
    """Threads of each of them; one that runs alone, while nothing waits, has `all_threads`."""
    all_threads: int


def lanes_on(device: torch.device, *, most: int = MOST_LANES) -> Lanes:
    """Return how passes share a device: on a CPU they run side by side, on a card one after the other."""
    everything = torch.get_num_threads()
    if device.type != "cpu":
        return Lanes(1, everything, everything)
    each = -(-everything // most)
    return Lanes(everything // each, each, everything)


class Passes(Protocol):
    """The work: what the next pass is, and what is done with it."""

    def take(self, free: int) -> Any | None:
        """Return the next pass, none if nothing waits; `free` lanes share what does. One lane at a time calls this."""
        ...

    def more(self) -> bool:
        """Tell whether anything waits. One lane at a time calls this."""
        ...

    def run(self, taken: Any) -> Any:
        """Run a pass; several lanes do at a time."""
        ...

    def finish(self, taken: Any, result: Any) -> None:
        """Take a pass's result. One lane at a time calls this."""
        ...


class LaneRun:
    """Passes from the first one to the last, on the caller's thread and those of the other lanes."""

    def __init__(self, lanes: Lanes, passes: Passes) -> None:
        self._lanes = lanes
        self._passes = passes
        self._deciding = threading.Lock()
        """Held by the lane that takes a pass, or finishes one."""
        self._running = 0
        self._wide = False
        """Whether the only pass that runs has all threads: until it is over, another one would be in its way."""
        self._over = False
        self._error: BaseException | None = None
        self._others: list[threading.Thread] = []
        self._news = 0
        self._told = threading.Condition(threading.Lock())
        """Never held while something is done: whoever brings news does not wait."""

    def tell(self) -> None:
        """Have idle lanes look once more for a pass; any thread may call this."""
        with self._told:
            self._news += 1
            self._told.notify_all()

    def until_done(self) -> None:
        """Run passes until none is left; an exception of one is raised once those beside it are over."""
        self._lane()
        for other in self._others:
            other.join()
        _have_threads(self._lanes.all_threads)
        if self._error is not None:
            raise self._error

    @torch.inference_mode()
    def _lane(self) -> None:
        try:
            while (found := self._next()) is not None:
                taken, threads = found
                _have_threads(threads)
                result = self._passes.run(taken)
                with self._deciding:
                    self._passes.finish(taken, result)
                    self._running -= 1
                    self._wide = False
                self.tell()
        except BaseException as error:  # noqa: BLE001  (whatever it is, the caller of `until_done` gets it)
            self._error = self._error or error
            self.tell()

    def _next(self) -> tuple[Any, int] | None:
        """Wait for a pass; returns it with its number of threads, none when all is done."""
        while True:
            with self._told:
                seen = self._news
            with self._deciding:
                if (found := self._take()) is not None:
                    return found
                if self._over or self._error is not None:
                    return None
            with self._told:
                self._told.wait_for(lambda seen=seen: self._news != seen)

    def _take(self) -> tuple[Any, int] | None:
        if self._over or self._error is not None or self._wide:
            return None
        taken = self._passes.take(self._lanes.count - self._running)
        if taken is None:
            if not self._running:
                self._over = True
                self.tell()
            return None
        self._running += 1
        self._wide = self._running == 1 and not self._passes.more()
        if self._wide:
            return taken, self._lanes.all_threads
        self._open()
        self.tell()
        return taken, self._lanes.threads

    def _open(self) -> None:
        """Start the other lanes, once there is more than one pass."""
        if self._others:
            return
        for number in range(1, self._lanes.count):
            other = threading.Thread(target=self._lane, name=f"lane-{number}", daemon=True)
            self._others.append(other)
            other.start()


def _have_threads(threads: int) -> None:
    """Give this thread of ours so many of torch's; to set even the same number costs the next pass a millisecond."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
