"""A process that applies a known history to a file, batch by batch, until it is killed: `... PATH`."""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from benchmarks.histories import history
from bitinglip.projections.opening import open_database
from bitinglip.projections.writer import write
from bitinglip.settings import Projections

EVENTS = 20_000
BATCH = 150


def main() -> None:
    database = open_database(Path(sys.argv[1]), Projections(memory_limit="200MB", threads=1))
    applied = database.checkpoints().get("TASKS")
    if applied is None:
        database.add_checkpoint("TASKS", "then")
    messages = history(EVENTS)
    while batch := list(islice(messages, BATCH)):
        write(database, "TASKS", batch)
        print(batch[-1].sequence, flush=True)


if __name__ == "__main__":
    main()
