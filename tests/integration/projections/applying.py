"""A process that applies a known history to a file, batch by batch, until it is killed: `... PATH [EVERY]`.

What trails is applied after each batch, or after every so many of them; the sequence of a batch is told after that.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

from benchmarks.histories import history
from bitinglip.events.envelope import RawMessage
from bitinglip.projections.opening import open_database
from bitinglip.projections.writer import write_prompt, write_trailing
from bitinglip.settings import Projections

EVENTS = 20_000
BATCH = 150


def main() -> None:
    database = open_database(Path(sys.argv[1]), Projections(memory_limit="200MB", threads=1))
    applied = database.checkpoints().get("TASKS")
    if applied is None:
        database.add_checkpoint("TASKS", "then")
    every = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    messages = history(EVENTS)
    waiting: list[list[RawMessage]] = []
    while batch := list(islice(messages, BATCH)):
        write_prompt(database, "TASKS", batch)
        waiting.append(batch)
        if len(waiting) == every:
            write_trailing(database, "TASKS", *waiting)
            waiting.clear()
        print(batch[-1].sequence, flush=True)


if __name__ == "__main__":
    main()
