"""Reports over HTTP: their numbers, their forms, no numbers at all, and the command line's tables and charts."""

from __future__ import annotations

import asyncio
import csv
import io
import os
import pty
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest

from bitinglip.gateway.reports import FORMATS
from bitinglip.projections.reports import BY
from tests.integration.gateway.support import ECHO, Player, register
from tests.integration.gateway.test_saved_queries import cli
from tests.support.server import eventually

ODD = 'echo"><script>alert(1)</script>'


@pytest.fixture
async def played(client: httpx.AsyncClient, player: Player) -> None:
    """Two tasks that succeeded, and one that failed for good."""
    for number in range(3):
        body = ECHO | {"retry": {"max_attempts": 1}}
        task_id = (await client.post("/v1/tasks", json=body)).json()["task_id"]
        await player.assign(task_id)
        await (player.succeed(task_id, text="x") if number else player.fail(task_id))

    async def is_told() -> bool:
        return row(await get(client, "usage"), "echo")["attempts"] == 3

    await eventually(is_told)


async def get(client: httpx.AsyncClient, name: str, **params: str) -> dict[str, Any]:
    answer = await client.get(f"/v1/reports/{name}", params=params)
    assert answer.status_code == 200, answer.text
    return answer.json()


def row(report: dict[str, Any], name: str, **also: Any) -> dict[str, Any]:
    rows = [dict(zip(report["columns"], values, strict=True)) for values in report["rows"]]
    return next((each for each in rows if each[report["by"]] == name and also.items() <= each.items()), {"attempts": 0})


@pytest.mark.usefixtures("played")
async def test_the_numbers_are_right(client: httpx.AsyncClient) -> None:
    used = await get(client, "usage", since="24h")
    told = row(used, "echo")
    assert (told["succeeded"], told["dead_lettered"] + told["failed"], told["attempts"]) == (2, 1, 3)
    assert told["output_tokens"] == 6
    assert used["charts"][0]["series"][0][0] == "echo"
    assert sum(used["charts"][0]["series"][0][1]) == 2
    assert len(used["charts"][0]["labels"]) == len(used["charts"][0]["series"][0][1]) in {24, 25}
    assert row(await get(client, "usage", by="key"), "(no key)")["succeeded"] == 2
    assert (await get(client, "usage", key="nobody"))["rows"] == []
    assert (await get(client, "usage", model="other"))["rows"] == []
    latency = await get(client, "latency", by="lane")
    assert row(latency, "normal", phase="run")["attempts"] == 2
    assert row(latency, "normal", phase="run")["p50_ms"] == pytest.approx(1.5, rel=0.1)
    failures = await get(client, "failures")
    assert [values[1] for values in failures["rows"]] == [1]
    assert row(await get(client, "failures", by="worker"), "w-0")["last_message"]
    model = row(await get(client, "models"), "echo")
    assert (model["tasks"], model["succeeded"], model["failures"]) == (3, 2, 1)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("name", BY)
@pytest.mark.parametrize("form", FORMATS)
async def test_every_report_has_every_form(client: httpx.AsyncClient, name: str, form: str) -> None:
    answer = await client.get(f"/v1/reports/{name}", params={"format": form})
    assert answer.headers["content-type"].startswith(FORMATS[form])
    by_accept = await client.get(f"/v1/reports/{name}", headers={"Accept": FORMATS[form]})
    assert by_accept.headers["content-type"] == answer.headers["content-type"]
    if form == "csv":
        lines = list(csv.reader(io.StringIO(answer.text)))
        assert lines[0] == (await get(client, name))["columns"]
    if form in {"svg", "html"}:
        check_alone(answer.text)
    if form == "svg":
        assert ElementTree.fromstring(answer.text).tag.endswith("svg")


def check_alone(document: str) -> None:
    """Check that a document fetches nothing and runs nothing."""
    assert "<script" not in document
    assert set(re.findall(r"https?://[^\"' )<]+", document)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|<link|<img|<iframe| on\w+=", document)


@pytest.mark.parametrize("name", BY)
async def test_nothing_looks_fine(client: httpx.AsyncClient, name: str) -> None:
    assert (await get(client, name))["rows"] == []
    page = (await client.get(f"/v1/reports/{name}?format=html")).text
    assert "Nothing in this time." in page
    check_alone(page)
    ElementTree.fromstring((await client.get(f"/v1/reports/{name}?format=svg")).text)


async def test_names_are_text(client: httpx.AsyncClient, player: Player) -> None:
    await register(player.log, "echo", ODD)
    answer = await client.post("/v1/tasks", json=ECHO | {"model": ODD})
    assert answer.status_code == 202, answer.text
    await player.assign(answer.json()["task_id"])
    await player.succeed(answer.json()["task_id"], text="x")

    async def is_told() -> bool:
        return ODD in (await client.get("/v1/reports/usage?format=csv")).text.replace('""', '"')

    await eventually(is_told)
    check_alone((await client.get("/v1/reports/usage?format=html")).text)
    check_alone((await client.get("/v1/reports/models?format=svg")).text)


async def test_what_is_wrong_is_named(client: httpx.AsyncClient) -> None:
    async def problem(path: str) -> tuple[int, str, str | None]:
        answer = await client.get(f"/v1/reports/{path}")
        return answer.status_code, answer.json()["code"], answer.json().get("field")

    assert await problem("nothing") == (404, "report_not_found", None)
    wrong = {
        "usage?by=lane": "by",
        "usage?since=yesterday": "since",
        "usage?since=1h&until=2h": "since",
        "usage?since=999999w": "since",
        "latency?key=a": "key",
        "usage?format=pdf": "format",
        "usage?other=1": "other",
    }
    for path, field in wrong.items():
        assert await problem(path) == (422, "invalid_input", field)


@pytest.mark.usefixtures("played")
async def test_the_command_line_in_a_pipe_and_in_files(url: str, tmp_path: Path) -> None:
    code, out, _ = await cli(url, "report", "usage", "--since", "24h", "--by", "kind")
    assert (code, out.splitlines()[1].split("\t")[:2]) == (0, ["echo", "2"])
    for name in BY:
        target = tmp_path / f"{name}.html"
        assert (await cli(url, "report", name, "-o", str(target)))[0] == 0
        check_alone(target.read_text())
    assert (await cli(url, "report", "models", "--format", "csv"))[1].startswith("model,tasks,")
    code, _, err = await cli(url, "report", "latency", "--by", "key")
    assert (code, "by" in err) == (2, True)


@pytest.mark.usefixtures("played")
async def test_the_command_line_draws_on_a_terminal(url: str) -> None:
    drawn = await on_terminal(url, {"COLUMNS": "100", "NO_COLOR": "1"})
    assert "Usage by model" in drawn
    assert "Tasks that succeeded, by model (tasks)" in drawn
    assert "█ echo" in drawn
    assert "\x1b[34m" not in drawn
    assert max(len(line) for line in drawn.splitlines()) <= 100
    assert "\x1b[34m█" in await on_terminal(url, {"COLUMNS": "100", "TERM": "xterm-256color"})


async def on_terminal(url: str, environ: dict[str, str]) -> str:
    main, side = pty.openpty()
    command = [sys.executable, "-m", "bitinglip.cli.main", "report", "usage", "--since", "24h", "--url", url]
    environ = os.environ | {"TERM": "dumb"} | environ
    process = await asyncio.create_subprocess_exec(*command, stdout=side, env=environ)
    os.close(side)
    pieces: list[bytes] = []

    def read() -> None:
        try:
            while piece := os.read(main, 4096):
                pieces.append(piece)
        except OSError:
            return  # a terminal whose other side is closed

    await asyncio.to_thread(read)
    os.close(main)
    assert await process.wait() == 0
    return b"".join(pieces).decode()
