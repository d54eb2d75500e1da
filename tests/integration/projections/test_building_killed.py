"""A process killed while it makes a projection anew in the background: the next one goes on where it was."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bitinglip.errors import BitingLipError
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.subjects import encode_token
from bitinglip.events.task import TaskSubmitted
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel, VersionState
from tests.integration.projections.building import BATCH, SETTINGS, changed

Eventually = Callable[..., Awaitable[Any]]
SENT = 8_000
KILLED_AT = (1, SENT // 4, SENT // 2)


async def build_and_kill(url: str, path: Path, least: int) -> int:
    """Let a process make it anew up to a sequence, then kill it; return what it told last."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.projections.building", url, str(path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    told = 0
    while told < least:
        told = int(await process.stdout.readline())
    process.kill()
    assert await process.wait() == -9
    return told


async def tasks_state(readmodel: ReadModel) -> list[VersionState]:
    return [state for state in await readmodel.projections() if state.projection == "tasks"]


async def fill(log: EventLog, count: int) -> None:
    appends = []
    for _ in range(count):
        event = TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": TaskId(log.ids())})
        appends.append(log.task_append(event, 0, route=("normal", encode_token("openai-community/gpt2"))))
    for outcome in await log.append_all(appends):
        assert not isinstance(outcome, BitingLipError)


async def test_it_goes_on_where_it_was(log: EventLog, nats_url: str, tmp_path: Path, eventually: Eventually) -> None:
    path = tmp_path / "p.duckdb"
    await fill(log, SENT)
    readmodel = await ReadModel.open(SETTINGS, path, log)
    await readmodel.wait_ready()
    await readmodel.close()
    for least in KILLED_AT:
        told = await build_and_kill(nats_url, path, least)
        readmodel = await ReadModel.open(SETTINGS, path, log, changed())
        async with readmodel._current.projector.writing:
            old, new = await tasks_state(readmodel)
            assert (old.serving, new.serving) == (True, False)
            assert new.checkpoint[TASKS] >= told >= BATCH
            assert new.rows["tasks"] >= told
        await readmodel.close()
    readmodel = await ReadModel.open(SETTINGS, path, log, changed())
    await eventually(lambda: _is_made(readmodel), within_s=60)
    found = await readmodel.sandbox.run("select model, count(*), max(last_sequence) from tasks group by 1", [], 20, 10)
    assert found.rows == [["OPENAI-COMMUNITY/GPT2", SENT, SENT]]
    await readmodel.close()


async def _is_made(readmodel: ReadModel) -> bool:
    return [state.current and state.serving for state in await tasks_state(readmodel)] == [True]
