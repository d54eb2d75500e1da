"""A process that makes a changed projection anew in the background and tells how far it is, until it is killed.

`... NATS_URL PATH`
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.projections import sql
from bitinglip.projections.readmodel import ReadModel
from bitinglip.projections.sql import Catalogue
from bitinglip.settings import Nats, Projections

BATCH = 200
SETTINGS = Projections(memory_limit="200MB", threads=1, batch_max=BATCH)


def changed() -> Catalogue:
    """Return the catalogue with another `tasks`: it tells the names of models in capitals."""
    text = sql.texts()["tasks"].replace("task_id, state, s.kind, s.model,", "task_id, state, s.kind, upper(s.model),")
    return sql.catalogue(sql.texts() | {"tasks": text})


async def main() -> None:
    log = await EventLog.connect(Nats(url=sys.argv[1]), "/test")
    readmodel = await ReadModel.open(SETTINGS, Path(sys.argv[2]), log, changed())
    while True:
        for state in await readmodel.projections():
            if not state.serving:
                print(state.checkpoint[TASKS], flush=True)


if __name__ == "__main__":
    asyncio.run(main())
