"""`POST /v1/query` over a real socket: its forms, its bounds, its parameters, callers that leave."""

from __future__ import annotations

import asyncio
import csv
import io
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import pytest
from pydantic import SecretStr

from bitinglip.projections import sandbox
from bitinglip.projections.arrow import pa
from bitinglip.settings import Gateway, Projections, Settings
from tests.integration.gateway.support import ECHO, running
from tests.support.server import eventually

ARROW = "application/vnd.apache.arrow.stream"
ENDLESS = "select count(*) from range(100000000000)"
LATE = f"""select '{"x" * 100}' || i as text, if(i < 389999, i::varchar, 'late')::int as x from range(390000) r(i)"""
SAMPLE = (
    "select i, i::varchar || 'é,\"' as s, null as n, [i] as l, {'a': i} as o, i = 1 as b, "
    "timestamp '2026-01-01' as t from range(3) r(i)"
)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings with bounds that a test can reach."""
    bounds = Projections(query_timeout_s=20, query_max_rows=1000, query_export_max_rows=400_000)
    return settings.model_copy(update={"projections": bounds})


async def ask(client: httpx.AsyncClient, sql: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
    return await client.post("/v1/query", json={"sql": sql} | more, headers=headers)


@pytest.mark.parametrize("named", ["accept", "body", "address"])
async def test_arrow_and_csv_say_the_same_as_json(client: httpx.AsyncClient, named: str) -> None:
    async def form(name: str, media_type: str) -> httpx.Response:
        headers = {"Accept": media_type} if named == "accept" else {}
        body = {"sql": SAMPLE} | ({"format": name} if named == "body" else {})
        query = f"?format={name}" if named == "address" else ""
        answer = await client.post(f"/v1/query{query}", json=body, headers=headers)
        assert (answer.status_code, answer.headers["x-truncated"]) == (200, "false")
        assert answer.headers["content-type"].startswith(media_type)
        return answer

    told = (await ask(client, SAMPLE)).json()
    table = pa.ipc.open_stream((await form("arrow", ARROW)).content).read_all()
    assert table.column_names == told["columns"]
    assert table.column("i").to_pylist() == [row[0] for row in told["rows"]]
    lines = list(csv.reader(io.StringIO((await form("csv", "text/csv")).text)))
    assert lines[0] == told["columns"]
    assert lines[2] == ["1", '1é,"', "", "[1]", '{"a":1}', "true", "2026-01-01T00:00:00Z"]


async def test_a_large_answer_comes_in_batches(client: httpx.AsyncClient) -> None:
    sql = "select i, i * 2 as j from range(300000) r(i)"
    arrow = await ask(client, sql, {"Accept": ARROW})
    assert "x-truncated" not in arrow.headers
    assert arrow.headers["transfer-encoding"] == "chunked"
    table = pa.ipc.open_stream(arrow.content).read_all()
    assert (table.num_rows, table.column("j")[299_999].as_py()) == (300_000, 599_998)
    lines = (await ask(client, sql, format="csv")).text.splitlines()
    assert (len(lines), lines[-1]) == (300_001, "299999,599998")


async def test_what_is_cut_is_told(client: httpx.AsyncClient) -> None:
    short = await ask(client, "from range(100)", format="csv", max_rows=3)
    assert (short.text.splitlines(), short.headers["x-truncated"]) == (["range", "0", "1", "2"], "true")
    table = pa.ipc.open_stream((await ask(client, "from range(100)", format="arrow", max_rows=3)).content).read_all()
    assert table.num_rows == 3
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(client, "from range(500000)", format="csv")
    with pytest.raises(httpx.RemoteProtocolError):
        await ask(client, LATE, format="csv")
    json = (await ask(client, "from range(2000)")).json()
    assert (len(json["rows"]), json["truncated"]) == (1000, True)


@pytest.mark.parametrize("form", ["json", "arrow", "csv"])
async def test_an_error_before_the_first_byte_is_a_problem(client: httpx.AsyncClient, form: str) -> None:
    for sql, code in (("selekt", "query_refused"), ("select error('boom')", "query_refused")):
        answer = await ask(client, sql, format=form)
        assert (answer.status_code, answer.json()["code"]) == (422, code)
    answer = await ask(client, ENDLESS, format=form, timeout_s=0.2)
    assert (answer.status_code, answer.json()["code"]) == (422, "query_timeout")


async def test_parameters_have_types(client: httpx.AsyncClient) -> None:
    params: dict[str, Any] = {
        "day": {"type": "date", "value": "2026-01-31"},
        "at": {"type": "time", "value": "2026-01-31T12:00:00+01:00"},
        "states": ["queued", "running"],
        "n": {"type": "integer", "value": 3},
        "none": None,
    }
    sql = (
        "select $day + 1, $at, list_contains($states, 'running'), $n + 1, $none is null, "
        "(select count(*) from tasks where submitted_at > $at and list_contains($states, state))"
    )
    answer = (await ask(client, sql, params=params)).json()
    assert answer["rows"] == [["2026-02-01", "2026-01-31T11:00:00Z", True, 4, True, 0]]
    wrong = await ask(client, "select $day", params={"day": {"type": "date", "value": "yesterday"}})
    assert (wrong.status_code, wrong.json()["field"]) == (422, "params.day")
    bodies: list[dict[str, Any]] = [
        {"params": {"a": {"type": "sql", "value": 1}}},
        {"params": [[[1]]]},
        {"format": "xml"},
    ]
    for body in bodies:
        assert (await ask(client, "select 1", **body)).json()["code"] == "invalid_input"
    assert (await client.post("/v1/query?format=xml", json={"sql": "select 1"})).json()["field"] == "format"


async def test_a_plan_is_told(client: httpx.AsyncClient) -> None:
    plan = (await ask(client, "select state from tasks", explain=True)).json()
    assert "tasks" in plan["rows"][0][1]
    measured = (await ask(client, "select state from tasks", explain="analyze")).json()
    assert "Total Time" in measured["rows"][0][1]


async def leave_after(url: str, body: dict[str, Any], read: int) -> None:
    """Ask by a socket, read so many bytes of the answer, and go away."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port)
    content = orjson.dumps(body)
    head = f"POST /v1/query HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    if read:
        await reader.readexactly(read)
    writer.close()
    await writer.wait_closed()


async def is_free(client: httpx.AsyncClient) -> bool:
    answer = await ask(client, "select 1", timeout_s=0.2)
    assert answer.status_code == 200, answer.text
    return True


@pytest.mark.parametrize("form", ["json", "csv"])
async def test_a_caller_that_leaves_ends_its_query(client: httpx.AsyncClient, url: str, form: str) -> None:
    body = {"sql": ENDLESS, "format": form}
    await asyncio.gather(*(leave_after(url, body, 0) for _ in range(sandbox.THREADS)))
    await eventually(lambda: is_free(client), within_s=2)


async def test_a_caller_that_leaves_a_stream_ends_its_query(client: httpx.AsyncClient, url: str) -> None:
    body = {"sql": "select i, repeat from range(390000) r(i), (select 'xxxxxxxxxxxxxxxxxxxxx' repeat)", "format": "csv"}
    await asyncio.gather(*(leave_after(url, body, 1000) for _ in range(sandbox.THREADS)))
    await eventually(lambda: is_free(client), within_s=2)


async def test_a_reader_that_stops_reading_is_not_waited_for(settings: Settings) -> None:
    bounds = settings.projections.model_copy(update={"query_timeout_s": 0.5})
    async with running(settings.model_copy(update={"projections": bounds})) as url:
        where = urlsplit(url)
        _, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
        content = orjson.dumps({"sql": "select i, i::varchar || 'xxxxxxxxxxxxxxxx' from range(390000) r(i)"})
        head = f"POST /v1/query?format=csv HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        await writer.drain()
        async with httpx.AsyncClient(base_url=url, trust_env=False) as client:
            await eventually(lambda: is_free(client))
        writer.transport.abort()


async def test_only_some_wait(client: httpx.AsyncClient) -> None:
    many = sandbox.THREADS + sandbox.WAITING_MOST + 5
    answers = await asyncio.gather(*(ask(client, ENDLESS, timeout_s=2) for _ in range(many)))
    codes = [answer.json()["code"] for answer in answers]
    assert codes.count("query_timeout") == sandbox.THREADS
    assert codes.count("queries_busy") == many - sandbox.THREADS
    busy = next(answer for answer in answers if answer.status_code == 503)
    assert busy.headers["retry-after"] == "2"
    assert (await client.post("/v1/tasks", json=ECHO)).status_code == 202
    await eventually(lambda: is_free(client))


async def test_a_gateway_with_a_key_lets_nobody_else_ask(settings: Settings) -> None:
    guarded = settings.model_copy(update={"gateway": Gateway(port=0, api_key=SecretStr("k" * 32))})
    async with running(guarded) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        assert (await ask(client, "select 1")).status_code == 401
        assert (await ask(client, "select 1", {"Authorization": "Bearer " + "k" * 32})).json()["rows"] == [[1]]
