"""A task's life in spans, and how it is drawn."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given, settings

from bitinglip.cli.timeline import drawn, duration
from bitinglip.events.envelope import RawMessage, Recorded, decode
from bitinglip.events.model import ModelEvent, ModelFetchFailed, ModelFetchStarted, ModelStored
from bitinglip.events.registry import Event
from bitinglip.events.task import (
    TaskAssigned,
    TaskCancelled,
    TaskCancelRequested,
    TaskDeadLettered,
    TaskEvent,
    TaskExpired,
    TaskFailed,
    TaskProgressed,
    TaskQueued,
    TaskSubmitted,
    TaskSucceeded,
)
from bitinglip.gateway.timeline import fetches, shown
from bitinglip.tasks.timeline import Life, Tick, life_of, sampled
from tests.unit.projection_support import START, message, stories

ID = "01JZ0000000000000000000000"


def log(*told: tuple[int, type[Event], dict[str, Any]], about: str = ID, stream: str = "TASKS") -> list[Recorded]:
    """Return events that happened so many milliseconds after the start."""
    found: list[Recorded] = []
    for at, cls, changes in told:
        own = {"task_id": ID} if issubclass(cls, TaskEvent) else {}
        found.append(decode(message(cls.model_validate(cls.example | own | changes), at, about=about), stream))
    return found


def life(*told: tuple[int, type[Event], dict[str, Any]], now: int = 10_000) -> Life:
    found = life_of(log(*told), START + timedelta(milliseconds=now))
    assert found is not None
    return found


def spans(found: Life) -> list[tuple[str, int, float, str | None]]:
    return [(span.kind, span.attempt, span.ms, span.outcome) for span in found.spans]


RETRY_AT = {"retry_at": START + timedelta(milliseconds=900)}


def test_an_attempt_that_loaded_its_model_is_parted() -> None:
    found = life(
        (100, TaskSubmitted, {}), (140, TaskAssigned, {}), (400, TaskSucceeded, {"load_ms": 60, "device": "cpu"})
    )
    assert spans(found) == [("waiting", 1, 40, None), ("loading", 1, 60, None), ("running", 1, 200, "succeeded")]
    assert (found.last.run_ms, found.last.device, found.last.worker_id) == (41.5, "cpu", "rig-1-0")
    assert found.end is not None
    assert (found.end.state, found.end.at) == ("succeeded", START + timedelta(milliseconds=400))


def test_a_load_that_is_said_to_be_longer_than_the_attempt_is_all_of_it() -> None:
    found = life((0, TaskSubmitted, {}), (10, TaskAssigned, {}), (20, TaskSucceeded, {"load_ms": 99}))
    assert [span[:3] for span in spans(found)] == [("waiting", 1, 10), ("loading", 1, 10), ("running", 1, 0)]


def test_retries_have_pauses_and_the_last_failure_ends_it() -> None:
    crash = TaskFailed.example["failure"]
    found = life(
        (0, TaskSubmitted, {}), (10, TaskAssigned, {}), (30, TaskFailed, RETRY_AT),
        (900, TaskQueued, {"attempt": 2, "reason": "retry"}), (910, TaskAssigned, {"attempt": 2}),
        (950, TaskFailed, {"attempt": 2, "failure": crash | {"kind": "load_failed"}} | RETRY_AT),
        (960, TaskQueued, {"attempt": 3, "reason": "bigger_card"}), (970, TaskAssigned, {"attempt": 3}),
        (990, TaskDeadLettered, {}),
    )  # fmt: skip
    assert spans(found) == [
        ("waiting", 1, 10, None), ("running", 1, 20, "engine_crashed"), ("pause", 2, 870, None),
        ("waiting", 2, 10, None), ("loading", 2, 40, "load_failed"), ("pause", 3, 10, None), ("waiting", 3, 10, None),
        ("running", 3, 20, "engine_crashed"),
    ]  # fmt: skip
    assert [span.reason for span in found.spans if span.kind == "waiting"] == [None, "retry", "bigger_card"]
    assert found.spans[2].due_at == RETRY_AT["retry_at"]
    assert found.end is not None
    assert (found.end.state, found.end.attempt) == ("dead_lettered", 3)


def test_what_has_not_ended_is_counted_up_to_now() -> None:
    assert spans(life((100, TaskSubmitted, {}), now=350)) == [("waiting", 1, 250, None)]
    running = life((100, TaskSubmitted, {}), (200, TaskAssigned, {}), (210, TaskCancelRequested, {}), now=350)
    assert (spans(running)[-1], running.end) == (("running", 1, 150, None), None)
    assert running.cancel_requested_at == START + timedelta(milliseconds=210)


def test_what_waits_for_its_time_or_for_others_says_so() -> None:
    later = {"run_at": START + timedelta(seconds=9)}
    scheduled = life((0, TaskSubmitted, later), (5, TaskQueued, {"attempt": 1, "reason": "scheduled"}), now=9)
    assert spans(scheduled) == [("scheduled", 1, 5, None), ("waiting", 1, 4, None)]
    assert scheduled.spans[0].due_at == later["run_at"]
    held = life((0, TaskSubmitted, {"depends_on": [ID], "on_failure": "run"}), (7, TaskCancelled, {}))
    assert spans(held) == [("dependent", 1, 7, None)]


def test_late_and_repeated_events_change_nothing() -> None:
    stranded = (5, TaskQueued, {"attempt": 1, "reason": "stranded"})
    late = (15, TaskQueued, {"attempt": 1, "reason": "scheduled"})
    found = life(
        (0, TaskSubmitted, {}),
        stranded,
        (10, TaskAssigned, {}),
        late,
        (20, TaskSucceeded, {}),
        (30, TaskExpired, {"expires_at": START}),
    )
    assert spans(found) == [("waiting", 1, 10, None), ("running", 1, 10, "succeeded")]


def test_without_its_first_event_there_is_no_life() -> None:
    assert life_of(log((10, TaskAssigned, {})), START) is None
    assert life_of([], START) is None


@settings(deadline=None, max_examples=60)
@given(stories())
def test_spans_are_without_gaps_and_end_with_the_task(story: list[RawMessage]) -> None:
    now = START + timedelta(days=1)
    for task_id in {one.subject.split(".")[2] for one in story}:
        history = [decode(one, "TASKS") for one in story if one.subject.split(".")[2] == task_id]
        found = life_of(history, now)
        if found is None:
            continue
        for before, after in zip(found.spans, found.spans[1:], strict=False):
            assert before.end == after.start
        assert found.spans[0].start == found.submitted_at
        assert all(span.end is not None for span in found.spans[:-1])
        assert (found.last.end is None) == (found.end is None)
        until = found.end.at if found.end else now
        total = sum(span.ms for span in found.spans)
        assert total == pytest.approx(
            (until - found.submitted_at) / timedelta(milliseconds=1), abs=0.01 * len(found.spans)
        )
        for width in (40, 80, 200):
            lines = list(drawn(_told(found), width))
            assert len(lines) >= 3 + len(found.spans)
            assert all(line.cell_len <= width for line in lines[2:] if not line.plain.startswith("ended"))


def test_ticks_are_sampled_evenly_with_the_first_and_the_last() -> None:
    ticks = [Tick(START, 1, step, 999, "token") for step in range(1_000)]
    found = sampled(ticks, 5)
    assert [tick.step for tick in found] == [0, 250, 500, 749, 999]
    assert sampled(ticks[:3], 5) == ticks[:3]


def test_fetches_of_the_model_that_it_waited_for_are_told() -> None:
    def told(at: int, cls: type[ModelEvent], node: str) -> tuple[int, type[Event], dict[str, Any]]:
        return at, cls, {"node_id": node}

    history = log(
        told(1, ModelFetchStarted, "early"), told(5, ModelStored, "early"), told(20, ModelFetchStarted, "rig-1"),
        told(25, ModelFetchStarted, "rig-2"), told(40, ModelFetchFailed, "rig-2"), told(60, ModelStored, "rig-1"),
        told(500, ModelFetchStarted, "late"), about="m", stream="MODELS",
    )  # fmt: skip
    found = fetches(life((10, TaskSubmitted, {}), (100, TaskAssigned, {}), now=200), history)
    assert [(fetch.node_id, fetch.outcome) for fetch in found] == [("rig-2", "failed"), ("rig-1", "stored")]
    waiting = fetches(life((10, TaskSubmitted, {}), now=600), history)
    assert [(fetch.node_id, fetch.end) for fetch in waiting][-1] == ("late", None)


def _told(found: Life) -> dict[str, Any]:
    return orjson.loads(orjson.dumps(shown(found, []), option=orjson.OPT_UTC_Z))


def test_bars_are_where_and_as_long_as_the_spans() -> None:
    found = life(
        (0, TaskSubmitted, {}), (500, TaskAssigned, {}), (600, TaskProgressed, {"step": 3, "total": 9}),
        (1_000, TaskSucceeded, {}),
    )  # fmt: skip
    lines = [line.plain for line in drawn(_told(found), 80)]
    waiting = next(line for line in lines if line.startswith("waiting"))
    running = next(line for line in lines if line.startswith("1 running"))
    assert waiting.count("░") == pytest.approx(running.count("█"), abs=1)
    assert waiting.rindex("░") < running.index("█")
    assert "500 ms" in waiting
    assert "rig-1-0 cpu" not in waiting
    assert any(line.startswith("progress") and line.rstrip().endswith("3/9 token") for line in lines)
    assert lines[-1] == "ended: succeeded"


@pytest.mark.parametrize(
    ("ms", "written"),
    [(0.0, "0 ms"), (3.456, "3.46 ms"), (999.4, "999 ms"), (999.9, "1 s"), (1_380, "1.38 s"), (119_000, "119 s"),
     (600_000, "10 min"), (9_000_000, "2.5 h")],
)  # fmt: skip
def test_durations_are_short(ms: float, written: str) -> None:
    assert duration(ms) == written
