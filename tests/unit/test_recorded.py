"""Parts of the log, their pace, and what the simulator is asked of them."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bitinglip.cli.client import ServerEvent
from bitinglip.cli.recorded import Pace, place, speed
from bitinglip.cli.whatif import arrivals_of, happened, models_of, names_of, read_cards, tasks_of
from bitinglip.errors import InvalidInput

T0 = datetime(2026, 1, 1, tzinfo=UTC)
GIB = 2**30


def event(type_: str, at_s: float, **data: Any) -> ServerEvent:
    """Return an event of so many seconds after the beginning."""
    document = {"type": type_, "time": (T0 + timedelta(seconds=at_s)).isoformat(), "data": data}
    return ServerEvent("1", type_, document)


def test_places_and_speeds_are_read_or_refused() -> None:
    assert place("--from", "17") == 17
    assert place("--from", "2026-01-01T00:00:00") == T0
    assert place("--from", "2026-01-01T01:00:00+01:00") == T0
    assert [speed(text) for text in ("10x", "0.5x", "3", "max")] == [10, 0.5, 3, math.inf]
    for wrong in ("0x", "fast", "-1x", ""):
        with pytest.raises(InvalidInput, match="--speed"):
            speed(wrong)
    with pytest.raises(InvalidInput, match="--to"):
        place("--to", "yesterday")


def test_cards_are_read_or_refused() -> None:
    assert read_cards("2x8GB, 24GiB,1.5g") == [8 * GIB, 8 * GIB, 24 * GIB, int(1.5 * GIB)]
    for wrong in ("", "8", "x8GB", "0x8GB", "2x0GB", "8MB"):
        with pytest.raises(InvalidInput, match="--cards"):
            read_cards(wrong)


def test_a_pace_of_max_and_events_that_are_late_do_not_wait() -> None:
    hours = [event("task.queued", 3600.0 * hour) for hour in range(3)]
    assert list(Pace(math.inf).keep(hours)) == hours
    backwards = list(reversed(hours))
    assert list(Pace(1.0).keep(backwards)) == backwards


def _task(task_id: str, at_s: float, **more: Any) -> ServerEvent:
    return event("task.submitted", at_s, task_id=task_id, model="m", lane="normal", **more)


def test_what_the_log_tells_of_tasks_is_what_the_simulator_is_asked() -> None:
    began = {"worker_id": "w-0", "wait_ms": 2000, "batch_size": 2}
    tasks = tasks_of(
        [
            _task("a", 0.0),
            event("task.assigned", 2.0, task_id="a", **began),
            _task("b", 3.0, run_at="2026-01-01T00:01:00Z", key_id="k"),
            event("task.succeeded", 6.0, task_id="a", run_ms=8000.0),
            _task("c", 7.0, depends_on=["x"]),
            event("task.queued", 60.0, task_id="b"),
            event("task.assigned", 61.0, task_id="other", **began),
        ]
    )
    arrivals = arrivals_of(list(tasks.values()), {})
    assert [(each["at_s"], each["key"], each["run_s"]) for each in arrivals] == [(0.0, "", 4.0), (60.0, "k", 4.0)]
    load = {"reference": "m", "need_bytes": 5, "memory_bytes": 7}
    loads = [
        event("worker.model_loaded", at, **load, load_ms=ms) for at, ms in ((-9.0, 1000), (1.0, 2000), (2.0, 9000))
    ]
    assert names_of(event("worker.model_loaded", 0.0, **load, revision=at) for at in ("c1", None)) == {"m@c1": "m"}
    assert {each["model"] for each in arrivals_of(list(tasks.values()), {"m": "n"})} == {"n"}
    assert models_of(loads) == {"m": {"need_bytes": 7, "load_s": 2.0}}
    assert happened(list(tasks.values()), loads) == {
        "tasks": 3,
        "waits_s": {"normal": [2.0, 2.0]},
        "loads": 2,
        "utilisation": 0.667,
        "makespan_s": 6.0,
        "unserved": 2,
        "cards": 1,
    }
