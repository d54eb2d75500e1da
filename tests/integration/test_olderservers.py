"""Real nats-servers of other versions and limits: the oldest that will do does; what will not is refused clearly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import nats
import pytest

from bitinglip.cli.natsserver import LEAST_VERSION, PrivateServer, find, find_or_fetch, version_of
from bitinglip.errors import ServerBinaryMissing, ServerTooNarrow, ServerTooOld
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, declarations
from bitinglip.settings import Nats
from tests.integration.gateway.support import collect
from tests.support.cluster import MODULES, Cluster
from tests.support.olderservers import OLDEST, TOO_OLD, older_server, running


@pytest.fixture
def too_old(tmp_path: Path) -> Iterator[str]:
    with running(older_server(TOO_OLD), tmp_path / "nats") as url:
        yield url


async def test_a_server_that_is_too_old_is_refused_with_its_version_and_what_to_do(too_old: str) -> None:
    with pytest.raises(ServerTooOld, match=rf"2\.9\.\d+.*{LEAST_VERSION[0]}\.{LEAST_VERSION[1]}") as refused:
        await EventLog.connect(Nats(url=too_old), "/test")
    assert "Upgrade it" in refused.value.remedy


@pytest.mark.parametrize("kind", ["gateway", "worker", "node"])
def test_no_process_starts_on_it(too_old: str, kind: str, tmp_path: Path) -> None:
    env = {"BITINGLIP_NATS_URL": too_old, "BITINGLIP_DATA_DIR": str(tmp_path), "BITINGLIP_WORKER_MODELS": "echo"}
    ended = subprocess.run([sys.executable, "-m", MODULES[kind]], env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == ServerTooOld.exit_code
    assert "2.9." in ended.stderr
    assert "remedy: " in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_server_that_takes_small_messages_alone_is_refused_at_the_start(tmp_path: Path) -> None:
    config = tmp_path / "nats.conf"
    config.write_text("max_payload: 64KB\n")
    with running(find_or_fetch(), tmp_path / "nats", "-c", config) as url:
        with pytest.raises(ServerTooNarrow, match=r"at most 65536 bytes; the log needs 655360\.") as refused:
            await EventLog.connect(Nats(url=url), "/test")
        assert "max_payload" in refused.value.remedy


def test_it_is_not_taken_for_a_private_server() -> None:
    with pytest.raises(ServerBinaryMissing, match=r"2\.9\."):
        find(older_server(TOO_OLD))


async def test_on_the_oldest_server_that_will_do_streams_of_an_older_release_are_taken_over(tmp_path: Path) -> None:
    binary = older_server(OLDEST)
    version = version_of(binary)
    assert version is not None
    assert version[:2] == LEAST_VERSION
    async with PrivateServer(binary, tmp_path / "nats") as server:
        client = await nats.connect(server.url)
        for declared in declarations(Nats()):
            if declared.name == QUEUE:
                declared = declared.evolve(max_consumers=-1, description="As an older release made it.")
            await client.jetstream().add_stream(declared)
        log = await EventLog.connect(Nats(url=server.url), "/test")
        found = (await log.connection.js.stream_info(QUEUE)).config
        await log.close()
        await client.close()
    assert found.max_consumers == -1, "this server does not change it: without the way round it, nothing would start"
    assert found.description != "As an older release made it."


async def test_a_task_runs_on_the_oldest_server_that_will_do(tmp_path: Path) -> None:
    async with PrivateServer(older_server(OLDEST), tmp_path / "nats") as server:
        cluster = Cluster(server.url, tmp_path)
        try:
            gateway = await cluster.gateway()
            await cluster.worker()
            async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
                for wish in ({}, {"delay_s": 0.2}, {"expires_at": "2100-01-01T00:00:00Z"}):
                    body = {"kind": "echo", "model": "echo", "params": {"message": 1}} | wish
                    task_id = (await client.post("/v1/tasks", json=body)).json()["task_id"]
                    seen = await collect(client, f"/v1/tasks/{task_id}/events")
                    assert seen[-1].type == "task.succeeded"
        finally:
            await cluster.close()
