"""Everything is killed, frozen and cut off at random while tasks come in; then the log is asked: the short runs.

`make faults` has the long ones (harness.py).
"""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from bitinglip.events.log import EventLog
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from tests.faults.harness import Plan, run
from tests.support.cluster import Cluster, children_of
from tests.support.server import eventually

SHORT = Plan(seed=20261123, tasks=400, seconds=14)
SHORT_ON_THREE = Plan(seed=20261130, tasks=300, seconds=14, servers=3)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("plan", [SHORT, SHORT_ON_THREE], ids=["one server", "three servers"])
async def test_every_accepted_task_ends_exactly_once_whatever_is_struck(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = await run(plan, tmp_path)
    with capsys.disabled():
        print(f"\n{counts}")


async def test_nothing_of_ours_outlives_its_parent(cluster: Cluster, log: EventLog) -> None:
    """A killed worker takes its engine process with it."""
    worker = await cluster.worker()
    accepted = await Inbox(log, 65_536).submit(
        SubmitTask(kind="echo", model="echo", params={"steps": 1000, "step_ms": 20})
    )

    async def engine() -> list[int]:
        return children_of(worker.pid)

    (engine_pid,) = await eventually(engine)
    await worker.kill()
    await eventually(lambda: not psutil.pid_exists(engine_pid) or psutil.Process(engine_pid).status() == "zombie")
    assert accepted.created
