"""Events that are stored together or not at all."""

from __future__ import annotations

import pytest

from bitinglip.errors import Conflict
from bitinglip.events.appending import Append
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.events.together import MOST, append_together
from bitinglip.ids import TaskId

ROUTE = ("normal", "m")


def submissions(log: EventLog, count: int) -> list[Append]:
    events = [TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": log.ids()}) for _ in range(count)]
    return [log.task_append(event, 0, route=ROUTE) for event in events]


@pytest.mark.parametrize("count", [1, 2, MOST])
async def test_they_lie_side_by_side(log: EventLog, count: int) -> None:
    appends = submissions(log, count)
    last = await append_together(log, appends)
    places = {append.subject: last - count + place for place, append in enumerate(appends, 1)}
    for append in (appends[0], appends[-1]):
        read = await log.read_task(TaskId(append.subject.split(".")[2]))
        assert [recorded.sequence for recorded in read] == [places[append.subject]]


async def test_one_that_conflicts_keeps_all_of_them_out(log: EventLog) -> None:
    taken, others = submissions(log, 1), submissions(log, 40)
    last = await append_together(log, taken)
    with pytest.raises(Conflict):
        await append_together(log, [*others[:20], *taken, *others[20:]])
    assert await log.last_sequence(TASKS) == last
    assert await append_together(log, others) == last + len(others)


async def test_the_queue_gets_each_of_them(log: EventLog, eventually) -> None:  # type: ignore[no-untyped-def]
    await append_together(log, submissions(log, 30))

    async def all_there() -> bool:
        return await log.last_sequence(QUEUE) == 30

    await eventually(all_there)
