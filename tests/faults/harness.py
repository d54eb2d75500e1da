"""Tasks of all outcomes flow through a whole cluster while faults come one a second; then the log is asked.

`make faults` is the long run (`python -m tests.faults.harness`): `FAULTS_TASKS` (20,000) over `FAULTS_SECONDS` (500),
by `FAULTS_SEED`, on one nats-server or three (`FAULTS_SERVERS`). What is promised is checked on the log itself, not on
what any process says.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx

from bitinglip.errors import BitingLipError
from bitinglip.events.envelope import Recorded, decode
from bitinglip.events.log import EventLog
from bitinglip.events.streams import QUEUE, TASKS
from bitinglip.events.task import TaskEvent
from bitinglip.events.worker import WorkerStarted
from bitinglip.tasks.state import is_terminal
from tests.faults.audit import Audit, audit, report, takeovers
from tests.faults.field import Field
from tests.support.server import eventually

CLIENTS = 8
LEASE_S = 2.0
ENDED_S = 120.0
"""Longest time without a terminal event once all is healed: what has not ended then waits for ever."""
PATIENT = {"max_attempts": 100, "base_ms": 50, "max_ms": 1_000}
TWICE = {"max_attempts": 2, "base_ms": 50}
PAGE = 5_000
UNHANDLED = ("Exception in callback", "exception was never retrieved")


@dataclass(frozen=True, slots=True)
class Shape:
    """Tasks of one kind of life: how many of a hundred, what they ask for, and how they may end."""

    share: int
    body: dict[str, Any]
    ends: frozenset[str]


def _echo(share: int, *ends: str, retry: dict[str, int] = PATIENT, params: Any = None, **body: Any) -> Shape:
    whole = {"kind": "echo", "model": "echo", "params": params or {}, "retry": retry, **body}
    return Shape(share, whole, frozenset(ends))


SHAPES = {
    "at once": _echo(62, "succeeded"),
    "in steps": _echo(12, "succeeded", params={"steps": 10, "step_ms": 20}),
    "longer than its lease": _echo(1, "succeeded", params={"steps": 30, "step_ms": 100}),
    "delayed": _echo(5, "succeeded", delay_s=0.5),
    "bad input": _echo(4, "failed", params={"fail": "bad_input"}),
    "out of memory": _echo(4, "dead_lettered", params={"fail": "out_of_memory"}, retry=TWICE),
    "crash": _echo(1, "dead_lettered", params={"fail": "crash"}, retry=TWICE),
    "timed out": _echo(3, "dead_lettered", params={"steps": 50, "step_ms": 100}, timeout_s=0.3, retry=TWICE),
    "cancelled": _echo(5, "cancelled", "succeeded", params={"steps": 20, "step_ms": 100}),
    "expired": _echo(3, "expired", requires={"label": "nowhere"}),
}
ENDS = {name: shape.ends for name, shape in SHAPES.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """How much of it, and by which seed."""

    seed: int
    tasks: int
    seconds: float
    fault_s: float = 1.0
    servers: int = 1


@dataclass(slots=True)
class Flow:
    """The applications: each task is sent until it is accepted, to whichever gateway answers."""

    plan: Plan
    urls: list[str]
    accepted: set[str] = field(default_factory=set[str])
    refusals: list[str] = field(default_factory=list[str])
    """Answers that no fault is a reason for."""

    async def run(self) -> None:
        """Send all of the plan's tasks, evenly over its time."""
        started = time.monotonic()
        await asyncio.gather(*[self._client(number, started) for number in range(CLIENTS)])

    async def _client(self, number: int, started: float) -> None:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            for index in range(number, self.plan.tasks, CLIENTS):
                due = started + index * self.plan.seconds / self.plan.tasks
                await asyncio.sleep(max(0.0, due - time.monotonic()))  # sleep-ok: applications come in their own time
                await self._one(client, random.Random(f"{self.plan.seed}-{index}"), str(index))

    async def _one(self, client: httpx.AsyncClient, chance: random.Random, key: str) -> None:
        (name,) = chance.choices(list(SHAPES), [shape.share for shape in SHAPES.values()])
        body = SHAPES[name].body | {"metadata": {"shape": name}}
        if name == "expired":
            body["expires_at"] = (datetime.now(UTC) + timedelta(seconds=chance.uniform(0, 2))).isoformat()

        async def submitted() -> str | None:
            url = chance.choice(self.urls)
            answer = await client.post(f"{url}/v1/tasks", json=body, headers={"Idempotency-Key": key})
            self._look_at(answer)
            return answer.json()["task_id"] if answer.status_code == 202 else None

        task_id = await eventually(submitted, within_s=120)
        self.accepted.add(task_id)
        if name == "cancelled":
            await asyncio.sleep(chance.uniform(0, 0.3))  # sleep-ok: people change their minds at random times
            await eventually(lambda: self._cancelled(client, chance.choice(self.urls), task_id), within_s=120)

    async def _cancelled(self, client: httpx.AsyncClient, url: str, task_id: str) -> bool:
        answer = await client.delete(f"{url}/v1/tasks/{task_id}")
        self._look_at(answer)
        return answer.status_code != 503

    def _look_at(self, answer: httpx.Response) -> None:
        if answer.status_code not in {200, 202, 204, 409, 503}:
            self.refusals.append(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")


class Histories:
    """All tasks' events, read from the log as they come."""

    def __init__(self, log: EventLog) -> None:
        self.tasks: dict[str, list[Recorded]] = {}
        self._log = log
        self._after = 0

    async def read(self) -> None:
        """Read on, up to what the log has now."""
        last = await self._log.read_last(TASKS, "bl.task.>")
        if last is None or last.sequence <= self._after:
            return
        async with aclosing(self._log.tail(TASKS, self._after)) as batches:
            async for batch in batches:
                for recorded in (decode(message, TASKS) for message in batch):
                    assert isinstance(recorded.event, TaskEvent)
                    self.tasks.setdefault(recorded.event.task_id, []).append(recorded)
                    self._after = recorded.sequence
                if self._after >= last.sequence:
                    return

    async def wait_for_ends(self, accepted: set[str]) -> None:
        """Wait until each of the tasks has a terminal event and no work is left, or nothing has ended for long."""

        async def left() -> tuple[int]:
            return (await self._left(accepted),)

        last, ended_at = (-1,), time.monotonic()
        while last != (0,) and time.monotonic() - ended_at < ENDED_S:
            before, last = last, await eventually(left, within_s=ENDED_S)
            if last != before:
                ended_at = time.monotonic()
            await asyncio.sleep(0.5)  # sleep-ok: how long it takes is what is measured

    async def _left(self, accepted: set[str]) -> int:
        await self.read()
        open_tasks = [one for one in accepted if not any(is_terminal(each.event) for each in self.tasks.get(one, []))]
        return len(open_tasks) + (await self._log.connection.js.stream_info(QUEUE)).state.messages


async def run(plan: Plan, folder: Path) -> str:
    """Run the plan; returns its counts.

    Raises:
        AssertionError: a promise was broken; it says which, of which task.
    """
    async with Field(folder, random.Random(plan.seed), LEASE_S, plan.servers) as battle:
        flow = Flow(plan, battle.urls)
        flowing = asyncio.create_task(flow.run())
        while not flowing.done():
            await asyncio.wait([flowing], timeout=plan.fault_s)
            if not flowing.done():
                battle.strike()
        await flowing
        await battle.heal()
        healed = time.monotonic()
        log = await EventLog.connect(battle.servers.settings, "/checker")
        histories = Histories(log)
        await histories.wait_for_ends(flow.accepted)
        ended_s = time.monotonic() - healed
        audits = {task_id: audit(history, ENDS) for task_id, history in histories.tasks.items()}
        found = takeovers(audits.values(), battle.blows, await _workers(log))
        counts = f"seed {plan.seed}\n{report(list(audits.values()), battle.blows, found, ended_s)}"
        findings = flow.refusals + findings_of(audits, flow.accepted)
        findings += await differences(battle.urls, log, audits)
        findings += _unhandled(folder)
        await log.close()
    (folder / "findings.txt").write_text("\n".join(findings))
    assert not findings, "\n".join([counts, f"{len(findings)} findings", *findings[:20]])
    return counts


def findings_of(audits: dict[str, Audit], accepted: set[str]) -> list[str]:
    lost = [f"{task_id}: accepted, but not in the log" for task_id in accepted - set(audits)]
    unheard = [f"{task_id}: in the log, but never accepted" for task_id in set(audits) - accepted]
    return (
        lost
        + unheard
        + [f"{task_id} ({one.shape}): {finding}" for task_id, one in audits.items() for finding in one.findings]
    )


def _unhandled(folder: Path) -> list[str]:
    """What no part of ours caught: it is in the processes' logs."""
    lines = [(file, line) for file in folder.rglob("*.log") for line in file.read_text(errors="replace").splitlines()]
    return [f"{file}: {line}" for file, line in lines if any(sign in line for sign in UNHANDLED)]


async def _workers(log: EventLog) -> dict[int, str]:
    """Which worker each process was."""
    found: dict[int, str] = {}
    last = await log.read_last("WORKERS", "bl.>")
    if last is None:
        return found
    async with aclosing(log.tail("WORKERS", 0)) as batches:
        async for batch in batches:
            for recorded in (decode(message, "WORKERS") for message in batch):
                if isinstance(recorded.event, WorkerStarted):
                    found[recorded.event.pid] = recorded.event.worker_id
            if batch.sequences[-1] >= last.sequence:
                return found
    return found


async def differences(urls: list[str], log: EventLog, audits: dict[str, Audit]) -> list[str]:
    """The read models of both gateways, the same rebuilt, and the Python fold say the same."""
    wanted = {task_id: (one.state, len(one.runs)) for task_id, one in audits.items()}
    findings: list[str] = []
    digests: set[tuple[Any, ...]] = set()
    async with httpx.AsyncClient(timeout=120, trust_env=False) as client:
        for url in urls:
            await eventually(lambda url=url: _caught_up(client, url, log), within_s=60)
            digests.add(await _digest(client, url))
            findings += await _wrong_rows(client, url, wanted)
            assert (await client.post(f"{url}/v1/projections/rebuild")).status_code in {200, 202, 204}
            await eventually(lambda url=url: _caught_up(client, url, log), within_s=60)
            digests.add(await _digest(client, url))
    return findings + ([f"read models differ: {digests}"] if len(digests) != 1 else [])


async def _caught_up(client: httpx.AsyncClient, url: str, log: EventLog) -> bool:
    with suppress(BitingLipError):
        last = await log.read_last(TASKS, "bl.task.>")
        ((applied,),) = await _rows(client, url, "SELECT max(sequence) FROM events WHERE stream = 'TASKS'")
        return last is not None and applied >= last.sequence
    return False


async def _digest(client: httpx.AsyncClient, url: str) -> tuple[Any, ...]:
    """Count and hash whole rows; the server adds them up, whatever their order."""
    tasks = await _rows(client, url, "SELECT count(*), sum(hash(tasks))::varchar FROM tasks")
    events = await _rows(client, url, "SELECT count(*), sum(hash(events))::varchar FROM events WHERE stream = 'TASKS'")
    return (*map(str, tasks[0]), *map(str, events[0]))


async def _wrong_rows(client: httpx.AsyncClient, url: str, wanted: dict[str, tuple[str, int]]) -> list[str]:
    seen: dict[str, tuple[str, int]] = {}
    page: list[Any] = [[""]]
    while page:
        sql = "SELECT task_id, state, coalesce(attempt, 0) FROM tasks WHERE task_id > ? ORDER BY task_id LIMIT ?"
        page = await _rows(client, url, sql, page[-1][0], PAGE)
        seen |= {task_id: (state, attempt) for task_id, state, attempt in page}
    wrong = [one for one in seen.keys() | wanted.keys() if seen.get(one) != wanted.get(one)]
    return [f"{one}: the read model says {seen.get(one)}, the log {wanted.get(one)}" for one in wrong]


async def _rows(client: httpx.AsyncClient, url: str, sql: str, *params: Any) -> list[Any]:
    answer = await client.post(f"{url}/v1/query", json={"sql": sql, "params": list(params)})
    assert answer.status_code == 200, answer.text
    return answer.json()["rows"]


def main() -> int:
    """Make the long run; returns 1, and keeps what the processes logged, if a promise was broken."""
    plan = Plan(
        seed=int(os.environ.get("FAULTS_SEED") or time.time()),
        tasks=int(os.environ.get("FAULTS_TASKS") or 20_000),
        seconds=float(os.environ.get("FAULTS_SECONDS") or 500),
        servers=int(os.environ.get("FAULTS_SERVERS") or 1),
    )
    sys.stdout.write(f"{plan}\n")
    sys.stdout.flush()
    folder = Path(tempfile.mkdtemp(prefix="bitinglip-faults-"))
    try:
        sys.stdout.write(f"{asyncio.run(run(plan, folder))}\n")
    except AssertionError as error:
        sys.stdout.write(f"{error}\nwhat the processes logged is in {folder}\n")
        return 1
    shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
