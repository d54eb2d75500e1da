"""For how long publishing and the queue pause when a server of a three-node cluster is killed.

`python -m benchmarks.failover [ROUNDS]`: in each round the leader of TASKS, then that of QUEUE, then one that leads
both is killed with SIGKILL while tasks are submitted one after the other, and another client takes them out of the
queue; then once more beside a gateway and two workers that all use that server, and tasks that come over HTTP. What
the servers' logs tell of their elections is told apart from what comes after those.
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import pairwise

import httpx
import uvloop

from benchmarks.support import Figure, publish, scratch
from bitinglip.errors import BitingLipError
from bitinglip.events.consumers import ask
from bitinglip.events.envelope import Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.sourcing import Sourcing
from bitinglip.events.streams import LEDGER, QUEUE, TASKS, Route
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal
from tests.support.cluster import Cluster
from tests.support.natscluster import NatsCluster
from tests.support.server import eventually

ROUNDS = 3
BEFORE_S = 1.0
AFTER_S = 90.0
"""Longest watch after a kill."""
CALM_S = 5.0
"""Tasks must pass through for so long before a round counts as over."""
POSTING_S = 16.0
WORKERS = 2
PACE_S = 0.005
COMMAND = SubmitTask(kind="echo", model="echo")
ROUTE = Route("normal", "echo")
LEASE_S = 10.0
ELECTION = re.compile(r"^\[\d+\] (\S+ \S+) \[INF\] JetStream cluster new \w+ leader for '.* > (\S+)'", re.MULTILINE)
"""A new leader of a stream, or of a consumer, in a server's log: when (by the local clock), and whose."""


class Pauses:
    """The longest times without an ack, and without a delivery of what was acked."""

    def __init__(self) -> None:
        self.acked: dict[str, float] = {}
        self.delivered: dict[str, float] = {}
        self.again: set[str] = set()
        """Those that were delivered a second time: the first one went down with the server."""
        self.killed = 0.0
        self.elected: dict[str, float] = {}
        """When each stream and consumer that had lost its leader had one again."""

    def publishing_s(self) -> float:
        """Return the longest time between two acks."""
        times = sorted(self.acked.values())
        return max(after - before for before, after in pairwise(times))

    def queue_s(self) -> float:
        """Return the longest time from a task's ack to its delivery."""
        return max(self.delivered[task_id] - at for task_id, at in self.acked.items())

    def elections_s(self) -> float:
        """Return how long after the kill the last of what a task passes through had a leader again."""
        return max(self.elected.values(), default=self.killed) - self.killed

    def rest_s(self, *, again: bool) -> float:
        """Return the longest way of a task to a worker, without what it waited for elections; 0 if there is none."""
        led = max(self.elected.values(), default=self.killed)
        ways = [
            self.delivered[task_id] - max(at, led)
            for task_id, at in self.acked.items()
            if (task_id in self.again) == again
        ]
        return max([0.0, *ways])

    def note(self) -> str:
        """Write whose leaders were killed, and when each had one again."""
        return " ".join(f"{name} {at - self.killed:.1f}" for name, at in sorted(self.elected.items()))


async def measure(rounds: int = ROUNDS) -> list[Figure]:
    """Kill the leaders in turn, each in a cluster of its own."""
    figures: list[Figure] = []
    for streams in ((TASKS,), (QUEUE,), (TASKS, QUEUE)):
        pauses = [await _round(*streams) for _ in range(rounds)]
        who = " and ".join(streams)
        publishing, queue = [one.publishing_s() for one in pauses], [one.queue_s() for one in pauses]
        elections, rest = [one.elections_s() for one in pauses], [one.rest_s(again=False) for one in pauses]
        lost = [one.rest_s(again=True) for one in pauses]
        whole = [await _whole_round(*streams) for _ in range(rounds)]
        ends, after = [one.queue_s() for one in whole], [one.rest_s(again=False) for one in whole]
        figures += [
            Figure(f"leader of {who} killed: {question}", max(values), "s", bound, False, note)
            for question, values, bound, note in (
                ("pause of publishing", publishing, 10, _each(publishing)),
                ("longest way from ack to worker", queue, 60, _each(queue)),
                ("until the last of them had a leader", elections, 10, "; ".join(one.note() for one in pauses)),
                ("longest way beyond that", rest, 4, _each(rest)),
                ("the same, delivered again after its lease", lost, LEASE_S, _each(lost)),
                ("gateway and workers on it: longest task", ends, 60, _each(ends)),
                ("the same, beyond the elections", after, 4, _each(after)),
            )
        ]
    return figures


def _each(values: list[float]) -> str:
    return ", ".join(f"{seconds:.1f}" for seconds in values)


async def _round(stream: str, also: str | None = None) -> Pauses:
    """Kill the leader of a stream (and of another one); see when publishing and the queue go on."""
    pauses = Pauses()
    async with scratch() as folder:
        servers = NatsCluster(folder / "nats")
        try:
            await servers.start()
            log = await EventLog.connect(Nats(url=servers.url("gateway"), replicas=3), "/bench")
            other = await EventLog.connect(Nats(url=servers.url("worker"), replicas=3), "/bench/worker")
            sourcing = Sourcing(log.connection)
            await sourcing.start()
            submitting = asyncio.create_task(_submit(log, pauses))
            taking = asyncio.create_task(_take(other, pauses))
            await asyncio.sleep(BEFORE_S)
            leader = await _leader(log, stream, also)
            pauses.killed = time.monotonic()
            await servers.nodes[leader].kill()
            await _until_calm(pauses)
            for task in (submitting, taking):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            pauses.acked = {task_id: at for task_id, at in pauses.acked.items() if task_id in pauses.delivered}
            pauses.elected = _elections(servers, pauses.killed)
            await sourcing.close()
            await asyncio.gather(log.close(), other.close())
        finally:
            await servers.kill()
    return pauses


async def _whole_round(stream: str, also: str | None = None) -> Pauses:
    """Kill a leader that a gateway and two workers are connected to; "delivered" is what has come to its end."""
    pauses = Pauses()
    async with scratch() as folder:
        servers = NatsCluster(folder / "nats")
        cluster = Cluster("", folder)
        try:
            await servers.start()
            log = await EventLog.connect(Nats(url=servers.url("gateway"), replicas=3), "/bench")
            leader = await _leader(log, stream, also)
            settings = {"BITINGLIP_NATS_REPLICAS": 3, "BITINGLIP_WORKER_LEASE_S": LEASE_S}
            gateway = await cluster.gateway(BITINGLIP_NATS_URL=servers.url("gateway", leader), **settings)
            for _ in range(WORKERS):
                await cluster.worker(BITINGLIP_NATS_URL=servers.url("worker", leader), **settings)
            async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=60, trust_env=False) as client:
                submitting = asyncio.create_task(_post(client, pauses))
                await asyncio.sleep(BEFORE_S)
                pauses.killed = time.monotonic()
                await servers.nodes[leader].kill()
                await asyncio.sleep(POSTING_S)
                submitting.cancel()
                with suppress(asyncio.CancelledError):
                    await submitting
            shift = time.monotonic() - time.time()
            for task_id in pauses.acked:
                last = await eventually(partial(_end, log, task_id), within_s=AFTER_S)
                pauses.delivered[task_id] = last.recorded_at.timestamp() + shift
            pauses.elected = _elections(servers, pauses.killed)
            await log.close()
        finally:
            await cluster.close()
            await servers.kill()
    return pauses


async def _end(log: EventLog, task_id: str) -> Recorded | None:
    last = (await log.read_task(TaskId(task_id)))[-1]
    return last if is_terminal(last.event) else None


async def _leader(log: EventLog, stream: str, also: str | None) -> str:
    """Return who leads a stream, once that server leads the other one too."""

    async def leader_of(name: str) -> str:
        leader: str = (await ask(log.connection, f"STREAM.INFO.{name}", {}))["cluster"]["leader"]
        return leader

    leader = await leader_of(stream)
    while also is not None and await leader_of(also) != leader:
        await ask(log.connection, f"STREAM.LEADER.STEPDOWN.{also}", {"placement": {"preferred": leader}})
        await asyncio.sleep(BEFORE_S)
    return leader


def _elections(servers: NatsCluster, killed: float) -> dict[str, float]:
    """Return when each stream and consumer that a task passes through had its first new leader after the kill."""
    shift = time.monotonic() - time.time()
    found: dict[str, float] = {}
    for node in servers.nodes.values():
        for when, name in ELECTION.findall(node.log):
            at = datetime.strptime(when, "%Y/%m/%d %H:%M:%S.%f").astimezone().timestamp() + shift
            if at > killed and name in (TASKS, QUEUE, LEDGER, ROUTE.consumer):
                found[name] = min(at, found.get(name, at))
    return found


async def _until_calm(pauses: Pauses) -> None:
    """Wait until all that was acked a moment ago has been delivered, for a while, after the kill."""
    killed = time.monotonic()
    calm = killed
    while time.monotonic() - killed < AFTER_S and time.monotonic() - calm < CALM_S:
        await asyncio.sleep(0.1)
        moment = time.monotonic() - 0.5
        recent = [task_id for task_id, at in list(pauses.acked.items())[-500:] if at < moment]
        if not recent or not all(task_id in pauses.delivered for task_id in recent):
            calm = time.monotonic()
        if pauses.acked and time.monotonic() - max(pauses.acked.values()) > 0.5:
            calm = time.monotonic()


async def _submit(log: EventLog, pauses: Pauses) -> None:
    inbox, number = Inbox(log, 65_536), 0
    while True:
        number += 1
        while True:
            try:
                accepted = await inbox.submit(COMMAND, idempotency_key=str(number))
                break
            except BitingLipError:
                await asyncio.sleep(0.05)
        pauses.acked[accepted.task_id] = time.monotonic()
        await asyncio.sleep(PACE_S)


async def _post(client: httpx.AsyncClient, pauses: Pauses) -> None:
    number, body = 0, {"kind": COMMAND.kind, "model": COMMAND.model}
    while True:
        number += 1
        while True:
            answer = await client.post("/v1/tasks", json=body, headers={"Idempotency-Key": str(number)})
            if answer.is_success:
                break
            await asyncio.sleep(0.05)
        pauses.acked[answer.json()["task_id"]] = time.monotonic()
        await asyncio.sleep(PACE_S)


async def _take(log: EventLog, pauses: Pauses) -> None:
    queue = WorkQueue(log.connection, LEASE_S)
    await queue.ensure([ROUTE])
    while True:
        try:
            for delivery in await queue.wait([ROUTE], 1):
                task_id = delivery.event.event.model_dump()["task_id"]
                if task_id not in pauses.delivered and delivery.delivered > 1:
                    pauses.again.add(task_id)
                pauses.delivered.setdefault(task_id, time.monotonic())
                await delivery.ack()
        except BitingLipError:
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    publish(uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)))
