"""BitingLip's client, without HTTP: what a gateway does for a request that waits for its task's end.

With RIVAL_ONE_EAR it does not follow each task by itself, but hears the ends of all of them by one subscription, which
is what the leanest client could do (what passes while its connection is away would be lost on it).
"""

from __future__ import annotations

import asyncio
import os

from benchmarks.rivals.side import measure, run
from bitinglip.events.direct import raw_from_bytes
from bitinglip.events.envelope import Recorded, decode
from bitinglip.events.live import LiveEvents
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.events.subjects import live_task_events
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.state import is_terminal

COMMAND = SubmitTask(kind="echo", model="echo", params={"message": 1})
ENDS = live_task_events(TaskId("*")).replace(">", "succeeded")


async def client() -> dict[str, float]:
    """Measure."""
    log = await EventLog.connect(Nats(url=os.environ["RIVAL_URL"]), "/bench")
    inbox = Inbox(log, 65_536)
    if not os.environ.get("RIVAL_ONE_EAR"):
        return await measure(lambda: _followed(log, inbox))
    ends: dict[str, asyncio.Future[Recorded]] = {}

    def heard(subject: bytes, _reply: bytes, payload: bytes, headers: bytes | None) -> None:
        ended = ends.pop(subject.decode().split(".")[3])
        ended.set_result(decode(raw_from_bytes(headers or b"", payload), TASKS))

    await log.connection.subscribe_direct(ENDS, heard)
    return await measure(lambda: _heard(inbox, ends))


async def _followed(log: EventLog, inbox: Inbox) -> None:
    event = await inbox.prepare(COMMAND)
    live = LiveEvents(log.connection, event.task_id)
    await live.open()
    try:
        accepted = await inbox.append(event)
        async for batch in live.batches(accepted.sequence, heard_all=True):
            if is_terminal(decode(batch[-1], TASKS).event):
                return
    finally:
        await live.close()


async def _heard(inbox: Inbox, ends: dict[str, asyncio.Future[Recorded]]) -> None:
    event = await inbox.prepare(COMMAND)
    ends[event.task_id] = ended = asyncio.get_running_loop().create_future()
    await inbox.append(event)
    await ended


if __name__ == "__main__":
    run(client())
