"""The gateway's end, as those hear of it who wait for events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Closing(asyncio.Event):
    """Set when the gateway shuts down; a listener costs less than a task that waits."""

    def __init__(self) -> None:
        super().__init__()
        self._listeners: dict[int, Callable[[], None]] = {}
        self._next = 0

    def on_set(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Call the listener at the end, or now if that has come; returns how to stop that."""
        if self.is_set():
            listener()
        self._next += 1
        key = self._next
        self._listeners[key] = listener
        return lambda: self._listeners.pop(key, None) and None

    def set(self) -> None:
        """Tell all who wait."""
        super().set()
        for listener in list(self._listeners.values()):
            listener()
