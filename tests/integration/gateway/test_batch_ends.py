"""Batches on their way to the end: watched, and cancelled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import orjson

from bitinglip.settings import Settings
from tests.integration.gateway.support import UNKNOWN_ID, Player, check_problem, running
from tests.integration.gateway.test_batches import body, completed, made, members, shown
from tests.integration.gateway.test_open_batches import add, opened

Eventually = Callable[..., Awaitable[Any]]
Frames = AsyncIterator[dict[str, str]]


@asynccontextmanager
async def watched(client: httpx.AsyncClient, batch_id: str) -> AsyncIterator[Frames]:
    async with client.stream("GET", f"/v1/batches/{batch_id}/events") as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"].startswith("text/event-stream")
        yield frames(response)


async def frames(response: httpx.Response) -> Frames:
    """Yield the fields of each frame; those of a comment are empty."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        if line:
            name, _, value = line.partition(": ")
            fields[name] = value
        else:
            yield fields
            fields = {}


async def until(read: Frames, **wanted: Any) -> dict[str, Any]:
    """Return the first progress that says this."""
    async for frame in read:
        assert "id" not in frame
        data = orjson.loads(frame.get("data", "{}"))
        if wanted.items() <= data.items():
            return data
    raise AssertionError(wanted)


async def cancel(client: httpx.AsyncClient, batch_id: str, **asked: Any) -> dict[str, Any]:
    response = await client.post(f"/v1/batches/{batch_id}:cancel", json=asked or None)
    assert response.status_code == 200, response.text
    return response.json()


async def test_a_batch_is_watched_from_its_opening_to_its_completion(client: httpx.AsyncClient, player: Player) -> None:
    batch_id = await opened(client)
    async with watched(client, batch_id) as read:
        assert await until(read) == {"batch_id": batch_id, "state": "open", "tasks": 0, "done": 0, "counts": {}}
        await add(client, batch_id, "a", "b")
        await until(read, tasks=2, counts={"queued": 2})
        for task_id in await members(client, batch_id):
            await player.run(task_id)
        await until(read, state="open", done=2, counts={"succeeded": 2})
        await client.post(f"/v1/batches/{batch_id}:close")
        await until(read, state="completed")
        last = await anext(read)
        assert last["event"] == "batch.completed"
        assert orjson.loads(last["data"])["data"] == {"batch_id": batch_id, "tasks": 2, "counts": {"succeeded": 2}}
        assert await anext(read, None) is None
    async with watched(client, batch_id) as read:
        assert [frame["event"] async for frame in read] == ["progress", "batch.completed"]
    again = await client.get(f"/v1/batches/{batch_id}/events", headers={"Last-Event-ID": last["id"]})
    assert again.status_code == 204


async def test_a_quiet_watch_has_heartbeats_and_ends_with_its_gateway(settings: Settings) -> None:
    beating = settings.gateway.model_copy(update={"sse_heartbeat_s": 0.05})
    async with httpx.AsyncClient(timeout=20, trust_env=False) as client:
        async with running(settings.model_copy(update={"gateway": beating})) as url:
            client.base_url = httpx.URL(url)
            batch_id = await opened(client)
            context = watched(client, batch_id)
            read = await context.__aenter__()
            assert (await anext(read))["event"] == "progress"
            assert [await anext(read), await anext(read)] == [{"": "heartbeat"}] * 2
        assert {frame.get("event") async for frame in read} <= {None}
        await context.__aexit__(None, None, None)


async def test_there_is_no_such_batch_to_watch_or_cancel(client: httpx.AsyncClient) -> None:
    check_problem(await client.get(f"/v1/batches/{UNKNOWN_ID}/events"), 404, "batch_not_found")
    check_problem(await client.get("/v1/batches/x/events"), 422, "invalid_input")
    check_problem(await client.post(f"/v1/batches/{UNKNOWN_ID}:cancel"), 404, "batch_not_found")
    batch_id = await opened(client)
    check_problem(await client.post(f"/v1/batches/{batch_id}:cancel", json={"size": 1}), 422, "invalid_input")
    assert (await shown(client, batch_id))["state"] == "open"


async def test_a_batch_that_is_cancelled_is_closed_and_completed(
    client: httpx.AsyncClient, player: Player, eventually: Eventually
) -> None:
    batch_id = await opened(client, "a", "b", "c", "d")
    alone = await made(client, body("a"))
    ids = await members(client, batch_id)
    await player.run(ids[0])
    await player.assign(ids[1])
    dry = await cancel(client, batch_id, dry_run=True)
    assert (dry["matched"], (await shown(client, batch_id))["state"]) == (3, "open")
    done = await cancel(client, batch_id, reason="enough")
    assert (done["cancelled"], done["cancel_requested"], done["refused"]) == (2, 1, [])
    check_problem(await add(client, batch_id, "e"), 409, "batch_is_closed")
    assert (await client.get(f"/v1/tasks/{ids[1]}")).json()["cancel_requested"]
    await player.stop(ids[1])
    last = await completed(client, batch_id, eventually)
    assert (last["tasks"], last["counts"]) == (4, {"succeeded": 1, "cancelled": 3})
    assert (await cancel(client, batch_id))["matched"] == 0
    assert (await shown(client, alone))["counts"] == {"queued": 1}


async def test_a_batch_is_cancelled_page_by_page(client: httpx.AsyncClient, eventually: Eventually) -> None:
    batch_id = await made(client, body(*range(5)))
    cursor, pages = None, list[int]()
    while not pages or cursor is not None:
        page = await cancel(client, batch_id, limit=2, cursor=cursor)
        pages.append(page["cancelled"])
        cursor = page["next_cursor"]
    assert pages == [2, 2, 1]
    assert (await completed(client, batch_id, eventually))["counts"] == {"cancelled": 5}


async def test_the_tasks_of_a_batch_are_a_condition(client: httpx.AsyncClient) -> None:
    batch_id, other = await made(client, body("a", "b")), await made(client, body("c"))
    answer = await client.post("/v1/tasks:cancel", json={"batch": batch_id})
    assert (answer.json()["cancelled"], (await shown(client, batch_id))["done"]) == (2, 2)
    assert (await shown(client, other))["done"] == 0
