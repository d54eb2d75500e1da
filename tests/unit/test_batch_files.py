"""A file of tasks is cut into requests, and the counts of a batch tell how a command ends."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bitinglip.cli import batch, render
from bitinglip.cli.batchwatch import Bar, exit_code_of, told
from bitinglip.errors import InvalidInput


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tasks") / "file"


@given(st.lists(st.none() | st.text("aé", max_size=40), max_size=12), st.integers(1, 5), st.integers(40, 120))
def test_parts_are_bounded_and_are_the_file_again(
    file: Path, messages: list[str | None], most: int, most_bytes: int
) -> None:
    lines = [b"" if message is None else orjson.dumps({"params": message}) for message in messages]
    file.write_bytes(b"\n".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch, "PART_MOST", most)
        patch.setattr(batch, "PART_BYTES", most_bytes)
        parts = list(batch._parts(str(file), {"kind": "echo"}))  # pyright: ignore[reportPrivateUsage]
    tasks: list[dict[str, Any]] = [task for part in parts for task in part.tasks]
    assert tasks == [{"kind": "echo", "params": message} for message in messages if message is not None]
    for part in parts:
        assert 1 <= len(part.tasks) <= most
        assert len(part.tasks) == 1 or len(orjson.dumps(part.tasks)) <= most_bytes + 1
        assert [messages[line - 1] for line in (part.first_line, part.last_line)] == [
            part.tasks[end]["params"] for end in (0, -1)
        ]
    for one, other in pairwise(parts):
        joined = [*one.tasks, other.tasks[0]]
        assert len(joined) > most or len(orjson.dumps(joined)) > most_bytes


@pytest.mark.parametrize("line", ["{", "[1]", "1"])
def test_a_line_that_is_no_task_is_named(file: Path, line: str) -> None:
    file.write_text(f"{{}}\n\n{line}\n")
    with pytest.raises(InvalidInput) as caught:
        list(batch._parts(str(file), {}))  # pyright: ignore[reportPrivateUsage]
    assert caught.value.field == f"{file}:3"


@pytest.mark.parametrize(
    ("counts", "code", "said"),
    [
        ({}, 0, ""),
        ({"succeeded": 2, "failed": 0}, 0, "succeeded 2"),
        ({"cancelled": 1, "succeeded": 2}, 5, "succeeded 2, cancelled 1"),
        ({"cancelled": 1, "dead_lettered": 1}, 1, "dead lettered 1, cancelled 1"),
        ({"failed": 1}, 1, "failed 1"),
        ({"expired": 1, "succeeded": 3}, 1, "succeeded 3, expired 1"),
    ],
)
def test_the_counts_say_how_it_ended(counts: dict[str, int], code: int, said: str) -> None:
    assert (exit_code_of(counts), told(counts)) == (code, said)


def test_a_terminal_sees_a_bar_with_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(render, "err", Console(file=screen, force_terminal=True, width=120))
    bar = Bar()
    for state, done in (("open", 1), ("closed", 3)):
        data = {"state": state, "tasks": 4, "done": done, "counts": {"succeeded": done, "queued": 4 - done}}
        bar.show("progress", data)
        bar.draw()
    bar.show("batch.completed", {})
    bar.close()
    drawn = screen.getvalue()
    assert drawn.index("1/4") < drawn.index("open, queued 3, succeeded 1") < drawn.index("3/4")
    assert "queued 1, succeeded 3" in drawn
