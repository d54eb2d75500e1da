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
SUBMITTED = TaskSubmitted.model_validate(TaskSubmitted.example | {"retry": RetryPolicy(max_attempts=3).model_dump()})
ID = SUBMITTED.task_id
tasks = st.builds(
    lambda crashes, failures, attempts: Task(
        id=ID,
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
def test_company_shrinks_with_the_attempts_that_are_left_after_a_crash(task: Task, most: int) -> None:
    assert company(task._replace(crashes=0), most) == most
    suspect = task._replace(crashes=1)
    sizes = [company(suspect._replace(failures=n), most) for n in range(task.submitted.retry.max_attempts)]
    assert sizes == sorted(sizes, reverse=True)
    assert all(1 <= size <= most for size in sizes)
    assert sizes[-1] == 1


def test_three_attempts_find_the_one_of_256_in_16_passes_and_16() -> None:
    first = Task(ID, SUBMITTED, "queued", 1, 1, NOW)
    assert [company(first._replace(failures=n, crashes=n), 256) for n in range(3)] == [256, 16, 1]
    assert company(first._replace(failures=3, crashes=3), 256) == 1  # retried by an operator's doing


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
