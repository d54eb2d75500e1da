"""That there is no such task: the one answer that a leader which is one no more gives wrongly, and nothing shows.

A server whose disk is stuck, or that is cut off, may take itself for the leader while the others have elected another
one. What it has is true, if old. What it lacks may be there.
"""

from __future__ import annotations

import asyncio

from bitinglip.errors import NoServer, StreamFull
from bitinglip.events import subjects
from bitinglip.events.direct import BEHIND_S, get_last_of
from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.ids import TaskId


async def confirm_absent(log: EventLog, task_id: TaskId) -> None:
    """See to it that there is no such task, where several servers could tell.

    Something is stored, which takes most of the servers, and read together with the task: who has the one would have
    the other. While the log is full that cannot be done, and nothing is said.

    Raises:
        NoServer: there is one after all, or it cannot be told now.
    """
    if not log.connection.clustered:
        return
    try:
        stored = await log.append(log.timer_withdrawal(task_id, 0))  # attempts count from 1: nobody's timer
    except StreamFull:
        return
    events, mark = subjects.task_events(task_id), subjects.timer(task_id, 0)
    for pause_s in BEHIND_S:
        found = await get_last_of(log.connection, TASKS, (events, mark))
        if any(message.subject != mark for message in found):
            raise NoServer(problem=f"who answered for the log had yet to hear of task {task_id}")
        if any(message.sequence >= stored for message in found):
            return
        await asyncio.sleep(pause_s)
    raise NoServer(problem=f"who answers for the log is behind; whether there is a task {task_id} cannot be told now")
