"""Start, watch, speak to and end an engine process: the worker's side of the messages in `engine.py`."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

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
"""How long a process may take to say that it is ready."""
EXIT_S = 5.0
"""How long a process may take to end after it closed its socket, and its output after it ended."""
KILL_S = 15.0
"""How long a killed process may take to end: one that waits for a vanished card, inside the driver, never does."""
WAITING = {"GOMP_SPINCOUNT": "10000"}
"""torch's threads on a CPU spin as long as it is between two operations of a pass: others need the cores as well."""
BUFFER_BYTES = 1 << 20
LAST_LINES = 5
"""Lines of standard error that are told when the process dies."""
LINE_CHARACTERS = 1000


class EngineHost:
    """One engine process. When it has died it is of no more use: a new one is made."""

    def __init__(self, settings: Worker, device: str, scratch: Path | None = None) -> None:
        """`scratch`: folder for the files of results; none: the system's own for temporary files."""
        self._settings = settings
        self._device = device
        self._scratch = scratch or Path(tempfile.gettempdir())
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._start = _Inbox()
        self._loads: dict[str, list[_Inbox]] = {}
        self._runs: dict[str, _Inbox] = {}
        self._batches: dict[int, _Inbox] = {}
        self._loaded: dict[str, Loaded] = {}
        self._batch = 0
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._problem: str | None = None
        self._stopping = False
        self._heard_at = time.monotonic()
        self._exit: asyncio.Future[str] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._exit is not None and not self._exit.done()

    @property
    def loaded(self) -> Mapping[str, Loaded]:
        """The models in memory, by their keys."""
        return self._loaded if self.alive else {}

    @property
    def silent_s(self) -> float:
        """Seconds since it said something, or was given work."""
        return time.monotonic() - self._heard_at

    @property
    def pid(self) -> int:
        """Process id."""
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        """Start the process and wait until it is ready.

        Raises:
            EngineDied: it ended instead, or speaks another version of the messages.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(theirs.fileno()),
                env=WAITING | os.environ,
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        reader, self._writer = await asyncio.open_unix_connection(sock=ours, limit=BUFFER_BYTES)
        self._exit = asyncio.get_running_loop().create_future()
        self._watch = asyncio.create_task(self._watch_process(self._process, reader), name="engine-watch")
        try:
            async with asyncio.timeout(START_S):
                await self._expect_ready()
        except BaseException as error:
            await self.stop(grace_s=0)
            if isinstance(error, TimeoutError):
                raise EngineDied(problem=f"not ready after {START_S:g} s") from error
            raise

    async def load(self, model: ModelSpec, on_loading: Callable[[Loading], None] | None = None) -> Loaded | LoadFailed:
        """Load a model, unless it is loaded.

        Raises:
            EngineDied: the process ended meanwhile.
        """
        async for message in self._ask_about(model.key, Load(model=model)):
            if isinstance(message, Loaded | LoadFailed):
                return message
            if isinstance(message, Loading) and on_loading is not None:
                on_loading(message)
        raise AssertionError("an inbox ends by raising")

    async def unload(self, model_key: str) -> None:
        """Drop a model; one that is not loaded is fine.

        Raises:
            EngineDied: the process ended meanwhile.
        """
        async for message in self._ask_about(model_key, Unload(model_key=model_key)):
            if isinstance(message, Unloaded):
                return

    async def run(self, model_key: str, jobs: Sequence[JobSpec]) -> AsyncIterator[list[JobProgressed | JobAnswer]]:
        """Run jobs together on a loaded model; yields what they report, as it arrives, until each was answered.

        Closing the iterator before its end cancels what is left. Batches run one after the other.

        Raises:
            EngineDied: the process ended meanwhile.
        """
        if not jobs:
            return
        self._batch += 1
        batch, inbox = self._batch, _Inbox()
        self._heard_at = time.monotonic()
        self._send(Run(batch=batch, model_key=model_key, jobs=list(jobs)))
        self._batches[batch] = inbox
        self._runs.update({job.task_id: inbox for job in jobs})
        done = False
        try:
            while not done:
                messages = await inbox.next()
                done = isinstance(messages[-1], BatchDone)
                if told := [message for message in messages if isinstance(message, JobProgressed | JobAnswer)]:
                    yield told
        finally:
            self._forget(batch, inbox, jobs, cancel=not done)

    def cancel(self, task_id: str) -> None:
        """Ask a job to stop at its next step; a job that is not there is fine."""
        with suppress(EngineDied):
            self._send(Cancel(task_id=task_id))

    async def wait_exit(self) -> str:
        """Wait until the process has ended; returns why, in words."""
        assert self._exit is not None
        return await asyncio.shield(self._exit)

    async def stop(self, grace_s: float = 2.0, reason: str | None = None) -> None:
        """End the process and all that it started: asked first, killed after the grace period.

        `reason` is what those who wait for its answers are told; none: how it ended.
        """
        if self._process is None:
            return
        self._stopping = True
        self._problem = self._problem or reason
        if grace_s > 0 and self.alive:
            self._signal(signal.SIGTERM)
            with suppress(TimeoutError):
                await asyncio.wait_for(self.wait_exit(), grace_s)
        self._signal(signal.SIGKILL)
        if self._watch is not None and not (await asyncio.wait([self._watch], timeout=KILL_S))[0]:
            self._give_up(self._watch)

    # --- speaking -----------------------------------------------------------------------------------------------------

    def _command(self, fd: int) -> list[str]:
        settings = self._settings
        return [
            *(sys.executable, "-m", MODULE),
            *("--fd", str(fd)),
            *("--device", self._device),
            *("--threads", str(settings.threads)),
            *("--max-loaded", str(settings.max_loaded)),
            *("--dtype", settings.dtype),
            *("--memory-bytes", str(round((settings.memory_gb or 0) * 2**30))),
            *("--ticks-per-s", str(settings.ticks_per_s)),
            *("--ticks-total-per-s", str(settings.ticks_total_per_s)),
            *("--offload", settings.offload),
            *("--vllm-command", settings.vllm_command),
            *("--scratch", str(self._scratch)),
            *("--linear", settings.linear),
        ]

    def _send(self, message: BaseModel) -> None:
        if self._exit is None or self._writer is None:
            raise EngineDied(problem="it was not started")
        if self._exit.done():
            raise EngineDied(problem=self._exit.result())
        self._writer.write(encode_frame([message]))

    async def _ask_about(self, model_key: str, question: Load | Unload) -> AsyncIterator[FromEngine]:
        self._send(question)
        inbox = _Inbox()
        self._loads.setdefault(model_key, []).append(inbox)
        try:
            while True:
                for message in await inbox.next():
                    yield message
        finally:
            self._loads[model_key].remove(inbox)

    def _forget(self, batch: int, inbox: _Inbox, jobs: Sequence[JobSpec], *, cancel: bool) -> None:
        del self._batches[batch]
        for job in jobs:
            if cancel:
                self.cancel(job.task_id)
            if self._runs.get(job.task_id) is inbox:
                del self._runs[job.task_id]

    async def _expect_ready(self) -> None:
        first = (await self._start.next())[0]
        if not isinstance(first, Ready) or first.protocol != PROTOCOL:
            raise EngineDied(problem=f"it speaks another version: {first}")

    # --- hearing ------------------------------------------------------------------------------------------------------

    def _deliver(self, messages: Iterable[FromEngine]) -> None:
        """Hand each message to who waits for it; what nobody waits for any more is dropped."""
        self._heard_at = time.monotonic()
        for message in messages:
            match message:
                case Loaded(model_key=key):
                    self._loaded[key] = message
                case Unloaded(model_key=key):
                    self._loaded.pop(key, None)
                case _:
                    pass
            match message:
                case BatchDone(batch=batch):
                    inboxes = [self._batches.get(batch)]
                case (
                    Loading(model_key=key) | Loaded(model_key=key) | LoadFailed(model_key=key) | Unloaded(model_key=key)
                ):
                    inboxes = self._loads.get(key, [])
                case Ready():
                    inboxes = [self._start]
                case _:
                    inboxes = [self._runs.get(message.task_id)]
            for inbox in inboxes:
                if inbox is not None:
                    inbox.put(message)

    async def _hear(self, reader: asyncio.StreamReader) -> None:
        """Deliver messages until the socket closes, or brings what is none."""
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(LENGTH_BYTES), "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")  # noqa: TRY301
                self._deliver(decode_from_engine(await reader.readexactly(length)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except (ValidationError, ValueError) as error:
            self._problem = f"it broke the protocol: {error}"
            self._signal(signal.SIGKILL)

    # --- watching -----------------------------------------------------------------------------------------------------

    async def _watch_process(self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        hearing = asyncio.create_task(self._hear(reader), name="engine-messages")
        outputs = [
            asyncio.create_task(self._drain(process.stdout, logging.DEBUG, None), name="engine-stdout"),
            asyncio.create_task(self._drain(process.stderr, logging.INFO, self._last_lines), name="engine-stderr"),
        ]
        exited = asyncio.create_task(process.wait(), name="engine-exit")
        await asyncio.wait([exited, hearing], return_when=asyncio.FIRST_COMPLETED)
        if not (await asyncio.wait([exited], timeout=EXIT_S))[0]:
            self._signal(signal.SIGKILL)
        status = await exited
        await _end_soon([hearing, *outputs])
        self._close(status)

    def _close(self, status: int) -> None:
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        told = "" if self._stopping else "; ".join(self._last_lines)
        reason = (self._problem or how) + (f" ({told})" if told else "")
        assert self._exit is not None
        self._exit.set_result(reason)
        if self._writer is not None:
            self._writer.close()
        for inbox in [self._start, *self._batches.values(), *(each for some in self._loads.values() for each in some)]:
            inbox.end(reason)

    def _give_up(self, watch: asyncio.Task[None]) -> None:
        """Let go of a process that even a kill does not end; who waits for its answers is told."""
        log.error("the engine process %d cannot be killed: it is left behind", self.pid)
        watch.cancel()
        if self.alive:
            self._problem = self._problem or "it cannot be killed"
            self._close(-signal.SIGKILL)

    async def _drain(self, stream: asyncio.StreamReader, level: int, last_lines: deque[str] | None) -> None:
        """Log what libraries print, line by line; a process must never wait for somebody to read it."""
        rest = ""
        while chunk := await stream.read(LINE_CHARACTERS * 16):
            *lines, rest = (rest + chunk.decode(errors="replace")).replace("\r", "\n").split("\n")
            rest = rest[-LINE_CHARACTERS:]
            for line in filter(str.strip, lines):
                log.log(level, "engine %d: %s", self.pid, line[:LINE_CHARACTERS])
                if last_lines is not None:
                    last_lines.append(line[:LINE_CHARACTERS])

    def _signal(self, number: signal.Signals) -> None:
        """Signal the process and, being the leader of its session, what it started."""
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


class _Inbox:
    """Messages for one who waits, all that are there at a time; when the process has died, the waiting raises."""

    def __init__(self) -> None:
        self._messages: list[FromEngine] = []
        self._reason: str | None = None
        self._changed = asyncio.Event()

    def put(self, message: FromEngine) -> None:
        self._messages.append(message)
        self._changed.set()

    def end(self, reason: str) -> None:
        self._reason = reason
        self._changed.set()

    async def next(self) -> list[FromEngine]:
        await self._changed.wait()
        if self._messages:
            messages, self._messages = self._messages, []
            if self._reason is None:
                self._changed.clear()
            return messages
        assert self._reason is not None
        raise EngineDied(problem=self._reason)


async def _end_soon(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Let tasks end by themselves, but not for long: a grandchild may hold the other end."""
    _, late = await asyncio.wait(tasks, timeout=EXIT_S)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
