"""Real workers whose cards differ in size: a task that one was too small for runs on the bigger one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.routes import known_routes
from bitinglip.events.streams import QUEUE, WORKERS, Route
from bitinglip.events.subjects import WorkClass, encode_queue
from bitinglip.events.task import LANES, Failure, TaskAssigned, TaskDeadLettered, TaskFailed, TaskQueued
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import AssignAttempt, CancelTask, FailAttempt
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.outgrown import ensure_queue
from bitinglip.tasks.state import decide, evolve, fold
from tests.integration.cli.test_cli import bitinglip
from tests.integration.test_worker import echo, outcome, submit, types, until
from tests.support.cluster import Cluster, Process
from tests.support.nvml import Rig

GIB = 2**30
COMMON = Route("normal", "echo")
BIGGER = Route("normal", encode_queue("echo", WorkClass(vram_gb=9)))
FULL = Failure(kind="out_of_memory", message="No room.", retryable=True, device_bytes=8 * GIB)
NEEDS_10_GB: dict[str, Any] = {"needs_gb": 10, "message": "done"}


@pytest.fixture
def inbox(log: EventLog) -> Inbox:
    return Inbox(log, inline_max_bytes=65_536)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """Cards of 8, 8 and 24 GiB."""
    rig = Rig(tmp_path / "nvml.json", 3)
    rig.tell(2, memory=[24 * GIB, 0])
    return rig


class Workers:
    """Workers on the cards of a rig."""

    def __init__(self, cluster: Cluster, rig: Rig, log: EventLog, eventually: Any) -> None:
        self._cluster = cluster
        self._rig = rig
        self._log = log
        self._eventually = eventually

    async def start(self, card: int, **more: str) -> Process:
        """Start one on this card, and wait until the others can know of it."""
        settings: dict[str, str] = {
            "BITINGLIP_WORKER_DEVICE": f"cuda:{card}",
            "BITINGLIP_WORKER_MEMORY_GB": str(self._rig.cards[card]["memory"][0] / GIB - 1),
            "BITINGLIP_WORKER_LEASE_S": "1",
        }
        worker = await self._cluster.worker(**settings | self._rig.env | more)

        async def beats() -> bool:
            return await self._log.read_last(WORKERS, f"bl.worker.{name(worker)}.heartbeat") is not None

        await self._eventually(beats)
        return worker


@pytest.fixture
def workers(cluster: Cluster, rig: Rig, log: EventLog, eventually: Any) -> Workers:
    return Workers(cluster, rig, log, eventually)


def name(worker: Process) -> str:
    return worker.ready["worker_id"]


async def waits_for_a_bigger_card(log: EventLog, inbox: Inbox) -> TaskId:
    """Submit a task and let it fail on a small card, all in the log alone; its message stays with who ran it."""
    task_id = await submit(inbox, echo(**NEEDS_10_GB))
    task = fold(await log.read_task(task_id))
    assert task is not None
    now = log.clock()
    taken = AssignAttempt(
        ready_sequence=task.ready_sequence,
        worker_id="killed",
        node_id="n",
        device="cuda:0",
        revision=None,
        batch_size=1,
        now=now,
    )
    failed = FailAttempt(attempt=1, worker_id="killed", failure=FULL, run_ms=1.0, now=now, jitter=0.0, next_vram_gb=9.0)
    for command in (taken, failed):
        decided = decide(task, command)
        assert isinstance(decided, tuple)
        sequence = await log.append(log.task_append(decided[0], task.sequence))
        task = evolve(task, decided[0], sequence, log.clock())
        assert task is not None
    return task_id


async def test_what_a_card_is_too_small_for_runs_on_a_bigger_one(
    log: EventLog, inbox: Inbox, workers: Workers, eventually: Any
) -> None:
    big = await workers.start(2)
    long = await submit(inbox, echo(steps=100_000, step_ms=20))  # it keeps the big one busy
    await until(log, long, "task.assigned")
    small = await workers.start(0)
    task_id = await submit(inbox, echo(**NEEDS_10_GB))
    failed = (await until(log, task_id, "task.failed")).event
    await inbox.cancel(long, CancelTask())
    history = await outcome(log, task_id)
    assert types(history) == ["submitted", "assigned", "failed", "queued", "assigned", "succeeded"]
    assert isinstance(failed, TaskFailed)
    assert (failed.worker_id, failed.next_vram_gb, failed.failure.device_bytes) == (name(small), 9.0, 8 * GIB)
    queued, again = history[3].event, history[4].event
    assert isinstance(queued, TaskQueued)
    assert isinstance(again, TaskAssigned)
    assert (queued.reason, again.worker_id) == ("bigger_card", name(big))
    assert history[3].subject.endswith(f".{BIGGER.lane}.{BIGGER.queue}")

    async def empty() -> bool:
        return (await log.connection.js.stream_info(QUEUE)).state.messages == 0

    await eventually(empty)


async def test_whoever_looks_sees_why_it_waits_and_what_for(
    log: EventLog, inbox: Inbox, cluster: Cluster, workers: Workers, eventually: Any
) -> None:
    queue = WorkQueue(log.connection, lease_s=1)
    await queue.ensure([COMMON])
    task_id = await waits_for_a_bigger_card(log, inbox)
    await workers.start(0)
    gateway = (await cluster.gateway()).ready["url"]

    async def looked() -> dict[str, Any]:
        return (await bitinglip("task", "get", task_id, "--json", "--url", gateway)).json

    async def waits() -> bool:
        return (await looked())["state"] == "queued"

    await eventually(waits)
    seen = await looked()
    assert (seen["vram_gb"], seen["labels"], seen["queued_reason"]) == (9.0, [], "bigger_card")
    assert seen["failure"]["device_bytes"] == 8 * GIB
    queues = (await bitinglip("queue", "list", "--json", "--url", gateway)).lines
    assert [(told["requires"], told["depth"]) for told in queues if told["requires"]] == [
        ({"vram_gb": 9.0, "label": []}, 1)
    ]
    await workers.start(2)
    watched = await bitinglip("task", "watch", task_id, "--url", gateway)
    assert "on a card of at least 9 GiB\n" in watched.err
    assert "\nqueued for a bigger card\n" in watched.err
    assert watched.status == 0
    await queue.close()


async def test_where_no_card_is_bigger_its_end_says_so(log: EventLog, inbox: Inbox, workers: Workers) -> None:
    await workers.start(0)
    await workers.start(1)
    history = await outcome(log, await submit(inbox, echo(**NEEDS_10_GB)))
    assert types(history)[-1] == "dead_lettered"
    assert types(history).count("assigned") == 3
    last = history[-1].event
    assert isinstance(last, TaskDeadLettered)
    assert last.failure.message.endswith("No card of the cluster that may run it is bigger than this one, of 8.0 GiB.")
    assert set(await known_routes(log.connection)) == {Route(lane, "echo") for lane in LANES}


async def test_what_several_cards_of_one_worker_are_too_small_for_is_tried_again_on_any(
    log: EventLog, inbox: Inbox, workers: Workers
) -> None:
    """Nobody tells what they have together: a single card that is bigger than the first one may be smaller than all."""
    big = await workers.start(2)
    long = await submit(inbox, echo(steps=100_000, step_ms=20))
    await until(log, long, "task.assigned")
    await workers.start(0, BITINGLIP_WORKER_DEVICE="cuda:0,cuda:1")
    history = await outcome(log, await submit(inbox, echo(**NEEDS_10_GB)))
    failures = [recorded.event for recorded in history if isinstance(recorded.event, TaskFailed)]
    assert [failed.next_vram_gb for failed in failures] == [None, None]
    last = history[-1].event
    assert isinstance(last, TaskDeadLettered)
    assert "bigger" not in last.failure.message
    await big.kill()


async def test_a_worker_that_is_killed_before_it_opened_the_queue_leaves_it_to_the_next(
    log: EventLog, inbox: Inbox, workers: Workers
) -> None:
    queue = WorkQueue(log.connection, lease_s=1)
    await queue.ensure([COMMON])
    task_id = await waits_for_a_bigger_card(log, inbox)
    (held,) = await queue.wait([COMMON], 1)
    assert held.event.sequence == 1
    await queue.close()  # and the message is neither acked nor handed back
    assert await known_routes(log.connection) == [COMMON]
    await workers.start(0)
    await until(log, task_id, "task.queued")
    big = await workers.start(2)
    history = await outcome(log, task_id)
    assert types(history) == ["submitted", "assigned", "failed", "queued", "assigned", "succeeded"]
    again = history[4].event
    assert isinstance(again, TaskAssigned)
    assert again.worker_id == name(big)


async def test_one_that_waits_for_a_bigger_card_can_be_cancelled(
    log: EventLog, inbox: Inbox, workers: Workers, eventually: Any
) -> None:
    queue = WorkQueue(log.connection, lease_s=1)
    await queue.ensure([COMMON])
    task_id = await waits_for_a_bigger_card(log, inbox)
    await workers.start(0)
    await until(log, task_id, "task.queued")
    await inbox.cancel(task_id, CancelTask())
    assert types(await outcome(log, task_id))[-1] == "cancelled"

    async def empty() -> bool:
        return (await log.connection.js.stream_info(QUEUE)).state.messages == 0

    await eventually(empty)
    await queue.close()


async def test_a_queue_that_is_there_keeps_its_workers_lease(log: EventLog, inbox: Inbox) -> None:
    queue = WorkQueue(log.connection, lease_s=2)
    await queue.ensure([BIGGER])
    task = fold(await log.read_task(await waits_for_a_bigger_card(log, inbox)))
    assert task is not None
    await ensure_queue(log, task)
    assert (await log.connection.js.consumer_info(QUEUE, BIGGER.consumer)).config.ack_wait == 2
    await queue.close()
