"""Saved queries: kept in the log, run with typed parameters, the same on every gateway; and by the command line."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.query import QueryDeleted, QuerySaved
from bitinglip.events.streams import LEDGER
from bitinglip.projections.arrow import pa
from bitinglip.settings import Settings
from tests.integration.gateway.support import running
from tests.support.server import eventually

SLOW: dict[str, Any] = {
    "sql": "select $least + 1 as n, $since as since, list_contains($states, 'queued') as queued",
    "description": "A test.",
    "parameters": {
        "least": {"type": "integer", "default": 41},
        "since": {"type": "time", "default": "2026-01-01T00:00:00Z"},
        "states": {"type": "texts", "required": True},
    },
}


async def test_a_query_is_saved_shown_run_and_deleted(client: httpx.AsyncClient, log: EventLog) -> None:
    saved = await client.put("/v1/queries/slow", json=SLOW)
    assert saved.status_code == 200, saved.text
    assert saved.json()["parameters"]["least"] == {
        "type": "integer", "default": 41, "required": False, "description": None
    }  # fmt: skip
    assert (await client.get("/v1/queries/slow")).json() == saved.json()
    assert (await client.get("/v1/queries")).json() == {"queries": [saved.json()]}
    ran = await client.post("/v1/queries/slow/run", json={"params": {"states": ["queued"], "least": "1"}})
    assert ran.json()["rows"] == [[2, "2026-01-01T00:00:00Z", True]]
    lines = (await client.post("/v1/queries/slow/run?format=csv", json={"params": {"states": "a,b"}})).text
    assert lines.splitlines() == ["n,since,queued", "42,2026-01-01T00:00:00Z,false"]
    changed = await client.put("/v1/queries/slow", json={"sql": "select 7"})
    assert changed.json()["description"] is None
    assert (await client.post("/v1/queries/slow/run")).json()["rows"] == [[7]]
    assert (await client.delete("/v1/queries/slow")).json()["sql"] == "select 7"
    gone = await client.get("/v1/queries/slow")
    assert (gone.status_code, gone.json()["code"]) == (404, "query_not_found")
    told = [event.event for event in await log.read_latest(LEDGER, "bl.query.slow.*")]
    assert [type(event) for event in told] == [QuerySaved, QueryDeleted]
    rows = await client.post(
        "/v1/query", json={"sql": "select type from events where type like 'query.%' order by all"}
    )
    assert rows.json()["rows"] == [["query.deleted"], ["query.saved"], ["query.saved"]]


async def test_what_is_wrong_is_named(client: httpx.AsyncClient) -> None:
    async def problem(method: str, path: str, body: Any) -> tuple[int, str, str | None]:
        answer = await client.request(method, path, json=body)
        return answer.status_code, answer.json()["code"], answer.json().get("field")

    assert await problem("PUT", "/v1/queries/Bad Name", SLOW) == (422, "invalid_input", "name")
    assert (await problem("PUT", "/v1/queries/x", {"sql": ""}))[:2] == (422, "invalid_input")
    wrong = {"sql": "select $a", "parameters": {"a": {"type": "integer", "default": "many"}}}
    assert await problem("PUT", "/v1/queries/x", wrong) == (422, "invalid_input", "params.a")
    await client.put("/v1/queries/slow", json=SLOW)
    run = "/v1/queries/slow/run"
    assert await problem("POST", run, {"params": {}}) == (422, "invalid_input", "params.states")
    assert await problem("POST", run, {"params": {"states": [], "other": 1}}) == (422, "invalid_input", "params.other")
    odd = {"params": {"states": [], "since": "soon"}}
    assert await problem("POST", run, odd) == (422, "invalid_input", "params.since")
    assert await problem("POST", "/v1/queries/none/run", {}) == (404, "query_not_found", None)
    await client.put("/v1/queries/escape", json={"sql": "from read_text('/etc/passwd')"})
    assert (await problem("POST", "/v1/queries/escape/run", {}))[:2] == (422, "query_refused")


async def test_another_gateway_has_it(client: httpx.AsyncClient, settings: Settings, tmp_path: Path) -> None:
    saves = [client.put("/v1/queries/shared", json={"sql": f"select {number}"}) for number in range(3)]
    assert [answer.status_code for answer in await asyncio.gather(*saves)] == [200, 200, 200]
    other = settings.model_copy(update={"data_dir": tmp_path / "other"})
    async with running(other) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as second:
        here = (await client.get("/v1/queries/shared")).json()

        async def has_it() -> bool:
            return (await second.get("/v1/queries/shared")).json() == here

        await eventually(has_it)


async def cli(url: str, *args: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bitinglip.cli.main", *args, "--url", url,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


@pytest.mark.parametrize("words", [["query"], ["query", "run"]])
async def test_the_command_line_asks(url: str, words: list[str]) -> None:
    assert (await cli(url, *words, "select ?::int + 1 as n", "-p", "4"))[1] == "n\n5\n"
    assert (await cli(url, *words, "select $a || 'x' as n", "-p", "a=y"))[1] == "n\nyx\n"
    code, out, _ = await cli(url, *words, "select state from tasks", "--explain")
    assert (code, "tasks" in out) == (0, True)
    assert "Total Time" in (await cli(url, *words, "select 1", "--analyze"))[1]
    assert (await cli(url, *words, "select ? as n", "-p", "list"))[1] == "n\nlist\n"
    code, _, err = await cli(url, *words, "select save")
    assert (code, "refused" in err) == (2, True)


async def test_the_command_line_saves_and_exports(url: str, tmp_path: Path) -> None:
    sql = "select i + $n as i from range(3) r(i)"
    assert (await cli(url, "query", "save", "mine", sql, "-p", "n:integer=1", "--description", "Numbers"))[0] == 0
    assert (await cli(url, "query", "list"))[1].splitlines()[1].split("\t")[:3] == ["mine", "n:integer=1", "Numbers"]
    assert sql in (await cli(url, "query", "show", "mine"))[1]
    assert (await cli(url, "query", "--saved", "mine", "-p", "n=10"))[1] == "i\n10\n11\n12\n"
    assert "RANGE" in (await cli(url, "query", "--saved", "mine", "--explain"))[1]
    target = tmp_path / "rows.arrow"
    assert (await cli(url, "query", "--saved", "mine", "--format", "arrow", "-o", str(target)))[0] == 0
    assert pa.ipc.open_stream(target.read_bytes()).read_all().column("i").to_pylist() == [1, 2, 3]
    code, _, err = await cli(url, "query", "selekt", "--format", "csv", "-o", str(tmp_path / "none.csv"))
    assert (code, "refused" in err, sorted(path.name for path in tmp_path.glob("*.csv*"))) == (2, True, [])
    assert (await cli(url, "query", "delete", "mine"))[1] == "mine deleted\n"
    assert (await cli(url, "query", "--saved", "mine"))[0] == 2
