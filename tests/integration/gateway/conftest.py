"""A gateway of the test's own, a client to it, and the log behind it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.settings import Gateway, Models, Nats, Settings
from tests.integration.gateway.support import MODELS, Player, register, running


@pytest.fixture
async def log(nats_url: str) -> AsyncIterator[EventLog]:
    """The log, with a few registered models."""
    log = await EventLog.connect(Nats(url=nats_url), "/test")
    for kind, reference in MODELS:
        await register(log, kind, reference)
    yield log
    await log.close()


@pytest.fixture
def player(log: EventLog) -> Player:
    """The stand-in for a worker."""
    return Player(log)


@pytest.fixture
def settings(nats_url: str, tmp_path: Path) -> Settings:
    """Settings of a gateway on a free port."""
    return Settings(
        data_dir=tmp_path,
        nats=Nats(url=nats_url),
        models=Models(auto_download=False),
        gateway=Gateway(port=0, drain_s=5, max_body_bytes=256 * 1024, sse_heartbeat_s=0.1, wait_max_s=5),
    )


@pytest.fixture
async def url(settings: Settings, log: EventLog) -> AsyncIterator[str]:
    """Address of a running gateway."""
    async with running(settings) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the gateway."""
    async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
        yield client
