"""What following a task shows of a model that thinks: dimmed on a terminal, the answer alone in a pipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson
import pytest
from rich.console import Console

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.cli.watch import watch
from bitinglip.settings import Settings

TASK = "01THOUGHT"
RESULT = {"text": "It is four.", "reasoning": "Two and two.", "finish_reason": "stop"}
TICKS: list[dict[str, Any]] = [
    {"step": 1, "total": 20, "unit": "token"},
    {"step": 3, "total": 20, "unit": "token", "reasoning": "Two and"},
    {"step": 5, "total": 20, "unit": "token", "reasoning": " two.", "text": "It is"},
    {"step": 7, "total": 20, "unit": "token", "text": " four."},
]


class _Gateway(BaseHTTPRequestHandler):
    ticks = TICKS

    def do_GET(self) -> None:
        """Answer with the task, or with what happens to it."""
        events = [*((b"task.progressed", tick) for tick in self.ticks), (b"task.succeeded", {"result": RESULT})]
        stream = b"".join(b"event: %s\ndata: %s\n\n" % (name, orjson.dumps({"data": data})) for name, data in events)
        task = orjson.dumps({"task_id": TASK, "state": "succeeded", "result": RESULT})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(stream if self.path.endswith("/events") else task)

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""


class _Silent(_Gateway):
    ticks = []


@pytest.fixture(params=[_Gateway])
def gateway(request: pytest.FixtureRequest) -> Iterator[Client]:
    """A gateway that knows one task."""
    with ThreadingHTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Client(Settings(), f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
        thread.join()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the output be a terminal that knows styles."""
    screen = Console(force_terminal=True, color_system="standard", highlight=False, soft_wrap=True)
    monkeypatch.setattr(render, "out", screen)


def dim(text: str) -> str:
    """Return a text as a terminal gets it to show it dimmed."""
    return f"\x1b[2m{text}\x1b[0m"


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_the_thought_dimmed_and_before_the_answer(
    gateway: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(gateway, TASK, quiet=False, as_json=False) == 0
    assert capsys.readouterr().out == f"{dim('Two and')}{dim(' two.')}\n\nIt is four.\n"


@pytest.mark.usefixtures("terminal")
@pytest.mark.parametrize("gateway", [_Silent], indirect=True)
def test_a_terminal_shows_the_thought_of_a_task_that_is_over(
    gateway: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    assert watch(gateway, TASK, quiet=False, as_json=False) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("\x1b[2mTwo and two.")
    assert shown.endswith("It is four.\n")


def test_a_pipe_gets_the_answer_alone(gateway: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(gateway, TASK, quiet=False, as_json=False) == 0
    said = capsys.readouterr()
    assert said.out == "It is four.\n"
    assert "two" not in said.err


def test_json_lines_hold_both_as_they_came(gateway: Client, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(gateway, TASK, quiet=False, as_json=True) == 0
    lines = [orjson.loads(line)["data"] for line in capsys.readouterr().out.splitlines()]
    assert lines == [*TICKS, {"result": RESULT}]
