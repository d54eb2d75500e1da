"""How fast the read model is made anew from the log.

    python -m benchmarks.rebuild --events 1000000

duckdb: the DuckDB half, batches from memory; whole: end to end, from a private nats-server through `EventLog.tail`;
plain: what one would write first, beside it: each event parsed in Python, and an INSERT for it.

`cpu_us` is processor time an event, in microseconds, of this process with the one that fills the new file, and of
nats-server: it tells more than seconds where others use the machine.
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
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import duckdb
import orjson
import psutil
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
WHAT = ("duckdb", "plain", "whole")


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


PLAIN_EVENTS = 20_000
PLAIN_COMMIT = 1_000
"""Events in one transaction of the plain approach: with one each it would be slower still."""


def plain(events: int, folder: Path) -> dict[str, Any]:
    """Insert events one by one, into the table of events alone: no tasks, no batches."""
    messages = list(history(min(events, PLAIN_EVENTS)))
    database = duckdb.connect(folder / "plain.duckdb")
    database.execute(
        "create table events (stream varchar, sequence ubigint, recorded_at timestamp, time timestamp, id varchar, "
        "type varchar, version integer, source varchar, about varchar, causation varchar, data json)"
    )
    insert = database.extract_statements("insert into events values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")[0]
    started = time.perf_counter()
    for number, message in enumerate(messages):
        if number % PLAIN_COMMIT == 0:
            database.commit() if number else None
            database.begin()
        database.execute(insert, _plain_row(message))
    database.commit()
    database.close()
    seconds = time.perf_counter() - started
    return {"measured": len(messages), "seconds": round(seconds, 2), "events_per_s": round(len(messages) / seconds)}


def _plain_row(message: RawMessage) -> list[Any]:
    document = orjson.loads(message.payload)
    recorded_at = datetime.fromtimestamp(message.time_ns / 1e9, UTC).replace(tzinfo=None)
    time = datetime.fromisoformat(document["time"]).replace(tzinfo=None)
    version = int(document["dataschema"].rpartition(":")[2])
    named = (document["id"], document["type"], version, document["source"], document["subject"])
    data = orjson.dumps(document["data"]).decode()
    return ["TASKS", message.sequence, recorded_at, time, *named, document.get("causationid"), data]


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
        server_process = psutil.Process(server.pid)
        started, worked, served = time.perf_counter(), _own_cpu_s(), _cpu_s(server_process)
        await readmodel.rebuild()
        rebuilt = time.perf_counter() - started
        cpu_us = {"own": _own_cpu_s() - worked, "server": _cpu_s(server_process) - served}
        filling_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # the server has not ended yet
        assert await readmodel.queries.counts() == before
        await readmodel.close()
        await log.close()
    return {
        "seconds": round(rebuilt, 2),
        "events_per_s": round(events / rebuilt),
        "first_catch_up_per_s": round(events / caught_up),
        "cpu_us": {name: round(seconds / events * 1e6, 2) for name, seconds in cpu_us.items()},
        "filling_peak_rss_mb": round(filling_peak),
        "tasks": sum(before.values()),
    }


def _own_cpu_s() -> float:
    """Return the processor time of this process and of the children that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def run(what: str, events: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        match what:
            case "duckdb":
                figures = duckdb_half(events, Path(folder))
            case "plain":
                figures = plain(events, Path(folder))
            case _:
                figures = uvloop.run(end_to_end(events, Path(folder)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"what": what, "events": events, **figures, "peak_rss_mb": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--only", choices=WHAT)
    arguments = parser.parse_args()
    machine = {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    for what in [arguments.only] if arguments.only else WHAT:
        print(json.dumps(run(what, arguments.events) | machine), flush=True)


if __name__ == "__main__":
    main()
