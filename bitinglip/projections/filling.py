"""The process that fills a new file from the log: `python -m bitinglip.projections.filling`, the job on standard input.

It has an interpreter and a loop of its own, so that whoever asks the gateway meanwhile waits for neither, and gives
way to everything else on the machine. It says on standard output why it could not; it ends with the gateway.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import uvloop
from pydantic import BaseModel

from bitinglip.errors import NoServer
from bitinglip.events.log import EventLog
from bitinglip.ids import Ulids
from bitinglip.logs import configure_logging, logging_settings
from bitinglip.processes import die_with_parent
from bitinglip.projections.archive import Archive
from bitinglip.projections.background import give_way
from bitinglip.projections.generation import open_bulk
from bitinglip.projections.ground import Ground
from bitinglip.projections.sql import Projection
from bitinglip.settings import Log, Nats, Projections

log = logging.getLogger(__name__)

READING_BPS = 1_000_000_000
"""Of each stream: some 200,000 events a second. As fast as it can, the server keeps cores to itself for 20 to 40 ms at
a time, and whoever asks the gateway waits for one."""


class Job(BaseModel):
    """What is to be filled, and from where."""

    path: Path
    nats: Nats
    projections: Projections
    catalogue: dict[str, tuple[str, str]]
    """The text of each projection, and the one that stages a batch for it, by name, in their order."""
    log: Log
    """How its log is printed."""

    @classmethod
    def of(cls, path: Path, ground: Ground) -> Job:
        """Return the job of filling a file with what a ground is made of."""
        texts = {name: (each.text, each.stage) for name, each in ground.catalogue.items()}
        nats = ground.log.connection.settings
        return cls(path=path, nats=nats, projections=ground.settings, catalogue=texts, log=logging_settings())


class Outcome(BaseModel):
    """Why it could not be filled: none if it was."""

    no_server: str | None = None
    """What is wrong with the log's server."""
    failed: str | None = None
    """What else was wrong."""


async def fill(job: Job) -> None:
    """Fill the file, up to what is in the log now, and add the keys.

    Raises:
        NoServer: the log cannot be asked.
    """
    log = await EventLog.connect(job.nats, f"/rebuild/{Ulids()().lower()}")
    log.connection.reading_bps = READING_BPS
    try:
        if job.projections.archive_path is not None:
            log.connection.cold = Archive(log, job.projections.archive_path)
        catalogue = {name: Projection(name, *texts) for name, texts in job.catalogue.items()}
        generation = await open_bulk(job.path, Ground.of(job.projections, log, catalogue))
        try:
            await generation.projector.wait_caught_up()
            await generation.projector.stop()
            await asyncio.to_thread(generation.database.fold, job.projections.threads)
        finally:
            await generation.close(fold=False)
    finally:
        await log.close()


def main() -> None:
    """Do one job."""
    if sys.platform == "linux":
        die_with_parent()
    give_way()
    job = Job.model_validate_json(sys.stdin.read())
    configure_logging(job.log)
    try:
        uvloop.run(fill(job))
    except NoServer as error:
        outcome = Outcome(no_server=error.problem)
    except Exception as error:  # whatever it is, the gateway must hear of it
        log.exception("%s could not be filled", job.path)
        outcome = Outcome(failed=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    else:
        outcome = Outcome()
    sys.stdout.write(outcome.model_dump_json())


if __name__ == "__main__":
    main()
