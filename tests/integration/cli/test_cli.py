"""The command line as a person or a script uses it: a subprocess against a real cluster."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from tests.support.nvml import Rig
from tests.support.server import eventually

COMMAND = (sys.executable, "-m", "bitinglip.cli.main")
ULID = 26
LISTS = (
    ("cluster", "status"),
    ("queue", "list"),
    ("node", "list"),
    ("model", "list"),
    ("worker", "list"),
    ("schedule", "list"),
    ("batch", "list"),
    ("task", "list"),
)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, as one JSON document."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """What it printed, as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


async def bitinglip(*arguments: str, stdin: str = "", **environment: str) -> Ended:
    process = await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        env={**os.environ, "COLUMNS": "200", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def on_terminal(columns: int, *arguments: str) -> str:
    """Return what a command prints on a terminal of this width, without the colours."""
    ours, its = pty.openpty()
    termios.tcsetwinsize(its, (40, columns))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | {"TERM": "xterm"}
    process = await asyncio.create_subprocess_exec(*COMMAND, *arguments, env=environment, stdin=its, stdout=its)
    os.close(its)
    shown = await asyncio.wait_for(asyncio.to_thread(_read_all, ours), 60)
    assert await process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown).replace("\r", "")


def _read_all(terminal: int) -> str:
    """Read until nobody has the other end, which is an error on Linux."""
    pieces: list[bytes] = []
    with suppress(OSError):
        while piece := os.read(terminal, 65_536):
            pieces.append(piece)
    os.close(terminal)
    return b"".join(pieces).decode()


class TestWithoutACluster:
    """What needs no gateway, and what is said when there is none."""

    async def test_help_and_version(self) -> None:
        assert "task" in (await bitinglip("--help")).out
        assert (await bitinglip("--version")).out.startswith("bitinglip ")

    async def test_the_schemas_of_events_are_printed_and_written(self, tmp_path: Path) -> None:
        one = await bitinglip("events", "schema", "task.submitted", "--json")
        assert (one.json["$id"], "kind" in one.json["properties"]) == ("urn:bitinglip:task.submitted:1", True)
        every = await bitinglip("events", "schema")
        written = await bitinglip("events", "schema", "--output", str(tmp_path / "schemas"), "--json")
        assert written.json["schemas"] == len(every.json) == len(list((tmp_path / "schemas").iterdir()))
        assert (await bitinglip("events", "schema", "task.dreamt")).status == 2

    async def test_every_setting_is_shown_with_its_origin_and_no_secret(self) -> None:
        shown = await bitinglip(
            "config", "show", "--json", BITINGLIP_GATEWAY_API_KEY="0123456789abcdef", BITINGLIP_GATEWAY_PORT="1"
        )
        rows = {row["name"]: row for row in shown.lines}
        assert rows["gateway.port"]["value"] == 1
        assert rows["gateway.port"]["origin"] == "environment"
        assert rows["nats.url"]["origin"] == "default"
        assert "0123456789abcdef" not in shown.out
        assert (await bitinglip("config", "show")).out.splitlines()[0].split("\t") == [
            "name", "value", "origin", "description",
        ]  # fmt: skip

    @pytest.mark.parametrize("command", LISTS, ids=" ".join)
    async def test_no_gateway_is_said_with_a_remedy(self, command: tuple[str, ...]) -> None:
        ended = await bitinglip(*command, "--url", "http://127.0.0.1:1")
        assert ended.status == 4
        assert "No gateway answers at http://127.0.0.1:1" in ended.err
        assert "remedy: Start one with `bitinglip up`" in ended.err

    async def test_a_wrong_setting_is_said(self) -> None:
        ended = await bitinglip("task", "list", BITINGLIP_GATEWAY_PROT="1")
        assert ended.status == 2
        assert "BITINGLIP_GATEWAY_PROT" in ended.err

    @pytest.mark.parametrize(
        "arguments",
        [
            ("task", "submit"),
            ("task", "submit", "echo"),
            ("task", "submit", "echo", "--model", "echo", "--param", "novalue"),
            ("task", "submit", "echo", "--model", "echo", "--params-json", "[1]"),
            ("task", "submit", "echo", "--model", "echo", "--prompt", "@/no/such/file"),
            ("query",),
            ("nonsense",),
        ],
    )
    async def test_wrong_usage_ends_with_2(self, arguments: tuple[str, ...]) -> None:
        ended = await bitinglip(*arguments)
        assert ended.status == 2
        assert "Traceback" not in ended.err

    async def test_the_doctor_finds_what_is_there(self, tmp_path: Path) -> None:
        ended = await bitinglip("doctor", "--json", "--url", "http://127.0.0.1:1", BITINGLIP_DATA_DIR=str(tmp_path))
        findings = {line["check"]: line for line in ended.lines}
        assert findings["nats-server"]["verdict"] == "ok"
        assert findings["gateway"]["verdict"] == "warn"
        assert findings["models"]["remedy"]
        assert ended.status == 0

    async def test_the_doctor_looks_at_the_devices(self, tmp_path: Path) -> None:
        rig = Rig(tmp_path / "nvml.json", 2)
        ended = await bitinglip("doctor", **rig.env)
        assert "NVIDIA GeForce RTX 3070 #0 (8.0 GiB), NVIDIA GeForce RTX 3070 #1 (8.0 GiB)" in ended.out
        rig.tell(1, error=15)
        ended = await bitinglip("doctor", **rig.env)
        assert "FAIL  devices: NVIDIA GeForce RTX 3070 #0 (8.0 GiB), a lost card (GPU is lost)" in ended.out
        assert ended.status == 1

    async def test_the_doctor_fails_for_what_is_needed(self, tmp_path: Path) -> None:
        ended = await bitinglip("doctor", BITINGLIP_NATS_SERVER=str(tmp_path / "none"))
        assert ended.status == 1
        assert "FAIL" in ended.out
        assert "→" in ended.out

    async def test_a_worker_or_gateway_without_a_server_says_so(self, tmp_path: Path) -> None:
        for what in ("worker", "gateway"):
            ended = await bitinglip(
                what, "--nats-url", "nats://127.0.0.1:1", "--data-dir", str(tmp_path),
                BITINGLIP_NATS_CONNECT_TIMEOUT_S="0.5", BITINGLIP_WORKER_MODELS="echo",
            )  # fmt: skip
            assert ended.status == 4
            assert "remedy:" in ended.err


async def nodes(url: str) -> list[Any]:
    """Return the nodes whose workers are told of."""
    found = (await bitinglip("node", "list", "--json", "--url", url)).lines
    return [node for node in found if node["workers"]]


class Up:
    """A running `bitinglip up`."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self.said: dict[str, Any] = {}
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, *arguments: str) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *COMMAND, "up", "--json", "--port", "0", "--data-dir", str(self._data_dir), *arguments,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        assert line, (await self._process.communicate())[1].decode()
        self.said = json.loads(line)

    @property
    def children(self) -> list[psutil.Process]:
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    async def stop(self, number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        assert self._process is not None
        self._process.send_signal(number)
        _, err = await asyncio.wait_for(self._process.communicate(), 60)
        assert self._process.returncode is not None
        return self._process.returncode, err.decode()

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()


@pytest_asyncio.fixture(scope="class", loop_scope="class")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    up = Up(tmp_path_factory.mktemp("up"))
    await up.start("--model", "echo")
    yield up.said["url"]
    await up.stop()


@pytest.mark.asyncio(loop_scope="class")
class TestOnACluster:
    """Each command, on a cluster that `bitinglip up` runs."""

    async def test_a_task_from_submission_to_result(self, url: str) -> None:
        submitted = await bitinglip("task", "submit", "echo", "-m", "echo", "-p", "message=hello", "--url", url)
        task_id = submitted.out.strip()
        assert len(task_id) == ULID
        watched = await bitinglip("task", "watch", task_id, "--url", url)
        assert (watched.status, watched.out) == (0, '{"message":"hello"}\n')
        got = await bitinglip("task", "get", task_id, "--json", "--url", url)
        assert (got.json["state"], got.json["result"]) == ("succeeded", {"message": "hello"})
        assert "succeeded" in (await bitinglip("task", "get", task_id, "--url", url)).out

    async def test_the_log_is_printed_again_and_asked_for_again(self, url: str) -> None:
        echo = ("task", "submit", "echo", "-m", "echo", "--url", url)
        first = (await bitinglip(*echo, "-p", "message=one", "--wait", "--json")).json
        begin, here = str(first["submitted_sequence"]), ("--url", url, "--speed", "max")
        again = {"message": {"$result": first["task_id"], "path": "message"}}
        await bitinglip(*echo, "--params-json", json.dumps(again), "--after", first["task_id"], "--wait")
        await bitinglip(*echo, "-p", "message=hush", "--private", "--wait")
        await bitinglip(*echo, "--params-json", json.dumps({"message": "x" * 100_000}), "--wait")
        types = ("--types", "task.submitted", "--types", "task.succeeded")
        shown = await bitinglip("events", "replay", "--from", begin, *types, *here, "--json")
        assert [line["type"] for line in shown.lines].count("task.submitted") == 4
        until = await bitinglip("events", "replay", "--from", begin, "--to", begin, *here)
        assert (len(until.out.splitlines()), "task.submitted" in until.out) == (1, True)
        since = await bitinglip("events", "replay", "--from", first["finished_at"], *types, *here, "--json")
        assert 0 < len(since.lines) < len(shown.lines)
        into = await bitinglip("events", "replay", "--from", begin, *here, "--into", url, "--json")
        assert (into.status, into.json["problems"]) == (0, {})
        assert [into.json[name] for name in ("submitted", "private", "gone", "refused")] == [3, 1, 0, 0]
        found = await bitinglip("task", "list", "--metadata", f"replay_of={first['task_id']}", "--json", "--url", url)
        (copy,) = found.lines
        assert copy["params"]["message"] == "one"

    async def test_a_replay_that_waits_ends_with_ctrl_c(self, url: str) -> None:
        await bitinglip(
            "task", "submit", "echo", "-m", "echo", "-p", "steps=1", "-p", "step_ms=50", "--wait", "--url", url
        )
        process = await asyncio.create_subprocess_exec(
            *(*COMMAND, "events", "replay", "--speed", "0.00001x", "--url", url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), 30)
        process.send_signal(signal.SIGINT)
        _, err = await asyncio.wait_for(process.communicate(), 30)
        assert (process.returncode, err) == (130, b"")

    async def test_what_would_have_been_stands_beside_what_was(self, url: str) -> None:
        slow = ("task", "submit", "echo", "-m", "echo", "-p", "steps=2", "-p", "step_ms=20", "--url", url)
        await bitinglip(*slow, "--wait")
        later = (await bitinglip(*slow, "--delay", "3600")).out.strip()  # asks nothing of a card
        asked = ("events", "replay", "--what-if", "--cards", "2x8GB,24GB", "--policy", "ours", "--policy", "fifo")
        told = (await bitinglip(*asked, "--json", "--url", url)).json
        assert told["happened"]["tasks"] == told["results"]["ours"]["tasks"] + told["fits_nowhere"]
        assert (told["cards"], sorted(told["results"])) == (3, ["fifo", "ours"])
        shown = await bitinglip(*asked, "--url", url)
        assert all(word in shown.out for word in ("happened", "utilisation", "makespan"))
        for wrong in (("--cards", "many"), ("--policy", "luck"), ("--into", url), ("--from", "9999999")):
            assert (await bitinglip(*asked[:3], *wrong, "--url", url)).status == 2
        await bitinglip("task", "cancel", later, "--url", url)

    async def test_a_private_task_is_read_and_then_forgotten(self, url: str) -> None:
        echo = ("task", "submit", "echo", "-m", "echo", "--private", "--url", url)
        ran = await bitinglip(*echo, "-p", "message=hush", "--wait", "--json")
        assert (ran.json["private"], ran.json["result"]) == (True, {"message": "hush"})
        waiting = (await bitinglip(*echo, "--delay", "3600")).out.strip()
        refused = await bitinglip("task", "forget", waiting, "--url", url)
        assert (refused.status, "cancel it first" in refused.err) == (2, True)
        await bitinglip("task", "cancel", waiting, "--url", url)
        assert (await bitinglip("task", "forget", waiting, "--url", url)).out == f"{waiting} forgotten\n"
        many = await bitinglip("task", "forget", "--before", "2999-01-01T00:00:00Z", "--json", "--url", url)
        assert (many.status, many.json["forgotten"] >= 1) == (0, True)
        got = await bitinglip("task", "get", ran.json["task_id"], "--json", "--url", url)
        assert (got.json["result"], bool(got.json["forgotten_at"])) == (None, True)

    async def test_a_dead_letter_is_found_and_retried(self, url: str) -> None:
        submitted = await bitinglip(
            "task", "submit", "echo", "-m", "echo", "-p", "fail=out_of_memory", "--max-attempts", "1",
            "--metadata", "test=dead", "--wait", "--url", url,
        )  # fmt: skip
        assert submitted.status == 1
        found = ("--all-dead", "--where", "metadata.test=dead", "--where", "failure=out_of_memory", "--url", url)
        dry = await bitinglip("task", "retry", *found, "--dry-run")
        (dead,) = dry.out.split()
        retried = await bitinglip("task", "retry", *found, "--json")
        assert (retried.status, retried.json) == (0, {"matched": 1, "retried": 1, "refused": []})
        again = await bitinglip("task", "retry", dead, "--url", url)
        assert len(again.out.strip()) == ULID
        got = await bitinglip("task", "get", again.out.strip(), "--json", "--url", url)
        assert got.json["retry_of"] == dead
        assert (await bitinglip("task", "retry", "--url", url)).status == 2

    async def test_a_task_that_starts_later_is_cancelled_with_all_that_waits(self, url: str) -> None:
        late = ("task", "submit", "echo", "-m", "echo", "--metadata", "test=late", "--url", url)
        task_id = (await bitinglip(*late, "--delay", "600")).out.strip()
        await bitinglip(*late, "--at", (datetime.now(UTC) + timedelta(days=2)).isoformat())
        got = await bitinglip("task", "get", task_id, "--json", "--url", url)
        assert got.json["state"] == "scheduled"
        ended = await bitinglip(
            "task", "cancel", "--where", "state=scheduled", "--where", "metadata.test=late", "--url", url
        )
        assert (ended.status, ended.err) == (0, "matched 2, cancelled 2\n")
        assert (await bitinglip("task", "cancel", "--where", "nonsense=1", "--url", url)).status == 2

    async def test_a_queue_is_paused_emptied_and_resumed(self, url: str) -> None:
        at = ("--url", url)
        paused = await bitinglip("queue", "pause", "echo", "--lane", "batch", "--reason", "a test", *at)
        assert paused.out == "echo: paused in batch\n"
        await bitinglip("task", "submit", "echo", "-m", "echo", "-p", "message=hi", "--lane", "batch", *at)
        listed = (await bitinglip("queue", "list", *at)).out
        assert [line.split("\t")[-1] for line in listed.splitlines() if line.startswith("batch\techo\t")] == ["yes"]
        assert (await bitinglip("queue", "purge", "echo", "--lane", "batch", *at)).status == 2
        dry = await bitinglip("queue", "purge", "echo", "--lane", "batch", "--dry-run", *at)
        assert len(dry.out.split()) == 1
        purged = await bitinglip("queue", "purge", "echo", "--lane", "batch", "--yes", "--json", *at)
        assert purged.json == {"matched": 1, "cancelled": 1, "refused": []}
        assert (await bitinglip("queue", "resume", "echo", *at)).out == "echo: not paused\n"
        assert (await bitinglip("queue", "pause", "no/model", *at)).status == 2

    async def test_a_task_runs_after_another_and_is_replayed(self, url: str) -> None:
        submit = ("task", "submit", "echo", "-m", "echo", "--url", url)
        first = (await bitinglip(*submit, "-p", "message=hello")).out.strip()
        said = f'message={{"$result": "{first}", "path": "message"}}'
        second = await bitinglip(*submit, "-p", said, "--after", first, "--wait", "--json")
        assert (second.status, second.json["result"]) == (0, {"message": "hello"})
        assert second.json["depends_on"] == [first]
        replayed = await bitinglip("task", "replay", second.json["task_id"], "--url", url)
        assert (replayed.status, replayed.err) == (0, "")

    async def test_a_schedule_from_its_making_to_its_end(self, url: str) -> None:
        create = ("schedule", "create", "echo", "-m", "echo", "-p", "message=hi", "--url", url)
        made = await bitinglip(*create, "--every", "1", "--name", "often")
        schedule_id = made.out.strip()
        assert len(schedule_id) == ULID

        async def fired() -> bool:
            listed = await bitinglip("task", "list", "--metadata", f"schedule_id={schedule_id}", "--json", "--url", url)
            return any(line["state"] == "succeeded" for line in listed.lines)

        await eventually(fired, within_s=30)
        assert "often" in (await bitinglip("schedule", "list", "--url", url)).out
        assert (await bitinglip("schedule", "pause", schedule_id, "--url", url)).out == f"{schedule_id} paused\n"
        shown = await bitinglip("schedule", "show", schedule_id, "--json", "--url", url)
        assert (shown.json["state"], shown.json["last"]["outcome"]) == ("paused", "submitted")
        assert (await bitinglip("schedule", "resume", schedule_id, "--url", url)).out == f"{schedule_id} active\n"
        assert (await bitinglip("schedule", "delete", schedule_id, "--url", url)).out == f"{schedule_id} deleted\n"
        assert (await bitinglip("schedule", "show", schedule_id, "--url", url)).status == 2
        assert (await bitinglip(*create, "--cron", "never")).status == 2

    async def test_the_archive_is_copied_and_checked(self, url: str, tmp_path: Path) -> None:
        await bitinglip("task", "submit", "echo", "-m", "echo", "--wait", "--url", url)
        archived = await bitinglip("events", "archive", "--now", "--stream", "tasks", "--json", "--url", url)
        assert (archived.status, archived.json["streams"][0]["stream"]) == (0, "TASKS")
        shown = await bitinglip("events", "archive", "--url", url)
        assert [line.split("\t")[0] for line in shown.out.splitlines()[-4:]] == [
            "TASKS",
            "WORKERS",
            "MODELS",
            "SCHEDULES",
        ]
        copy = ("events", "archive", "--output", str(tmp_path / "copy"), "--url", url)
        copied = await bitinglip(*copy, "--json")
        files = json.loads((tmp_path / "copy" / "index.json").read_text())["files"]
        assert copied.json["files"] == len(files)
        for file in files:
            (tmp_path / "copy" / file["file"]).write_bytes(b"damaged")
        assert (await bitinglip(*copy)).status == 0
        assert all((tmp_path / "copy" / file["file"]).stat().st_size == file["size_bytes"] for file in files)

    async def test_a_batch_from_its_file_to_its_completion(self, url: str, tmp_path: Path) -> None:
        lines = '{"params": {"message": "a"}}\n\n{"params": {"message": "b"}}\n'
        (tmp_path / "tasks").write_text(lines)
        create = ("batch", "create", "-m", "echo", "--kind", "echo", "--name", "pair", "--url", url)
        made = await bitinglip(*create, str(tmp_path / "tasks"), "--idempotency-key", "pair")
        batch_id = made.out.strip()
        assert len(batch_id) == ULID
        assert (await bitinglip(*create, "-", "--idempotency-key", "pair", stdin=lines)).out == made.out

        async def completed() -> bool:
            return (await bitinglip("batch", "show", batch_id, "--json", "--url", url)).json["state"] == "completed"

        await eventually(completed, within_s=30)
        shown = await bitinglip("batch", "show", batch_id, "--json", "--url", url)
        assert (shown.json["name"], shown.json["counts"]) == ("pair", {"succeeded": 2})
        assert batch_id in (await bitinglip("batch", "list", "--url", url)).out
        refused = await bitinglip(*create, "-", stdin='{"params": {}}\n{')
        assert (refused.status, "-:2" in refused.err) == (2, True)
        assert (await bitinglip(*create, str(tmp_path / "none"))).status == 2

    async def test_a_batch_is_added_to_closed_watched_and_cancelled(self, url: str) -> None:
        at, defaults = ("--url", url), ("-m", "echo", "--kind", "echo")
        made = await bitinglip("batch", "create", "-", "--open", *defaults, *at, stdin='{"params": {"message": "a"}}')
        batch_id = made.out.strip()
        lines = '{"params": {"message": "b"}}\n' * 2
        added = await bitinglip("batch", "add", batch_id, "-", *defaults, "--idempotency-key", "k", *at, stdin=lines)
        assert added.out == f"{batch_id}: open, tasks 3\n"
        assert (await bitinglip("batch", "add", batch_id, "-", *at, stdin="")).status == 2
        assert (await bitinglip("batch", "close", batch_id, *at)).out.startswith(f"{batch_id}: closed, tasks 3")
        watched = await bitinglip("batch", "watch", batch_id, *at)
        assert (watched.status, watched.out) == (0, "succeeded 3\n")
        assert watched.err.splitlines()[-1] == "3/3 succeeded 3"
        events = (await bitinglip("batch", "watch", batch_id, "--json", *at)).lines
        assert (events[-1]["type"], events[-1]["data"]["counts"]) == ("batch.completed", {"succeeded": 3})
        assert (await bitinglip("batch", "add", batch_id, "-", *defaults, *at, stdin=lines)).status == 2
        delayed = '{"params": {"message": "c"}, "delay_s": 3600}\n' * 2
        other = (await bitinglip("batch", "create", "-", "--open", *defaults, *at, stdin=delayed)).out.strip()
        dry = await bitinglip("batch", "cancel", other, "--dry-run", *at)
        assert len(dry.out.split()) == 2
        cancelled = await bitinglip("batch", "cancel", other, "--reason", "enough", "--json", *at)
        assert cancelled.json == {"matched": 2, "cancelled": 2, "refused": []}
        watched = await bitinglip("batch", "watch", other, *at)
        assert (watched.status, watched.out) == (5, "cancelled 2\n")

    async def test_a_batch_that_is_larger_than_a_request_goes_in_parts(self, url: str, tmp_path: Path) -> None:
        create = ("batch", "create", "-m", "echo", "--kind", "echo", "--json", "--url", url)
        (tmp_path / "many").write_text('{"params": {"message": 1}, "delay_s": 3600}\n' * 10_001)
        made = await bitinglip(*create, str(tmp_path / "many"))
        assert (made.json["state"], made.json["tasks"]) == ("closed", 10_001)
        lines = json.dumps({"params": {"message": "x" * 2_000_000}}) + "\n"
        keyed = (*create, "--idempotency-key", "large", "-")
        made, again = await bitinglip(*keyed, stdin=lines * 2), await bitinglip(*keyed, stdin=lines * 2)
        assert (again.json["batch_id"], again.json["tasks"]) == (made.json["batch_id"], 2)
        refused = await bitinglip(*create, "-", stdin=lines * 2 + '{"size": 1}\n')
        assert (refused.status, "lines 2 to 3 and what follows" in refused.err) == (2, True)
        assert "tasks.1.size" in refused.err

    async def test_parameters_from_json_files_and_standard_input(self, url: str, tmp_path: Path) -> None:
        (tmp_path / "p.json").write_text('{"message": [1, 2]}')
        for given, stdin in ((f"@{tmp_path / 'p.json'}", ""), ("-", '{"message": [1, 2]}')):
            ended = await bitinglip(
                "task", "submit", "echo", "-m", "echo", "--params-json", given, "--wait", "--url", url, stdin=stdin
            )
            assert ended.out == '{"message":[1,2]}\n'

    async def test_the_kinds_tell_what_they_take(self, url: str) -> None:
        kinds = (await bitinglip("task", "kinds", "--url", url)).out.splitlines()
        assert {row.split("\t")[0] for row in kinds} >= {"echo", "text-to-image", "speech-to-text"}
        rows = (await bitinglip("task", "kinds", "text-to-image", "--url", url)).out.splitlines()
        steps = next(row.split("\t") for row in rows if row.startswith("steps\t"))
        assert steps == ["steps", "integer, ≥ 1, ≤ 500", "25", "Denoising steps."]
        unknown = await bitinglip("task", "kinds", "telepathy", "--url", url)
        assert unknown.status == 2
        assert "the kinds are" in unknown.err

    async def test_a_failed_task_ends_with_1_and_says_why(self, url: str) -> None:
        ended = await bitinglip("task", "submit", "echo", "-m", "echo", "-p", "fail=bad_input", "--watch", "--url", url)
        assert ended.status == 1
        assert "failed" in ended.err

    async def test_a_cancelled_task_ends_with_5(self, url: str) -> None:
        arguments = ("task", "submit", "echo", "-m", "echo", "-p", "steps=10000", "-p", "step_ms=10", "--url", url)
        task_id = (await bitinglip(*arguments)).out.strip()
        watching = asyncio.create_task(bitinglip("task", "watch", task_id, "--url", url))
        cancelled = await bitinglip("task", "cancel", task_id, "--reason", "enough", "--url", url)
        assert cancelled.status == 0
        assert (await watching).status == 5

    async def test_a_key_makes_one_task(self, url: str) -> None:
        arguments = ("task", "submit", "echo", "-m", "echo", "--idempotency-key", "k1", "--url", url)
        assert (await bitinglip(*arguments)).out == (await bitinglip(*arguments)).out

    @pytest.mark.parametrize("columns", [80, 120])
    async def test_tables_fit_the_terminal(self, url: str, columns: int) -> None:
        name = "a-name-" * 12
        task = '{"kind": "echo", "model": "echo", "params": {"message": "hi"}}'
        batch_id = (await bitinglip("batch", "create", "-", "--name", name, "--url", url, stdin=task)).out.strip()
        every = ("--every", "3600", "--name", name, "--url", url)
        schedule_id = (await bitinglip("schedule", "create", "echo", "-m", "echo", *every)).out.strip()
        try:
            for command in LISTS:
                shown = await on_terminal(columns, *command, "--url", url)
                assert "Traceback" not in shown
                assert [line for line in shown.splitlines() if len(line.rstrip()) > columns] == [], command
            for command, whole in (("batch", batch_id), ("schedule", schedule_id)):
                shown = await on_terminal(columns, command, "list", "--url", url)
                assert whole in shown
                folded = "".join(line[28:].split("  ")[0].strip() for line in shown.splitlines())
                assert name in folded
        finally:
            await bitinglip("schedule", "delete", schedule_id, "--url", url)

    async def test_an_empty_list_says_so(self, url: str) -> None:
        assert await on_terminal(80, "task", "list", "--metadata", "no=such", "--url", url) == "No such tasks.\n"
        assert len((await bitinglip("task", "list", "--metadata", "no=such", "--url", url)).out.splitlines()) == 1

    async def test_a_pipe_gets_whole_values_without_colours(self, url: str) -> None:
        for command in LISTS:
            listed = await bitinglip(*command, "--url", url, COLUMNS="20", TERM="xterm-256color")
            assert (listed.status, listed.err, "\x1b" in listed.out) == (0, "", False)
            parsed = (await bitinglip(*command, "--json", "--url", url)).lines
            assert all(isinstance(line, dict) for line in parsed)
        header, *workers = (await bitinglip("worker", "list", "--url", url)).out.splitlines()
        assert [len(line.split("\t")) for line in workers] == [len(header.split("\t"))] * len(workers)
        assert datetime.fromisoformat(workers[0].split("\t")[-1]).tzinfo is not None

    async def test_lists_are_filtered_and_paged(self, url: str) -> None:
        for number in range(3):
            await bitinglip("task", "submit", "echo", "-m", "echo", "--metadata", f"n={number}", "--wait", "--url", url)
        one = await bitinglip("task", "list", "--metadata", "n=1", "--json", "--url", url)
        assert [task["metadata"] for task in one.lines] == [{"n": "1"}]
        table = (await bitinglip("task", "list", "--limit", "2", "--state", "succeeded", "--url", url)).out.splitlines()
        assert table[0].split("\t")[:2] == ["task_id", "state"]
        assert len(table) == 3

    async def test_refusals_keep_their_field_and_remedy(self, url: str) -> None:
        unknown = await bitinglip("task", "submit", "echo", "-m", "no/such", "--url", url)
        assert unknown.status == 2
        assert "no/such" in unknown.err
        assert "remedy:" in unknown.err
        wrong = await bitinglip("task", "submit", "echo", "-m", "echo", "-p", "steps=-1", "--url", url)
        assert "params.steps" in wrong.err
        assert (await bitinglip("task", "get", "0" * ULID, "--url", url)).status == 2
        assert (await bitinglip("task", "get", "../../x", "--url", url)).status == 2

    async def test_the_log_is_exported_and_tailed(self, url: str, tmp_path: Path) -> None:
        await bitinglip("task", "submit", "echo", "-m", "echo", "--wait", "--url", url)
        lines = (await bitinglip("events", "export", "--type", "task.submitted", "--url", url)).lines
        assert {line["type"] for line in lines} == {"task.submitted"}
        await bitinglip("events", "export", "--stream", "workers", "-o", str(tmp_path / "w.jsonl"), "--url", url)
        exported = [json.loads(line)["type"] for line in (tmp_path / "w.jsonl").read_text().splitlines()]
        assert exported[0] == "node.started"
        assert "worker.started" in exported

    async def test_a_tail_ends_with_ctrl_c_without_a_traceback(self, url: str) -> None:
        await bitinglip("task", "submit", "echo", "-m", "echo", "--wait", "--url", url)
        arguments = ("events", "tail", "--from-start", "--type", "task.submitted", "--url", url)
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 30)
        process.send_signal(signal.SIGINT)
        _, err = await process.communicate()
        assert b"task.submitted" in line
        assert (process.returncode, err) == (130, b"")

    async def test_a_replay_says_whether_the_same_came_out(self, url: str) -> None:
        done = await bitinglip(
            "task", "submit", "echo", "-m", "echo", "-p", "message=hi", "--wait", "--json", "--url", url
        )
        task_id = done.json["task_id"]
        again = await bitinglip("task", "replay", task_id, "--url", url, "--json")
        assert (again.status, again.json["same"], again.json["changed"]) == (0, True, {})
        assert again.json["replay"] != task_id
        told = await bitinglip("task", "replay", task_id, "--url", url)
        assert "byte for byte" in told.out
        failed = await bitinglip("task", "submit", "echo", "-m", "echo", "-p", "fail=bad_input", "--url", url)
        await bitinglip("task", "watch", failed.out.strip(), "--url", url)
        refused = await bitinglip("task", "replay", failed.out.strip(), "--url", url)
        assert (refused.status, "has succeeded can be replayed" in refused.err) == (2, True)

    async def test_files_go_up_and_come_down(self, url: str, tmp_path: Path) -> None:
        there, back = tmp_path / "Bild ü.png", tmp_path / "new" / "back.png"
        there.write_bytes(bytes(range(256)) * 100)
        put = await bitinglip("artifact", "put", str(there), "--url", url, "--json")
        digest = put.json["sha256"]
        assert (put.json["media_type"], put.json["size_bytes"]) == ("image/png", 25_600)
        name = (await bitinglip("artifact", "put", str(there), "--url", url)).out.strip()
        assert name == f"artifact:{digest}"
        assert (await bitinglip("artifact", "get", name, "--out", str(back), "--url", url)).status == 0
        assert back.read_bytes() == there.read_bytes()
        none = await bitinglip("artifact", "put", str(tmp_path / "none"), "--url", url)
        assert (none.status, "No such file" in none.err) == (2, True)
        unknown = await bitinglip("artifact", "get", "0" * 64, "--out", str(tmp_path / "no"), "--url", url)
        assert (unknown.status, "There is no artifact" in unknown.err) == (2, True)
        assert sorted(path.name for path in tmp_path.iterdir()) == [there.name, "new"]

    async def test_sql(self, url: str) -> None:
        sql = "SELECT ? AS a, 'x' AS b, NULL AS c"
        assert (await bitinglip("query", sql, "-p", "7", "--json", "--url", url)).json == {"a": 7, "b": "x", "c": None}
        rows = list(
            csv.reader(io.StringIO((await bitinglip("query", sql, "-p", "7", "--format", "csv", "--url", url)).out))
        )
        assert rows == [["a", "b", "c"], ["7", "x", ""]]
        assert (await bitinglip("query", "-", "--url", url, stdin="SELECT 1 AS one")).out == "one\n1\n"
        refused = await bitinglip("query", "DROP TABLE tasks", "--url", url)
        assert refused.status == 2
        schema = await bitinglip("query", "--schema", "--url", url)
        assert any(line.startswith("tasks\tstate\t") for line in schema.out.splitlines())

    async def test_projections_are_listed_made_anew_and_copied(self, url: str) -> None:
        await bitinglip("task", "submit", "echo", "-p", "message=hi", "--url", url)
        listed = (await bitinglip("projections", "list", "--json", "--url", url)).lines
        assert {"tasks", "events"} <= {each["projection"] for each in listed}
        table = await bitinglip("projections", "list", "--url", url)
        assert "serving" in table.out
        assert "TASKS" in table.out
        one = await bitinglip("projections", "rebuild", "batches", "--json", "--url", url)
        assert {each["projection"] for each in one.lines} == {"batches"}
        unknown = await bitinglip("projections", "rebuild", "nothing", "--url", url)
        assert (unknown.status, "projections" in unknown.err) == (2, True)
        every = await bitinglip("projections", "rebuild", "--url", url)
        assert every.out.startswith("made anew in ")
        made = await bitinglip("projections", "snapshot", "--json", "--url", url)
        assert made.json["file"].startswith("snapshot-")

    async def test_nodes_and_workers_are_shown_and_commanded(self, url: str, eventually: Callable[..., Any]) -> None:
        node = (await eventually(lambda: nodes(url)))[0]
        worker = (await bitinglip("worker", "list", "--json", "--url", url)).lines[0]["worker_id"]
        shown = await bitinglip("cluster", "status", "--url", url)
        assert shown.status == 0
        assert {node["node_id"], worker} <= {line.split("\t")[0] for line in shown.out.splitlines()}
        assert worker in (await bitinglip("node", "show", node["node_id"], "--url", url)).out
        drained = await bitinglip("worker", "drain", worker, "--url", url)
        assert drained.out.split()[1] in {"draining", "drained"}
        assert (await bitinglip("worker", "undrain", worker, "--url", url)).out.split() == [worker, "ready"]
        labelled = await bitinglip("node", "label", node["node_id"], "site=cellar", "eu", "--json", "--url", url)
        assert labelled.json["labels"] == {"site": "cellar", "eu": ""}
        labelled = await bitinglip("node", "label", node["node_id"], "site-", "eu-", "--json", "--url", url)
        assert labelled.json["labels"] == {}
        restarted = await bitinglip("node", "restart-workers", node["node_id"], "--json", "--url", url)
        assert (restarted.json["restarting"], restarted.json["workers"][0]["state"]) == ([], "ready")
        logs = await bitinglip("worker", "logs", worker, "-n", "2", "--url", url)
        assert "stopping" in (await bitinglip("worker", "logs", worker, "--url", url)).out
        assert 1 <= len(logs.out.splitlines()) <= 2
        none = await bitinglip("node", "drain", "no-such-node", "--url", url)
        assert (none.status, "There is no node no-such-node" in none.err) == (2, True)

    async def test_the_doctor_is_content(self, url: str) -> None:
        ended = await bitinglip("doctor", "--url", url)
        assert ended.status == 0
        assert f"{url} is ready" in ended.out


class TestUp:
    """`bitinglip up` itself."""

    async def test_it_starts_again_what_dies_and_leaves_nothing_behind(
        self, tmp_path: Path, eventually: Callable[..., Any]
    ) -> None:
        up = Up(tmp_path)
        await up.start("--model", "echo")
        url = up.said["url"]
        before = {child.pid: " ".join(child.cmdline()) for child in up.children}
        worker = next(pid for pid, line in before.items() if "workers.main" in line)
        gateway = next(pid for pid, line in before.items() if "gateway.main" in line)
        for pid in (worker, gateway):
            os.kill(pid, signal.SIGKILL)

        async def answers() -> bool:
            ended = await bitinglip("task", "submit", "echo", "-m", "echo", "-p", "message=1", "--wait", "--url", url)
            return ended.status == 0

        await eventually(answers, within_s=60)
        children = up.children
        status, err = await up.stop()
        assert status == 0
        assert err.count("was killed by signal 9; starting it again") == 2, err
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    async def test_its_data_survives(self, tmp_path: Path) -> None:
        up = Up(tmp_path)
        await up.start("--model", "echo")
        first = await bitinglip("task", "submit", "echo", "-m", "echo", "--wait", "--url", up.said["url"])
        assert first.status == 0
        assert (await up.stop(signal.SIGTERM))[0] == 0
        await up.start("--model", "echo")
        listed = await bitinglip("task", "list", "--json", "--url", up.said["url"])
        assert [task["state"] for task in listed.lines] == ["succeeded"]
        await up.stop()

    async def test_a_model_that_is_not_there_is_said_and_everything_ends(self, tmp_path: Path) -> None:
        ended = await bitinglip("up", "--port", "0", "--data-dir", str(tmp_path), "--model", f"no/such={tmp_path}")
        assert ended.status != 0
        assert "no/such" in ended.err

    async def test_a_model_that_may_still_come_is_said_and_nothing_ends(self, tmp_path: Path) -> None:
        up = Up(tmp_path)
        await up.start("--model", "echo", "--model", "no/such")
        status, err = await up.stop(signal.SIGTERM)
        assert status == 0
        assert "no/such is not served: it is not here yet" in err

    async def test_killed_it_takes_all_with_it(self, tmp_path: Path, eventually: Callable[..., Any]) -> None:
        up = Up(tmp_path)
        await up.start("--model", "echo")
        children = up.children
        up.kill()
        await eventually(
            lambda: not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE],
            within_s=30,
        )
