"""For how long publishing and the queue pause when a server of a three-node cluster is killed.

`python -m benchmarks.failover [ROUNDS]`: in each round the leader of TASKS, then that of QUEUE, is killed with SIGKILL
while tasks are submitted one after the other, and another client takes them out of the queue.
"""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from itertools import pairwise

import uvloop

from benchmarks.support import Figure, publish, scratch
from bitinglip.errors import BitingLipError
from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.sourcing import Sourcing
from bitinglip.events.streams import QUEUE, TASKS, Route
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from tests.support.natscluster import NatsCluster

ROUNDS = 3
BEFORE_S = 1.0
AFTER_S = 90.0
"""Longest watch after a kill."""
CALM_S = 5.0
"""Tasks must pass through for so long before a round counts as over."""
PACE_S = 0.005
COMMAND = SubmitTask(kind="echo", model="echo")
ROUTE = Route("normal", "echo")


class Pauses:
    """The longest times without an ack, and without a delivery of what was acked."""

    def __init__(self) -> None:
        self.acked: dict[str, float] = {}
        self.delivered: dict[str, float] = {}

    def publishing_s(self) -> float:
        """Return the longest time between two acks."""
        times = sorted(self.acked.values())
        return max(after - before for before, after in pairwise(times))

    def queue_s(self) -> float:
        """Return the longest time from a task's ack to its delivery."""
        return max(self.delivered[task_id] - at for task_id, at in self.acked.items())


async def measure(rounds: int = ROUNDS) -> list[Figure]:
    """Kill the two leaders in turn, each in a cluster of its own."""
    figures: list[Figure] = []
    for stream in (TASKS, QUEUE):
        pauses = [await _round(stream) for _ in range(rounds)]
        publishing, queue = [one.publishing_s() for one in pauses], [one.queue_s() for one in pauses]
        notes = [", ".join(f"{seconds:.1f}" for seconds in values) for values in (publishing, queue)]
        figures += [
            Figure(f"leader of {stream} killed: pause of publishing", max(publishing), "s", 10, False, notes[0]),
            Figure(f"leader of {stream} killed: longest way from ack to worker", max(queue), "s", 60, False, notes[1]),
        ]
    return figures


async def _round(stream: str) -> Pauses:
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
            cluster = (await log.connection.js.stream_info(stream)).cluster
            assert cluster is not None
            assert cluster.leader is not None
            await servers.nodes[cluster.leader].kill()
            await _until_calm(pauses)
            for task in (submitting, taking):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            pauses.acked = {task_id: at for task_id, at in pauses.acked.items() if task_id in pauses.delivered}
            await sourcing.close()
            await asyncio.gather(log.close(), other.close())
        finally:
            await servers.kill()
    return pauses


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


async def _take(log: EventLog, pauses: Pauses) -> None:
    queue = WorkQueue(log.connection, 10.0)
    await queue.ensure([ROUTE])
    while True:
        try:
            for delivery in await queue.wait([ROUTE], 1):
                pauses.delivered.setdefault(delivery.event.event.model_dump()["task_id"], time.monotonic())
                await delivery.ack()
        except BitingLipError:
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    publish(uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)))
