"""The machines' clocks are set while work goes on, or were off from the start: the server's is the one that counts."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskAssigned, TaskQueued
from bitinglip.ids import TaskId
from tests.faults.audit import audit
from tests.support.cluster import Cluster

SHIFTED = Path(__file__).parents[1] / "support" / "shifted_clock"
HOUR_S = 3_600.0
LEASE_S = 2.0
LATE_S = 20.0
"""A delayed task is given to a worker within this time; by a clock that is an hour off it would be an hour."""
ENDS = {"": ["succeeded"], "retried": ["dead_lettered"]}
ECHO: dict[str, Any] = {"kind": "echo", "model": "echo"}
LONG = ECHO | {"params": {"steps": 50, "step_ms": 100}}
DELAYED = ECHO | {"delay_s": 1.5}
RETRIED = ECHO | {
    "params": {"fail": "out_of_memory"},
    "retry": {"max_attempts": 3, "base_ms": 100, "max_ms": 500},
    "metadata": {"shape": "retried"},
}


@pytest.fixture
def clock(tmp_path: Path) -> Path:
    """How many seconds the processes' clocks are ahead: a file, which they read each time."""
    file = tmp_path / "clock"
    file.write_text("0")
    return file


def shifted(clock: Path) -> dict[str, str]:
    path = [str(SHIFTED), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(path), "SHIFTED_CLOCK": str(clock)}


def expiring() -> dict[str, Any]:
    return ECHO | {"expires_at": (datetime.now(UTC) + timedelta(minutes=10)).isoformat()}


async def submit(client: httpx.AsyncClient, *bodies: dict[str, Any]) -> list[TaskId]:
    answers = [await client.post("/v1/tasks", json=body) for body in bodies]
    assert [answer.status_code for answer in answers] == [202] * len(bodies)
    return [answer.json()["task_id"] for answer in answers]


async def has_state(client: httpx.AsyncClient, ids: list[TaskId], *states: str) -> bool:
    return all([(await client.get(f"/v1/tasks/{task_id}")).json()["state"] in states for task_id in ids])


async def check(log: EventLog, ids: list[TaskId], attempts: dict[str, int]) -> None:
    """Each task ended as it should, none ran twice at a time, and none waited for long."""
    for task_id in ids:
        history = await log.read_task(task_id)
        told = audit(history, ENDS)
        assert told.findings == []
        assert len(told.runs) == attempts[told.shape], task_id
        for before, after in pairwise(history):
            if isinstance(after.event, TaskAssigned | TaskQueued):
                assert after.recorded_at - before.recorded_at < timedelta(seconds=LATE_S), (before, after)


@pytest.mark.parametrize("jump_s", [HOUR_S, -HOUR_S])
async def test_a_clock_that_jumps_changes_nothing(
    jump_s: float, cluster: Cluster, log: EventLog, clock: Path, eventually: Callable[..., Any]
) -> None:
    own = shifted(clock)
    gateway = await cluster.gateway(**own)
    await cluster.node(2, BITINGLIP_WORKER_LEASE_S=LEASE_S, BITINGLIP_WORKER_HEARTBEAT_S=1, **own)
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=10, trust_env=False) as client:
        runs = await submit(client, LONG)
        waits = await submit(client, DELAYED, RETRIED, expiring())
        await eventually(lambda: has_state(client, runs, "running"))
        clock.write_text(str(jump_s))
        later = await submit(client, LONG, DELAYED, RETRIED, expiring(), ECHO)
        everything = runs + waits + later
        await eventually(lambda: has_state(client, everything, "succeeded", "dead_lettered"), within_s=60)
        nodes = (await client.get("/v1/nodes")).json()["nodes"]
        ready = (await client.get("/readyz")).json()
    await check(log, everything, {"": 1, "retried": 3})
    assert [node["state"] for node in nodes] == ["online"]
    assert ready["status"] == "degraded"
    assert ("3600 s ahead of" if jump_s > 0 else "3600 s behind") in ready["clock"]


@pytest.mark.parametrize("off_s", [HOUR_S, -HOUR_S])
async def test_a_machine_whose_clock_is_off_works_like_any_other(
    off_s: float, cluster: Cluster, log: EventLog, clock: Path, eventually: Callable[..., Any]
) -> None:
    clock.write_text(str(off_s))
    gateway = await cluster.gateway()
    node = await cluster.node(1, BITINGLIP_WORKER_LEASE_S=LEASE_S, BITINGLIP_WORKER_HEARTBEAT_S=1, **shifted(clock))
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=10, trust_env=False) as client:
        ids = await submit(client, LONG, DELAYED, RETRIED, expiring())
        await eventually(lambda: has_state(client, ids, "succeeded", "dead_lettered"), within_s=60)
        nodes = (await client.get("/v1/nodes")).json()["nodes"]
        ready = (await client.get("/readyz")).json()
    await check(log, ids, {"": 1, "retried": 3})
    assert [each["state"] for each in nodes] == ["online"]
    assert ready["status"] == "ready"
    assert "clock is 3600 s" in node.log
