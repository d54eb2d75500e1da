"""A process that works on the store of models for its node agent: one job, its progress, one outcome."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress

from pydantic import BaseModel, ValidationError

from bitinglip.models.protocol import Failed, Line, Progress, Stopped
from bitinglip.processes import before_exec, how_it_ended

log = logging.getLogger("bitinglip.node")

LINE_BYTES = 1 << 24
AGAIN_S = 2.0
"""When a job is tried again whose process died."""


class ModelChild:
    """One such process, from its start to its outcome."""

    def __init__(self, module: str, environ: Mapping[str, str] | None = None) -> None:
        """`module`: what it runs, as `bitinglip.models.fetch`; `environ`: what is in its environment besides ours."""
        self._module = module
        self._environ = environ or {}
        self._process: asyncio.subprocess.Process | None = None
        self._stopped = False

    async def run(self, job: BaseModel, hear: Callable[[Progress], None] = lambda _: None) -> Line:
        """Do a job, and return its outcome; a process that dies without one has failed."""
        self._process = process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=LINE_BYTES,
            env={**os.environ, **self._environ},
            start_new_session=True,
            preexec_fn=before_exec(),
        )
        if self._stopped:
            self._signal(signal.SIGTERM)
        try:
            outcome = await self._converse(process, job, hear)
        except BaseException:
            self._signal(signal.SIGKILL)
            raise
        finally:
            status = await process.wait()
        return outcome or self._without_outcome(status)

    def stop(self) -> None:
        """Have it end soon; what it has done stays."""
        self._stopped = True
        self._signal(signal.SIGTERM)

    async def _converse(
        self, process: asyncio.subprocess.Process, job: BaseModel, hear: Callable[[Progress], None]
    ) -> Line | None:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended already: its status tells
            process.stdin.write(job.model_dump_json().encode() + b"\n")
            await process.stdin.drain()
        while text := await process.stdout.readline():
            try:
                line = Line.model_validate_json(text)
            except ValidationError:
                log.warning("%s says what is no message: %r", self._module, text[:200])
                continue
            if line.progress is None:
                return line
            hear(line.progress)
        return None

    def _without_outcome(self, status: int) -> Line:
        if self._stopped:
            return Line(stopped=Stopped(done_bytes=0))
        message = f"The process that did it {how_it_ended(status)}."
        remedy = "It is tried again by itself; if it repeats, look at the node's log."
        return Line(
            failed=Failed(code="fetch_failed", message=message, remedy=remedy, retryable=True, retry_after_s=AGAIN_S)
        )

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, number)
