"""A server that stands in for vLLM's, run by a test; and what it says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bitinglip.workers.engine import JobFailed
from tests.engines.support import Said
from tests.support.standin_vllm import WHOLE

COMMAND = (sys.executable, "-m", "tests.support.standin_vllm", "serve")
WORDS = [f"word{number} " for number in range(1, WHOLE + 1)]
TEXT = "".join(WORDS)


@dataclass
class Running:
    """A stand-in that a test has started, to be joined."""

    process: subprocess.Popen[str]
    url: str

    def tell(self) -> dict[str, Any]:
        """Return what has happened there."""
        return httpx.get(f"{self.url}/standin", trust_env=False).json()

    def asked(self, prompt: str) -> dict[str, Any]:
        """Return the one request with this prompt."""
        (asked,) = [each for each in self.tell()["asked"] if each.get("prompt") == prompt]
        return asked

    def release(self) -> None:
        """Have it end what it holds."""
        release(self.url)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.communicate(timeout=10)


def start_standin(folder: Path, *names: str) -> Running:
    command = [*COMMAND, str(folder), "--host", "127.0.0.1", "--port", "0", "--served-model-name", *names]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return Running(process, f"http://127.0.0.1:{int(process.stdout.readline())}")


def release(url: str) -> None:
    """Have a server that stands in end what it holds."""
    httpx.post(f"{url}/standin", trust_env=False)


def failure_of(said: Said) -> tuple[str, bool, str]:
    assert isinstance(said.answer, JobFailed), said.answer
    failure = said.answer.failure
    return failure.kind, failure.retryable, failure.message
