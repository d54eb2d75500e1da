"""Artifacts, the cluster, analytics, health, metrics, and what no route takes."""

from __future__ import annotations

import hashlib
from typing import Any

import httpx
import pytest

from bitinglip.events import artifacts, subjects
from bitinglip.events.log import EventLog
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from tests.integration.gateway.support import ECHO, Player, check_problem, submitted

# --- artifacts --------------------------------------------------------------------------------------------------------


async def test_an_artifact_is_cached_for_good(client: httpx.AsyncClient, log: EventLog) -> None:
    body = b"<script>" + bytes(range(256)) * 1000
    reference = await artifacts.put(log.connection, body, "text/html")
    response = await client.get(f"/v1/artifacts/{reference.sha256}")
    assert hashlib.sha256(response.content).hexdigest() == reference.sha256
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["etag"] == f'"{reference.sha256}"'
    assert "immutable" in response.headers["cache-control"]
    assert (response.headers["x-content-type-options"], "sandbox" in response.headers["content-security-policy"]) == (
        "nosniff",
        True,
    )
    again = await client.get(
        f"/v1/artifacts/{reference.sha256}", headers={"If-None-Match": f'"x", {response.headers["etag"]}'}
    )
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("digest", ["0" * 64, "x", "A" * 64, "%2e%2e"])
async def test_an_unknown_artifact_is_not_found(client: httpx.AsyncClient, digest: str) -> None:
    check_problem(await client.get(f"/v1/artifacts/{digest}"), 404, "artifact_not_found")


# --- the cluster ------------------------------------------------------------------------------------------------------


async def test_workers_and_models_are_listed(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> None:
    event = WorkerStarted.model_validate(WorkerStarted.example)
    subject = subjects.worker_subject(event.worker_id, "started")
    await log.append(log.fact_append(event, subject, event.worker_id))

    async def workers() -> Any:
        return (await client.get("/v1/workers")).json()["workers"]

    (worker,) = await eventually(workers)
    assert (worker["worker_id"], worker["node_id"], worker["device"]) == ("rig-1-0", "rig-1", "cuda:0")

    async def models() -> Any:
        found = (await client.get("/v1/models")).json()["data"]
        return found if len(found) == 3 else None

    assert {(model["kind"], model["reference"]) for model in await eventually(models)} == {
        ("echo", "echo"),
        ("text-generation", "org/writer"),
        ("embedding", "org/vectors@main"),
    }


# --- analytics --------------------------------------------------------------------------------------------------------


async def test_the_read_model_can_be_asked_in_sql(client: httpx.AsyncClient) -> None:
    task_id = [await submitted(client) for _ in range(3)][-1]
    await client.get(f"/v1/tasks/{task_id}")
    response = await client.post("/v1/query", json={"sql": "select state, count(*) as n from tasks group by all"})
    answer = response.json()
    assert (answer["columns"], answer["rows"], answer["truncated"]) == (["state", "n"], [["queued", 3]], False)
    asked = {"sql": "select kind from tasks where task_id = ?", "params": [task_id]}
    assert (await client.post("/v1/query", json=asked)).json()["rows"] == [["echo"]]
    short = (await client.post("/v1/query", json={"sql": "select * from range(10)", "max_rows": 4})).json()
    assert (len(short["rows"]), short["truncated"]) == (4, True)


@pytest.mark.parametrize(
    "sql",
    [
        "drop table tasks",
        "select 1; select 2",
        "selec",
        "copy tasks to '/tmp/x.csv'",
        "select * from read_text('/etc/passwd')",
        "set memory_limit = '10GB'",
        "install httpfs",
    ],
)
async def test_sql_that_does_more_than_read_is_refused(client: httpx.AsyncClient, sql: str) -> None:
    check_problem(await client.post("/v1/query", json={"sql": sql}), 422, "query_refused")


async def test_sql_that_takes_too_long_is_stopped(client: httpx.AsyncClient) -> None:
    asked = {
        "sql": "select count(*) from range(1000000) a, range(1000000) b where a.range + b.range = 7",
        "timeout_s": 0.2,
    }
    check_problem(await client.post("/v1/query", json=asked), 422, "query_timeout")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "sql"),
        ({"sql": ""}, "sql"),
        ({"sql": 1}, "sql"),
        ({"sql": "select 1", "timeout_s": -1}, "timeout_s"),
        ({"sql": "select 1", "max_rows": 0}, "max_rows"),
        ({"sql": "select 1", "file": "x"}, "file"),
    ],
)
async def test_a_bad_query_field_is_named(client: httpx.AsyncClient, body: dict[str, Any], field: str) -> None:
    assert check_problem(await client.post("/v1/query", json=body), 422, "invalid_input")["field"] == field


async def test_a_query_is_json(client: httpx.AsyncClient) -> None:
    headers = {"Content-Type": "application/json"}
    check_problem(await client.post("/v1/query", content=b"{\xff", headers=headers), 400, "malformed_body")
    check_problem(await client.post("/v1/query", content=b"select 1"), 415, "unsupported_media_type")


async def test_the_schema_names_the_tables(client: httpx.AsyncClient) -> None:
    schema = (await client.get("/v1/schema")).json()
    assert {"tasks", "workers", "models"} <= {table["table"] for table in schema["tables"]}
    columns = {(column["table"], column["column"]): column for column in schema["columns"]}
    assert columns["tasks", "submitted_at"]["type"].lower().startswith("timestamp")


async def test_a_rebuilt_read_model_says_the_same(client: httpx.AsyncClient, player: Player) -> None:
    task_id = await submitted(client)
    await player.run(task_id, message=1)
    response = await client.post("/v1/projections/rebuild")
    assert (response.status_code, response.json()["rebuilt"]) == (200, True)
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "succeeded"


# --- health and metrics -----------------------------------------------------------------------------------------------


async def test_a_gateway_becomes_ready(client: httpx.AsyncClient, eventually: Any) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok"}

    async def ready() -> Any:
        return (await client.get("/readyz")).json().get("status") == "ready"

    await eventually(ready)
    assert (await client.head("/healthz")).content == b""


async def test_metrics_tell_what_happens(client: httpx.AsyncClient, eventually: Any) -> None:
    task_id = await submitted(client)
    await client.get(f"/v1/tasks/{task_id}")
    await client.get("/v1/tasks/not-an-id")
    text = (await client.get("/metrics")).text
    for line in (
        'bitinglip_tasks{state="queued"} 1.0',
        "bitinglip_log_connected 1.0",
        "bitinglip_append_seconds_count 1.0",
        'bitinglip_tasks_submitted_total{kind="echo",lane="normal"} 1.0',
        'bitinglip_http_request_seconds_count{method="POST",route="/v1/tasks",status="202"} 1.0',
        'bitinglip_http_request_seconds_count{method="GET",route="/v1/tasks/{task_id}",status="422"} 1.0',
        "bitinglip_projection_lag_events",
        "process_resident_memory_bytes",
    ):
        assert line in text


async def test_metrics_tell_what_workers_devices_do(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> None:
    beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example)
    await log.append(log.fact_append(beat, subjects.worker_subject("rig-1-0", "heartbeat"), "rig-1-0"))

    async def told() -> list[str]:
        lines = (await client.get("/metrics")).text.splitlines()
        return [line for line in lines if line.startswith("bitinglip_device_")]

    labels = '{node_id="rig-1",worker_id="rig-1-0"}'
    assert await eventually(told) == [
        f"bitinglip_device_memory_total_bytes{labels} 8.589934592e+09",
        f"bitinglip_device_memory_used_bytes{labels} 3.221225472e+09",
        f"bitinglip_device_utilisation_percent{labels} 87.0",
        f"bitinglip_device_temperature_c{labels} 64.0",
        f"bitinglip_device_power_w{labels} 181.5",
    ]
    [worker] = (await client.get("/v1/workers")).json()["workers"]
    assert (worker["device_name"], worker["device_power_w"]) == ("NVIDIA GeForce RTX 3070", 181.5)
    goodbye = WorkerStopped(worker_id="rig-1-0", node_id="rig-1", reason="signal")
    await log.append(log.fact_append(goodbye, subjects.worker_subject("rig-1-0", "stopped"), "rig-1-0"))

    async def silent() -> bool:
        return not await told()

    await eventually(silent)


# --- no route ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/tasks/", "/v1/tasks/a/b", "/V1/tasks", "/v1/%2e%2e/x", "//v1/tasks"])
async def test_a_path_without_a_route_is_not_found(client: httpx.AsyncClient, path: str) -> None:
    check_problem(await client.get(path), 404, "not_found")


async def test_a_wrong_method_is_told_the_right_ones(client: httpx.AsyncClient) -> None:
    response = await client.put("/v1/tasks", json=ECHO)
    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD, POST"


@pytest.mark.parametrize("path", ["/v1/workers", "/v1/models", "/v1/queues", "/v1/schema", f"/v1/artifacts/{'0' * 64}"])
async def test_no_route_takes_unknown_parameters(client: httpx.AsyncClient, path: str) -> None:
    assert check_problem(await client.get(path, params={"x": "1"}), 422, "invalid_input")["field"] == "x"
