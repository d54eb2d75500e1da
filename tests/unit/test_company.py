"""Who runs beside whom after a crash."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.task import RetryPolicy, TaskSubmitted
from bitinglip.tasks.state import Task
from bitinglip.workers.company import Rooms, apart, company

NOW = datetime(2026, 1, 1, tzinfo=UTC)
tasks = st.builds(
    lambda crashes, failures, attempts: Task(
        id=TaskSubmitted.model_validate(TaskSubmitted.example).task_id,
        submitted=TaskSubmitted.model_validate(
            TaskSubmitted.example | {"retry": RetryPolicy(max_attempts=attempts).model_dump()}
        ),
        state="queued",
        sequence=1,
        ready_sequence=1,
        ready_at=NOW,
        crashes=crashes,
        failures=max(crashes, failures),
    ),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(1, 6),
)


@given(tasks, st.integers(1, 1000))
def test_company_shrinks_with_each_crash_and_nobody_has_any_at_the_last_attempt(task: Task, most: int) -> None:
    before = company(task._replace(crashes=0), most)
    sizes = [before, *[company(task._replace(crashes=n), most) for n in range(1, 4)]]
    assert before == most
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] == sizes[3] == 1
    if task.crashes and task.failures + 1 >= task.submitted.retry.max_attempts:
        assert company(task, most) == 1


@given(st.lists(st.sampled_from([1, 2, 5, 16])))
def test_a_batch_is_split_into_parts_that_suit_all_of_their_items(rooms: list[int]) -> None:
    items = list(enumerate(rooms))
    parts = apart(items, lambda item: item[1])
    assert sorted(item for part in parts for item in part) == items
    assert all(len(part) <= room for part in parts for _, room in part)
    assert all(part == sorted(part) for part in parts)
    for room in set(rooms):  # no more parts than are needed
        alike = [part for part in parts if part[0][1] == room]
        assert len(alike) == -(-rooms.count(room) // room)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=12))
def test_who_is_alone_is_alone(visits: list[tuple[bool, int]]) -> None:
    inside: set[int] = set()
    seen: list[tuple[bool, int]] = []

    async def visit(rooms: Rooms, number: int, alone: bool, turns: int) -> None:
        async with rooms.enter(alone=alone):
            inside.add(number)
            for _ in range(turns):
                seen.append((alone, len(inside)))
                await asyncio.sleep(0)  # sleep-ok: the others have a turn
            seen.append((alone, len(inside)))
            inside.remove(number)

    async def all_visits() -> None:
        rooms = Rooms()
        await asyncio.gather(*[visit(rooms, n, alone, turns) for n, (alone, turns) in enumerate(visits)])

    asyncio.run(all_visits())
    assert not inside
    assert all(count == 1 for alone, count in seen if alone)
    assert len(seen) == sum(turns + 1 for _, turns in visits)


async def test_a_room_is_free_again_after_an_error_and_a_cancellation() -> None:
    rooms = Rooms()
    for alone in (True, False):
        with pytest.raises(KeyError):
            async with rooms.enter(alone=alone):
                raise KeyError
    async with rooms.enter(alone=False):
        waiting = asyncio.create_task(rooms.enter(alone=True).__aenter__())
        await asyncio.sleep(0)  # sleep-ok: it comes to the door
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    async with asyncio.timeout(5), rooms.enter(alone=True):
        pass
