"""Three nats-servers as one cluster: work goes on whichever of them is killed, and nothing that was acked is lost."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from bitinglip.errors import Conflict, NoServer, TaskNotFound
from bitinglip.events import subjects
from bitinglip.events.absence import confirm_absent
from bitinglip.events.archive import purge
from bitinglip.events.batch import BatchOpened
from bitinglip.events.consumers import ask
from bitinglip.events.envelope import RawMessage, Recorded
from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.reactions import Reactions
from bitinglip.events.sourcing import Sourcing
from bitinglip.events.streams import (
    ARTIFACTS_BUCKET,
    ARTIFACTS_INDEX,
    LEDGER,
    MODELS,
    PATIENCE_S,
    QUEUE,
    TASKS,
    WORKERS,
    Route,
    ensure_consumer,
    within,
)
from bitinglip.events.task import TaskEvent, TaskSubmitted
from bitinglip.events.together import append_together
from bitinglip.ids import TaskId
from bitinglip.settings import Nats, Settings
from bitinglip.tasks.batches import Batches, Part
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Accepted, Inbox
from bitinglip.tasks.state import decide, fold, is_terminal
from bitinglip.workers.agent import Agent
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.identity import Identity
from tests.integration.gateway.support import collect
from tests.support.cluster import Cluster
from tests.support.natscluster import NatsCluster
from tests.support.server import eventually

THREE = {"BITINGLIP_NATS_REPLICAS": "3"}
ECHO = {"kind": "echo", "model": "echo", "params": {"message": "hello"}}
COUNT = 600
LEASE_S = 10.0
REQUEST_S = 5.0
"""How long a request to the server waits for its answer."""


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[NatsCluster]:
    servers = NatsCluster(tmp_path / "nats")
    await servers.start()
    yield servers
    await servers.kill()


@pytest.fixture
async def log(servers: NatsCluster) -> AsyncIterator[EventLog]:
    log = await EventLog.connect(Nats(url=servers.url("gateway"), replicas=3), "/test")
    yield log
    await log.close()


@pytest.fixture
async def cluster(servers: NatsCluster, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(servers.url("gateway"), tmp_path)
    yield cluster
    await cluster.close()


async def replicas_of(log: EventLog, stream: str) -> int:
    cluster = (await log.connection.js.stream_info(stream)).cluster
    assert cluster is not None
    return 1 + len(cluster.replicas or [])


async def cannot_tell(read: Callable[[], Awaitable[object]]) -> bool:
    try:
        await read()
    except NoServer:
        return True
    return False


async def leader_of(log: EventLog, stream: str) -> str:
    cluster = (await log.connection.js.stream_info(stream)).cluster
    assert cluster is not None
    assert cluster.leader
    return cluster.leader


async def test_work_flows_between_parts_on_different_servers_with_the_least_permissions(
    servers: NatsCluster, log: EventLog, cluster: Cluster
) -> None:
    gateway = await cluster.gateway(BITINGLIP_NATS_URL=servers.url("gateway", "nats-1"), **THREE)
    await cluster.worker(BITINGLIP_NATS_URL=servers.url("worker", "nats-2"), **THREE)
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        for params in ({"message": "x" * 200_000}, {"message": 1, "steps": 3, "step_ms": 10}):
            task_id = (await client.post("/v1/tasks", json=ECHO | {"params": params})).json()["task_id"]
            seen = await collect(client, f"/v1/tasks/{task_id}/events")
            assert seen[-1].type == "task.succeeded"
        long = (await client.post("/v1/tasks", json=ECHO | {"params": {"steps": 1000, "step_ms": 20}})).json()[
            "task_id"
        ]
        await eventually(lambda: is_running(client, long))
        assert (await client.delete(f"/v1/tasks/{long}")).status_code == 202
        assert (await collect(client, f"/v1/tasks/{long}/events"))[-1].type == "task.cancelled"
        assert (await client.get("/v1/queues")).status_code == 200
    streams = [TASKS, QUEUE, WORKERS, MODELS, f"OBJ_{ARTIFACTS_BUCKET}", f"KV_{ARTIFACTS_INDEX}"]
    assert [await replicas_of(log, stream) for stream in streams] == [3] * len(streams)
    consumers = await log.connection.js.consumers_info(QUEUE)
    assert {1 + len(info.cluster.replicas or []) for info in consumers if info.cluster} == {3}
    assert not [line for node in servers.nodes.values() for line in node.log.splitlines() if "Violation" in line]


@pytest.mark.timeout(120)
async def test_what_was_acked_is_seen_whichever_server_is_asked(
    servers: NatsCluster, log: EventLog, closing: AsyncExitStack
) -> None:
    """Copies hear of it a moment later than who published it."""
    readers: list[EventLog] = []
    for name in servers.nodes:
        readers.append(await EventLog.connect(Nats(url=servers.url("gateway", name), replicas=3), f"/test/{name}"))
        closing.push_async_callback(readers[-1].close)
    ways: list[Callable[[EventLog, Accepted], Awaitable[Iterable[Recorded | RawMessage]]]] = [
        lambda reader, accepted: reader.read_task(accepted.task_id),
        lambda reader, accepted: reader.first_after(TASKS, accepted.sequence - 1),
        lambda reader, accepted: reader.read_latest(TASKS, subjects.task_events(accepted.task_id)),
    ]
    missed = Counter[int]()
    reader, accepted = log, await Inbox(log, 65_536).submit(SubmitTask(kind="echo", model="echo"))
    for reader in readers:
        inbox = Inbox(reader, 65_536)
        for number in range(900):
            accepted = await inbox.submit(SubmitTask(kind="echo", model="echo"))
            way = number % len(ways)
            seen = await ways[way](reader, accepted)
            missed[way] += [each.sequence for each in seen] != [accepted.sequence]
    assert not missed.total(), missed
    assert await reader.read_task(accepted.task_id, after=accepted.sequence) == []
    assert await reader.read_last(TASKS, subjects.task_events(TaskId(log.ids()))) is None
    leader = await leader_of(log, TASKS)
    for name in servers.nodes:
        if name != leader:
            await servers.nodes[name].kill()
    left = readers[list(servers.nodes).index(leader)]
    assert await eventually(lambda: left.read_task(accepted.task_id)), "one that is alone tells what it has"
    nobody = replace(accepted, task_id=TaskId(log.ids()))
    for way in (ways[0], ways[2]):  # once it knows that it leads no more
        await eventually(partial(cannot_tell, partial(way, left, nobody)), within_s=30)
    assert await left.read_last(LEDGER, subjects.query_events("none")) is None, "of LEDGER it tells that as well"


async def test_a_start_waits_for_leaders_but_not_for_ever(
    servers: NatsCluster, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = log.connection.settings
    killed = list(servers.nodes.values())[1:]  # two of three: nothing has a leader any more
    for node in killed:
        await node.kill()
    starting = asyncio.create_task(EventLog.connect(settings, "/test/late"))
    await asyncio.sleep(REQUEST_S + 1)  # sleep-ok: for longer than one request is waited for
    assert not starting.done()
    await servers.start()
    await (await starting).close()
    monkeypatch.setattr("bitinglip.events.streams.PATIENCE_S", 0.0)
    for node in killed:
        await node.kill()
    with pytest.raises(NoServer, match="declaring"):
        await EventLog.connect(settings, "/test/never")


@pytest.mark.timeout(120)
async def test_who_starts_waits_for_the_leader_of_its_consumer(servers: NatsCluster, log: EventLog) -> None:
    """A gateway's reactions, and a worker's queue."""
    settings, heard = log.connection.settings, asyncio.Queue[str]()

    async def react(subject: str, _: bytes) -> None:
        heard.put_nowait(subject)

    reactions = Reactions(log.connection, TASKS, "reactor", [subjects.TASKS], react)
    await reactions.start()
    await reactions.close()
    left, *killed = servers.nodes
    late = await EventLog.connect(settings.model_copy(update={"url": servers.url("gateway", left)}), "/test/late")
    worker = await EventLog.connect(settings.model_copy(update={"url": servers.url("worker", left)}), "/test/worker")
    for name in killed:
        await servers.nodes[name].kill()
    reactions = Reactions(late.connection, TASKS, "reactor", [subjects.TASKS], react)
    queue, route = WorkQueue(worker.connection, LEASE_S), Route("normal", subjects.encode_token("echo"))
    stopped = asyncio.Event()
    both = (reactions.start(), queue.ensure([route], within(PATIENCE_S)))
    starting = [asyncio.create_task(each) for each in both]
    one_that_ends = asyncio.create_task(queue.ensure([route], lambda: not stopped.is_set()))
    await asyncio.sleep(REQUEST_S + 1)  # sleep-ok: for longer than one request is waited for
    assert not any(each.done() for each in (*starting, one_that_ends))
    stopped.set()
    with pytest.raises(NoServer):
        await one_that_ends
    await servers.start()
    await asyncio.gather(*starting)
    submit = partial(Inbox(late, 65_536).submit, SubmitTask(kind="echo", model="echo"), idempotency_key="1")
    accepted = await eventually(submit, within_s=60)
    assert accepted.task_id in await asyncio.wait_for(heard.get(), 60)
    [delivery] = await eventually(partial(queue.pull, route, 1), within_s=60)
    assert delivery.event.event.task_id == accepted.task_id
    await queue.close()
    await reactions.close()
    await worker.close()
    await late.close()


@pytest.mark.timeout(120)
async def test_a_worker_waits_for_the_leaders_of_its_queues_until_it_is_stopped(
    servers: NatsCluster, log: EventLog, tmp_path: Path
) -> None:
    left, *killed = servers.nodes
    worker = await EventLog.connect(
        log.connection.settings.model_copy(update={"url": servers.url("worker", left)}), "/test/worker"
    )
    specs, settings = [ModelSpec(kind="echo", reference="echo")], Settings(data_dir=tmp_path)
    agents = [Agent(worker, settings, Identity(name, "n", "cpu"), specs) for name in ("one", "another")]
    for name in killed:
        await servers.nodes[name].kill()
    one, another = [asyncio.create_task(agent.run()) for agent in agents]
    await asyncio.sleep(REQUEST_S + 1)  # sleep-ok: for longer than one request is waited for
    assert not one.done()
    assert not another.done()
    agents[0].stop()
    await one
    assert not another.done()
    await servers.start()
    inbox = Inbox(log, 65_536)
    accepted = await eventually(partial(inbox.submit, SubmitTask(kind="echo", model="echo")), within_s=60)
    await eventually(partial(has_ended, log, accepted.task_id), within_s=60)
    agents[1].stop()
    await another
    await worker.close()


async def has_ended(log: EventLog, task_id: TaskId) -> bool:
    return (await log.read_task(task_id))[-1].type == "task.succeeded"


async def is_running(client: httpx.AsyncClient, task_id: str) -> bool:
    return (await client.get(f"/v1/tasks/{task_id}")).json()["state"] == "running"


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_the_leader_is_killed_while_tasks_are_submitted(
    servers: NatsCluster, log: EventLog, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever was acked is in the log and, after a pause, in the queue; each once."""
    inbox = Inbox(log, 65_536)
    acked: dict[str, float] = {}

    async def submit(number: int) -> None:
        async def once() -> bool:
            accepted = await inbox.submit(SubmitTask(kind="echo", model="echo"), idempotency_key=str(number))
            acked[accepted.task_id] = time.monotonic()
            return True

        await eventually(once, within_s=60)

    sourcing = Sourcing(log.connection)
    await sourcing.start()
    leader = await leader_of(log, TASKS)
    for number in range(COUNT):
        if number == COUNT // 3:
            await servers.nodes[leader].kill()
        await submit(number)
    assert len(acked) == COUNT
    times = sorted(acked.values())
    pause_s = max(after - before for before, after in pairwise(times))

    async def queued() -> bool:
        return (await log.connection.js.stream_info(QUEUE)).state.messages == COUNT

    started = time.monotonic()
    await eventually(queued, within_s=60)
    with capsys.disabled():
        queued_s = time.monotonic() - started
        print(f"\nleader killed: publishing paused {pause_s:.1f} s; the queue was whole {queued_s:.1f} s later")
    await sourcing.close()
    assert (await log.connection.js.stream_info(TASKS)).state.messages == COUNT
    await servers.start()
    for task_id in acked:
        assert len(await log.read_task(TaskId(task_id))) == 1


@pytest.mark.timeout(120)
async def test_who_asks_a_cluster_without_leaders_is_answered_once_it_has_them(
    servers: NatsCluster, log: EventLog, closing: AsyncExitStack
) -> None:
    """Nobody has kept the question meanwhile: it is asked again."""
    leader = await leader_of(log, TASKS)
    left, *_ = (name for name in servers.nodes if name != leader)
    asker = await EventLog.connect(Nats(url=servers.url("gateway", left), replicas=3), "/test/asker")
    closing.push_async_callback(asker.close)
    for name in servers.nodes.keys() - {left}:
        await servers.nodes[name].kill()
    asking = asyncio.create_task(ask(asker.connection, f"STREAM.INFO.{TASKS}", {}, 90))
    purging = asyncio.create_task(purge(asker.connection, TASKS, subjects.TIMERS, 1))
    await asyncio.sleep(0.5)  # sleep-ok: it has asked by then
    assert not asking.done()
    assert not purging.done()
    await servers.start()
    async with asyncio.timeout(60):
        assert (await asking)["config"]["name"] == TASKS
        assert await purging == 0


@pytest.mark.timeout(120)
async def test_work_is_taken_as_soon_as_its_queue_has_a_leader_again(servers: NatsCluster, log: EventLog) -> None:
    """Who was on the killed server finds no consumer on the next one: asked to make it, that one has no answer."""
    route = Route("normal", "echo")
    await ensure_consumer(log.connection.js, route, LEASE_S)
    state = (await log.connection.js.consumer_info(QUEUE, route.consumer)).cluster
    assert state is not None
    assert state.leader
    taker = await EventLog.connect(Nats(url=servers.url("worker", state.leader), replicas=3), "/test/taker")
    taker.connection.js._timeout = 90.0
    queue = WorkQueue(taker.connection, LEASE_S)
    await queue.ensure([route])
    sourcing = Sourcing(log.connection)
    await sourcing.start()

    async def take() -> str:
        while True:
            for delivery in await queue.wait([route], 1):
                return delivery.event.event.model_dump()["task_id"]

    taking = asyncio.create_task(take())
    await asyncio.sleep(0.2)  # sleep-ok: its request stands by then
    await servers.nodes[state.leader].kill()
    submit = partial(Inbox(log, 65_536).submit, SubmitTask(kind="echo", model="echo"), idempotency_key="1")
    accepted = cast("Accepted", await eventually(submit, within_s=60))
    async with asyncio.timeout(60):
        assert await taking == accepted.task_id
    await sourcing.close()
    await queue.close()
    await taker.close()


async def test_of_many_writers_one_gets_in_and_the_others_hear_of_a_conflict(log: EventLog) -> None:
    """A replicated stream has two codes for a conflict: one of what is stored, one of what is under way."""
    others = [await EventLog.connect(log.connection.settings, f"/test/{number}") for number in range(3)]
    inbox = Inbox(log, 65_536)
    for _ in range(20):
        accepted = await inbox.submit(SubmitTask(kind="echo", model="echo"))
        task = fold(await log.read_task(accepted.task_id))
        assert task is not None
        (cancelled,) = cast("tuple[TaskEvent]", decide(task, CancelTask(by="test")))
        appends = [writer.task_append(cancelled, task.sequence) for writer in (log, *others) for _ in range(4)]
        outcomes = await asyncio.gather(
            *[writer.append_all(appends[4 * n : 4 * n + 4]) for n, writer in enumerate((log, *others))]
        )
        flat = [outcome for some in outcomes for outcome in some]
        assert sum(isinstance(outcome, int) for outcome in flat) == 1
        assert sum(isinstance(outcome, Conflict) for outcome in flat) == len(flat) - 1, flat
    for other in others:
        await other.close()


@pytest.mark.timeout(120)
async def test_what_is_under_way_and_may_never_arrive_is_no_conflict(servers: NatsCluster, log: EventLog) -> None:
    """A leader that nobody follows any more refuses what would have to give way to something that is not stored."""
    hasty = await EventLog.connect(Nats(url=servers.url("gateway"), replicas=3, append_timeout_s=2), "/test/hasty")
    event = await Inbox(log, 65_536).prepare(SubmitTask(kind="echo", model="echo"))
    leader = await leader_of(log, TASKS)
    followers = [node for name, node in servers.nodes.items() if name != leader]
    for node in followers:
        node.signal(signal.SIGSTOP)
    try:
        outcomes = await hasty.append_all([hasty.task_append(event, 0) for _ in range(3)])
        assert [type(outcome) for outcome in outcomes] == [NoServer] * 3, outcomes
        with pytest.raises(NoServer):
            await append_together(hasty, [hasty.task_append(event, 0)])
    finally:
        for node in followers:
            node.signal(signal.SIGCONT)
    accepted = await eventually(partial(_accepted, Inbox(hasty, 65_536), event), within_s=60)
    assert accepted.task_id == event.task_id
    assert len(await log.read_task(event.task_id)) == 1
    await hasty.close()


@pytest.mark.timeout(120)
async def test_that_there_is_no_such_task_is_told_only_by_who_would_know(
    servers: NatsCluster, log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader that is one no more may lack what the others have accepted since."""
    hasty = await EventLog.connect(Nats(url=servers.url("gateway"), replicas=3, append_timeout_s=2), "/test/hasty")
    inbox, nobody = Inbox(hasty, 65_536), TaskId(log.ids())
    with pytest.raises(TaskNotFound):
        await inbox.cancel(nobody, CancelTask(by="test"))
    await confirm_absent(hasty, nobody)
    there = (await inbox.submit(SubmitTask(kind="echo", model="echo"))).task_id
    with monkeypatch.context() as patch:
        patch.setattr("bitinglip.events.direct._get_from_leader", _answered_by_a_former_leader)
        with pytest.raises(NoServer, match="had yet to hear of"):
            await inbox.cancel(there, CancelTask(by="test"))
    leader = await leader_of(log, TASKS)
    followers = [node for name, node in servers.nodes.items() if name != leader]
    for node in followers:
        node.signal(signal.SIGSTOP)
    try:
        with pytest.raises(NoServer):
            await confirm_absent(hasty, nobody)
    finally:
        for node in followers:
            node.signal(signal.SIGCONT)
    await hasty.close()


async def _answered_by_a_former_leader(*_: object) -> None:
    return None


async def _accepted(inbox: Inbox, event: TaskSubmitted) -> Accepted | None:
    with suppress(NoServer):
        return await inbox.append(event)
    return None


async def test_one_batch_is_added_to_by_many_at_once(log: EventLog) -> None:
    """Lots of events that are stored together, or not at all, on a replicated stream."""
    others = [await EventLog.connect(log.connection.settings, f"/test/{number}") for number in range(3)]
    sides = [Batches(each, Inbox(each, 65_536)) for each in (log, *others)]
    batch, _ = await sides[0].open(BatchOpened(batch_id=log.ids(), request_sha256="0"), None)
    example = TaskSubmitted.example | {"batch_id": batch.id}
    parts = [
        Part(str(number), [TaskSubmitted.model_validate(example | {"task_id": log.ids()}) for _ in range(600)], "0")
        for number in range(8)
    ]
    ways = [sides[number % 4].extend(batch, part, None) for number, part in enumerate(parts)]
    await asyncio.gather(*ways)
    closed, _ = await sides[1].close(batch)
    assert closed.tasks == 8 * 600
    assert len(await log.subjects_of(TASKS, "bl.task.>")) == 8 * 600
    for other in others:
        await other.close()


@pytest.mark.faults
@pytest.mark.timeout(300)
async def test_two_leaders_are_killed_in_turn_while_work_flows(
    servers: NatsCluster, log: EventLog, cluster: Cluster
) -> None:
    gateway = await cluster.gateway(**THREE)
    for _ in range(2):
        await cluster.worker(BITINGLIP_NATS_URL=servers.url("worker"), BITINGLIP_WORKER_LEASE_S="2", **THREE)
    accepted: list[str] = []
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:
        for stream in (QUEUE, TASKS):
            name = await leader_of(log, stream)
            accepted += [await submitted(client, f"{stream}-{number}-{len(accepted)}") for number in range(20)]
            await servers.nodes[name].kill()
            accepted += [await submitted(client, f"{stream}-{number}-{len(accepted)}") for number in range(20)]
            await servers.start()
        for task_id in accepted:
            await eventually(lambda task_id=task_id: ended(log, task_id), within_s=60)
    for task_id in accepted:
        history = await log.read_task(TaskId(task_id))
        assert sum(is_terminal(recorded.event) for recorded in history) == 1
        assert fold(history) is not None


async def submitted(client: httpx.AsyncClient, key: str) -> str:
    async def once() -> Any:
        answer = await client.post("/v1/tasks", json=ECHO, headers={"Idempotency-Key": key})
        assert answer.status_code in {202, 503}, answer.text
        return answer.json().get("task_id")

    return await eventually(once, within_s=60)


async def ended(log: EventLog, task_id: str) -> bool:
    task = fold(await log.read_task(TaskId(task_id)))
    return task is not None and task.ended


async def test_copies_are_added_to_streams_that_exist_and_never_dropped_unasked(servers: NatsCluster) -> None:
    one = Nats(url=servers.url("gateway"), replicas=1)
    log = await EventLog.connect(one, "/test")
    accepted = await Inbox(log, 100).submit(SubmitTask(kind="echo", model="echo", params={"message": "x" * 1000}))
    assert await replicas_of(log, TASKS) == 1
    await log.close()
    log = await EventLog.connect(Nats(url=servers.url("gateway"), replicas=3), "/test")
    for stream in (TASKS, QUEUE, f"OBJ_{ARTIFACTS_BUCKET}", f"KV_{ARTIFACTS_INDEX}"):
        await eventually(lambda stream=stream: has_three(log, stream), within_s=30)
    await log.close()
    log = await EventLog.connect(one, "/test")
    assert await replicas_of(log, TASKS) == 3
    await servers.nodes[await leader_of(log, TASKS)].kill()
    assert await eventually(lambda: log.read_task(accepted.task_id), within_s=60)
    await log.close()


async def test_a_client_that_knows_one_server_goes_on_with_the_others(servers: NatsCluster) -> None:
    """The server names its companions, without the credentials that they want as well."""
    log = await EventLog.connect(Nats(url=servers.url("gateway", "nats-1"), replicas=3), "/test")
    accepted = await Inbox(log, 100).submit(SubmitTask(kind="echo", model="echo"))
    await servers.nodes["nats-1"].kill()
    assert await eventually(lambda: log.read_task(accepted.task_id), within_s=60)
    await log.close()


async def has_three(log: EventLog, stream: str) -> bool:
    cluster = (await log.connection.js.stream_info(stream)).cluster
    peers = (cluster.replicas if cluster else None) or []
    return len(peers) == 2 and all(peer.current for peer in peers)
