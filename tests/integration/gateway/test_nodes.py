"""Nodes and workers over HTTP: looked at, and told what to do, through a real node agent."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.node import NodeStarted
from bitinglip.events.worker import WorkerStarted
from bitinglip.settings import Nats
from tests.integration.gateway.support import check_problem, submitted
from tests.support.cluster import Cluster, Process


@pytest.fixture
async def node(cluster: Cluster) -> Process:
    return await cluster.node(workers=2, BITINGLIP_NODE_HEARTBEAT_S="0.2", BITINGLIP_NODE_LABELS="site=cellar")


@pytest.fixture
def shown(client: httpx.AsyncClient, node: Process, eventually: Any) -> Any:
    """Wait until the node's row is as wanted; returns it."""

    async def shown(**wanted: Any) -> dict[str, Any]:
        async def check() -> dict[str, Any] | None:
            response = await client.get(f"/v1/nodes/{node.ready['node_id']}")
            row = response.json()
            return row if response.status_code == 200 and wanted.items() <= row.items() else None

        return await eventually(check)

    return shown


async def test_a_node_is_shown_with_its_workers(
    client: httpx.AsyncClient, node: Process, shown: Any, eventually: Any
) -> None:
    row = await shown(state="online")
    assert (row["labels"], row["pid"], row["draining"], row["stopped_at"]) == (
        {"site": "cellar"},
        node.pid,
        False,
        None,
    )
    assert [listed["node_id"] for listed in (await client.get("/v1/nodes")).json()["nodes"]] == [row["node_id"]]
    status = (await client.get(f"/v1/nodes/{row['node_id']}/status")).json()
    assert [worker["state"] for worker in status["workers"]] == ["ready", "ready"]

    async def worker() -> dict[str, Any] | None:
        response = await client.get(f"/v1/workers/{status['workers'][0]['worker_id']}")
        return response.json() if response.status_code == 200 else None

    one = await eventually(worker)
    assert (one["node_id"], one["state"], one["drained"]) == (row["node_id"], "started", False)
    await node.stop()
    assert (await shown(state="offline"))["stopped_at"]


async def test_a_node_is_drained_and_labelled(client: httpx.AsyncClient, node: Process, shown: Any) -> None:
    path = f"/v1/nodes/{(await shown(state='online'))['node_id']}"
    drained = await client.post(f"{path}/drain")
    assert (drained.status_code, drained.json()["draining"]) == (202, True)
    await shown(state="draining")
    change = await client.post(f"{path}/labels", json={"labels": {"eu": "", "site": None}})
    assert (change.status_code, change.json()["labels"]) == (200, {"eu": ""})
    await shown(state="draining", labels={"eu": ""})
    assert (await client.post(f"{path}/undrain")).json()["draining"] is False
    await shown(state="online")
    for body in ({"labels": {"a b": ""}}, {"labels": {"a": "="}}):
        check_problem(await client.post(f"{path}/labels", json=body), 409, "command_refused")
    problem = check_problem(await client.post(f"{path}/labels", json={"label": {}}), 422, "invalid_input")
    assert problem["field"] in {"labels", "label"}


async def test_a_worker_is_commanded_and_read(
    client: httpx.AsyncClient, node: Process, shown: Any, eventually: Any
) -> None:
    await shown(state="online")
    worker_id = node.ready["workers"][0]["worker_id"]
    path = f"/v1/workers/{worker_id}"

    async def known() -> bool:
        return (await client.get(path)).status_code == 200

    await eventually(known)
    assert (await client.post(f"{path}/drain")).json()["state"] in {"draining", "drained"}

    async def drained() -> bool:
        return (await client.get(path)).json()["drained"]

    await eventually(drained)
    assert (await client.post(f"{path}/undrain")).status_code == 202
    before = (await client.get(path)).json()["pid"]
    assert (await client.post(f"{path}/restart")).json()["state"] == "stopping"

    async def another() -> bool:
        row = (await client.get(path)).json()
        return row["state"] == "started" and row["pid"] != before

    await eventually(another)
    logs = (await client.get(f"{path}/logs", params={"lines": 3})).json()
    assert (logs["worker_id"], 1 <= len(logs["lines"]) <= 3) == (worker_id, True)
    check_problem(await client.get(f"{path}/logs", params={"lines": 0}), 422, "invalid_input")
    assert await submitted(client)


async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/v1/nodes/none"), 404, "node_not_found")
    check_problem(await client.post("/v1/nodes/none/drain"), 404, "node_not_found")
    check_problem(await client.get("/v1/workers/none"), 404, "worker_not_found")
    check_problem(await client.post("/v1/workers/none/restart"), 404, "worker_not_found")


async def test_a_silent_node_is_offline_and_takes_no_command(
    client: httpx.AsyncClient, nats_url: str, eventually: Any
) -> None:
    past = await EventLog.connect(Nats(url=nats_url), "/past", clock=lambda: datetime(2026, 1, 1, tzinfo=UTC))
    for event, subject in (
        (NodeStarted.model_validate(NodeStarted.example), subjects.node_subject("rig-1", "started")),
        (WorkerStarted.model_validate(WorkerStarted.example), subjects.worker_subject("rig-1-0", "started")),
    ):
        await past.append(past.fact_append(event, subject, subject.split(".")[2]))
    await past.close()

    async def told() -> bool:
        nodes = (await client.get("/v1/nodes")).json()["nodes"]
        workers = (await client.get("/v1/workers")).json()["workers"]
        return [row["state"] for row in nodes] == ["offline"] and len(workers) == 1

    await eventually(told)
    for path in ("/v1/nodes/rig-1/drain", "/v1/workers/rig-1-0/restart"):
        problem = check_problem(await client.post(path), 503, "node_silent")
        assert (problem["node_id"], "bitinglip node" in problem["remedy"]) == ("rig-1", True)
