"""BitingLip's client: what a gateway does for a request that waits for its task's end, all but the HTTP.

It is one process, as a gateway is: it submits, projects the whole log into its read model, and follows each task by
what the projector reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.rivals.side import measure, run
from bitinglip.events.envelope import decode
from bitinglip.events.feed import TaskFeed
from bitinglip.events.live import LiveEvents
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Nats, Projections
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import TERMINAL_TYPES, is_terminal

ENDS = {each.removeprefix("task.") for each in TERMINAL_TYPES} | {"failed"}
COMMAND = SubmitTask(kind="echo", model="echo", params={"message": 1})


async def client() -> dict[str, float]:
    """Measure."""
    log = await EventLog.connect(Nats(url=os.environ["RIVAL_URL"]), "/bench")
    inbox = Inbox(log, 65_536)
    with TemporaryDirectory() as folder:
        readmodel = await ReadModel.open(Projections(), Path(folder) / "p.duckdb", log)
        await readmodel.wait_ready()
        figures = await measure(lambda: _followed(log, inbox, readmodel.feed))
        await readmodel.close()
    await log.close()
    return figures


async def _followed(log: EventLog, inbox: Inbox, feed: TaskFeed) -> None:
    event = await inbox.prepare(COMMAND)
    live = LiveEvents(log.connection, event.task_id, feed)
    await live.open()
    try:
        accepted = await inbox.append(event)
        async for batch in live.batches(accepted.sequence, heard_all=True):
            if batch[-1].subject.rpartition(".")[2] in ENDS and is_terminal(decode(batch[-1], TASKS).event):
                return
    finally:
        await live.close()


if __name__ == "__main__":
    run(client())
