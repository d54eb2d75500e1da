"""What the audit costs: signing, for each event and at rest, and verifying a log, beside reading the same log.

    python -m benchmarks.audit --tasks 10000

A private nats-server holds so many tasks that are over, with their retries and ticks. Verifying and plain reading take
turns. CPU is this process's, without the server's.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.archive import fill
from benchmarks.support import machine, nats_server
from bitinglip.events.auditing import Live, audit
from bitinglip.events.checking import Keyring
from bitinglip.events.heads import AUDITED
from bitinglip.events.log import EventLog
from bitinglip.events.notary import Book
from bitinglip.events.reading import end_of, read_between
from bitinglip.events.signing import SigningKey
from bitinglip.events.streams import LEDGER, TASKS
from bitinglip.settings import Audit, Nats

TURNS = 3
LOOKS = 100


async def measure(tasks: int, folder: Path) -> dict[str, Any]:
    """Measure one log."""
    async with nats_server(folder) as server:
        log = await EventLog.connect(Nats(url=server.url, append_timeout_s=60.0), "/benchmark")
        try:
            events = await fill(log, tasks)
            return {"tasks": tasks, "events": events} | await _measure(log, events)
        finally:
            await log.close()


async def _measure(log: EventLog, events: int) -> dict[str, Any]:
    key = SigningKey.make()
    books = [Book(log, stream, Audit(), key, settled_s=0) for stream in AUDITED]
    before = await _bytes(log)
    _, signing_cpu_s = await _timed(lambda: _look(books))
    signed_bytes = await _bytes(log) - before
    _, resting_cpu_s = await _timed(lambda: _look(books * LOOKS))
    reads, checks = list[tuple[float, float]](), list[tuple[float, float]]()
    for _ in range(TURNS):
        reads.append(await _timed(lambda: _read(log)))
        checks.append(await _timed(lambda: _verify(log, key)))
    read_s, verify_s = (statistics.median(taken for taken, _ in each) for each in (reads, checks))
    return {
        "sign_cpu_us_an_event": round(signing_cpu_s / events * 1e6, 1),
        "read_cpu_us_an_event": round(statistics.median(cpu for _, cpu in reads) / events * 1e6, 1),
        "a_look_at_rest_cpu_ms": round(resting_cpu_s / LOOKS * 1000, 2),
        "log_bytes_an_event": round(signed_bytes / events, 1),
        "read_events_per_s": round(events / read_s),
        "verify_events_per_s": round(events / verify_s),
        "verify_to_read": round(verify_s / read_s, 2),
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


async def _look(books: list[Book]) -> None:
    for book in books:
        await book.look()


async def _read(log: EventLog) -> None:
    async with aclosing(read_between(log, TASKS, 0, await end_of(log, TASKS))) as batches:
        async for _ in batches:
            pass


async def _verify(log: EventLog, key: SigningKey) -> None:
    async for outcome in audit(Live(log), Keyring({key.public.id: key.public}), None, (TASKS,)):
        if outcome.finding is not None or not outcome.events or outcome.uncovered:
            raise RuntimeError(f"the log is not as it was signed: {outcome}")


async def _timed(work: Callable[[], Awaitable[None]]) -> tuple[float, float]:
    """Return the seconds that something takes, and those in which this process has a core."""
    started, cpu = time.perf_counter(), time.process_time()
    await work()
    return time.perf_counter() - started, time.process_time() - cpu


async def _bytes(log: EventLog) -> int:
    return (await log.connection.js.stream_info(LEDGER)).state.bytes


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=10_000)
    with tempfile.TemporaryDirectory(prefix="bitinglip-bench-") as folder:
        found = uvloop.run(measure(parser.parse_args().tasks, Path(folder)))
    print(json.dumps(machine() | found, indent=2))


if __name__ == "__main__":
    main()
