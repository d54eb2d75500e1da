"""What all tests share: a clean environment, real nats-servers, and the one way to wait."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest
from nats.errors import Error as NatsError

from bitinglip.events.log import EventLog
from bitinglip.settings import Nats
from tests.support.cluster import Cluster
from tests.support.server import ACCOUNTS, RestartableServer, Server
from tests.support.server import eventually as wait_for

for name in [name for name in os.environ if name.startswith("BITINGLIP_") and name != "BITINGLIP_NATS_SERVER"]:
    del os.environ[name]


@pytest.fixture(scope="session")
def nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One real nats-server for the session, with an account for each test: tests share it, and never state."""
    server = Server(tmp_path_factory.mktemp("nats"), accounts=ACCOUNTS)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _account_numbers() -> Iterator[int]:
    return itertools.count()


@pytest.fixture
async def nats_url(nats_server: Server, _account_numbers: Iterator[int]) -> AsyncIterator[str]:
    """Address of an account of its own on the session's server; its streams are dropped afterwards."""
    number = next(_account_numbers)
    assert number < ACCOUNTS, "more tests than accounts: raise ACCOUNTS"
    url = f"nats://t{number}:t{number}@127.0.0.1:{nats_server.port}"
    yield url
    await drop_streams(url)


@pytest.fixture
async def restartable_nats(tmp_path: Path) -> AsyncIterator[RestartableServer]:
    """A nats-server of the test's own, with a fixed port and store, to be killed and started again."""
    server = RestartableServer(tmp_path / "nats")
    await server.start()
    yield server
    await server.stop()


@pytest.fixture
async def cluster(nats_url: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    """Processes on the session's server, in an account of the test's own."""
    cluster = Cluster(nats_url, tmp_path)
    yield cluster
    await cluster.close()


@pytest.fixture
async def log(nats_url: str) -> AsyncIterator[EventLog]:
    """A connection to the log of the test's own account, with the streams made."""
    log = await EventLog.connect(Nats(url=nats_url), "/test")
    yield log
    await log.close()


@pytest.fixture
def eventually():  # type: ignore[no-untyped-def]
    """Wait for a condition: `await eventually(check)`."""
    return wait_for


async def drop_streams(url: str) -> None:
    """Drop what a test left in its account, as far as the server allows (kept streams deny purge, not deletion)."""
    client = await nats.connect(url, connect_timeout=5)
    manager = client.jetstream()
    try:
        names = [info.config.name for info in await manager.streams_info()]
        await asyncio.gather(*[manager.delete_stream(name) for name in names if name])
    except NatsError as error:
        pytest.fail(f"the account could not be emptied: {error}")
    finally:
        await client.close()
