"""Finding a nats-server, and running a private one."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from bitinglip.cli.natsserver import PrivateServer, cache_path, find, find_or_fetch, version_of
from bitinglip.errors import NoServer, ServerBinaryMissing
from bitinglip.events.log import EventLog
from bitinglip.events.worker import WorkerHeartbeat
from bitinglip.settings import Nats

ROOT = Path(__file__).parents[2]


def program(path: Path, version: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\necho 'nats-server: v{version}'\n")
    path.chmod(0o755)
    return path


def test_the_named_one_comes_first_then_path_then_the_cache(tmp_path: Path) -> None:
    named = program(tmp_path / "named", "2.14.0")
    on_path = program(tmp_path / "bin" / "nats-server", "2.13.1")
    cached = program(tmp_path / "cache" / "bitinglip" / "nats-server", "2.12.0")
    environ = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert cache_path(environ) == cached
    assert find(None, environ | {"BITINGLIP_NATS_SERVER": str(named)}) == named
    assert find(named, environ) == named
    assert find(None, environ) == on_path
    on_path.unlink()
    assert find(None, environ) == cached


def test_one_that_is_too_old_is_passed_over_and_told(tmp_path: Path) -> None:
    program(tmp_path / "bin" / "nats-server", "2.9.10")
    cached = program(tmp_path / "cache" / "bitinglip" / "nats-server", "2.15.1")
    environ = {"PATH": str(tmp_path / "bin"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    assert find(None, environ) == cached
    cached.unlink()
    with pytest.raises(ServerBinaryMissing, match=r"2\.9\.10"):
        find(None, environ)


def test_what_is_no_server_has_no_version(tmp_path: Path) -> None:
    assert version_of(tmp_path / "nothing") is None
    assert version_of(Path("/bin/true")) is None


async def test_data_survives_a_restart_and_a_kill(tmp_path: Path) -> None:
    server = PrivateServer(find_or_fetch(), tmp_path / "nats")
    beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example)
    for count in range(3):
        await server.start()
        log = await EventLog.connect(Nats(url=server.url), "/test")
        assert await log.last_sequence("WORKERS") == count
        await log.append(log.fact_append(beat, "bl.worker.a.heartbeat", "a"))
        await log.close()
        await (server.kill() if count == 1 else server.stop())


async def test_two_servers_never_share_a_store(tmp_path: Path) -> None:
    async with PrivateServer(find_or_fetch(), tmp_path / "nats") as first:
        with pytest.raises(NoServer, match="another private nats-server"):
            await PrivateServer(find_or_fetch(), tmp_path / "nats").start()
        assert first.pid


async def test_a_terminals_interrupt_does_not_reach_it(tmp_path: Path) -> None:
    async with PrivateServer(find_or_fetch(), tmp_path / "nats") as server:
        assert os.getsid(server.pid) != os.getsid(0)


async def test_one_that_cannot_start_says_where_to_look(tmp_path: Path) -> None:
    async with PrivateServer(find_or_fetch(), tmp_path / "one") as server:
        with pytest.raises(NoServer, match=r"nats-server\.log"):
            await PrivateServer(find_or_fetch(), tmp_path / "two", port=server.port).start()


async def test_syncing_always_is_a_configuration_that_the_server_takes(tmp_path: Path) -> None:
    async with PrivateServer(find_or_fetch(), tmp_path / "nats", sync_always=True) as server:
        log = await EventLog.connect(Nats(url=server.url), "/test")
        await log.close()


def test_the_shared_configuration_is_valid_with_and_without_users(tmp_path: Path) -> None:
    text = (ROOT / "nats.conf").read_text()
    begin = text.index("# authorization {")
    users = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text[begin:].splitlines())
    (tmp_path / "users.conf").write_text(text[:begin] + users)
    for config in (ROOT / "nats.conf", tmp_path / "users.conf"):
        subprocess.run([find_or_fetch(), "-c", config, "-t"], check=True, capture_output=True, cwd=tmp_path)


async def test_its_end_is_seen(tmp_path: Path) -> None:
    server = PrivateServer(find_or_fetch(), tmp_path / "nats")
    await server.start()
    os.kill(server.pid, signal.SIGKILL)
    assert await server.wait() != 0
    await server.stop()
