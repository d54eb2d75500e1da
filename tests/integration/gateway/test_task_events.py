"""GET /v1/tasks/{task_id}/events."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.settings import Settings
from tests.integration.gateway.support import Player, Seen, check_problem, collect, read_stream, running, submitted


async def test_the_history_of_an_ended_task_comes_whole_and_ends(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    await player.assign(task_id)
    await player.progress(task_id, 1, "a")
    last = await player.succeed(task_id, message="hello")
    seen = await collect(client, f"/v1/tasks/{task_id}/events")
    assert [event.type for event in seen] == ["task.submitted", "task.assigned", "task.progressed", "task.succeeded"]
    assert seen[-1].id == last
    assert [event.id for event in seen] == sorted({event.id for event in seen})
    assert all(event.event["type"] == event.type and event.event["subject"] == task_id for event in seen)
    assert seen[-1].event["data"]["result"] == {"message": "hello"}


@pytest.mark.parametrize("end", ["succeed", "fail", "cancel"])
async def test_live_events_follow_the_history_up_to_the_end(
    client: httpx.AsyncClient, player: Player, end: str
) -> None:
    task_id = await submitted(client)
    await player.assign(task_id)
    async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        events = read_stream(response)
        seen = [await anext(events), await anext(events)]
        for step in range(5):
            await player.progress(task_id, step)
        if end == "cancel":
            await client.delete(f"/v1/tasks/{task_id}")
            await player.stop(task_id)
        else:
            await getattr(player, end)(task_id)
        seen += [event async for event in events]
    assert [event.type for event in seen[:7]] == ["task.submitted", "task.assigned", *["task.progressed"] * 5]
    assert [event.type for event in seen[7:]] == {
        "succeed": ["task.succeeded"],
        "fail": ["task.failed"],
        "cancel": ["task.cancel_requested", "task.cancelled"],
    }[end]


async def test_what_a_stranger_says_on_a_live_subject_is_looked_up_in_the_log(
    client: httpx.AsyncClient, player: Player, log: EventLog, caplog: pytest.LogCaptureFixture
) -> None:
    """And it does not stop the connection's reader, which would be deaf until a ping is missed."""
    task_id = await submitted(client)
    async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        events = read_stream(response)
        seen = [await anext(events)]
        for headers in (None, {"Nats-Sequence": "soon"}):
            await log.connection.publish(f"bl.live.task.{task_id}.succeeded", b"{}", headers)
        await player.run(task_id)
        seen += [event async for event in events]
    assert [event.type for event in seen] == ["task.submitted", "task.assigned", "task.succeeded"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_stream_resumes_without_gap_or_repeat(client: httpx.AsyncClient, player: Player) -> None:
    """A reader that is cut off again and again, while the task goes on, sees each event once."""
    task_id = await submitted(client)
    await player.assign(task_id)

    async def work() -> None:
        for step in range(60):
            await player.progress(task_id, step, f"t{step}")
        await player.succeed(task_id)

    working = asyncio.create_task(work())
    seen: list[Seen] = []
    while not seen or seen[-1].type != "task.succeeded":
        headers = {"Last-Event-ID": str(seen[-1].id)} if seen else {}
        async with client.stream("GET", f"/v1/tasks/{task_id}/events", headers=headers) as response:
            assert response.status_code == 200
            most = len(seen) + 7
            async for event in read_stream(response):
                seen.append(event)
                if len(seen) == most:
                    break
    await working
    assert [event.event["data"].get("text") for event in seen[2:-1]] == [f"t{step}" for step in range(60)]
    assert len({event.id for event in seen}) == 63


async def test_after_resumes_as_well_until_there_is_a_last_event(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    await player.run(task_id)
    path = f"/v1/tasks/{task_id}/events"
    first, second, third = await collect(client, path)
    assert await collect(client, path, {"after": first.id}) == [second, third]
    assert await collect(client, path, {"after": first.id}, {"Last-Event-ID": str(second.id)}) == [third]


async def test_an_event_source_stops_after_the_end(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    last = await player.run(task_id)
    response = await client.get(f"/v1/tasks/{task_id}/events", headers={"Last-Event-ID": str(last)})
    assert (response.status_code, response.content) == (204, b"")


async def test_the_history_comes_as_json_too(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    path = f"/v1/tasks/{task_id}/events"
    await player.assign(task_id)
    for answer in (
        await client.get(path, params={"format": "json"}),
        await client.get(path, headers={"Accept": "application/json"}),
    ):
        assert answer.headers["content-type"] == "application/json"
        assert [event["type"] for event in answer.json()] == ["task.submitted", "task.assigned"]
    first = int(answer.json()[0]["sequence"])
    later = (await client.get(path, params={"format": "json", "after": first})).json()
    assert [event["type"] for event in later] == ["task.assigned"]


async def test_a_quiet_stream_has_heartbeats(client: httpx.AsyncClient) -> None:
    task_id = await submitted(client)
    async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        lines = response.aiter_lines()
        async for line in lines:
            if line == ": heartbeat":
                break
        else:
            pytest.fail("the stream ended without a heartbeat")


@pytest.mark.parametrize(
    ("params", "headers", "field"),
    [
        ({"after": "-1"}, {}, "after"),
        ({"after": "soon"}, {}, "after"),
        ({"after": str(2**63)}, {}, "after"),
        ({}, {"Last-Event-ID": "x"}, "Last-Event-ID"),
        ({"format": "xml"}, {}, "format"),
        ({"tail": "1"}, {}, "tail"),
    ],
)
async def test_a_bad_parameter_is_named(
    client: httpx.AsyncClient, params: dict[str, str], headers: dict[str, str], field: str
) -> None:
    task_id = await submitted(client)
    response = await client.get(f"/v1/tasks/{task_id}/events", params=params, headers=headers)
    assert check_problem(response, 422, "invalid_input")["field"] == field


async def test_streams_end_when_the_gateway_stops(settings: Settings, log: Any) -> None:
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        async with running(settings) as url:
            client.base_url = url
            task_id = await submitted(client)
            response = await client.send(client.build_request("GET", f"/v1/tasks/{task_id}/events"), stream=True)
            whole = await client.send(client.build_request("GET", "/v1/events"), stream=True)
            events = read_stream(response)
            assert (await anext(events)).type == "task.submitted"
        assert [seen async for seen in events] == []
        assert [seen async for seen in read_stream(whole)] == []
        await response.aclose()
        await whole.aclose()


async def test_readers_that_leave_are_let_go(client: httpx.AsyncClient, eventually: Any) -> None:
    task_id = await submitted(client)

    async def open_streams() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("bitinglip_sse_clients "))

    async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        events = read_stream(response)
        await anext(events)
        assert await open_streams() == 1

    async def none_open() -> bool:
        return await open_streams() == 0

    await eventually(none_open)
