"""How long one task takes from submission to its terminal event in the client's hands, one at a time."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from urllib.parse import urlsplit

import orjson
import uvloop

from benchmarks.support import Figure, gateway, nats_server, publish, quantile, scratch, worker
from bitinglip.events.log import EventLog
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal

ROUNDS = 500
WARM_UP = 50
COMMAND = SubmitTask(kind="echo", model="echo", params={"message": 1})
BODY = orjson.dumps({"kind": "echo", "model": "echo", "params": {"message": 1}})


async def measure() -> list[Figure]:
    """Measure without HTTP, and through HTTP and SSE."""
    async with (
        scratch() as folder,
        nats_server(folder) as server,
        worker(server.url, folder),
        gateway(server.url, folder) as (_, ready),
    ):
        plain = await without_http(server.url)
        http = await through_http(ready["url"])
    return [
        Figure(
            "submit → terminal event, without HTTP", quantile(plain, 0.5), "ms (median)", 3, at_least=False,
            note=f"p99 {quantile(plain, 0.99):.1f} ms",
        ),
        Figure(
            "submit → terminal event, HTTP + SSE", quantile(http, 0.5), "ms (median)", 6, at_least=False,
            note=f"p99 {quantile(http, 0.99):.1f} ms",
        ),
    ]  # fmt: skip


async def without_http(url: str) -> list[float]:
    """Return milliseconds a task, submitted and followed on the log itself."""
    log = await EventLog.connect(Nats(url=url), "/bench")
    inbox = Inbox(log, 65_536)
    taken = [await _one(log, inbox) for _ in range(WARM_UP + ROUNDS)]
    await log.close()
    return taken[WARM_UP:]


async def _one(log: EventLog, inbox: Inbox) -> float:
    started = time.perf_counter()
    accepted = await inbox.submit(COMMAND)
    async with aclosing(log.follow_task(accepted.task_id, accepted.sequence)) as batches:
        async for batch in batches:
            if is_terminal(batch[-1].event):
                return (time.perf_counter() - started) * 1000
    raise AssertionError


async def through_http(url: str) -> list[float]:
    """Return milliseconds a task, over two kept connections: one submits, the other one follows."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    submitting = await asyncio.open_connection(parts.hostname, parts.port)
    following = await asyncio.open_connection(parts.hostname, parts.port)
    taken = [await _one_http(submitting, following, parts.netloc) for _ in range(WARM_UP + ROUNDS)]
    return taken[WARM_UP:]


Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _one_http(submitting: Connection, following: Connection, host: str) -> float:
    started = time.perf_counter()
    reader, writer = submitting
    head = f"POST /v1/tasks HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(BODY)}"
    writer.write(f"{head}\r\n\r\n".encode() + BODY)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 202"), answer
    task_id = orjson.loads(await reader.readexactly(_length(answer)))["task_id"]
    reader, writer = following
    writer.write(
        f"GET /v1/tasks/{task_id}/events HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n".encode()
    )
    await reader.readuntil(b"event: task.succeeded")
    taken = (time.perf_counter() - started) * 1000
    await reader.readuntil(b"\r\n0\r\n\r\n")
    return taken


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return int(line.partition(b":")[2])
    raise AssertionError(head)


if __name__ == "__main__":
    publish(uvloop.run(measure()))
