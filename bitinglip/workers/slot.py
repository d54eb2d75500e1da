"""One worker that a node keeps running: started, started again when it ends by itself, drained, stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bitinglip.errors import ChildFailed
from bitinglip.events.node import NodeWorker, WorkerState
from bitinglip.workers.logfile import LogFile
from bitinglip.workers.workerchild import WorkerChild

BACKOFF_S = (0.1, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Pauses before a worker is started again; the first is for one that had run well."""
WELL_S = 30.0
"""A worker that ran for this long ran well."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker process ended, and what it left."""

    status: int
    told: list[str]
    """The last lines of its log."""
    held: frozenset[str]
    """Where the work messages are acked that it held."""
    restart_in_s: float | None
    """None: it was asked to stop."""


class Slot:
    """A worker's place on a device; its process comes and goes."""

    def __init__(
        self,
        worker_id: str,
        device: str,
        env: Mapping[str, str],
        log: LogFile,
        patience_s: float,
        on_exit: Callable[[Slot, Exit], Awaitable[None]],
    ) -> None:
        """`patience_s`: how long it may take to stop before it is killed."""
        self.worker_id = worker_id
        self.device = device
        self.log = log
        self.state: WorkerState = "starting"
        self.draining = False
        self.ready: dict[str, Any] = {}
        """What the process said when it was ready."""
        self.exits = 0
        self._env = env
        self._patience_s = patience_s
        self._on_exit = on_exit
        self._child: WorkerChild | None = None
        self._wanted = True
        self._stopping = False
        self._drained = False
        self._closing = False
        self._failures = 0
        self._moved = asyncio.Event()
        self._wake = asyncio.Event()
        self._killer: asyncio.TimerHandle | None = None
        self._answers: dict[int, asyncio.Future[str | None]] = {}

    async def run(self) -> None:
        """Keep the worker running until `close`."""
        while not self._closing:
            self._wake.clear()
            if self._wanted:
                await self._live()
            else:
                self._move("stopped")
                await self._wake.wait()
        self._move("stopped")

    async def until(self, *states: WorkerState) -> WorkerState:
        """Wait until the worker is in one of these states; returns which."""
        while self.state not in states:
            await self._moved.wait()
        return self.state

    def fact(self) -> NodeWorker:
        """Return the worker as events tell of it."""
        child = self._child
        return NodeWorker(
            worker_id=self.worker_id,
            device=self.device,
            state=self.state,
            pid=child.pid if child else None,
            held=len(child.held) if child else 0,
            exits=self.exits,
        )

    # --- commands -----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Run it if it was stopped; do not wait any longer if it is to be started again."""
        self._wanted = True
        self._wake.set()

    def stop(self) -> None:
        """End it, and leave it so."""
        self._wanted = False
        self._end()

    def restart(self) -> None:
        """End it, and start it anew."""
        self._wanted = True
        self._end()

    def drain(self) -> None:
        """Have it take nothing new."""
        self.draining = True
        if self._child is not None and self.state == "ready":
            self._move("draining")
        self._tell("drain")

    def undrain(self) -> None:
        """Have it take work again."""
        self.draining = self._drained = False
        if self._child is not None and self.state in {"draining", "drained"}:
            self._move("ready")
        self._tell("undrain")

    def label(self, labels: Sequence[str]) -> None:
        """Give it these labels, which tasks may require: now, and whenever it starts."""
        self._env = {**self._env, "BITINGLIP_WORKER_LABELS": ",".join(labels)}
        self._tell("labels", labels=list(labels))

    def look_for_models(self) -> None:
        """Have it look at its disk again: models have come or gone. One that starts does so anyway."""
        self._tell("models")

    def close(self) -> None:
        """End it for good."""
        self._closing = True
        self.stop()

    def kill(self) -> None:
        """End it at once."""
        if self._child is not None:
            self._child.kill()

    async def ask(self, command: str, model: str, timeout_s: float) -> str | None:
        """Have a running worker do something; returns what went wrong, if anything.

        Raises:
            TimeoutError: it does not answer.
        """
        if self._child is None or self.state not in {"ready", "draining", "drained"}:
            return f"the worker is {self.state}"
        number = max(self._answers, default=0) + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            self._child.tell(command, model=model, id=number)
            return await asyncio.wait_for(answer, timeout_s)
        finally:
            del self._answers[number]

    # --- its life -----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        loop = asyncio.get_running_loop()
        child = self._child = WorkerChild(self.worker_id, self._env, self.log, self._heard)
        self._stopping, self._drained, began = False, False, loop.time()
        self._move("starting")
        try:
            self.ready = await child.start(*(["drain"] if self.draining else []))
            if not self._stopping:
                self._move(self._state_when_up())
            status = await child.wait()
        except ChildFailed as failed:
            status = failed.exit_status
        self._child = None
        if self._killer is not None:
            self._killer.cancel()
        for answer in self._answers.values():
            if not answer.done():
                answer.set_result("the worker ended")
        self._failures = 0 if loop.time() - began > WELL_S else self._failures
        pause_s = None if self._stopping else BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        if pause_s is not None:
            self.exits += 1
            self._failures += 1
            self._move("waiting")
        await self._on_exit(self, Exit(status, child.last_lines(), frozenset(child.held), pause_s))
        if pause_s is not None and not self._closing:
            await self._pause(pause_s)

    async def _pause(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return

    def _end(self) -> None:
        self._wake.set()
        if self._child is None:
            return
        if not self._stopping:
            self._stopping = True
            self._move("stopping")
            self._killer = asyncio.get_running_loop().call_later(self._patience_s, self.kill)
        self._child.ask_to_stop()

    def _tell(self, command: str, **more: Any) -> None:
        if self._child is not None:
            self._child.tell(command, **more)

    def _heard(self, message: dict[str, Any]) -> None:
        if message.get("drained") and self.draining:
            self._drained = True  # it may be heard before that the worker is ready
            if self.state in {"ready", "draining"}:
                self._move("drained")
        answer = self._answers.get(message.get("answer", 0))
        if answer is not None and not answer.done():
            answer.set_result(message["problem"])

    def _state_when_up(self) -> WorkerState:
        if not self.draining:
            return "ready"
        return "drained" if self._drained else "draining"

    def _move(self, state: WorkerState) -> None:
        self.state = state
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()
