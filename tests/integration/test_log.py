"""The event log against a real server: order, conflicts, tails, live joins, outages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import nats
import orjson
import pytest
from nats.aio.msg import Msg
from nats.js.api import RetentionPolicy, StreamConfig
from nats.js.errors import APIError

from bitinglip.errors import Conflict, IncompatibleStream, NoServer, PayloadTooLarge
from bitinglip.events import artifacts
from bitinglip.events.appending import Append, Appender
from bitinglip.events.client import PORTION_BYTES
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS, WORKERS, ensure_streams
from bitinglip.events.subjects import TaskSubject, encode_token
from bitinglip.events.task import TaskAssigned, TaskCancelRequested, TaskProgressed, TaskQueued, TaskSubmitted
from bitinglip.events.worker import WorkerHeartbeat
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from tests.support.server import eventually

ROUTE = ("normal", encode_token("demo/m.1"))


def submission(log: EventLog, task_id: TaskId | None = None, **changes: Any) -> Append:
    task_id = task_id or TaskId(log.ids())
    event = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": task_id} | changes)
    return log.task_append(event, 0, route=ROUTE)


def tick(log: EventLog, task_id: TaskId, expected: int, step: int = 1) -> Append:
    return log.task_append(TaskProgressed(task_id=task_id, attempt=1, step=step, text="x"), expected, ttl_s=60)


async def submit(log: EventLog) -> tuple[TaskId, int]:
    task_id = TaskId(log.ids())
    return task_id, await log.append(submission(log, task_id))


async def test_events_come_back_in_order(log: EventLog) -> None:
    task_id, first = await submit(log)
    await submit(log)
    second = await log.append(tick(log, task_id, first))
    history = await log.read_task(task_id)
    assert [(recorded.sequence, recorded.type) for recorded in history] == [
        (first, "task.submitted"),
        (second, "task.progressed"),
    ]
    assert history[0].source == "/test"
    assert abs(history[0].recorded_at - history[0].time) < timedelta(seconds=5)
    assert [recorded.sequence for recorded in await log.read_task(task_id, after=first)] == [second]


async def test_an_unknown_task_has_no_events(log: EventLog) -> None:
    assert await log.read_task(TaskId(log.ids())) == []


async def test_a_long_history_is_read_whole(log: EventLog) -> None:
    task_id, sequence = await submit(log)
    for step in range(1, 2101):
        sequence = await log.append(tick(log, task_id, sequence, step))
    history = await log.read_task(task_id)
    assert [getattr(recorded.event, "step", 0) for recorded in history] == list(range(2101))


async def test_only_one_of_two_writers_gets_in(log: EventLog) -> None:
    task_id, sequence = await submit(log)
    outcomes = await log.append_all([tick(log, task_id, sequence), tick(log, task_id, sequence)])
    assert [type(outcome) for outcome in outcomes] == [int, Conflict]
    with pytest.raises(Conflict):
        await log.append(submission(log, task_id))


async def test_an_append_that_is_sent_again_is_recognised(log: EventLog) -> None:
    task_id, sequence = await submit(log)
    append = tick(log, task_id, sequence)
    stored = await log.append(append)
    await log.append(tick(log, task_id, stored, 2))
    # The very same append once more, as after a lost ack: a conflict with itself.
    assert await Appender(log.connection)._find(append) == stored  # pyright: ignore[reportPrivateUsage]


async def test_many_are_in_flight_and_each_knows_its_own_sequence(log: EventLog) -> None:
    appends = [submission(log) for _ in range(500)]
    sequences = await log.append_all(appends)
    assert sequences == list(range(1, 501))
    assert await log.last_sequence(TASKS) == 500


async def test_more_than_the_window_goes_through(nats_url: str) -> None:
    log = await EventLog.connect(Nats(url=nats_url, in_flight=4), "/test")
    assert len(await log.append_all([submission(log) for _ in range(50)])) == 50
    await log.close()


async def test_what_many_publish_at_once_leaves_in_portions_and_in_order(log: EventLog) -> None:
    heard: list[int] = []
    connection = log.connection
    size_bytes, count = PORTION_BYTES // 8, 100

    async def received(msg: Msg) -> None:
        assert (len(msg.data), msg.headers) == (size_bytes, {"Number": msg.data[:4].decode()})
        heard.append(int(msg.data[:4]))

    subscription = await connection.subscribe("many", received)
    await connection.client.flush()
    waiting: list[int] = []
    for number in range(count):
        text = f"{number:04}"
        await connection.publish("many", text.encode().ljust(size_bytes), {"Number": text})
        waiting.append(connection.client.pending_data_size)
    assert max(waiting) < PORTION_BYTES  # all this while the event loop has not come round

    async def all_heard() -> bool:
        return len(heard) == count

    await eventually(all_heard)
    assert heard == list(range(count))
    await connection.unsubscribe(subscription)


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0", "a\t"])
async def test_a_subject_cannot_say_more_than_a_subject(log: EventLog, subject: str) -> None:
    with pytest.raises(NoServer, match="BadSubject"):
        await log.connection.publish(subject, b"")
    with pytest.raises(NoServer, match="Bad"):
        await log.connection.publish("a", b"", reply=subject or " ")


async def test_what_is_too_large_is_refused_by_name(log: EventLog) -> None:
    with pytest.raises(PayloadTooLarge, match="1048576"):
        await log.append(submission(log, params={"prompt": "x" * 3_000_000}))


async def test_the_tail_yields_everything_once_in_order(log: EventLog) -> None:
    await log.append_all([submission(log) for _ in range(300)])
    seen: list[int] = []
    async with aclosing(log.tail(TASKS, 0, most=64)) as tail:  # pyright: ignore[reportArgumentType]
        async for batch in tail:
            assert len(batch) <= 64
            seen += [message.sequence for message in batch]
            if len(seen) == 300:
                await log.append_all([submission(log) for _ in range(10)])
            if len(seen) == 310:
                break
    assert seen == list(range(1, 311))


async def test_the_tail_starts_where_it_is_told_and_passes_timers_over(log: EventLog) -> None:
    task_id, _ = await submit(log)
    queued = TaskQueued(task_id=task_id, attempt=2, reason="retry")
    await log.append(log.timer_append(queued, 2, log.clock() + timedelta(hours=1), ROUTE))
    _, last = await submit(log)
    assert last == 3
    async for batch in log.tail(TASKS, 1):
        assert [message.sequence for message in batch] == [3]
        break


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (("bl.task.>", "bl.batch.>"), [1, 3]),
        (("bl.timer.>", "bl.batch.>"), [2]),
        (("bl.timer.*.>", "bl.batch.>"), [2]),
        (("bl.timer.>",), [2]),
        (("bl.task.*.submitted.>", "bl.timer.*.2"), [1, 2, 3]),
        (("bl.task.*.submitted.>", "bl.task.*.failed"), [1, 3]),
        (("bl.task.*.submitted", "bl.timer.*.2", "bl.batch.>"), [2]),
        (("bl.task.>", "bl.timer.>"), [1, 2, 3]),
    ],
)
async def test_a_tail_yields_what_its_filters_say(log: EventLog, filters: list[str], expected: list[int]) -> None:
    task_id, _ = await submit(log)
    queued = TaskQueued(task_id=task_id, attempt=2, reason="retry")
    await log.append(log.timer_append(queued, 2, log.clock() + timedelta(hours=1), ROUTE))
    await submit(log)
    seen: list[int] = []
    async for batch in log.tail(TASKS, 0, filters=filters):
        seen += [message.sequence for message in batch]
        if len(seen) >= len(expected):
            break
    assert seen == expected


async def test_a_tail_with_several_filters_goes_on_from_the_history_without_gap_or_repeat(log: EventLog) -> None:
    """What is there is read in one way, and what comes in another; the last of what is there is not wanted."""
    filters = ["bl.task.*.submitted.>", "bl.task.*.failed"]
    task_id, last = await submit(log)
    wanted = [last, *[(await submit(log))[1] for _ in range(20)]]
    last = await log.append(tick(log, task_id, wanted[0]))
    seen: list[int] = []
    async with aclosing(log.tail(TASKS, 0, filters=filters, most=8)) as batches:  # pyright: ignore[reportArgumentType]
        async for batch in batches:
            seen += batch.sequences
            if len(seen) == len(wanted) > 100:
                break
            if len(seen) == len(wanted):
                last = await log.append(tick(log, task_id, last))
                wanted += [(await submit(log))[1] for _ in range(30)]
    assert seen == wanted


async def test_a_tail_with_several_filters_asks_the_server_for_them_when_it_has_the_history(log: EventLog) -> None:
    filters = ["bl.task.*.submitted.>", "bl.task.*.failed"]
    await submit(log)

    async def asked() -> bool:
        told = await log.connection.js.consumers_info(TASKS)
        return filters in [each.config.filter_subjects for each in told]

    async with aclosing(log.tail(TASKS, 0, filters=filters)) as batches:  # pyright: ignore[reportArgumentType]
        assert list((await anext(batches)).sequences) == [1]
        coming = asyncio.ensure_future(anext(batches))
        await eventually(asked)
        _, last = await submit(log)
        assert list((await coming).sequences) == [last]


async def test_a_tail_can_be_cancelled_at_any_moment(log: EventLog) -> None:
    """Also while its consumer is being made: before Python 3.12 `asyncio.wait_for` may swallow that."""

    async def read() -> None:
        async with aclosing(log.tail(TASKS, 0)) as batches:
            async for _ in batches:
                pass

    for moment in range(60):
        reading = asyncio.create_task(read())
        await asyncio.wait([reading], timeout=moment / 20_000)
        reading.cancel()
        done, _ = await asyncio.wait([reading], timeout=5)
        assert done, f"cancelled after {moment / 20} ms, it goes on"


async def test_a_timer_becomes_a_queued_event_and_is_set_once(log: EventLog) -> None:
    task_id, sequence = await submit(log)
    queued = TaskQueued(task_id=task_id, attempt=2, reason="retry")
    timer = log.timer_append(queued, 2, log.clock() + timedelta(seconds=1), ROUTE)
    await log.append(timer)
    with pytest.raises(Conflict):
        await log.append(log.timer_append(queued, 2, log.clock(), ROUTE))
    types: list[str] = []
    async for batch in log.follow_task(task_id, after=sequence):
        types += [recorded.type for recorded in batch]
        assert batch[0].subject == str(TaskSubject(task_id, "queued", *ROUTE))
        break
    assert types == ["task.queued"]


async def test_following_joins_history_and_live_without_gap_or_repeat(log: EventLog) -> None:
    task_id, sequence = await submit(log)
    written = [sequence]

    async def write() -> None:
        for step in range(1, 200):
            written.append(await log.append(tick(log, task_id, written[-1], step)))

    writing = asyncio.create_task(write())
    seen: list[int] = []
    async with asyncio.timeout(20), aclosing(log.follow_task(task_id)) as batches:
        async for batch in batches:
            seen += [recorded.sequence for recorded in batch]
            if len(seen) == 200:
                break
    await writing
    assert seen == written


async def test_heartbeats_need_no_expected_sequence_and_carry_a_time_to_live(log: EventLog) -> None:
    beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example)
    append = log.fact_append(beat, "bl.worker.rig-1-0.heartbeat", "rig-1-0", ttl_s=60)
    assert [await log.append(append), await log.append(append)] == [1, 2]
    message = await log.connection.js.get_msg(WORKERS, seq=1)
    assert message.headers == {"Nats-TTL": "60s"}


async def test_the_last_event_of_a_subject(log: EventLog) -> None:
    assert await log.read_last(WORKERS, "bl.worker.*.heartbeat") is None
    beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example)
    await log.append(log.fact_append(beat, "bl.worker.a.heartbeat", "a"))
    recorded = await log.read_last(WORKERS, "bl.worker.*.heartbeat")
    assert recorded is not None
    assert recorded.event == beat


async def test_any_nats_client_reads_the_log_as_json(log: EventLog, nats_url: str) -> None:
    task_id, _ = await submit(log)
    client = await nats.connect(nats_url)
    message = await client.jetstream().get_last_msg(TASKS, f"bl.task.{task_id}.submitted.>")
    await client.close()
    assert orjson.loads(message.data or b"")["data"]["task_id"] == task_id


async def test_ready_tasks_are_copied_into_the_queue_by_the_server(
    log: EventLog, eventually: Callable[..., Any]
) -> None:
    task_id, _ = await submit(log)

    async def copied() -> bool:
        message = await log.connection.js.get_last_msg("QUEUE", f"bl.queue.{ROUTE[0]}.{ROUTE[1]}.{task_id}")
        return message.data is not None

    await eventually(copied)


async def test_what_is_in_the_log_cannot_be_deleted(log: EventLog) -> None:
    await submit(log)
    with pytest.raises(APIError):
        await log.connection.js.delete_msg(TASKS, 1)
    with pytest.raises(APIError):
        await log.connection.js.purge_stream(WORKERS)
    # The server drops `deny_purge` on a stream with schedules (docs/decisions/0002): permissions guard TASKS there.
    assert (await log.connection.js.stream_info(TASKS)).config.deny_purge is False


async def test_declaring_the_streams_again_changes_nothing(log: EventLog) -> None:
    await submit(log)
    before = await log.connection.js.stream_info(TASKS)
    await ensure_streams(log.connection.js, log.connection.settings, log.connection.unanswered)
    after = await log.connection.js.stream_info(TASKS)
    assert (after.config, after.state) == (before.config, before.state)


async def test_a_stream_that_cannot_be_changed_is_refused_by_name(nats_url: str) -> None:
    client = await nats.connect(nats_url)
    config = StreamConfig(name=TASKS, subjects=["bl.task.>"], retention=RetentionPolicy.INTEREST)
    await client.jetstream().add_stream(config)
    with pytest.raises(IncompatibleStream, match="TASKS"):
        await EventLog.connect(Nats(url=nats_url), "/test")
    await client.close()


async def test_no_server_is_said_clearly() -> None:
    with pytest.raises(NoServer, match=r"127\.0\.0\.1:1"):
        await EventLog.connect(Nats(url="nats://127.0.0.1:1", connect_timeout_s=0.5), "/test")


async def test_a_live_message_for_a_running_task_reaches_a_subscriber(log: EventLog) -> None:
    task_id, sequence = await submit(log)
    assigned = TaskAssigned.model_validate(TaskAssigned.example | {"task_id": task_id})
    sequence = await log.append(log.task_append(assigned, sequence))
    heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def handler(msg: Any) -> None:
        heard.set_result(msg.subject)

    await log.connection.subscribe("bl.live.task.*.cancel_requested", handler)
    await log.connection.client.flush()
    await log.append(log.task_append(TaskCancelRequested(task_id=task_id), sequence))
    assert await asyncio.wait_for(heard, 5) == f"bl.live.task.{task_id}.cancel_requested"


async def test_artifacts_are_kept_by_their_digest(log: EventLog) -> None:
    body = bytes(range(256)) * 2000
    reference = await artifacts.put(log.connection, body, "application/json")
    again = await artifacts.put(log.connection, body, "application/json")
    assert again == reference
    assert await artifacts.get(log.connection, reference.sha256) == (body, "application/json")


@pytest.mark.parametrize("digest", ["0" * 64, "../x", "", "a.b"])
async def test_an_artifact_that_is_not_there_is_said_so(log: EventLog, digest: str) -> None:
    from bitinglip.errors import ArtifactNotFound

    await artifacts.put(log.connection, b"x", "text/plain")
    with pytest.raises(ArtifactNotFound):
        await artifacts.get(log.connection, digest)


class TestOutage:
    """The server is killed and comes back; nothing acked is lost, nothing is doubled."""

    async def test_appends_fail_clearly_and_then_work_again(self, restartable_nats: Any) -> None:
        log = await EventLog.connect(Nats(url=restartable_nats.url, append_timeout_s=1.0), "/test")
        task_id, sequence = await submit(log)
        await restartable_nats.kill()
        with pytest.raises(NoServer):
            await log.append(tick(log, task_id, sequence))
        await restartable_nats.start()
        patient = EventLog(log.connection, "/test")
        while True:
            try:
                second = await patient.append(tick(log, task_id, sequence))
                break
            except NoServer:
                continue
        assert [recorded.sequence for recorded in await log.read_task(task_id)] == [sequence, second]
        await log.close()

    async def test_the_tail_and_the_follower_go_on_after_a_restart(self, restartable_nats: Any) -> None:
        log = await EventLog.connect(Nats(url=restartable_nats.url, append_timeout_s=20.0), "/test")
        task_id, sequence = await submit(log)
        tailed: list[int] = []
        followed: list[int] = []

        async def read_tail() -> None:
            async for batch in log.tail(TASKS, 0):
                tailed.extend(message.sequence for message in batch)
                if len(tailed) == 3:
                    return

        async def follow() -> None:
            async for batch in log.follow_task(task_id):
                followed.extend(recorded.sequence for recorded in batch)
                if len(followed) == 3:
                    return

        reading = asyncio.gather(read_tail(), follow())
        second = await log.append(tick(log, task_id, sequence))
        await restartable_nats.kill()
        await restartable_nats.start()
        third = await log.append(tick(log, task_id, second, 2))
        await asyncio.wait_for(reading, 30)
        assert tailed == followed == [sequence, second, third]
        await log.close()


async def test_a_socket_that_is_cancelled_as_it_closes_cancels_nobody_else(
    nats_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nats-py waits for its socket's own waiter, which is cancelled if the connection is lost just then."""
    connection = (await EventLog.connect(Nats(url=nats_url), "/test")).connection

    async def cancelled() -> None:
        raise asyncio.CancelledError

    async def never() -> None:
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(connection.client, "close", cancelled)
        await connection.close()
        patch.setattr(connection.client, "close", never)
        closing = asyncio.create_task(connection.close())
        await asyncio.sleep(0)  # sleep-ok: it begins
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
    await connection.close()
