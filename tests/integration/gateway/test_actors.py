"""Every route that changes something leaves an event that says who asked: all of them are gone through, once each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events.actor import Actor
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import Recorded, decode
from bitinglip.events.log import STREAM_FILTERS, EventLog
from bitinglip.gateway.app import ROUTES
from bitinglip.gateway.door import Resource
from bitinglip.settings import Gateway, Settings
from tests.integration.gateway.modelfacts import AT, COMMIT, GPT2, OTHER, describe, node, store
from tests.integration.gateway.support import ECHO, Player, running
from tests.support.cluster import Cluster
from tests.support.server import eventually
from tests.support.uploading import make_folder, manifest

CHANGES_NOTHING = {
    ("POST", "/v1/query"),
    ("POST", "/v1/queries/{name}/run"),
    ("POST", "/v1/projections/rebuild"),
    ("POST", "/v1/artifacts"),  # bytes that no event names yet
    ("POST", "/v1/uploads"),  # a file on this gateway's disk; the event comes with `complete`
    ("PUT", "/v1/uploads/{upload_id}/files/{path:path}"),
    ("DELETE", "/v1/uploads/{upload_id}"),
    ("POST", "/v1/nodes/{node_id}/models:prune"),  # there is nothing to drop in this test
}
"""Routes that write no event."""


def changing() -> Iterator[tuple[str, str]]:
    """Yield the routes that are not only read."""
    for route in ROUTES:
        assert isinstance(route.endpoint, Resource)
        yield from ((method, route.path) for method in route.endpoint.methods if method not in {"GET", "HEAD"})


class Doer:
    """Sends requests, each with an id of its own, and remembers of which route."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.done: dict[str, tuple[str, str]] = {}

    async def __call__(self, method: str, path: str, route: str | None = None, **sent: Any) -> Any:
        """Send one; `route` where its path differs."""
        request_id = f"do-{len(self.done)}"
        self.done[request_id] = (method, route or path)
        answer = await self._client.request(method, path, headers={"X-Request-Id": request_id}, **sent)
        assert answer.is_success, (method, path, answer.text)
        return answer.json()


async def on_tasks(do: Doer, player: Player) -> None:
    task = (await do("POST", "/v1/tasks", json=ECHO))["task_id"]
    await do("DELETE", f"/v1/tasks/{task}", "/v1/tasks/{task_id}")
    await do("POST", f"/v1/tasks/{task}/retry", "/v1/tasks/{task_id}/retry")
    await do("POST", "/v1/tasks:cancel", json={"kind": "echo"})
    dead = (await do("POST", "/v1/tasks", json=ECHO | {"metadata": {"a": "b"}}))["task_id"]
    await player.assign(dead)
    await player.fail(dead)
    await do("POST", "/v1/tasks:retry", json={"metadata": {"a": "b"}, "state": "failed"})
    await on_private_tasks(do)
    batch = (await do("POST", "/v1/batches", json={"tasks": [ECHO], "open": True}))["batch_id"]
    for name, sent in (("/tasks", {"json": [ECHO]}), (":close", {}), (":cancel", {"json": {}})):
        await do("POST", f"/v1/batches/{batch}{name}", f"/v1/batches/{{batch_id}}{name}", **sent)


async def on_private_tasks(do: Doer) -> None:
    one, other = [
        (await do("POST", "/v1/tasks", json=ECHO | {"private": True, "metadata": {"p": str(n)}}))["task_id"]
        for n in range(2)
    ]
    for task_id in (one, other):
        await do("DELETE", f"/v1/tasks/{task_id}", "/v1/tasks/{task_id}")
    await do("POST", f"/v1/tasks/{one}/forget", "/v1/tasks/{task_id}/forget")
    await do("POST", "/v1/tasks:forget", json={"metadata": {"p": "1"}})


async def on_the_log_and_queries(do: Doer) -> None:
    await do("PUT", "/v1/queries/mine", "/v1/queries/{name}", json={"sql": "select 1"})
    await do("DELETE", "/v1/queries/mine", "/v1/queries/{name}")
    await do("POST", "/v1/projections/snapshot")

    async def settled() -> bool:
        return bool((await do("POST", "/v1/log/archive", params={"now": "true"}))["archived"])

    await eventually(settled, within_s=30)


async def on_schedules_and_queues(do: Doer) -> None:
    made = await do("POST", "/v1/schedules", json={"task": ECHO, "every_s": 3600})
    path, route = f"/v1/schedules/{made['schedule_id']}", "/v1/schedules/{schedule_id}"
    await do("POST", f"{path}/pause", f"{route}/pause")
    await do("POST", f"{path}/resume", f"{route}/resume")
    await do("DELETE", path, route)
    await do("POST", "/v1/queues:pause", json={"model": "echo"})
    await do("POST", "/v1/queues:resume", json={"model": "echo"})
    await do("POST", "/v1/tasks", json=ECHO)
    await do("POST", "/v1/queues:purge", json={"model": "echo"})


async def on_models(do: Doer, log: EventLog, folder: Path) -> None:
    await node(log, "n1")
    for revision in (COMMIT, OTHER):
        await describe(log, revision=revision)

    async def known() -> bool:
        return (await do("POST", "/v1/models", json={"model": AT, "nodes": ["n1"]}))["asked"] == ["n1"]

    await eventually(known)
    path, route = f"/v1/models/{GPT2}", "/v1/models/{ref:path}"
    for name, body in (("pin", {"nodes": ["n1"]}), ("unpin", None), ("cancel", None)):
        await do("POST", f"{path}/{name}", f"{route}/{name}", **({"json": body} if body else {}))
    await store(log, "n1")

    async def stored() -> bool:
        return bool((await do("POST", f"{path}/verify", f"{route}/verify", json={"nodes": ["n1"]}))["asked"])

    await eventually(stored)
    await do("DELETE", path, route, json={"nodes": ["n1"]})
    alias = "/v1/aliases/{alias}"
    await do("PUT", "/v1/aliases/best", alias, json={"model": AT})
    await do("PUT", "/v1/aliases/best", alias, json={"model": f"{GPT2}@{OTHER}"})
    await do("POST", "/v1/aliases/best/rollback", f"{alias}/rollback")
    await do("DELETE", "/v1/aliases/best", alias)
    await upload(do, folder)


async def upload(do: Doer, folder: Path) -> None:
    begun = await do("POST", "/v1/uploads", json=manifest(make_folder(folder)))
    route = "/v1/uploads/{upload_id}"
    for each in begun["missing"]:
        content = (folder / each["path"]).read_bytes()
        await do("PUT", f"{begun['links']['files']}/{each['path']}", f"{route}/files/{{path:path}}", content=content)
    await do("POST", begun["links"]["complete"], f"{route}/complete", json={"nodes": ["n1"]})


async def on_nodes(do: Doer, client: httpx.AsyncClient, node_id: str, worker_id: str) -> None:
    async def known() -> bool:
        found = [await client.get(path) for path in (f"/v1/nodes/{node_id}", f"/v1/workers/{worker_id}")]
        return all(answer.status_code == 200 for answer in found)

    await eventually(known)
    route = "/v1/workers/{worker_id}"
    for name in ("drain", "undrain", "stop", "start", "restart"):
        await do("POST", f"/v1/workers/{worker_id}/{name}", f"{route}/{name}")
    route = "/v1/nodes/{node_id}"
    await do("POST", f"/v1/nodes/{node_id}/labels", f"{route}/labels", json={"labels": {"eu": ""}})
    for name in ("drain", "undrain", "restart-workers"):
        await do("POST", f"/v1/nodes/{node_id}/{name}", f"{route}/{name}")


async def all_events(log: EventLog) -> list[Recorded]:
    """Return everything that is in the log."""
    return [
        decode(message, stream)
        for stream, filters in STREAM_FILTERS.items()
        for each in filters
        for message in await get_after(log.connection, stream, each, 0)
    ]


async def test_every_change_says_who_asked(
    client: httpx.AsyncClient, log: EventLog, player: Player, cluster: Cluster, tmp_path: Path
) -> None:
    do = Doer(client)
    await on_tasks(do, player)
    await on_schedules_and_queues(do)
    await on_models(do, log, tmp_path / "tuned")
    agent = await cluster.node(workers=1)
    await on_nodes(do, client, agent.ready["node_id"], agent.ready["workers"][0]["worker_id"])
    await on_the_log_and_queries(do)
    recorded = await all_events(log)
    told = {event.actor.request_id for event in recorded if event.actor is not None}
    unsaid = {do.done[request_id] for request_id in do.done.keys() - told} - CHANGES_NOTHING
    said = {do.done[request_id] for request_id in do.done.keys() & told}
    assert {each for each in unsaid if each not in said} == set()
    assert set(changing()) - CHANGES_NOTHING - said == set(), "say here who leaves no event, or go through it"
    for event in recorded:
        if event.type in {"worker.heartbeat", "task.assigned", "node.started", "ledger.signed"}:
            assert event.actor is None
    await audit_is_complete(client, {(event.stream, event.sequence) for event in recorded if event.actor is not None})


async def audit_is_complete(client: httpx.AsyncClient, wanted: set[tuple[str, int]]) -> None:
    """Check that `GET /v1/audit`, page by page, has just these."""

    async def found() -> bool:
        seen: list[tuple[str, int]] = []
        cursor: str | None = None
        while True:
            params = {"limit": "7"} | ({"cursor": cursor} if cursor else {})
            page = (await client.get("/v1/audit", params=params)).json()
            seen += [(row["stream"], row["sequence"]) for row in page["events"]]
            if (cursor := page["next_cursor"]) is None:
                return len(seen) == len(set(seen)) and set(seen) == wanted

    await eventually(found)


@pytest.mark.parametrize(
    ("record", "proxies", "address"),
    [
        ("off", (), None),
        ("full", (), "127.0.0.1"),
        ("prefix", (), "127.0.0.0/24"),
        ("full", ("127.0.0.0/8",), "203.0.113.9"),
        ("prefix", ("127.0.0.0/8", "198.51.100.0/24"), "203.0.113.0/24"),
    ],
)
async def test_an_address_is_written_down_as_far_as_it_may_be(
    settings: Settings, log: EventLog, record: str, proxies: tuple[str, ...], address: str | None
) -> None:
    given = {"api_key": "k" * 20, "record_address": record, "trusted_proxies": proxies, "port": 0}
    settings = settings.model_copy(update={"gateway": Gateway.model_validate(given)})
    headers = {"Authorization": f"Bearer {'k' * 20}", "X-Request-Id": "mine"}
    forwarded = "192.0.2.1, 203.0.113.9" if len(proxies) < 2 else "192.0.2.1, 203.0.113.9, 198.51.100.7"
    async with running(settings) as url, httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        answer = await client.post("/v1/tasks", json=ECHO, headers={"X-Forwarded-For": forwarded})
        task_id = answer.json()["task_id"]

        async def listed() -> list[dict[str, Any]]:
            return (await client.get("/v1/audit", params={"about": task_id})).json()["events"]

        row = (await eventually(listed))[0]
        for params, count in (
            ({"key": "gateway"}, 1), ({"key": "other"}, 0), ({"type": "task.submitted"}, 1),
            ({"type": "task.cancelled"}, 0), ({"since": row["recorded_at"]}, 1), ({"until": row["recorded_at"]}, 0),
        ):  # fmt: skip
            answer = await client.get("/v1/audit", params=params | {"about": task_id})
            assert len(answer.json()["events"]) == count, params
        for params in ({"type": "no.such"}, {"cursor": "x"}, {"since": "yesterday"}):
            assert (await client.get("/v1/audit", params=params)).status_code == 422
    recorded = await log.read_task(task_id)
    assert recorded[0].actor == Actor("gateway", address, "mine")
    assert (row["key_id"], row["address"], row["request_id"]) == ("gateway", address, "mine")
    assert re.fullmatch(r"2\d{3}-.+Z", row["recorded_at"])


async def test_a_tasks_proof_is_given(settings: Settings, log: EventLog) -> None:
    audit = settings.audit.model_copy(update={"every_s": 0.5})
    settings = settings.model_copy(update={"audit": audit})
    async with running(settings) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        task_id = (await client.post("/v1/tasks", json=ECHO)).json()["task_id"]

        async def proved() -> dict[str, Any] | None:
            proof = (await client.get(f"/v1/tasks/{task_id}/proof")).json()
            return proof if proof["events"] else None

        proof = await eventually(proved, within_s=30)
        missing = await client.get("/v1/tasks/01JZ0000000000000000000000/proof")
    assert (missing.status_code, proof["about"], len(proof["keys"])) == (404, task_id, 1)
