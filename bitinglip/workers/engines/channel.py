"""The engine process's end of the socket to its worker: frames in; messages out, coalesced by a thread of their own."""

from __future__ import annotations

import os
import socket
import threading
import time
import traceback

from pydantic import BaseModel

from bitinglip.events.task import Failure
from bitinglip.workers.engine import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    JobFailed,
    JobSucceeded,
    ToEngine,
    decode_to_engine,
    encode_message,
    frame,
)
from bitinglip.workers.engines.failures import described
from bitinglip.workers.engines.ticks import Ticks

FRAME_BYTES = 4 * 2**20
"""A frame is closed when it has grown to this size, so that many large results do not make one huge one."""
CHUNK_BYTES = 1 << 20


class Channel:
    """Speaks to the worker. Sending never waits for it; what is ready together travels together."""

    def __init__(self, sock: socket.socket, ticks: Ticks) -> None:
        self._socket = sock
        self._pending: list[BaseModel] = []
        self._ticks = ticks
        self._ready = threading.Condition(threading.Lock())
        self._sending = False
        threading.Thread(target=self._write, name="writer", daemon=True).start()

    def send(self, *messages: BaseModel) -> None:
        """Send messages, with all that is pending."""
        with self._ready:
            self._pending += messages
            self._ready.notify()

    def progress(
        self, task_id: str, step: int, total: int | None, unit: str, text: str | None, reasoning: str | None = None
    ) -> None:
        """Send a task's progress, merged to the tick rate."""
        with self._ready:
            if self._ticks.add(time.monotonic(), task_id, step, total, unit, text, reasoning):
                self._ready.notify()

    def preview(self, task_id: str, picture: str) -> None:
        """Keep a small picture for a task's next progress."""
        with self._ready:
            self._ticks.show(time.monotonic(), task_id, picture)

    def answer(self, task_id: str, message: BaseModel) -> None:
        """Send a task's final message, after what was kept of its progress."""
        with self._ready:
            kept = self._ticks.end(time.monotonic(), task_id)
            self._pending += [message] if kept is None else [kept, message]
            self._ready.notify()

    def flush(self) -> None:
        """Wait until all that was sent has left."""
        with self._ready:
            self._ready.wait_for(lambda: not self._pending and not self._sending)

    def receive(self) -> list[ToEngine] | None:
        """Wait for the next frame; none when the worker is gone."""
        head = self._read_exactly(LENGTH_BYTES)
        body = head and self._read_exactly(int.from_bytes(head, "big"))
        return decode_to_engine(body) if body else None

    def _read_exactly(self, size: int) -> bytes | None:
        chunks: list[bytes] = []
        while size > 0:
            try:
                chunk = self._socket.recv(min(size, CHUNK_BYTES))
            except ConnectionError:
                return None
            if not chunk:
                return None
            chunks.append(chunk)
            size -= len(chunk)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _write(self) -> None:
        try:
            while True:
                self._send_frames(self._take())
        except OSError:
            os._exit(0)  # the worker is gone
        except BaseException:  # noqa: BLE001  (a process that cannot speak is of no use: its worker makes another one)
            traceback.print_exc()
            os._exit(1)

    def _take(self) -> list[BaseModel]:
        with self._ready:
            self._sending = False
            self._ready.notify_all()
            while True:
                now = time.monotonic()
                messages = [*self._pending, *self._ticks.due(now)]
                if messages:
                    self._pending = []
                    self._sending = True
                    return messages
                due = self._ticks.next_due()
                self._ready.wait(None if due is None else max(0.0, due - now))

    def _send_frames(self, messages: list[BaseModel]) -> None:
        bodies: list[bytes] = []
        size = 0
        for message in messages:
            body = _encode(message)
            if bodies and size + len(body) > FRAME_BYTES:
                self._socket.sendall(frame(bodies))
                bodies, size = [], 0
            bodies.append(body)
            size += len(body)
        self._socket.sendall(frame(bodies))


def _encode(message: BaseModel) -> bytes:
    """Encode a message; a result that cannot be sent becomes its task's failure."""
    try:
        body = encode_message(message)
        problem = f"The result has {len(body)} bytes." if len(body) > MAX_FRAME_BYTES - 2 else None
    except (TypeError, ValueError) as error:
        body, problem = b"", f"The result is not JSON: {described(error)}"
    if problem is None:
        return body
    match message:
        case JobSucceeded(task_id=task_id):
            failure = Failure(kind="engine_error", message=problem, retryable=False)
            return encode_message(JobFailed(task_id=task_id, failure=failure))
        case _:
            raise RuntimeError(f"{type(message).__name__}: {problem}")
