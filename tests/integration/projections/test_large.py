"""Events near the inline limit: a batch is bounded in bytes, not in number alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskSubmitted
from bitinglip.ids import TaskId
from bitinglip.projections.projector import BATCH_MOST_BYTES
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Projections

LARGE = "x" * 60_000
COUNT = 1_600


async def test_a_log_of_large_events_is_read_within_the_memory_limit(log: EventLog, tmp_path: Path) -> None:
    assert COUNT * len(LARGE) > 4 * BATCH_MOST_BYTES
    for _ in range(COUNT // 100):
        events = [
            TaskSubmitted.model_validate(
                TaskSubmitted.example | {"task_id": TaskId(log.ids()), "params": {"prompt": LARGE}}
            )
            for _ in range(100)
        ]
        outcomes = await log.append_all([log.task_append(event, 0, route=("normal", "m")) for event in events])
        assert all(isinstance(outcome, int) for outcome in outcomes)
    readmodel = await ReadModel.open(Projections(memory_limit="512MB"), tmp_path / "p.duckdb", log)
    async with asyncio.timeout(90):
        await readmodel.wait_ready()
    assert sum((await readmodel.queries.counts()).values()) == COUNT
    await readmodel.close()
