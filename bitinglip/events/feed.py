"""The events of followed tasks, taken from a tail of TASKS that is read anyway: a follower costs the server nothing.

A tail has neither gaps nor repeats, over reconnects as well, so whoever listens misses nothing as long as the feed
flows. It stands still while the tail's reader does (it is held back, or replaced): listeners are told so, and look
for another source.
"""

from __future__ import annotations

from typing import Protocol

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.ids import TaskId


class Listener(Protocol):
    """Who listens for one task."""

    def heard(self, message: RawMessage) -> None:
        """Take the task's next event."""
        ...

    def interrupted(self) -> None:
        """Know that nothing more comes: the listener has been forgotten."""
        ...


class TaskFeed:
    """Hands each event to those who listen for its task, at once, in the order of the log."""

    def __init__(self) -> None:
        self.flowing = False
        """Whether what is appended now is soon here."""
        self._listeners: dict[bytes, list[Listener]] = {}

    def listen(self, task_id: TaskId, listener: Listener) -> bool:
        """Hand the task's events to the listener from now on; false if the feed does not flow."""
        if self.flowing:
            self._listeners.setdefault(task_id.encode(), []).append(listener)
        return self.flowing

    def forget(self, task_id: TaskId, listener: Listener) -> None:
        """Stop. A listener that is not known, or no longer, is left alone."""
        key = task_id.encode()
        left = [other for other in self._listeners.get(key, ()) if other is not listener]
        if left:
            self._listeners[key] = left
        else:
            self._listeners.pop(key, None)

    def offer(self, messages: Messages) -> None:
        """Hand out what the tail has read."""
        if not self._listeners:
            return
        for index, subject in enumerate(messages.subjects):
            for listener in self._listeners.get(subject.split(b".", 3)[2], ()):
                listener.heard(messages[index])

    def flow(self) -> None:
        """Know that the tail has come to the end of the log, or goes on."""
        self.flowing = True

    def stall(self) -> None:
        """Know that the tail is read no further for now: all listeners are told, and forgotten."""
        self.flowing = False
        listeners, self._listeners = self._listeners, {}
        for listener in [listener for waiting in listeners.values() for listener in waiting]:
            listener.interrupted()
