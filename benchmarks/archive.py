"""What a finished task costs the server while it is hot and once it is archived; how fast it is archived and trimmed.

    python -m benchmarks.archive --tasks 100000

A private nats-server holds so many tasks that are over (three lifecycle events each, some with a retry and ticks); its
memory is its resident set, after a restart as well, since Go gives memory back late.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks.histories import history
from bitinglip.cli.natsserver import PrivateServer, find
from bitinglip.events.archive import purge
from bitinglip.events.envelope import RawMessage
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.gateway.archiver import ArchiveKeeper
from bitinglip.projections.archive import Archive
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Archive as Settings
from bitinglip.settings import Nats, Projections

IN_FLIGHT = 2_000
SETTINGS = Settings(every_s=0, settled_s=0, hot_tasks=0, hot_age_s=1e9)


def over(tasks: int) -> Iterator[RawMessage]:
    """Yield the events of so many tasks; those that have not ended by then are left as they are."""
    ended = 0
    for message in history(tasks * 100):
        yield message
        ended += message.subject.endswith((".succeeded", ".failed", ".cancelled"))
        if ended >= tasks:
            return


class Bench:
    """A server with a store, started again at will."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.server = PrivateServer(find(), folder / "nats", port=0)

    async def start(self) -> EventLog:
        """Start it, and connect."""
        await self.server.start()
        return await EventLog.connect(Nats(url=self.server.url, append_timeout_s=60.0), "/benchmark")

    def memory_mb(self) -> float:
        """Return its resident set."""
        return round(psutil.Process(self.server.pid).memory_info().rss / 1e6, 1)

    def disk_mb(self, name: str = "") -> float:
        """Return what it has on disk, in paths that contain this."""
        files = (path for path in (self.folder / "nats").rglob("*") if path.is_file() and name in str(path))
        return round(sum(path.stat().st_size for path in files) / 1e6, 1)


async def fill(log: EventLog, tasks: int) -> int:
    """Put the tasks into the log as they are; returns how many events that were."""
    count, js, waiting = 0, log.connection.js, list[asyncio.Future[Any]]()
    for message in over(tasks):
        waiting.append(await js.publish_async(message.subject, message.payload))
        count += 1
        if len(waiting) >= IN_FLIGHT:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    await purge(log.connection, QUEUE, "bl.queue.>")
    return count


async def measure(tasks: int, folder: Path) -> dict[str, Any]:
    bench = Bench(folder)
    log = await bench.start()
    found: dict[str, Any] = {"tasks": tasks, "empty_mb": bench.memory_mb()}
    found["events"] = await fill(log, tasks)
    found["hot_mb"] = bench.memory_mb()
    log = await again(bench, log)
    found |= {"hot_restarted_mb": bench.memory_mb(), "hot_disk_mb": bench.disk_mb("streams/TASKS")}
    log.connection.cold = files = Archive(log, folder / "archive")
    settings = Projections(archive_path=folder / "archive", read_wait_s=600.0)
    readmodel = await ReadModel.open(settings, folder / "p.duckdb", log)
    files.locate = readmodel.span_of_task
    await readmodel.wait_ready()
    keeper = ArchiveKeeper(log, files, readmodel, SETTINGS)
    started = time.perf_counter()
    written = await keeper._archiver.archive(TASKS, now=True)
    found |= {"archive_s": round(time.perf_counter() - started, 2), "files": len(written)}
    found["archived_events"] = sum(file.events for file in written)
    found["archive_mb"] = round(sum(file.size_bytes for file in written) / 1e6, 1)
    started = time.perf_counter()
    trimmed = await keeper._trimmer.trim()
    found |= {"trim_s": round(time.perf_counter() - started, 2), "removed": trimmed.removed if trimmed else 0}
    started = time.perf_counter()
    await keeper._drop()
    found["drop_rows_s"] = round(time.perf_counter() - started, 2)
    found["left_messages"] = await log.messages(TASKS)
    found["trimmed_mb"] = bench.memory_mb()
    await readmodel.close()
    log = await again(bench, log)
    found |= {"trimmed_restarted_mb": bench.memory_mb(), "trimmed_disk_mb": bench.disk_mb("streams/TASKS")}
    found["bucket_disk_mb"] = bench.disk_mb("OBJ_archive")
    await log.close()
    await bench.server.stop()
    return found | per_task(found)


async def again(bench: Bench, log: EventLog) -> EventLog:
    await log.close()
    await bench.server.stop()
    return await bench.start()


def per_task(found: dict[str, Any]) -> dict[str, Any]:
    tasks = found["tasks"]
    return {
        "hot_kb_a_task": round((found["hot_restarted_mb"] - found["empty_mb"]) * 1000 / tasks, 2),
        "trimmed_kb_a_task": round((found["trimmed_restarted_mb"] - found["empty_mb"]) * 1000 / tasks, 2),
        "hot_disk_kb_a_task": round(found["hot_disk_mb"] * 1000 / tasks, 2),
        "archived_disk_kb_a_task": round(found["bucket_disk_mb"] * 1000 / tasks, 2),
        "archive_events_per_s": round(found["archived_events"] / found["archive_s"]),
        "trim_messages_per_s": round(found["removed"] / found["trim_s"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(measure(arguments.tasks, Path(folder)))
    print(json.dumps({"machine": f"{platform.machine()}, {os.cpu_count()} cores"} | found, indent=2))


if __name__ == "__main__":
    main()
