"""What trails comes to the same rows as what is applied at once, whenever it is applied, and however often."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.projections import sql, versions
from bitinglip.projections.database import Database, WriteError
from bitinglip.projections.trailing import EVERY_S, Trailing
from bitinglip.projections.writer import write_prompt, write_trailing
from tests.unit.projection_support import STREAM, Story, cut, dump, fresh_database, long_stories, table_of

SLOW = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
MOST = 50


def _story(messages: int) -> list[RawMessage]:
    story = Story(random.Random(7).choice, 20)
    while len(story.messages) < messages:
        story.step()
    return story.messages[:messages]


def _batch(messages: list[RawMessage]) -> Messages:
    batch = Messages()
    for one in messages:
        batch.add(one.sequence, one.time_ns, one.subject.encode(), one.payload)
    return batch


@pytest.fixture
def database() -> Iterator[Database]:
    with fresh_database() as database:
        yield database


@pytest.fixture
def trailing(database: Database) -> Trailing:
    return Trailing(database, MOST)


def _applied(database: Database) -> set[int]:
    return {build.checkpoints()[STREAM][0] for build in database.trailing}


def test_attempts_and_their_parts_trail() -> None:
    late = {name for projection in sql.CATALOGUE.values() if projection.trails for name in projection.tables}
    assert {"attempts", "queues", "usage", "latency", "errors"} <= late
    assert not late & {"tasks", "events", "workers"}


@SLOW
@given(st.data())
def test_cut_in_another_way_it_makes_the_same_rows(data: st.DataObject) -> None:
    """After each batch of what is prompt, what trails is applied up to anywhere that is not ahead, or not at all."""
    story = data.draw(long_stories())
    with fresh_database() as database:
        done = 0
        for batch in data.draw(cut(story)):
            write_prompt(database, STREAM, batch)
            done += len(batch)
            begin = data.draw(st.integers(0, done), label="what it is given again, as after a crash")
            end = data.draw(st.integers(begin, done), label="up to where")
            reached = sum(message.sequence <= max(_applied(database)) for message in story)
            if begin <= reached:
                write_trailing(database, STREAM, story[begin:end])
        write_trailing(database, STREAM, story)
        found = dump(database)
    assert found == table_of([story])


def test_what_is_added_waits_for_some_seconds(trailing: Trailing, database: Database) -> None:
    assert trailing.due_in_s() is None
    messages = _story(9)
    write_prompt(database, STREAM, messages)
    trailing.add(STREAM, [_batch(messages)])
    due = trailing.due_in_s()
    assert due is not None
    assert 0 < due <= EVERY_S
    assert _applied(database) == {0}
    trailing.apply()
    trailing.done()
    assert trailing.due_in_s() is None
    assert _applied(database) == {messages[-1].sequence} == {trailing.settled.applied(STREAM)}
    assert dump(database) == table_of([messages])


def test_it_is_due_when_somebody_asks(trailing: Trailing) -> None:
    trailing.ask()
    assert trailing.due_in_s() is None, "there is nothing to apply"
    trailing.add(STREAM, [_batch(_story(3))])
    assert trailing.due_in_s() != 0, "who asked before has got all that there was"
    trailing.ask()
    assert trailing.due_in_s() == 0
    trailing.done()
    trailing.add(STREAM, [_batch(_story(3))])
    assert trailing.due_in_s() != 0


def test_it_is_due_when_there_is_much(trailing: Trailing) -> None:
    trailing.add(STREAM, [_batch(_story(MOST - 1))])
    assert trailing.due_in_s() != 0
    trailing.add(STREAM, [_batch(_story(1))])
    assert trailing.due_in_s() == 0
    trailing.done()
    trailing.add(STREAM, [_batch(_story(MOST - 1))])
    assert trailing.due_in_s() != 0


def test_it_is_due_so_long_after_the_first_that_waits(trailing: Trailing, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    trailing.add(STREAM, [_batch(_story(2))])
    now += EVERY_S - 1
    trailing.add(STREAM, [_batch(_story(2))])
    assert trailing.due_in_s() == pytest.approx(1)
    now += 2
    assert trailing.due_in_s() == 0


def test_a_stream_of_which_nothing_trails_is_settled_at_once(trailing: Trailing) -> None:
    assert "LEDGER" not in trailing.streams
    trailing.add("LEDGER", [_batch(_story(2))])
    assert trailing.due_in_s() is None
    assert trailing.settled.applied("LEDGER") > 0


def test_what_could_not_be_applied_waits_on(trailing: Trailing, database: Database) -> None:
    messages = _story(9)
    write_prompt(database, STREAM, messages)
    trailing.add(STREAM, [_batch(messages)])
    database.execute("alter table build_checkpoints rename to hidden")
    try:
        with pytest.raises(WriteError):
            trailing.apply()
    finally:
        database.execute("alter table hidden rename to build_checkpoints")
    assert trailing.due_in_s() is not None
    assert trailing.settled.applied(STREAM) == 0
    trailing.apply()
    trailing.done()
    assert dump(database) == table_of([messages])


def test_what_is_behind_stays_behind_when_a_file_is_opened_again(database: Database) -> None:
    """Only what has no checkpoint of its own is where all else is: before, it was written with it."""
    messages = _story(9)
    write_prompt(database, STREAM, messages)
    write_trailing(database, STREAM, messages[:3])
    (version,) = database.trailing[0].applied_to
    versions.trail(database, version)
    assert _applied(database) == {messages[2].sequence}
    database.execute("delete from build_checkpoints")
    versions.trail(database, version)
    assert _applied(database) == {messages[-1].sequence}
