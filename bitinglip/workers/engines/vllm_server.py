"""A vLLM server as a child of the engine process: started, waited for, and ended with all that it started itself."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import httpx
import psutil

from bitinglip.workers.engine import ModelSpec, Placement
from bitinglip.workers.engines.failures import LoadError

LOOPBACK = "127.0.0.1"
DEFAULT_COMMAND = ("vllm", "serve")
LOOK_S = 0.1
"""Pause between two looks at whether a server is up."""
LOOKS_A_TICK = 10
LOOK_TIMEOUT_S = 5.0
STOP_S = 10.0
"""How long a server may take to end by itself before it is killed."""
OUTPUT_S = 1.0
"""How long the output of a server that has ended is waited for: what it started may hold the other end."""
LAST_LINES = 8
"""Lines of its output that are told when a server ends by itself."""
LINE_CHARACTERS = 240
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class Server:
    """A running vLLM server, for one model and for this process alone: others do not know its key.

    Raises:
        LoadError: the command is not there.
    """

    def __init__(self, spec: ModelSpec, folder: Path, placement: Placement) -> None:
        port = _free_port()
        self.url = f"http://{LOOPBACK}:{port}"
        self.key = secrets.token_urlsafe()
        self._reference = spec.reference
        self._folder = str(folder)
        self._process = _start(_command(spec, folder, placement, port), _environment(placement.device, self.key))
        self._family: list[psutil.Process] = []
        self._last_lines: deque[str] = deque(maxlen=LAST_LINES)
        self._reader = threading.Thread(target=self._read, name="vllm-output", daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    @cached_property
    def ending(self) -> str:
        """How it ended, with the last that it printed."""
        status = self._process.wait()
        self._reader.join(OUTPUT_S)
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        told = "; ".join(self._last_lines).replace(self._folder, self._reference)
        return f"{how} ({told})" if told else how

    def wait_until_up(self, progress: Callable[[int, int], None]) -> None:
        """Wait until it takes requests; says about once a second that it is on its way.

        Raises:
            LoadError: it ended instead.
        """
        looks = 0
        with httpx.Client(timeout=LOOK_TIMEOUT_S, trust_env=False) as client:
            while not self._ends_within(LOOK_S):
                if looks % LOOKS_A_TICK == 0:
                    progress(0, 1)
                if _is_up(client, self.url):
                    self._family = self._children()
                    return
                looks += 1
        raise LoadError(f"{self._reference}: its vLLM server did not come up: {self.ending}")

    def stop(self) -> None:
        """End it and all that it started, which holds the device's memory; one that has ended is fine."""
        family = {*self._family, *self._children()}
        self._process.terminate()
        if not self._ends_within(STOP_S):
            self._process.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self._process.wait()

    def _ends_within(self, seconds: float) -> bool:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        return self.ended

    def _children(self) -> list[psutil.Process]:
        if self.ended:
            return []  # its id may be another process's by now
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._process.pid).children(recursive=True)
        return []

    def _read(self) -> None:
        """Keep its last lines, and pass all on to the worker's log, where this process's standard output goes."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if text := line.rstrip():
                    self._last_lines.append(text[-LINE_CHARACTERS:])
                    sys.stdout.write(f"vllm: {text}\n")
                    sys.stdout.flush()


def _command(spec: ModelSpec, folder: Path, placement: Placement, port: int) -> list[str]:
    return [
        *(placement.vllm_command or DEFAULT_COMMAND),
        str(folder),
        *("--host", LOOPBACK),
        *("--port", str(port)),
        *("--served-model-name", spec.reference),
        *(("--dtype", placement.dtype) if placement.dtype != "auto" else ()),
        *(("--trust-remote-code",) if spec.trust_code else ()),
    ]


def _environment(device: str, key: str) -> dict[str, str]:
    """Return what the server is to find in its environment: the worker's cards, its key, and nobody to report to."""
    own = {"VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **_visible_cards(device, os.environ), **own}


def _visible_cards(device: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variable that shows a server the worker's cards alone, counted among those that the worker sees."""
    names = [name.strip().partition(":") for name in device.split(",")]
    indices = [int(index or 0) for kind, _, index in names if kind == "cuda"]
    if not indices:
        return {}
    seen = [name for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return {"CUDA_VISIBLE_DEVICES": ",".join(seen[index] if index < len(seen) else str(index) for index in indices)}


def _start(command: list[str], environ: Mapping[str, str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # vLLM logs to the one, and dies on the other
            text=True,
            errors="replace",
            preexec_fn=_die_with_parent,
        )
    except OSError as error:
        raise LoadError(
            f"The command {command[0]!r} cannot be run ({error.strerror}): install vLLM in an environment of its own, "
            "and say in `worker.vllm_command` how its server is started there."
        ) from error


def _die_with_parent() -> None:
    """Have the server asked to end when this process is gone: it then ends its own children, which a kill would not."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]


def _is_up(client: httpx.Client, url: str) -> bool:
    try:
        return client.get(f"{url}/health").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
