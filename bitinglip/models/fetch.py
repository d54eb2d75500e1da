"""The process that fetches one revision: `python -m bitinglip.models.fetch`, with the job as a line of standard input.

It leaves progress and the outcome as lines on standard output (`protocol`), and ends at once when it is told to, or
when the agent that started it ends. Whatever ends it, what has come stays, and is not fetched again.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import NoReturn

from pydantic import ValidationError

from bitinglip.errors import BitingLipError, InvalidInput
from bitinglip.models.meter import EACH_S, Halted, Meter
from bitinglip.models.protocol import Failed, FetchJob, Line, Stopped, say
from bitinglip.processes import die_with_parent

GRACE_S = 1.0
"""For threads that are told to stop, before the process ends under them."""
ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_SHARED_BLOBS": "1",  # so that what a revision takes is what dropping it frees
}


def main() -> None:
    """Do one job."""
    if sys.platform == "linux":
        die_with_parent()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        job = FetchJob.model_validate_json(sys.stdin.readline())
    except ValidationError as error:
        problem = InvalidInput(field="job", problem=str(error.errors()[0]["msg"]))
        end(Line(failed=Failed.of(problem)))
    meter, over = Meter(sum(file.size_bytes for file in job.files)), threading.Event()
    outcomes: list[Line] = []
    work = threading.Thread(target=_work, args=(job, meter, outcomes, over), daemon=True)
    stopped = _on_signal(meter, over)
    work.start()
    while not over.wait(EACH_S):
        meter.tell()
    work.join(GRACE_S if stopped.is_set() else None)
    end(outcomes[0] if outcomes else Line(stopped=Stopped(done_bytes=meter.done_bytes)))


def end(outcome: Line) -> NoReturn:
    """Say how it ended, and end, whatever a thread still waits for."""
    say(outcome)
    os._exit(1 if outcome.failed else 0)


def _on_signal(meter: Meter, over: threading.Event) -> threading.Event:
    stopped = threading.Event()

    def stop(*_: object) -> None:
        stopped.set()
        meter.stop.set()
        over.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopped


def _work(job: FetchJob, meter: Meter, outcomes: list[Line], over: threading.Event) -> None:
    from bitinglip.models.fetching import fetch  # huggingface_hub reads its environment when it is imported
    from bitinglip.models.hubproblems import problem_of

    try:
        outcomes.append(Line(stored=fetch(job, meter)))
    except Halted:
        return
    except BitingLipError as error:
        outcomes.append(Line(failed=Failed.of(error)))
    except Exception as error:  # noqa: BLE001  whatever it is, the agent must hear of it
        outcomes.append(Line(failed=Failed.of(problem_of(error, job))))
    finally:
        over.set()


if __name__ == "__main__":
    main()
