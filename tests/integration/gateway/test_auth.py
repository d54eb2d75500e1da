"""Who may come in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from pydantic import SecretStr

from bitinglip.errors import InvalidConfig
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway.app import create_app
from bitinglip.ids import TaskId
from bitinglip.settings import Gateway, Settings
from tests.integration.gateway.support import ECHO, check_problem, running, submitted

KEY = "a key of some length"


@pytest.fixture
async def locked(settings: Settings, log: EventLog) -> AsyncIterator[httpx.AsyncClient]:
    gateway = settings.gateway.model_copy(update={"api_key": SecretStr(KEY)})
    async with (
        running(settings.model_copy(update={"gateway": gateway})) as url,
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client,
    ):
        yield client


async def test_a_key_is_needed_everywhere_but_for_health(locked: httpx.AsyncClient) -> None:
    for path in ("/v1/tasks", "/v1/events", "/v1/workers", "/metrics", "/openapi.json", "/nothing"):
        response = await locked.get(path)
        check_problem(response, 401, "key_missing")
        assert response.headers["www-authenticate"] == "Bearer"
    check_problem(await locked.post("/v1/tasks", json=ECHO), 401, "key_missing")
    assert (await locked.get("/healthz")).status_code == 200


@pytest.mark.parametrize("value", [b"", KEY.encode(), b"Basic " + KEY.encode(), b"Bearer x", b"Bearer \xff", b"bearer"])
async def test_a_wrong_key_is_refused(locked: httpx.AsyncClient, value: bytes) -> None:
    check_problem(await locked.get("/v1/tasks", headers=[(b"Authorization", value)]), 401, "key_missing")


async def test_the_key_opens_from_any_host_name(locked: httpx.AsyncClient, log: EventLog) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "Host": "rig.example"}
    task_id = await submitted(locked, headers=headers)
    (recorded,) = await log.read_task(TaskId(task_id))
    assert isinstance(recorded.event, TaskSubmitted)
    assert recorded.event.key_id == "gateway"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8420", "127.0.0.1.evil.example", "", "localhost@evil", "[::2]"]
)
async def test_without_a_key_another_host_name_is_refused(client: httpx.AsyncClient, host: str) -> None:
    check_problem(await client.get("/v1/tasks", headers={"Host": host}), 403, "host_refused")


@pytest.mark.parametrize("host", ["localhost", "LocalHost:1", "127.0.0.1:99", "[::1]:8420"])
async def test_without_a_key_this_machine_has_three_names(client: httpx.AsyncClient, host: str) -> None:
    assert (await client.get("/v1/tasks", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
async def test_without_a_key_another_sites_page_is_refused(client: httpx.AsyncClient, origin: str) -> None:
    response = await client.post("/v1/projections/rebuild", headers={"Origin": origin})
    check_problem(response, 403, "host_refused")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.168.1.4", "rig.example"])
def test_an_open_address_needs_a_key(host: str) -> None:
    with pytest.raises(InvalidConfig, match="key"):
        create_app(Settings(gateway=Gateway(host=host)))
    create_app(Settings(gateway=Gateway(host=host, api_key=SecretStr(KEY))))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    create_app(Settings(gateway=Gateway(host=host)))
