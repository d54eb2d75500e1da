"""Everything is killed at random while tasks come in; then the log is asked.

Seeded: BITINGLIP's promise is checked on the log itself, not on what any process says. Set `FAULTS_SEED` and
`FAULTS_ROUNDS` for another or a longer run.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil
import pytest

from bitinglip.errors import NoServer
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.state import fold, is_terminal
from tests.support.cluster import Cluster, Process, children_of
from tests.support.server import RestartableServer, eventually

SEED = int(os.environ.get("FAULTS_SEED", "20261123"))
ROUNDS = int(os.environ.get("FAULTS_ROUNDS", "24"))
FAULTS = ("worker", "engine", "gateway", "server", "pause", "kept worker", "engine", "node", "kept worker")
PAUSE_S = 0.1
"""Longest pause of a client between two tasks: what comes in is bounded, however fast the machine is."""
LEASE = {"BITINGLIP_WORKER_LEASE_S": "2", "BITINGLIP_WORKER_MAX_BATCH": "8", "BITINGLIP_WORKER_HEARTBEAT_S": "1"}


@dataclass
class Field:
    """What is under attack, and what was promised."""

    server: RestartableServer
    cluster: Cluster
    gateway: Process
    workers: list[Process]
    node: Process
    chance: random.Random
    accepted: set[str] = field(default_factory=set[str])
    kills: Counter[str] = field(default_factory=Counter[str])

    async def strike(self) -> None:
        """Kill or pause one thing, and bring it back."""
        what = self.chance.choice(FAULTS)
        self.kills[what] += 1
        worker = self.chance.choice(self.workers)
        if what == "server":
            await self.server.kill()
            await self.pause(0.3)
            await self.server.start()
        elif what == "gateway":
            await self.gateway.kill()
            await self.gateway.start()
        elif what == "node":
            await self.node.kill()
            await self.node.start()
        elif what == "kept worker":
            pids = children_of(self.node.pid)  # none, if its workers are waited for
            self.chance.shuffle(pids)
            for pid in pids[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif what == "engine":
            for pid in children_of(worker.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif what == "pause":
            worker.signal(signal.SIGSTOP)
            await self.pause(3.0)
            worker.signal(signal.SIGCONT)
        else:
            await worker.kill()
            await worker.start()

    async def pause(self, most_s: float) -> None:
        """Let a moment pass, of random length."""
        await asyncio.sleep(self.chance.uniform(0, most_s))  # sleep-ok: faults come at random times


@pytest.fixture
async def battlefield(restartable_nats: RestartableServer, tmp_path: Path) -> Any:
    cluster = Cluster(restartable_nats.url, tmp_path)
    port = {"BITINGLIP_GATEWAY_PORT": str(free_port())}
    gateway = await cluster.gateway(**port)
    workers = [await cluster.worker(**LEASE) for _ in range(2)]
    node = await cluster.node(workers=2, **LEASE)
    yield Field(restartable_nats, cluster, gateway, workers, node, random.Random(SEED))
    await cluster.close()


def free_port() -> int:
    import socket

    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.timeout(600)
async def test_every_accepted_task_ends_exactly_once_whatever_is_killed(battlefield: Field) -> None:
    stop = asyncio.Event()
    clients = [asyncio.create_task(submit_for_ever(battlefield, number, stop)) for number in range(4)]
    for _ in range(ROUNDS):
        await battlefield.pause(1.0)
        await battlefield.strike()
    stop.set()
    await asyncio.gather(*clients)
    log = await EventLog.connect(Nats(url=battlefield.server.url), "/checker")
    assert len(battlefield.accepted) > ROUNDS
    await eventually(lambda: all_ended(log, battlefield.accepted), within_s=120)
    await check_histories(log, battlefield.accepted)
    await check_read_models(battlefield, log)
    await log.close()
    assert len([kind for kind, count in battlefield.kills.items() if count]) >= 4, battlefield.kills


async def submit_for_ever(battlefield: Field, number: int, stop: asyncio.Event) -> None:
    """Send tasks as an application would: each one again with its idempotency key until it is accepted."""
    chance = random.Random(SEED + number)
    count = 0
    async with httpx.AsyncClient(base_url=battlefield.gateway.ready["url"], timeout=10) as client:
        while not stop.is_set():
            count += 1
            params = chance.choice([{"message": count}, {"message": count, "steps": 10, "step_ms": 20}])
            body = {"kind": "echo", "model": "echo", "params": params, "retry": {"max_attempts": 50, "base_ms": 50}}
            task_id = await accepted(client, body, f"{number}-{count}")
            battlefield.accepted.add(task_id)
            await asyncio.sleep(chance.uniform(0, PAUSE_S))  # sleep-ok: applications come at random times


async def accepted(client: httpx.AsyncClient, body: dict[str, Any], key: str) -> str:
    async def once() -> str | None:
        answer = await client.post("/v1/tasks", json=body, headers={"Idempotency-Key": key})
        assert answer.status_code in {202, 503}, answer.text
        return answer.json()["task_id"] if answer.status_code == 202 else None

    return await eventually(once, within_s=60)


async def all_ended(log: EventLog, task_ids: set[str]) -> bool:
    for task_id in task_ids:
        last = await log.read_last("TASKS", f"bl.task.{task_id}.>")
        if last is None or not is_terminal(last.event):
            task = fold(await log.read_task(TaskId(task_id)))
            if task is None or not task.ended:
                return False
    return True


async def check_histories(log: EventLog, task_ids: set[str]) -> None:
    attempts: Counter[int] = Counter()
    for task_id in task_ids:
        history = await log.read_task(TaskId(task_id))
        task = fold(history)  # refuses any event out of place
        assert task is not None
        assert sum(is_terminal(recorded.event) for recorded in history) == 1, [recorded.type for recorded in history]
        assert task.state == "succeeded", [recorded.type for recorded in history]
        attempts[task.attempt] += 1
    assert max(attempts) > 1, "no attempt was ever lost: the faults did not hit"

    async def settled() -> bool:
        return (await log.connection.js.stream_info(QUEUE)).state.messages == 0

    await eventually(settled, within_s=30)


async def check_read_models(battlefield: Field, log: EventLog) -> None:
    """The live read model, the same rebuilt, and the Python fold say the same."""
    async with httpx.AsyncClient(base_url=battlefield.gateway.ready["url"], timeout=60) as client:
        await eventually(lambda: caught_up(client, log), within_s=60)
        live = await dump(client)
        assert (await client.post("/v1/projections/rebuild")).status_code in {200, 202, 204}
        await eventually(lambda: caught_up(client, log), within_s=60)
        rebuilt = await dump(client)
    assert rebuilt == live
    states = {row[0]: (row[1], row[2]) for row in live}
    for task_id in battlefield.accepted:
        task = fold(await log.read_task(TaskId(task_id)))
        assert task is not None
        assert states[task_id] == (task.state, task.attempt)


async def caught_up(client: httpx.AsyncClient, log: EventLog) -> bool:
    with suppress(NoServer):
        last = await log.read_last("TASKS", "bl.task.>")
        answer = await client.post("/v1/query", json={"sql": "SELECT max(sequence) FROM events WHERE stream = 'TASKS'"})
        return answer.status_code == 200 and last is not None and answer.json()["rows"][0][0] >= last.sequence
    return False


async def dump(client: httpx.AsyncClient) -> list[Any]:
    answer = await client.post(
        "/v1/query", json={"sql": "SELECT task_id, state, attempt, * FROM tasks ORDER BY task_id"}
    )
    assert answer.status_code == 200, answer.text
    rows = orjson.loads(answer.content)["rows"]
    assert len(rows) < 10_000, "the dump is cut off: raise the row limit"
    return rows


async def test_nothing_of_ours_outlives_its_parent(cluster: Cluster, log: EventLog) -> None:
    """A killed worker takes its engine process with it."""
    worker = await cluster.worker()
    from bitinglip.tasks.commands import SubmitTask
    from bitinglip.tasks.inbox import Inbox

    accepted = await Inbox(log, 65_536).submit(
        SubmitTask(kind="echo", model="echo", params={"steps": 1000, "step_ms": 20})
    )

    async def engine() -> list[int]:
        return children_of(worker.pid)

    (engine_pid,) = await eventually(engine)
    await worker.kill()
    await eventually(lambda: not psutil.pid_exists(engine_pid) or psutil.Process(engine_pid).status() == "zombie")
    assert accepted.created
