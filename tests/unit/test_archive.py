"""A file of the archive holds messages as they were; what is to leave is whole tasks."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.archive import is_tick
from bitinglip.events.envelope import RawMessage, encode
from bitinglip.events.subjects import matches
from bitinglip.events.task import TaskProgressed, TaskSubmitted
from bitinglip.projections import archivefile
from bitinglip.projections.archivefile import ArchiveWriter, messages_of, task_messages_of
from bitinglip.projections.trimming import Held, note, plan_of

TIME = datetime(2026, 1, 1, tzinfo=UTC)
EVENT = encode(
    TaskSubmitted.model_validate(TaskSubmitted.example), id="E", source="/t", time=TIME, about="01A", causation="r"
)
PAYLOADS = st.one_of(
    st.just(EVENT),
    st.binary(max_size=40),
    st.sampled_from([b"", b"{}", b"[]", b'{"id":1}', EVENT.replace(b'"E"', b"7"), EVENT.replace(b":1", b":999999")]),
)


def written(messages: list[RawMessage], path: Path) -> bytes:
    writer = ArchiveWriter(path, "TASKS")
    for message in messages:
        writer.add(message.sequence, message.time_ns, message.subject.encode(), message.payload)
    writer.close()
    return path.read_bytes()


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archivefile, "ROWS", 3)


@given(payloads=st.lists(PAYLOADS, max_size=12), after=st.integers(0, 14), up_to=st.integers(0, 14))
def test_messages_come_back_as_they_were(payloads: list[bytes], after: int, up_to: int) -> None:
    messages = [RawMessage(n, n * 1_000_003, f"bl.task.{n}.x", each) for n, each in enumerate(payloads, 1)]
    with tempfile.TemporaryDirectory() as folder:
        bytes_ = written(messages, Path(folder) / "a")
        assert written(messages, Path(folder) / "b") == bytes_
        found = [message for batch in messages_of(Path(folder) / "a", after, up_to) for message in batch]
    assert found == [message for message in messages if after < message.sequence <= up_to]


def test_the_columns_tell_what_the_payload_is(tmp_path: Path) -> None:
    old = EVENT.replace(b"task.submitted:1", b"task.submitted:7")
    written(
        [RawMessage(1, 2_000_001, "bl.task.01A.submitted", old), RawMessage(2, 5_000, "s", b"\xff")], tmp_path / "a"
    )
    (first, second) = archivefile._parquet().read_table(tmp_path / "a").to_pylist()
    shown: dict[str, Any] = {name: first[name] for name in ("type", "version", "id", "about", "source", "causation")}
    assert shown == {
        "type": "task.submitted", "version": 7, "id": "E", "about": "01A", "source": "/t", "causation": "r",
    }  # fmt: skip
    assert first["time"] == TIME.replace(tzinfo=None)
    assert (second["type"], second["id"], second["about"]) == ("corrupt", "TASKS:2", "s")
    assert [message.sequence for message in task_messages_of(tmp_path / "a", "01A")] == [1]


def test_a_tick_is_what_subject_and_type_say_is_one() -> None:
    tick = encode(TaskProgressed.model_validate(TaskProgressed.example), id="E", source="/t", time=TIME, about="01A")
    assert is_tick(b"bl.task.01A.progressed", tick)
    assert not is_tick(b"bl.task.01A.progressed", EVENT)
    assert not is_tick(b"bl.task.01A.submitted", tick)
    assert not is_tick(b"bl.task", tick)
    assert not is_tick(b"bl.task.01A.progressed", b"\xff")


TOKENS = st.sampled_from(["bl", "task", "a", "b"])


@given(st.lists(TOKENS, min_size=1, max_size=4), st.data())
def test_a_filter_made_from_a_subject_matches_it(tokens: list[str], data: st.DataObject) -> None:
    subject = ".".join(tokens)
    wild = [data.draw(st.sampled_from([token, "*"])) for token in tokens]
    cut = data.draw(st.integers(0, len(tokens) - 1))
    assert matches(".".join(wild), subject)
    assert matches(".".join([*wild[:cut], ">"]), subject)
    assert not matches(f"{subject}.>", subject)
    assert not matches(f"{subject}.*", subject)
    assert not matches("other", subject)


@given(st.lists(st.sampled_from("abcdef"), max_size=30), st.sets(st.sampled_from("abcdefg")))
def test_what_leaves_is_all_of_those_that_are_over_and_nothing_else(tasks: list[str], over: set[str]) -> None:
    held: dict[str, Held] = {}
    log = [(sequence, f"bl.task.{task}.x".encode()) for sequence, task in enumerate(tasks, 1)]
    note(held, log)
    plan = plan_of(held, over, boundary=len(log))
    left = {
        sequence for sequence, task in enumerate(tasks, 1) if sequence >= plan.up_to and task not in plan.one_by_one
    }
    assert left == {sequence for sequence, task in enumerate(tasks, 1) if task not in over}
    assert plan.removed == len(log) - len(left)
