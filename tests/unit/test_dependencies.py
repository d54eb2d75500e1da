"""References to results, and what becomes of a task by the ends of others."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidInput
from bitinglip.events.task import TaskCancelled, TaskQueued, TaskSucceeded
from bitinglip.ids import TaskId
from bitinglip.tasks.commands import CancelTask, DropTask, ReleaseTask, SubmitTask
from bitinglip.tasks.dependencies import LOOK_LEAST, LOOK_MOST, Outcome, look_again_at, verdict
from bitinglip.tasks.references import DEEPEST, REFERENCES_MOST, filled, names_with_references, referred
from bitinglip.tasks.state import decide
from tests.unit.test_state import T0, assign, events_of, given_events, submitted

A, B = TaskId("01JZ000000000000000000000A"), TaskId("01JZ000000000000000000000B")
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(max_size=5), parts, max_size=4),
    max_leaves=12,
)
WON = Outcome(True, TaskSucceeded.model_validate(TaskSucceeded.example))
LOST = Outcome(True, TaskCancelled.model_validate(TaskCancelled.example))
OPEN, GONE = Outcome(True, None), Outcome(False, None)


def result(path: str = "", task_id: str = A) -> dict[str, Any]:
    return {"$result": task_id, "path": path}


@given(st.dictionaries(st.text(max_size=5).filter(lambda name: name != "$result"), PLAIN, max_size=4))
def test_parameters_without_references_stay_as_they_are(params: dict[str, Any]) -> None:
    assert names_with_references(params, ()) == frozenset()
    assert filled(params, {}) == params


@given(PLAIN, st.lists(st.text("abc", min_size=1) | st.integers(0, 3), max_size=5))
def test_a_reference_finds_what_lies_at_its_path(value: Any, steps: list[str | int]) -> None:
    told = value
    for step in reversed(steps):
        told = {step: told} if isinstance(step, str) else [None] * step + [told]
    params = {"deep": [{"there": result(".".join(map(str, steps)))}], "kept": 1}
    assert names_with_references(params, (A,)) == {"deep"}
    assert referred(params) == {A}
    assert filled(params, {A: told}) == {"deep": [{"there": value}], "kept": 1}


@pytest.mark.parametrize("path", ["b", "0", "a.2", "a.-1", "a.x", "a.0.c", "."])
def test_a_path_that_leads_nowhere_is_named(path: str) -> None:
    with pytest.raises(InvalidInput, match=r"params\.x"):
        filled({"x": result(path)}, {A: {"a": [1, "text"]}})


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (result(task_id=B), "not in depends_on"),
        ({"$result": 7}, "not of the form"),
        ({"$result": A, "path": ["a"]}, "not of the form"),
        ({"$result": A, "way": "a"}, "not of the form"),
        (result("a" * 600), "not of the form"),
        ([result()] * (REFERENCES_MOST + 1), "more than 32"),
    ],
)
def test_a_reference_that_cannot_be_is_refused(value: Any, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem):
        names_with_references({"x": value}, (A,))


def test_a_bottomless_parameter_is_refused() -> None:
    value: Any = result()
    for _ in range(DEEPEST + 1):
        value = [value]
    with pytest.raises(InvalidInput, match="nested"):
        names_with_references({"x": value}, (A,))


def body(**fields: Any) -> bytes:
    return orjson.dumps({"kind": "text-generation", "model": "m", "depends_on": [A]} | fields)


def test_what_is_known_of_the_parameters_is_checked_at_once() -> None:
    SubmitTask.from_json(body(params={"prompt": result("text"), "max_tokens": 5}))
    with pytest.raises(InvalidInput, match="max_tokens"):
        SubmitTask.from_json(body(params={"prompt": result("text"), "max_tokens": 0}))
    with pytest.raises(InvalidInput, match="prompt"):
        SubmitTask.from_json(body(params={"prompt": result("text")}, depends_on=[]))
    with pytest.raises(InvalidInput, match="unknown field"):
        SubmitTask.from_json(body(params={"prompt": result("text"), "what": 1}))


@pytest.mark.parametrize(
    "fields", [{"depends_on": ["x"]}, {"depends_on": [A] * 33}, {"delay_s": 1}, {"on_failure": "wait"}]
)
def test_a_request_to_wait_that_cannot_be_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        SubmitTask.from_json(body(params={"prompt": "x"}, **fields))


@given(st.lists(st.sampled_from([WON, LOST, OPEN, GONE]), min_size=1, max_size=5), st.sampled_from(["cancel", "run"]))
def test_a_task_runs_only_when_all_is_over(outcomes: list[Outcome], on_failure: str) -> None:
    task = submitted(depends_on=[A], on_failure=on_failure)
    decided = verdict(task, {TaskId(f"T{number}"): outcome for number, outcome in enumerate(outcomes)})
    if on_failure == "cancel" and (LOST in outcomes or GONE in outcomes):
        assert isinstance(decided, DropTask)
    else:
        assert decided == (None if OPEN in outcomes else ReleaseTask())


@given(st.timedeltas(timedelta(0), timedelta(days=30)))
def test_a_look_comes_after_as_long_again_in_bounds(waited: timedelta) -> None:
    wait = look_again_at(T0, T0 + waited) - T0 - waited
    assert LOOK_LEAST <= wait <= LOOK_MOST
    assert wait in (LOOK_LEAST, waited, LOOK_MOST)


def test_a_task_waits_until_it_is_released_and_runs_with_what_that_brings() -> None:
    first = submitted(depends_on=[A], on_failure="cancel")
    waiting = given_events(first)
    assert (waiting.state, waiting.waits_for_others) == ("scheduled", True)
    (event,) = events_of(decide(waiting, ReleaseTask(params={"prompt": "filled"})))
    assert isinstance(event, TaskQueued)
    task = given_events(first, event)
    assert (task.state, task.params, task.ready_sequence) == ("queued", {"prompt": "filled"}, 2)
    assert decide(task, ReleaseTask()) == decide(task, DropTask(reason="late")) == ()
    (begun,) = events_of(decide(task, assign(ready_sequence=2)))
    assert decide(given_events(first, event, begun), DropTask(reason="late")) == ()


def test_a_task_that_waits_is_dropped_or_cancelled_once() -> None:
    first = submitted(depends_on=[A], on_failure="cancel")
    (dropped,) = events_of(decide(given_events(first), DropTask(reason="why")))
    assert isinstance(dropped, TaskCancelled)
    assert dropped.reason == "why"
    (cancelled,) = events_of(decide(given_events(first), CancelTask()))
    for end in (dropped, cancelled):
        assert decide(given_events(first, end), ReleaseTask()) == ()
