"""The nats-server binary: find one, fetch one, and run a private one as a child.

`python -m bitinglip.cli.natsserver` finds or fetches it and prints its path.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bitinglip.cli.natsfetch import fetch
from bitinglip.errors import BitingLipError, NoServer, ServerBinaryMissing
from bitinglip.processes import before_exec

LEAST_VERSION = (2, 12)
READY_S = 30.0
STOP_S = 10.0


def cache_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return where a fetched binary is kept."""
    return Path(environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitinglip" / "nats-server"


def find(explicit: Path | None = None, environ: Mapping[str, str] = os.environ) -> Path:
    """Return a usable binary: the one named (here or in BITINGLIP_NATS_SERVER), else on PATH, else the fetched one.

    Raises:
        ServerBinaryMissing: none is there, or those that are there are too old; it says where it looked.
    """
    named = explicit or environ.get("BITINGLIP_NATS_SERVER")
    on_path = shutil.which("nats-server", path=environ.get("PATH"))
    candidates = [Path(named)] if named else [*([Path(on_path)] if on_path else []), cache_path(environ)]
    looked: list[str] = []
    for candidate in candidates:
        version = version_of(candidate)
        if version is not None and version >= LEAST_VERSION:
            return candidate
        looked.append(f"{candidate}: {'not there' if version is None else 'version ' + '.'.join(map(str, version))}")
    raise ServerBinaryMissing(looked_in="; ".join(looked))


def version_of(binary: Path) -> tuple[int, ...] | None:
    """Return a nats-server's version; none if there is no such program, or it is none."""
    try:
        answer = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=10, check=True)
        return tuple(int(part) for part in answer.stdout.strip().rpartition("v")[2].split("-")[0].split("."))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def find_or_fetch(explicit: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Return a usable binary, fetching one into the cache if there is none.

    Raises:
        ServerBinaryMissing: there is none, and none could be fetched.
    """
    try:
        return find(explicit)
    except ServerBinaryMissing:
        if explicit is not None or "BITINGLIP_NATS_SERVER" in os.environ:
            raise
    target = cache_path()
    fetch(target, say)
    return find()


class PrivateServer:
    """A nats-server of our own, on loopback, as a child process. Its data outlives it in `store_dir`."""

    def __init__(
        self,
        binary: Path,
        store_dir: Path,
        *,
        port: int = 0,
        max_store_bytes: int = 20 * 2**30,
        sync_always: bool = False,
        extra_config: str = "",
    ) -> None:
        self._binary = binary
        self._store_dir = store_dir
        self._port = port
        self._max_store_bytes = max_store_bytes
        self._sync_always = sync_always
        self._extra = extra_config
        self._process: asyncio.subprocess.Process | None = None
        self._lock: IO[str] | None = None
        self.port = port

    @property
    def url(self) -> str:
        """Address for clients."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    @property
    def log_file(self) -> Path:
        """Where the server's own log goes."""
        return self._store_dir / "nats-server.log"

    async def __aenter__(self) -> Self:
        """Start it."""
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """Stop it."""
        await self.stop()

    async def start(self) -> None:
        """Start the server and wait until it takes clients.

        Raises:
            NoServer: it did not come up, or another one uses the store; its log file tells more.
        """
        self._store_dir.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        with tempfile.TemporaryDirectory(prefix="bitinglip-nats-") as ports:
            config = self._store_dir / "nats-server.conf"
            config.write_text(self._config(Path(ports)), "utf-8")
            with self.log_file.open("ab") as output:
                self._process = await asyncio.create_subprocess_exec(
                    self._binary,
                    *("-c", config),
                    stdout=output,
                    stderr=output,
                    stdin=asyncio.subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=before_exec(),
                )
            self.port = await self._ready(Path(ports) / f"{self._binary.name}_{self._process.pid}.ports")

    async def stop(self) -> None:
        """Stop the server; what it has acknowledged is on disk."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        self._release_lock()

    async def kill(self) -> None:
        """Kill the server as a power cut of the process would."""
        process, self._process = self._process, None
        if process is not None and process.returncode is None:
            process.kill()
            await process.wait()
        self._release_lock()

    async def wait(self) -> int:
        """Wait until the server ends; returns its exit status."""
        assert self._process is not None
        return await self._process.wait()

    def _config(self, ports: Path) -> str:
        sync = "always" if self._sync_always else '"2m"'
        return f"""# Written by BitingLip at each start; change the settings, not this file.
host: 127.0.0.1
port: {self.port or -1}
server_name: bitinglip
ports_file_dir: {json.dumps(str(ports))}
max_payload: 1MB
max_pending: 256MB
write_deadline: 10s
jetstream {{
  store_dir: {json.dumps(str(self._store_dir))}
  max_memory_store: 256MB
  max_file_store: {self._max_store_bytes}
  sync_interval: {sync}
}}
{self._extra}
"""

    async def _ready(self, ports_file: Path) -> int:
        assert self._process is not None
        try:
            async with asyncio.timeout(READY_S):
                while self._process.returncode is None:
                    if port := _port_in(ports_file):
                        return port
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.kill()
        self._release_lock()
        raise NoServer(problem=f"the private nats-server did not come up; see {self.log_file}")

    def _take_lock(self) -> None:
        self._lock = (self._store_dir / "lock").open("a")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._release_lock()
            raise NoServer(problem=f"another private nats-server uses {self._store_dir}") from error

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _port_in(ports_file: Path) -> int | None:
    """Return the port that the server has written down; none as long as the file is not whole."""
    text = ports_file.read_text("utf-8").rstrip() if ports_file.exists() else ""
    if not text.endswith("}"):
        return None
    ports: dict[str, Any] = json.loads(text)
    return int(ports["nats"][0].rpartition(":")[2])


def main() -> int:
    """Find or fetch the binary and print its path."""
    try:
        path = find_or_fetch(say=lambda line: print(line, file=sys.stderr))
    except BitingLipError as error:
        sys.stderr.write(f"error: {error}\nremedy: {error.remedy}\n")
        return error.exit_code
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
