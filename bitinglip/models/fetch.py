"""The process that fetches one revision: `python -m bitinglip.models.fetch`, with the job as a line of standard input.

It leaves progress and the outcome as lines on standard output (`protocol`), and ends at once when it is told to, or
when the agent that started it ends. Whatever ends it, what has come stays, and is not fetched again.
"""

from __future__ import annotations

import os

from bitinglip.models.jobprocess import read_job, run
from bitinglip.models.meter import Meter
from bitinglip.models.protocol import FetchJob, Line

ENVIRONMENT = {
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_SYMLINKS_WARNING": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_HUB_DISABLE_SHARED_BLOBS": "1",  # so that what a revision takes is what dropping it frees
}


def main() -> None:
    """Do one job."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from bitinglip.models.fetching import fetch  # huggingface_hub reads its environment when it is imported
    from bitinglip.models.hubproblems import problem_of

    job = read_job(FetchJob)
    meter = Meter(sum(file.size_bytes for file in job.files))
    run(meter, lambda meter: Line(stored=fetch(job, meter)), lambda error: problem_of(error, job))


if __name__ == "__main__":
    main()
