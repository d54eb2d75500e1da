"""What should not happen: unexpected errors, and bytes in the log that nobody can read."""

from __future__ import annotations

import logging

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from bitinglip.events.log import EventLog
from bitinglip.gateway.addresses import Addresses
from bitinglip.gateway.auth import Guard
from bitinglip.gateway.door import Door
from bitinglip.gateway.metrics import Metrics
from bitinglip.settings import Settings
from tests.integration.gateway.support import UNKNOWN_ID, check_problem, collect, register, submitted


async def test_an_unexpected_error_is_a_problem_and_in_the_log(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        raise ZeroDivisionError("secret detail")

    door = Door(broken, Guard(settings.gateway), Metrics(), Addresses(settings.gateway))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://localhost") as client:
        with caplog.at_level(logging.ERROR):
            response = await client.get("/v1/tasks", headers={"X-Request-Id": "r-7"})
    check_problem(response, 500, "internal_error")
    assert "secret detail" not in response.text
    (record,) = caplog.records
    assert "r-7" in record.getMessage()
    assert record.exc_info is not None


async def test_an_event_that_cannot_be_read_is_told(client: httpx.AsyncClient, log: EventLog) -> None:
    await log.connection.js.publish(f"bl.task.{UNKNOWN_ID}.submitted", b'{"not":\n"ours"}')
    check_problem(await client.delete(f"/v1/tasks/{UNKNOWN_ID}"), 500, "corrupt_event")
    history = (await client.get(f"/v1/tasks/{UNKNOWN_ID}/events?format=json")).json()
    assert history == [{"sequence": "1", "not": "ours"}]
    everything = {"from": "start", "follow": "false"}
    (seen,) = await collect(client, "/v1/events", everything)
    assert (seen.id, seen.event) == (1, {"not": "ours"})
    assert await collect(client, "/v1/events", everything | {"kind": "echo"}) == []


async def test_an_unreadable_fact_about_a_model_stops_nothing(client: httpx.AsyncClient, log: EventLog) -> None:
    await log.connection.publish("bl.model.x.registered", b"junk")
    await register(log, "echo", "after-the-junk")
    await submitted(client, {"kind": "echo", "model": "after-the-junk"})
