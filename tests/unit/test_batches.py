"""What is asked of a batch, and a batch as a fold over its events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidInput
from bitinglip.events.batch import BatchClosed, BatchCompleted, BatchExtended, BatchOpened
from bitinglip.events.envelope import decode
from bitinglip.tasks.batches import CreateBatch, batch_id_for, fold_batch, member_id, part_for
from tests.unit.projection_support import message

ID = "01JZ0000000000000000000000"
EVENTS = (
    BatchOpened(batch_id=ID, request_sha256="0"),
    BatchExtended(batch_id=ID, part="first", added=2, tasks=2, request_sha256="0"),
    BatchClosed(batch_id=ID, tasks=2),
    BatchCompleted(batch_id=ID, tasks=2, counts={"succeeded": 2}),
)
HISTORY = [decode(message(event, n + 1, about=ID), "TASKS") for n, event in enumerate(EVENTS)]


@given(st.integers(1, 4), st.randoms())
def test_a_batch_is_told_by_its_events_in_whatever_order_they_are_read(known: int, random: Any) -> None:
    read = HISTORY[:known]
    random.shuffle(read)
    batch = fold_batch(read)
    assert batch is not None
    assert (batch.id, batch.sequence) == (ID, known)
    assert (batch.closed is not None, batch.completed is not None) == (known > 2, known > 3)
    assert batch.tasks == (2 if known > 1 else 0)


def test_without_its_beginning_there_is_no_batch() -> None:
    assert fold_batch(HISTORY[1:]) is None


@given(st.integers(0, 4), st.sampled_from(["interactive", "normal", "batch"]))
def test_a_task_has_the_defaults_that_it_does_not_give(own: int, lane: str) -> None:
    tasks = [{"lane": lane} if index == own else {} for index in range(5)]
    defaults = {"kind": "echo", "model": "echo", "params": {"message": "a"}, "lane": "batch"}
    commands = CreateBatch(defaults=defaults, tasks=tasks).commands()
    assert [command.lane for command in commands] == [lane if index == own else "batch" for index in range(5)]


def test_a_wrong_task_is_named_by_its_index() -> None:
    asked = CreateBatch(defaults={"kind": "echo", "model": "echo", "params": {"message": "a"}}, tasks=[{}, {"size": 1}])
    with pytest.raises(InvalidInput) as caught:
        asked.commands()
    assert caught.value.field == "tasks.1.size"


@given(st.lists(st.tuples(st.text("ab-", max_size=5), st.text("ab-", min_size=1, max_size=5)), unique=True, max_size=5))
def test_ids_come_of_the_key_and_the_place(keys: list[tuple[str, str]]) -> None:
    batches = [batch_id_for(key_id, key) for key_id, key in keys]
    parts = [(batch_id, part) for batch_id in batches for part in ("first", part_for(batch_id, "first"))]
    members = {member_id(*part, index) for part in parts for index in range(3)}
    assert len(set(batches)) == len(keys)
    assert len(members) == 6 * len(keys)
    assert batches == [batch_id_for(key_id, key) for key_id, key in keys]
