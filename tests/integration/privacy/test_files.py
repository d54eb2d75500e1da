"""Files of private tasks: results sealed, inputs opened for the worker, and nothing in clear on the way."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from bitinglip.errors import SealBroken, TaskIsForgotten
from bitinglip.events import artifacts
from bitinglip.events.artifacts import put_sealed
from bitinglip.events.keys import destroy_key, key_for
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery
from bitinglip.events.streams import Route
from bitinglip.ids import TaskId
from bitinglip.tasks import media
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import fold
from bitinglip.workers.attempt import Attempt
from bitinglip.workers.engine import result_file
from bitinglip.workers.files import Files
from bitinglip.workers.payload import read_params

PICTURE = b"\x89PNG not really, but of this length"
DATA_URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


async def opened(log: EventLog, command: SubmitTask) -> Attempt:
    """Submit a task, and return the attempt of a worker that has read its parameters."""
    inbox = Inbox(log, 65_536)
    command = await media.resolve(log, command, keep_data=inbox.is_private(command.private))
    history = await log.read_task((await inbox.submit(command)).task_id)
    task = fold(history)
    assert task is not None
    return Attempt(Delivery(log.connection, Route("normal", "m"), history[0], 1, "none"), task)


@pytest.fixture
def files(log: EventLog, tmp_path: Path) -> Files:
    """The files of one worker."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return Files(log.connection, folder, lambda: False)


def asked(**params: Any) -> SubmitTask:
    """Return a private question about a picture."""
    return SubmitTask(kind="image-to-text", model="m", params=params, private=True)


async def test_a_picture_sent_along_is_sealed_with_the_rest_and_the_engine_gets_it(log: EventLog, files: Files) -> None:
    attempt = await opened(log, asked(image=DATA_URL))
    params = await read_params(log.connection, attempt)
    [(text, path)] = (await files.fetch("image-to-text", params)).items()
    assert (text, Path(path).read_bytes()) == (DATA_URL, PICTURE)
    assert attempt.task.params is None


async def test_a_file_of_a_result_is_sealed_and_feeds_another_task(log: EventLog, files: Files, tmp_path: Path) -> None:
    attempt = await opened(log, asked(image=DATA_URL))
    await read_params(log.connection, attempt)
    made = tmp_path / "made.png"
    made.write_bytes(PICTURE)
    digests: list[str] = []
    result = await files.store({"images": [result_file(made, "image/png", seed=1)]}, files.sealing(attempt, digests))
    [picture] = result["images"]
    assert (picture["size_bytes"], picture["media_type"], [picture["sha256"]]) == (len(PICTURE), "image/png", digests)
    assert await artifacts.get(log.connection, picture["sha256"]) == (PICTURE, "image/png")
    after = await opened(log, asked(image=f"artifact:{picture['sha256']}"))
    [path] = (await files.fetch("image-to-text", await read_params(log.connection, after))).values()
    assert Path(path).read_bytes() == PICTURE
    await destroy_key(log.connection, attempt.id)
    with pytest.raises(TaskIsForgotten):
        await artifacts.get(log.connection, picture["sha256"])


async def test_the_same_bytes_twice_are_two_artifacts_and_one_of_another_owner_does_not_open(log: EventLog) -> None:
    ours, theirs = TaskId(log.ids()), TaskId(log.ids())
    key = await key_for(log.connection, ours)
    first, second = [await put_sealed(log.connection, key, ours, "file", PICTURE, "image/png") for _ in range(2)]
    assert first.sha256 != second.sha256
    await key_for(log.connection, theirs)
    wrong = await put_sealed(log.connection, key, theirs, "file", PICTURE, "image/png")
    with pytest.raises(SealBroken):
        await artifacts.get(log.connection, wrong.sha256)
