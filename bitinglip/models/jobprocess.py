"""What the processes that an agent starts for its store have in common: one job in, progress and one outcome out."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from bitinglip.errors import BitingLipError, InvalidInput
from bitinglip.models.meter import EACH_S, Halted, Meter
from bitinglip.models.protocol import Failed, Line, Stopped, say
from bitinglip.processes import die_with_parent

GRACE_S = 1.0
"""For threads that are told to stop, before the process ends under them."""
Job = TypeVar("Job", bound=BaseModel)
Work = Callable[[Meter], Line]
Explain = Callable[[Exception], BitingLipError]


def read_job(kind: type[Job]) -> Job:
    """Return the job of this process; one that cannot be read ends it. From now on it ends with its parent."""
    if sys.platform == "linux":
        die_with_parent()
    try:
        return kind.model_validate_json(sys.stdin.readline())
    except ValidationError as error:
        end(Line(failed=Failed.of(InvalidInput(field="job", problem=str(error.errors()[0]["msg"])))))


def run(meter: Meter, work: Work, explain: Explain) -> NoReturn:
    """Work in a thread, tell of the progress, and end with the outcome, or at once when told to.

    Args:
        meter: Counts what is done.
        work: The work, which returns its outcome.
        explain: Turns whatever else it raises into an error of ours.
    """
    over, stopped = threading.Event(), threading.Event()
    outcomes: list[Line] = []

    def stop(*_: object) -> None:
        for event in (stopped, meter.stop, over):
            event.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    thread = threading.Thread(target=_run, args=(meter, work, explain, outcomes, over), daemon=True)
    thread.start()
    while not over.wait(EACH_S):
        meter.tell()
    thread.join(GRACE_S if stopped.is_set() else None)
    end(outcomes[0] if outcomes else Line(stopped=Stopped(done_bytes=meter.done_bytes)))


def end(outcome: Line) -> NoReturn:
    """Say how it ended, and end, whatever a thread still waits for."""
    say(outcome)
    os._exit(1 if outcome.failed else 0)


def _run(meter: Meter, work: Work, explain: Explain, outcomes: list[Line], over: threading.Event) -> None:
    try:
        outcomes.append(work(meter))
    except Halted:
        return
    except BitingLipError as error:
        outcomes.append(Line(failed=Failed.of(error)))
    except Exception as error:  # noqa: BLE001  (whatever it is, the agent must hear of it)
        outcomes.append(Line(failed=Failed.of(explain(error))))
    finally:
        over.set()
