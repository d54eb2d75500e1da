"""The log as files, and back; moving it to a cluster is in `tests/faults/test_move.py`."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitinglip.errors import BackupUnusable, LogExists, NoServer, TaskIsForgotten
from bitinglip.events import artifacts
from bitinglip.events.backup import back_up, restore
from bitinglip.events.connection import Connection
from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import QUEUE, TASKS, Route
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold
from tests.conftest import drop_streams
from tests.support.server import eventually

ECHO = SubmitTask(kind="echo", model="echo")
ROUTE = Route("normal", "echo")


async def filled(log: EventLog, count: int) -> None:
    """Submit tasks, and wait until they are in the queue."""
    for _ in range(count):
        await Inbox(log, 65_536).submit(ECHO)

    async def queued() -> bool:
        return (await log.connection.js.stream_info(QUEUE)).state.messages == count

    await eventually(queued)


async def test_what_was_backed_up_comes_back_as_it_was(log: EventLog, nats_url: str, tmp_path: Path) -> None:
    await filled(log, 5)
    kept = await artifacts.put(log.connection, b"x" * 1_000_000, "text/plain")
    queue = WorkQueue(log.connection, 30.0)
    await queue.ensure([ROUTE])
    for delivery in await queue.pull(ROUTE, 2):
        await delivery.ack()
    await queue.close()
    before = await log.subjects_of(TASKS, "bl.task.>"), await log.last_sequence(TASKS)
    await back_up(log.connection, tmp_path / "backup")
    await drop_streams(nats_url)

    connection = await Connection.open(Nats(url=nats_url), "/test")
    await restore(connection, tmp_path / "backup", replicas=1)
    await connection.close()
    again = await EventLog.connect(Nats(url=nats_url), "/test")
    assert (await again.subjects_of(TASKS, "bl.task.>"), await again.last_sequence(TASKS)) == before
    assert (await artifacts.get(again.connection, kept.sha256))[0] == b"x" * 1_000_000
    await Inbox(again, 65_536).submit(ECHO)
    queue = WorkQueue(again.connection, 30.0)
    await queue.ensure([ROUTE])

    async def pulled() -> list[int]:
        return [delivery.event.sequence for delivery in await queue.pull(ROUTE, 100)]

    seen: list[int] = []

    async def all_seen() -> bool:
        seen.extend(await pulled())
        return len(seen) >= 4

    await eventually(all_seen)
    assert sorted(seen) == [3, 4, 5, 6]  # the three that waited, once, and the new one after them
    await queue.close()
    await again.close()


@pytest.mark.parametrize("keys", [False, True])
async def test_the_keys_of_private_tasks_are_in_it_if_they_are_asked_for(
    log: EventLog, nats_url: str, tmp_path: Path, keys: bool
) -> None:
    asked = SubmitTask(kind="echo", model="echo", params={"message": "secret"}, private=True)
    task_id = (await Inbox(log, 65_536).submit(asked)).task_id
    task = fold(await log.read_task(task_id))
    assert task is not None
    assert task.params_ref is not None
    await back_up(log.connection, tmp_path / "backup", keys=keys)
    await drop_streams(nats_url)
    connection = await Connection.open(Nats(url=nats_url), "/test")
    await restore(connection, tmp_path / "backup", replicas=1)
    if keys:
        assert (await artifacts.get(connection, task.params_ref.sha256))[0] == b'{"message":"secret"}'
    else:
        with pytest.raises(TaskIsForgotten):
            await artifacts.get(connection, task.params_ref.sha256)
    await connection.close()


async def test_a_log_is_not_restored_over_another(log: EventLog, tmp_path: Path) -> None:
    await back_up(log.connection, tmp_path / "backup")
    with pytest.raises(LogExists, match="TASKS"):
        await restore(log.connection, tmp_path / "backup", replicas=1)


async def test_a_backup_is_not_written_over_anything(log: EventLog, tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    with pytest.raises(BackupUnusable, match="not empty"):
        await back_up(log.connection, tmp_path)


async def test_a_backup_that_is_not_whole_is_not_restored(log: EventLog, nats_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backup"
    await filled(log, 1)
    await back_up(log.connection, folder)
    await drop_streams(nats_url)
    whole = (folder / "TASKS.snapshot").read_bytes()
    (folder / "TASKS.snapshot").write_bytes(whole[:-1])
    with pytest.raises(BackupUnusable, match="TASKS's file is not as it was written"):
        await restore(log.connection, folder, replicas=1)
    (folder / "TASKS.snapshot").write_bytes(whole)
    (folder / "backup.json").unlink()
    with pytest.raises(BackupUnusable):
        await restore(log.connection, folder, replicas=1)


async def test_a_server_without_a_log_has_nothing_to_back_up(nats_url: str, tmp_path: Path) -> None:
    connection = await Connection.open(Nats(url=nats_url), "/test")
    with pytest.raises(NoServer, match="no log"):
        await back_up(connection, tmp_path / "backup")
    await connection.close()
