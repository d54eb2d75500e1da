"""GET /v1/events."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from tests.integration.gateway.support import Player, check_problem, collect, read_stream, submitted

WRITE: dict[str, Any] = {"kind": "text-generation", "model": "org/writer", "params": {"prompt": "Once"}}
EXPORT = {"from": "start", "follow": "false"}


async def export(client: httpx.AsyncClient, **params: Any) -> list[tuple[str, str]]:
    return [(seen.type, seen.event["subject"]) for seen in await collect(client, "/v1/events", EXPORT | params)]


async def test_a_whole_stream_can_be_exported(client: httpx.AsyncClient, player: Player) -> None:
    assert await export(client) == []
    echo, write = await submitted(client), await submitted(client, WRITE)
    await player.run(echo)
    await player.assign(write)
    await player.fail(write)
    assert await export(client) == [
        ("task.submitted", echo),
        ("task.submitted", write),
        ("task.assigned", echo),
        ("task.succeeded", echo),
        ("task.assigned", write),
        ("task.failed", write),
    ]
    assert await export(client, types="task.submitted,task.failed") == [
        ("task.submitted", echo),
        ("task.submitted", write),
        ("task.failed", write),
    ]
    assert await export(client, types=["task.succeeded", "task.assigned"], kind="text-generation") == [
        ("task.assigned", write)
    ]
    assert await export(client, task_id=echo, types="task.submitted") == [("task.submitted", echo)]
    assert [name for name, _ in await export(client, task_id=write)] == [
        "task.submitted",
        "task.assigned",
        "task.failed",
    ]
    assert await export(client, kind="embedding") == []


async def test_a_foreign_message_ends_no_stream(client: httpx.AsyncClient, log: EventLog) -> None:
    await log.connection.js.publish("bl.task.foreign", b'{"subject": "nothing of ours"}')
    task_id = await submitted(client)
    assert await export(client) == [("bl.task.foreign", "nothing of ours"), ("task.submitted", task_id)]


async def test_a_stream_can_be_resumed(client: httpx.AsyncClient) -> None:
    for _ in range(5):
        await submitted(client)
    whole = await collect(client, "/v1/events", EXPORT)
    rest = await collect(client, "/v1/events", {"follow": "false"}, {"Last-Event-ID": str(whole[1].id)})
    assert rest == whole[2:]
    assert await collect(client, "/v1/events", {"after": whole[-1].id, "follow": "false"}) == []


async def test_a_stream_begins_at_its_end_and_goes_on(client: httpx.AsyncClient) -> None:
    await submitted(client)
    async with client.stream("GET", "/v1/events") as response:
        events = read_stream(response)
        second = await submitted(client)
        assert (await anext(events)).event["subject"] == second
        third = await submitted(client)
        assert (await anext(events)).event["subject"] == third


async def test_models_are_a_stream_too(client: httpx.AsyncClient) -> None:
    assert await export(client, stream="models", kind="echo") == [("model.registered", "echo")]
    assert await export(client, stream="models", types="model.registered", kind="text-generation") == [
        ("model.registered", "org/writer")
    ]
    assert await export(client, stream="workers") == []


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({"stream": "secrets"}, "stream"),
        ({"stream": "workers", "kind": "echo"}, "kind"),
        ({"stream": "models", "task_id": "01JZ0000000000000000000000"}, "task_id"),
        ({"types": "task.*"}, "types"),
        ({"types": "worker.started"}, "types"),
        ({"kind": "painting"}, "kind"),
        ({"task_id": ">"}, "task_id"),
        ({"follow": "perhaps"}, "follow"),
        ({"from": "middle"}, "from"),
        ({"after": "-3"}, "after"),
        ({"filter": "x"}, "filter"),
    ],
)
async def test_a_bad_parameter_is_named(client: httpx.AsyncClient, params: dict[str, str], field: str) -> None:
    response = await client.get("/v1/events", params=params)
    assert check_problem(response, 422, "invalid_input")["field"] == field
