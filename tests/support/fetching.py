"""The processes that fetch, check and share, run as an agent runs them: a job in, lines out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bitinglip.events.model import ModelFile
from bitinglip.models.protocol import FetchJob
from tests.support.hubrepos import files_of
from tests.support.modelhub import ModelHub

DEADLINE_S = 60


def files_in(folder: Path) -> tuple[ModelFile, ...]:
    """Return the files of a folder as a description has them: large ones by SHA-256, others by git's name."""
    return tuple(
        ModelFile(
            path=file.path, size_bytes=file.size, sha256=file.sha256, git_sha1=None if file.sha256 else file.git_sha1
        )
        for file in files_of(folder).values()
    )


def job_of(hub: ModelHub, name: str, folder: Path, cache: Path, **fields: Any) -> FetchJob:
    """Serve a folder, and return the job of fetching all of it."""
    commit = hub.add(name, folder)
    fields = {"files": files_in(folder), "endpoint": hub.endpoint} | fields
    return FetchJob(reference=name, revision=commit, cache_dir=cache, **fields)


class Child:
    """A process that was given a job."""

    def __init__(self, module: str, job: str, preexec: Callable[[], None] | None = None, **environ: str) -> None:
        self.lines: list[dict[str, Any]] = []
        self._came = threading.Condition()
        self.process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
            preexec_fn=preexec,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(f"{job}\n")
        self.process.stdin.flush()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(json.loads(line))
                self._came.notify_all()

    def wait_for(self, check: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        """Wait until a line has come that is as wanted, and return it."""

        def found() -> dict[str, Any] | None:
            return next((line for line in self.lines if check(line)), None)

        with self._came:
            line = self._came.wait_for(found, DEADLINE_S)
        assert line is not None, self.lines
        return line

    def outcome(self) -> dict[str, Any]:
        """Wait until it has ended, and return its last line."""
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        assert self.lines, self.process.returncode
        return self.lines[-1]

    def kill(self) -> None:
        """End it as a crash does."""
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)

    def close(self) -> None:
        """Leave nothing of it."""
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextmanager
def fetching(job: FetchJob, preexec: Callable[[], None] | None = None, **environ: str) -> Iterator[Child]:
    """Start a fetch."""
    child = Child("bitinglip.models.fetch", job.model_dump_json(), preexec, **environ)
    try:
        yield child
    finally:
        child.close()


def fetched(job: FetchJob, **environ: str) -> dict[str, Any]:
    """Fetch, and return the outcome."""
    with fetching(job, None, **environ) as child:
        return child.outcome()
