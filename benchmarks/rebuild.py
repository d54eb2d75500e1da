"""How fast the read model is made anew from the log.

    python -m benchmarks.rebuild --events 1000000

(a) the DuckDB half: batches from memory; (b) end to end: from a private nats-server through `EventLog.tail`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.histories import history
from bitinglip.cli.natsserver import PrivateServer, find
from bitinglip.events.envelope import RawMessage
from bitinglip.events.log import EventLog
from bitinglip.projections.opening import open_database
from bitinglip.projections.readmodel import ReadModel
from bitinglip.projections.writer import write
from bitinglip.settings import Nats, Projections

SETTINGS = Projections()


def batches(messages: Iterable[RawMessage], size: int) -> Iterator[list[RawMessage]]:
    iterator = iter(messages)
    while batch := list(islice(iterator, size)):
        yield batch


def duckdb_half(events: int, folder: Path) -> dict[str, Any]:
    database = open_database(folder / "half.duckdb", SETTINGS)
    database.add_checkpoint("TASKS", "then")
    spent = 0.0
    for batch in batches(history(events), SETTINGS.batch_max):
        started = time.perf_counter()
        write(database, "TASKS", batch)
        spent += time.perf_counter() - started
    started = time.perf_counter()
    database.close()
    closing = time.perf_counter() - started
    return {
        "seconds": round(spent + closing, 2),
        "events_per_s": round(events / (spent + closing)),
        "without_closing_per_s": round(events / spent),
        "file_mb": round((folder / "half.duckdb").stat().st_size / 1e6),
    }


async def publish(log: EventLog, events: int) -> None:
    """Publish without acks, and let the server keep up: it drops what it has no room for."""
    for number, message in enumerate(history(events), 1):
        await log.connection.publish(message.subject, message.payload)
        if number % 5_000 == 0 or number == events:
            await log.connection.client.flush(timeout=60)
            while await log.last_sequence("TASKS") < number:  # noqa: ASYNC110  (the server tells nobody)
                await asyncio.sleep(0.01)


async def end_to_end(events: int, folder: Path) -> dict[str, Any]:
    async with PrivateServer(find(), folder / "nats") as server:
        log = await EventLog.connect(Nats(url=server.url), "/benchmark")
        await publish(log, events)
        started = time.perf_counter()
        readmodel = await ReadModel.open(SETTINGS, folder / "whole.duckdb", log)
        await readmodel.wait_ready()
        caught_up = time.perf_counter() - started
        before = await readmodel.queries.counts()
        started = time.perf_counter()
        await readmodel.rebuild()
        rebuilt = time.perf_counter() - started
        assert await readmodel.queries.counts() == before
        await readmodel.close()
        await log.close()
    return {
        "seconds": round(rebuilt, 2),
        "events_per_s": round(events / rebuilt),
        "first_catch_up_per_s": round(events / caught_up),
        "tasks": sum(before.values()),
    }


def run(what: str, events: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        figures = (
            duckdb_half(events, Path(folder)) if what == "duckdb" else uvloop.run(end_to_end(events, Path(folder)))
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"what": what, "events": events, **figures, "peak_rss_mb": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", choices=["duckdb", "whole"])
    arguments = parser.parse_args()
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    for what in [arguments.only] if arguments.only else ["duckdb", "whole"]:
        print(json.dumps(run(what, arguments.events) | machine), flush=True)


if __name__ == "__main__":
    main()
