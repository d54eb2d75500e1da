"""What enters the SQL: old versions are brought up to date, what is no event is marked, kept and passed over."""

from __future__ import annotations

import base64

import orjson
import pytest

from bitinglip.events.envelope import Messages, RawMessage
from bitinglip.events.registry import Event
from bitinglip.events.task import TaskAssigned, TaskSubmitted
from bitinglip.projections import batch
from bitinglip.projections.writer import write
from tests.unit.projection_support import fresh_database, message, task_rows

ID = "01JZ0000000000000000000000"
SUBMITTED = message(TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ID}), 1, about=ID)
ASSIGNED = message(TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ID}), 9, about=ID)


class _Renamed(Event):
    """A type that has a second version: `who` became `worker_id`."""

    type = "task.assigned"
    version = 2
    upcasters = {1: lambda data: {"worker_id": data["who"]} | {k: v for k, v in data.items() if k != "who"}}
    example = {}


def _old_assigned() -> RawMessage:
    document = orjson.loads(ASSIGNED.payload)
    document["data"]["who"] = document["data"].pop("worker_id")
    return ASSIGNED._replace(payload=orjson.dumps(document))


def test_old_versions_are_brought_up_to_date_and_the_others_not_touched() -> None:
    payloads = [
        message.payload
        for message in batch.newest(Messages.of([_old_assigned(), SUBMITTED]), {"task.assigned": _Renamed})
    ]
    document = orjson.loads(payloads[0])
    assert document["dataschema"] == "urn:bitinglip:task.assigned:2"
    assert document["data"]["worker_id"] == "rig-1-0"
    assert "who" not in document["data"]
    assert payloads[1] == SUBMITTED.payload


def test_the_sql_sees_the_newest_version_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batch.REGISTRY, "task.assigned", _Renamed)
    with fresh_database() as database:
        write(database, "TASKS", [SUBMITTED, _old_assigned()])
        assert task_rows(database)[ID].worker_id == "rig-1-0"
        assert database.rows("select version from events order by sequence") == [(1,), (2,)]


def test_a_mark_inside_somebodys_text_is_no_version() -> None:
    quoted = SUBMITTED.payload.replace(b'"Once"', b'"urn:bitinglip:task.assigned:1"')
    assert orjson.loads(
        batch.newest(Messages.of([SUBMITTED._replace(payload=quoted)]), {"task.assigned": _Renamed})[0].payload
    ) == orjson.loads(quoted)


POISON = [
    b"",
    b"\xff\xfe",
    b"{",
    b"[1]",
    b"null",
    b'{"id":"x"}',
    b'{"id":"x","type":"task.assigned","dataschema":"none","source":"s","subject":"t","time":"soon","data":{}}',
    SUBMITTED.payload.replace(b"2026-01-01T", b"2026-99-01T"),
    b'{"a":' * 10_000,
    ASSIGNED.payload.replace(b'"attempt":1', b'"attempt":2147483647'),
]


@pytest.mark.parametrize("poison", POISON, ids=range(len(POISON)))
def test_what_is_no_event_is_marked_kept_and_passed_over(poison: bytes, caplog: pytest.LogCaptureFixture) -> None:
    bad = RawMessage(5, 1_000_000_000, f"bl.task.{ID}.submitted", poison)
    with fresh_database() as database:
        write(database, "TASKS", [SUBMITTED, bad, ASSIGNED])
        assert task_rows(database)[ID].state == "running"
        rows = database.rows("select sequence, type, data from events order by sequence")
        assert database.checkpoints()["TASKS"][0] == 9
    assert [(row[0], row[1]) for row in rows] == [(1, "task.submitted"), (5, "corrupt"), (9, "task.assigned")]
    assert base64.b64decode(orjson.loads(rows[1][2])["base64"]) == poison
    assert "TASKS:5" in caplog.text


@pytest.mark.parametrize("data", [b"{}", b"[]", b"7", b'{"attempt":"x"}', b'{"attempt":null}', b'{"attempt":{}}'])
def test_an_event_that_lacks_its_fields_changes_no_state(data: bytes) -> None:
    head, _, _ = ASSIGNED.payload.partition(b'"data":')
    with fresh_database() as database:
        write(database, "TASKS", [SUBMITTED, ASSIGNED._replace(payload=head + b'"data":' + data + b"}")])
        assert task_rows(database)[ID].state == "queued"


def test_unknown_types_and_fields_are_kept() -> None:
    strange = SUBMITTED.payload.replace(b"task.submitted", b"task.dreamt").replace(b'"kind"', b'"mood":"blue","kind"')
    with fresh_database() as database:
        write(database, "TASKS", [SUBMITTED, SUBMITTED._replace(sequence=4, payload=strange)])
        found = database.rows("select type, data ->> '$.mood' from events order by sequence")
        row = task_rows(database)[ID]
    assert found == [("task.submitted", None), ("task.dreamt", "blue")]
    assert (row.state, row.last_sequence) == ("queued", 4)


def test_times_with_another_offset_are_kept_as_utc() -> None:
    offset = SUBMITTED.payload.replace(b'"run_at":null', b'"run_at":"2026-05-01T02:00:00+02:00"')
    with fresh_database() as database:
        write(database, "TASKS", [SUBMITTED._replace(payload=offset)])
        row = task_rows(database)[ID]
    assert row.state == "scheduled"
    assert row.run_at is not None
    assert row.run_at.isoformat() == "2026-05-01T00:00:00+00:00"
