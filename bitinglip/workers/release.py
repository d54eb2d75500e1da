"""What becomes of the work messages of a worker process that is no more: each attempt of its is told to have failed."""

from __future__ import annotations

import logging
from collections.abc import Collection
from collections.abc import Sequence as Seq

from bitinglip.errors import BitingLipError, NoServer
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery, hand_back, read_held
from bitinglip.events.task import Failure
from bitinglip.tasks.commands import FailAttempt
from bitinglip.tasks.state import Stale
from bitinglip.workers.attempt import Attempt, Scribe

log = logging.getLogger(__name__)


async def release(event_log: EventLog, worker_id: str, held: Collection[str], failure: Failure) -> None:
    """Write down how the attempts of a dead worker ended, and hand back what it held; may be done again.

    Raises:
        NoServer: the connection is away.
    """
    left = set(held)
    try:
        left -= await _settle(event_log, worker_id, await read_held(event_log.connection, held), failure)
    except NoServer:
        raise
    except BitingLipError:
        log.exception("what %s held is handed back without a word on how it ended", worker_id)
    await hand_back(event_log.connection, left)


async def _settle(event_log: EventLog, worker_id: str, deliveries: Seq[Delivery], failure: Failure) -> set[str]:
    """Write the failure of those that it ran; returns where these are acked."""
    scribe = Scribe(event_log, 0, lambda: True)
    attempts = await scribe.open_all(deliveries)
    running = [attempt for attempt in attempts if attempt.task.state == "running"]
    commands = [(attempt, _failed(attempt, event_log, worker_id, failure)) for attempt in running]
    outcomes = await scribe.write(commands, patient=False)
    settled: set[str] = set()
    for attempt, outcome in zip(running, outcomes, strict=True):
        if not isinstance(outcome, Stale):
            await scribe.settle(attempt, outcome)
            settled.add(attempt.delivery.reply)
    return settled


def _failed(attempt: Attempt, event_log: EventLog, worker_id: str, failure: Failure) -> FailAttempt:
    return FailAttempt(
        attempt=attempt.task.attempt,
        worker_id=worker_id,
        failure=failure,
        run_ms=0.0,
        now=event_log.clock(),
        jitter=0.0,
    )
