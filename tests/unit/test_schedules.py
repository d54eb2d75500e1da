"""When a schedule fires, and what comes of it: pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidInput
from bitinglip.events.envelope import Recorded
from bitinglip.events.schedule import (
    ScheduleCreated,
    ScheduleDeleted,
    ScheduleEvent,
    ScheduleFired,
    SchedulePaused,
    ScheduleResumed,
)
from bitinglip.ids import EventId, Sequence
from bitinglip.tasks.schedules import (
    LATE,
    CreateSchedule,
    Schedule,
    decide_firing,
    fold_schedule,
    is_stale,
    next_due,
)

T0 = datetime(2026, 1, 1, tzinfo=UTC)
ID = "01JZ0000000000000000000000"
TASK: dict[str, Any] = {"kind": "echo", "model": "echo", "params": {}}


def at(event: ScheduleEvent, sequence: int, time: datetime) -> Recorded:
    return Recorded(
        "SCHEDULES", Sequence(sequence), time, "", EventId("e"), event.type, "/t", time, None, event
    )  # fmt: skip


def created(**fields: Any) -> ScheduleCreated:
    return ScheduleCreated(schedule_id=ID, task=TASK, **fields)


def schedule(since: datetime = T0, **fields: Any) -> Schedule:
    made = fold_schedule([at(created(**fields), 1, T0)])
    assert made is not None
    return made._replace(since=since)


def fired(due_at: datetime) -> ScheduleFired:
    return ScheduleFired(schedule_id=ID, due_at=due_at, outcome="submitted", task_id="t")


BERLIN = {"cron": "30 2 * * *", "time_zone": "Europe/Berlin"}


@pytest.mark.parametrize(
    ("fields", "since", "expected"),
    [
        ({"cron": "0 3 * * *"}, T0, T0.replace(hour=3)),
        ({"cron": "0 3 * * *"}, T0.replace(hour=3), T0.replace(day=2, hour=3)),
        ({"cron": "0 3 * * *", "time_zone": "Asia/Kolkata"}, T0, T0 + timedelta(hours=21, minutes=30)),
        ({"every_s": 90.0}, T0, T0 + timedelta(seconds=90)),
        ({"every_s": 90.0}, T0 + timedelta(seconds=200), T0 + timedelta(seconds=270)),
        # The hour from 2 to 3 is left out on 29 March 2026: what falls into it fires at 3.
        (BERLIN, datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 29, 1, 0, tzinfo=UTC)),
        # It comes twice on 25 October: once is enough.
        (BERLIN, datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 25, 0, 30, tzinfo=UTC)),
        (BERLIN, datetime(2026, 10, 25, 0, 30, tzinfo=UTC), datetime(2026, 10, 26, 1, 30, tzinfo=UTC)),
    ],
)
def test_the_next_time(fields: dict[str, Any], since: datetime, expected: datetime) -> None:
    assert next_due(schedule(since, **fields)) == expected


@given(
    st.sampled_from([{"cron": "*/7 * * * *"}, {"cron": "0 3 * * mon"}, BERLIN, {"every_s": 0.75}, {"every_s": 3600.0}]),
    st.datetimes(datetime(2026, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
)
def test_times_only_go_forward(fields: dict[str, Any], since: datetime) -> None:
    first = next_due(schedule(since, **fields))
    assert first is not None
    second = next_due(schedule(first, **fields))
    assert second is not None
    assert since < first < second


def test_the_last_event_of_each_type_tells_the_whole_schedule() -> None:
    minute = timedelta(minutes=1)
    history = [
        at(created(every_s=60.0), 1, T0),
        at(fired(T0 + minute), 2, T0 + minute),
        at(SchedulePaused(schedule_id=ID), 3, T0 + 2 * minute),
        at(ScheduleResumed(schedule_id=ID), 4, T0 + 9.5 * minute),
        at(fired(T0 + 10 * minute), 5, T0 + 10.5 * minute),
    ]
    latest = {each.type: each for each in history}
    told = fold_schedule(latest.values())
    assert told is not None
    assert told == fold_schedule(history)
    assert (told.state, told.sequence, told.since) == ("active", 5, T0 + 10.5 * minute)
    assert next_due(told) == T0 + 11 * minute
    assert is_stale(told, T0 + 10 * minute)
    assert not is_stale(told, T0 + 11 * minute)


@pytest.mark.parametrize("end", [SchedulePaused(schedule_id=ID), ScheduleDeleted(schedule_id=ID)])
def test_a_schedule_that_is_paused_or_deleted_does_not_fire(end: ScheduleEvent) -> None:
    told = fold_schedule([at(created(every_s=60.0), 1, T0), at(end, 2, T0)])
    assert told is not None
    assert next_due(told) is None
    assert is_stale(told, T0 + timedelta(days=1))


def test_a_resumed_schedule_does_not_fire_for_its_pause() -> None:
    history = [SchedulePaused(schedule_id=ID), ScheduleResumed(schedule_id=ID)]
    told = fold_schedule(
        [at(created(every_s=60.0), 1, T0), *[at(e, 2 + n, T0 + n * LATE) for n, e in enumerate(history)]]
    )
    assert told is not None
    assert is_stale(told, T0 + LATE)


@pytest.mark.parametrize(
    ("policies", "late", "running", "outcome"),
    [
        ({}, timedelta(0), False, "submitted"),
        ({}, timedelta(0), True, "overlapped"),
        ({"overlap": "allow"}, timedelta(0), True, "submitted"),
        ({}, timedelta(hours=5), False, "submitted"),
        ({"catch_up": "skip"}, timedelta(hours=5), False, "missed"),
        ({"catch_up": "skip"}, LATE, False, "submitted"),
    ],
)
def test_what_a_firing_comes_to(policies: dict[str, Any], late: timedelta, running: bool, outcome: str) -> None:
    assert decide_firing(schedule(every_s=60.0, **policies), T0, T0 + late, running=running) == outcome


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"cron": "0 3 * *"}, "cron"),
        ({"cron": "* * * * * *"}, "cron"),
        ({"cron": "61 * * * *"}, "cron"),
        ({"cron": "0 0 30 2 *"}, "cron"),
        ({"time_zone": "Mars/Base"}, "time_zone"),
        ({"every_s": 5}, "body"),
        ({"cron": None}, "body"),
        ({"cron": None, "every_s": 0.5}, "every_s"),
        ({"task": TASK | {"delay_s": 5}}, "task.delay_s"),
        ({"task": TASK | {"kind": "nonsense"}}, "task.kind"),
        ({"task": TASK | {"params": {"nonsense": 1}}}, "params.nonsense"),
        ({"overlap": "queue"}, "overlap"),
        ({"nonsense": 1}, "nonsense"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], field: str) -> None:
    body = {"cron": "0 3 * * *", "task": TASK} | change
    with pytest.raises(InvalidInput) as refused:
        CreateSchedule.from_json(orjson.dumps(body))
    assert refused.value.field == field
