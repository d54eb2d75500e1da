"""How far a fetch has come."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from bitinglip.models.protocol import Line, Progress, Step, say

EACH_S = 0.2
"""Between two lines of progress."""
TRANSFER = "downloading bytes"
"""Ends the name of the second bar of a file that xet brings: what travels, beside what is written."""


class Halted(BaseException):
    """Raised in whatever thread goes on with a fetch that was told to stop."""


class Meter:
    """Counts bytes for all files together; used by many threads."""

    def __init__(self, total_bytes: int) -> None:
        self.stop = threading.Event()
        """Set to have the fetch stop."""
        self.done_bytes = 0
        self.hub_bytes = 0
        self.peer_bytes = 0
        self._total = total_bytes
        self._moving = 0
        self._told: Progress | None = None
        self._lock = threading.Lock()

    def moving(self, change: int) -> None:
        """Count files that travel: while there are any, the step is `fetching`."""
        with self._lock:
            self._moving += change

    def count(self, change: int, *, hub: int = 0, peer: int = 0) -> None:
        """Count bytes that are done, or, if less than zero, that are undone.

        Raises:
            Halted: the fetch is to stop.
        """
        with self._lock:
            self.done_bytes += change
            self.hub_bytes += hub
            self.peer_bytes += peer
        self.halt()

    def halt(self) -> None:
        """Give up if it is time to.

        Raises:
            Halted: the fetch is to stop.
        """
        if self.stop.is_set():
            raise Halted

    def pause(self, seconds: float) -> None:
        """Wait for a while.

        Raises:
            Halted: the fetch is to stop.
        """
        self.stop.wait(seconds)
        self.halt()

    def tell(self) -> None:
        """Write a line of progress, if there is anything new."""
        step: Step = "fetching" if self._moving else "checking"
        progress = Progress(step=step, done_bytes=self.done_bytes, total_bytes=self._total)
        if progress != self._told:
            self._told = progress
            say(Line(progress=progress))


class FileMeter:
    """Counts the bytes of one file, so that they can be taken back when it is begun anew."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.done = 0

    def __enter__(self) -> FileMeter:
        """The file begins to travel."""
        self.meter.moving(+1)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """It does not travel any more."""
        self.meter.moving(-1)

    def hub(self, change: int) -> None:
        """Count bytes that came from the hub."""
        self.done += change
        self.meter.count(change, hub=change)

    def peer(self, change: int) -> None:
        """Count bytes that came from a peer."""
        self.done += change
        self.meter.count(change, peer=change)

    def is_at(self, done: int) -> None:
        """Say how much of the file is there: what was there before, or all of it, or nothing."""
        change, self.done = done - self.done, done
        self.meter.count(change)

    def bar(self) -> type[Any]:
        """Return what huggingface_hub takes for a class of progress bars."""
        meter = self

        class Bar(_Bar):
            def update(self, n: float | None = 1) -> None:
                if not self.desc.endswith(TRANSFER):
                    meter.hub(int(n or 0))
                meter.meter.halt()

        return Bar


class _Bar:
    """As much of a tqdm as huggingface_hub uses, without a picture."""

    def __init__(self, *_: object, **options: Any) -> None:
        self.desc = str(options.get("desc") or "")
        self.total = options.get("total")
        self.n = 0

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass

    def refresh(self) -> None:
        pass

    def set_description(self, *_: object, **__: object) -> None:
        pass

    def set_postfix_str(self, *_: object, **__: object) -> None:
        pass
