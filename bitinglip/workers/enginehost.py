"""Start, watch, speak to and end an engine process: the worker's side of the messages in `engine.py`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from bitinglip.errors import EngineDied
from bitinglip.settings import Worker
from bitinglip.workers.engine import (
    LENGTH_BYTES,
    MAX_FRAME_BYTES,
    PROTOCOL,
    BatchDone,
    Cancel,
    FromEngine,
    JobAnswer,
    JobProgressed,
    JobSpec,
    Load,
    Loaded,
    LoadFailed,
    Loading,
    ModelSpec,
    Ready,
    Run,
    Unload,
    Unloaded,
    decode_from_engine,
    encode_frame,
)

log = logging.getLogger(__name__)

MODULE = "bitinglip.workers.engines.host"
START_S = 60.0
LAST_LINES = 5
"""Lines of the process's output that are told when it dies."""
LINE_BYTES = 64 * 1024

JobMessages = list[JobProgressed | JobAnswer]


class EngineHost:
    """One engine process. It runs one batch at a time; a new one is made when it has died."""

    def __init__(self, settings: Worker, device: str) -> None:
        self._settings = settings
        self._device = device
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._inbox: asyncio.Queue[list[FromEngine] | None] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._exit: str | None = None
        self._exited = asyncio.Event()
        self._batch = 0

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._exit is None

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            EngineDied: it ended instead, or is of another version.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=LINE_BYTES,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        output = asyncio.create_task(self._drain_output(), name="engine-output")
        self._tasks = [output, asyncio.create_task(self._read(reader, output), name="engine-messages")]
        try:
            async with asyncio.timeout(START_S):
                (first,) = await self._next()
        except TimeoutError as error:
            await self.stop(grace_s=0)
            raise EngineDied(problem=f"not ready after {START_S:g} s") from error
        if not isinstance(first, Ready) or first.protocol != PROTOCOL:
            await self.stop(grace_s=0)
            raise EngineDied(problem=f"it speaks another protocol: {first}")

    async def load(
        self, model: ModelSpec, on_loading: Callable[[Loading], None] | None = None
    ) -> Loaded | LoadFailed:
        """Load a model, unless it is loaded.

        Raises:
            EngineDied: the process ended meanwhile.
        """
        self._send(Load(model=model))
        while True:
            for message in await self._next():
                if isinstance(message, Loaded | LoadFailed):
                    return message
                if isinstance(message, Loading) and on_loading is not None:
                    on_loading(message)

    async def unload(self, model_key: str) -> None:
        """Drop a model; one that is not loaded is fine.

        Raises:
            EngineDied: the process ended meanwhile.
        """
        self._send(Unload(model_key=model_key))
        while not any(isinstance(message, Unloaded) for message in await self._next()):
            pass

    async def run(self, model_key: str, jobs: Sequence[JobSpec]) -> AsyncIterator[JobMessages]:
        """Run jobs together on a loaded model; yields what they report, as it arrives, until each was answered.

        Raises:
            EngineDied: the process ended meanwhile.
        """
        if not jobs:
            return
        self._batch += 1
        self._send(Run(batch=self._batch, model_key=model_key, jobs=list(jobs)))
        done = False
        while not done:
            messages = await self._next()
            done = any(isinstance(message, BatchDone) and message.batch == self._batch for message in messages)
            told = [message for message in messages if isinstance(message, JobProgressed | JobAnswer)]
            if told:
                yield told

    def cancel(self, task_id: str) -> None:
        """Ask a job to stop at its next step; a job that is not there is fine."""
        with suppress(EngineDied):
            self._send(Cancel(task_id=task_id))

    async def wait_exit(self) -> str:
        """Wait until the process has ended; returns why, in words."""
        await self._exited.wait()
        assert self._exit is not None
        return self._exit

    async def stop(self, grace_s: float = 2.0) -> None:
        """End the process: asked first, killed after the grace period."""
        process = self._process
        if process is None:
            return
        if process.returncode is None and grace_s > 0:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._exited.wait(), grace_s)
        self._signal(signal.SIGKILL)
        await self._exited.wait()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _command(self, fd: int) -> list[str]:
        settings = self._settings
        return [
            *(sys.executable, "-m", MODULE),
            *("--fd", str(fd)),
            *("--device", self._device),
            *("--threads", str(settings.threads)),
            *("--max-loaded", str(settings.max_loaded)),
            *("--ticks-per-s", str(settings.ticks_per_s)),
        ]

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)

    def _send(self, message: BaseModel) -> None:
        if not self.alive or self._writer is None:
            raise EngineDied(problem=self._exit or "it was never started")
        self._writer.write(encode_frame([message]))

    async def _next(self) -> list[FromEngine]:
        messages = await self._inbox.get()
        if messages is None:
            self._inbox.put_nowait(None)
            raise EngineDied(problem=self._exit or "it closed its socket")
        return messages

    async def _read(self, reader: asyncio.StreamReader, output: asyncio.Task[None]) -> None:
        problem: str | None = None
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                self._inbox.put_nowait(decode_from_engine(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # it ended: `_ended` tells how
        except (ValidationError, ValueError) as error:
            problem = f"it broke its protocol: {error}"
            self._signal(signal.SIGKILL)
        await self._ended(problem, output)

    async def _ended(self, problem: str | None, output: asyncio.Task[None]) -> None:
        assert self._process is not None
        try:
            status = await asyncio.wait_for(self._process.wait(), START_S)
        except TimeoutError:
            self._signal(signal.SIGKILL)
            status = await self._process.wait()
        await output
        told = "; ".join(line for line in self._last_lines if line.strip())
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        self._exit = (problem or how) + (f" (its last words: {told[-1000:]})" if told and status > 0 else "")
        if self._writer is not None:
            self._writer.close()
        self._inbox.put_nowait(None)
        self._exited.set()

    async def _drain_output(self) -> None:
        """Pass what libraries print to the log; a process must never wait for somebody to read it."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                line = await self._process.stdout.readline()
            except ValueError:  # a line over the limit: asyncio has dropped it
                continue
            if not line:
                return
            text = line.decode(errors="replace").rstrip()
            self._last_lines.append(text)
            log.debug("engine: %s", text)
