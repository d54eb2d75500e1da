"""What `/metrics` tells of the machines, read by Prometheus' own parser."""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.node import NodeEvent, NodeHeartbeat, NodeStarted, NodeStopped, NodeWorkerExited
from bitinglip.events.worker import WorkerHeartbeat, WorkerStarted, WorkerStopped
from bitinglip.settings import Nats, Settings
from tests.integration.gateway.support import running

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def scrape(client: httpx.AsyncClient) -> Samples:
    """Return each sample by its name and labels; none is told twice."""
    response = await client.get("/metrics")
    assert response.status_code == 200, response.text
    families = text_string_to_metric_families(response.text)
    told = [sample for family in families for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in told}
    assert len(found) == len(told)
    return found


def of(samples: Samples, name: str, label: str) -> dict[str, float]:
    """Return the samples of a metric by one label, without those of 0."""
    return {dict(labels)[label]: value for (each, labels), value in samples.items() if each == name and value}


async def tell_node(log: EventLog, cls: type[NodeEvent], node_id: str, **changes: Any) -> None:
    event = cls.model_validate(cls.example | {"node_id": node_id} | changes)
    subject = subjects.node_subject(node_id, cls.type.partition(".")[2])
    await log.append(log.fact_append(event, subject, node_id))


async def tell_worker(
    log: EventLog, cls: type[WorkerStarted | WorkerHeartbeat | WorkerStopped], worker_id: str, **changes: Any
) -> None:
    event = cls.model_validate(cls.example | {"worker_id": worker_id} | changes)
    subject = subjects.worker_subject(worker_id, cls.type.partition(".")[2])
    await log.append(log.fact_append(event, subject, worker_id))


@pytest.fixture
async def yesterday(nats_url: str) -> Any:
    """A log that says all a day late."""
    log = await EventLog.connect(Nats(url=nats_url), "/test")
    now = log.clock
    log.clock = lambda: now() - timedelta(days=1)
    yield log
    await log.close()


async def test_no_machine_is_a_zero_in_every_state(client: httpx.AsyncClient) -> None:
    samples = await scrape(client)
    states = {dict(labels)["state"]: value for (name, labels), value in samples.items() if name == "bitinglip_nodes"}
    assert states == dict.fromkeys(("online", "draining", "stopped", "gone"), 0)
    assert samples["bitinglip_workers", frozenset({("state", "ready")})] == 0
    assert not of(samples, "bitinglip_worker_restarts_total", "reason")


async def test_nodes_are_counted_by_state(
    client: httpx.AsyncClient, log: EventLog, yesterday: EventLog, eventually: Any
) -> None:
    await tell_node(yesterday, NodeStarted, "rig-gone")
    await tell_node(log, NodeStarted, "rig-1", release="9.1")
    await tell_node(log, NodeStarted, "rig-2", draining=True)
    await tell_node(log, NodeStarted, "rig-3")
    await tell_node(log, NodeStopped, "rig-3")

    async def told() -> Samples | None:
        samples = await scrape(client)
        return samples if len(of(samples, "bitinglip_nodes", "state")) == 4 else None

    samples = await eventually(told)
    assert of(samples, "bitinglip_nodes", "state") == {"online": 1, "draining": 1, "stopped": 1, "gone": 1}
    assert of(samples, "bitinglip_node_info", "node_id") == {"rig-1": 1, "rig-2": 1}
    assert of(samples, "bitinglip_node_info", "release") == {"9.1": 1, "0.1.0": 1}


async def test_workers_are_counted_in_the_words_of_a_living_agent(
    client: httpx.AsyncClient, log: EventLog, yesterday: EventLog, eventually: Any
) -> None:
    listed = [{"worker_id": "rig-1-0", "device": "cpu", "state": "waiting"}]
    await tell_node(yesterday, NodeHeartbeat, "rig-gone", workers=[{**listed[0], "worker_id": "w-gone"}])
    await tell_worker(yesterday, WorkerStarted, "w-gone", node_id="rig-gone")
    await tell_worker(log, WorkerStarted, "rig-1-0")  # it crashed, and could not say so
    await tell_worker(log, WorkerHeartbeat, "alone", loaded=["a/b", "c/d"], node_id="rig-2")
    await tell_worker(log, WorkerStopped, "ended")
    await tell_node(log, NodeHeartbeat, "rig-1", workers=listed)

    async def told() -> Samples | None:
        samples = await scrape(client)
        return samples if "waiting" in of(samples, "bitinglip_workers", "state") else None

    samples = await eventually(told)
    assert of(samples, "bitinglip_workers", "state") == {"waiting": 1, "ready": 1, "stopped": 1, "gone": 1}
    assert of(samples, "bitinglip_worker_models_loaded", "worker_id") == {"alone": 2}
    assert of(samples, "bitinglip_device_power_w", "worker_id") == {"alone": 181.5}


async def test_restarts_are_a_counter_that_survives_a_rebuild(
    client: httpx.AsyncClient, log: EventLog, eventually: Any
) -> None:
    for status in (-9, 4, -9):
        await tell_node(log, NodeWorkerExited, "rig-1", status=status)

    async def told() -> bool:
        found = of(await scrape(client), "bitinglip_worker_restarts_total", "reason")
        return found == {"signal_9": 2, "status_4": 1}

    await eventually(told)
    assert (await client.post("/v1/projections/rebuild")).status_code == 200
    assert await told()


async def test_a_read_model_that_catches_up_or_is_swapped_fails_no_scrape(
    settings: Settings, log: EventLog, eventually: Any
) -> None:
    for number in range(2_000):
        await tell_node(log, NodeWorkerExited, f"rig-{number % 7}", status=4)
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:

        async def whole() -> bool:
            found = of(await scrape(client), "bitinglip_worker_restarts_total", "node_id")
            return sum(found.values()) == 2_000

        await eventually(whole)
        rebuilt = asyncio.create_task(client.post("/v1/projections/rebuild"))
        while not rebuilt.done():
            assert await whole()
        assert (await rebuilt).status_code == 200


async def test_a_worker_that_fell_silent_is_gone_wherever_it_is_told_of(
    client: httpx.AsyncClient, url: str, log: EventLog, yesterday: EventLog, eventually: Any
) -> None:
    """Nobody else can say so: its machine has no agent."""
    await tell_worker(yesterday, WorkerStarted, "w-silent")
    await tell_worker(yesterday, WorkerHeartbeat, "w-silent")
    await tell_worker(yesterday, WorkerStarted, "w-stopped")
    await tell_worker(yesterday, WorkerStopped, "w-stopped")
    await tell_worker(yesterday, WorkerStarted, "w-back")
    await tell_worker(log, WorkerHeartbeat, "w-back")

    async def listed() -> dict[str, str]:
        workers = (await client.get("/v1/workers")).json()["workers"]
        return {worker["worker_id"]: worker["state"] for worker in workers}

    async def told() -> bool:
        return await listed() == {"w-silent": "gone", "w-stopped": "stopped", "w-back": "started"}

    await eventually(told)
    assert (await client.get("/v1/workers/w-silent")).json()["state"] == "gone"
    assert of(await scrape(client), "bitinglip_workers", "state") == {"gone": 1, "stopped": 1, "ready": 1}
    command = (sys.executable, "-m", "bitinglip.cli.main", "worker", "list", "--url", url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    assert ["w-silent", "gone"] in [[line.split("\t")[0], line.split("\t")[2]] for line in out.decode().splitlines()]
