"""A thousand queues with a hundred thousand tasks that wait, and five hundred workers that have nothing to do.

    python -m benchmarks.scale

The decisions are those of one worker that serves all of the thousand models, with its facts gathered in the background
as ever; the idle workers are as many connections, each with standing pulls on three lanes and a heartbeat in ten
seconds, made in this one process. Of the bounds, only that of a decision was asked for; the others show a run
that is off.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import uvloop

from benchmarks.support import Figure, nats_server, publish, quantile, scratch
from benchmarks.throughput import submission
from bitinglip.cli.natsserver import PrivateServer
from bitinglip.events.connection import Connection
from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import Route
from bitinglip.events.subjects import encode_token, worker_subject
from bitinglip.events.task import LANES
from bitinglip.events.worker import WorkerHeartbeat
from bitinglip.ids import TaskId
from bitinglip.processes import spare_the_heap
from bitinglip.settings import Nats, Settings
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.facts import Facts
from bitinglip.workers.policy import Pull, after_service, decide
from bitinglip.workers.routebook import common_routes, route_of
from bitinglip.workers.view import CardView, WorkerView

MODELS, WAITING = 1000, 100_000
DECISIONS = 150
GATHER_S = 5.0
WORKERS, SETTLE_S, WATCH_S = 500, 12.0, 30.0


async def measure() -> list[Figure]:
    """Measure both."""
    async with scratch() as folder, nats_server(folder) as server:
        figures = await _deep(server, folder)
    async with scratch() as folder, nats_server(folder) as server:
        return figures + await _idle(server)


# --- many queues ------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Decider:
    """What an agent keeps between two decisions."""

    facts: Facts
    queue: WorkQueue
    view: WorkerView

    async def step(self) -> bool:
        """Decide, and pull what was decided; tells whether there was work."""
        with self.facts.undisturbed():
            return await self._step()

    async def _step(self) -> bool:
        step = decide(self.facts.view(self.view))
        empty = list(step.empty) if isinstance(step, Pull) else []
        for route in step.routes:
            found = await self.queue.pull(route_of(route), 1)
            if found:
                self.view = after_service(self.view, route, 1, empty)
                for delivery in found:
                    await delivery.ack()
                return True
            empty.append(route)
        return False


async def _deep(server: PrivateServer, folder: Path) -> list[Figure]:
    log = await EventLog.connect(Nats(url=server.url), "/bench")
    process = psutil.Process(server.pid)
    empty_mb = process.memory_info().rss / 1e6
    references = [f"bench/{number}" for number in range(MODELS)]
    queue = WorkQueue(log.connection, 30.0)
    await queue.ensure([Route(lane, encode_token(name)) for name in references for lane in LANES])
    for start in range(0, WAITING, 5000):
        events = [submission(TaskId(log.ids()), references[n % MODELS]) for n in range(start, start + 5000)]
        await log.append_all([log.task_append(e, 0, route=("normal", encode_token(e.model))) for e in events])
    waiting = 0
    while waiting < WAITING:
        await asyncio.sleep(0.1)
        waiting = sum(state.waiting for state in await log.queue_states())
    started = time.perf_counter()
    await log.queue_states()
    asked_ms = (time.perf_counter() - started) * 1000
    full_mb = process.memory_info().rss / 1e6
    floor = await _bare(queue, references)
    weighty = [_weighty(folder, name) for name in references]
    held, share = await _decisions(log, queue, weighty, frozenset(references[:2]))
    weightless = [ModelSpec(kind="echo", reference=name) for name in references]
    light, _ = await _decisions(log, queue, weightless, frozenset())
    await queue.close()
    await log.close()
    return [
        _decision("next decision, 1,000 models of which two are loaded: facts, decide, pull", held),
        _decision("the same, all of them at hand (models without weights)", light),
        _decision("floor: three pulls, nothing decided and no facts gathered", floor),
        Figure("depths of 3,000 queues, in the background", asked_ms, "ms", 1000, at_least=False),
        Figure("gathering facts about them, in the background", share, "% of a core", 100, at_least=False),
        Figure("nats-server then", full_mb, "MB", 1000, at_least=False, note=f"empty {empty_mb:.0f} MB"),
    ]


async def _bare(queue: WorkQueue, references: list[str]) -> list[float]:
    """Return milliseconds of what a decision asks of the server and nothing else: how quiet the machine is."""
    taken: list[float] = []
    for number in range(DECISIONS):
        token = encode_token(references[number % MODELS])
        started = time.perf_counter()
        for lane in ("interactive", "batch", "normal"):
            for delivery in await queue.pull(Route(lane, token), 1):
                await delivery.ack()
        taken.append((time.perf_counter() - started) * 1000)
        await asyncio.sleep(0.02)
    return taken


def _decision(question: str, taken: list[float]) -> Figure:
    note = f"median {quantile(taken, 0.5):.2f}, longest {max(taken):.1f} of {len(taken)}"
    return Figure(question, quantile(taken, 0.99), "ms (p99)", 20, at_least=False, note=note)


def _weighty(folder: Path, reference: str) -> ModelSpec:
    """Return a model that takes time to load, as far as its worker knows."""
    snapshot = folder / "model"
    snapshot.mkdir(exist_ok=True)
    (snapshot / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}), "utf-8")
    (snapshot / "model.safetensors").touch()
    return ModelSpec(kind="text-generation", reference=reference, revision=reference, path=str(snapshot))


async def _decisions(
    log: EventLog, queue: WorkQueue, models: list[ModelSpec], loaded: frozenset[str]
) -> tuple[list[float], float]:
    """Return milliseconds a decision, each of which finds work, and what part of a core the facts alone take."""
    facts = Facts(log, Settings(), "bench", models)
    card = CardView("bench")
    decider = Decider(facts, queue, WorkerView(common_routes(each.reference for each in models), card, loaded=loaded))
    await facts.start(lambda: replace(decider.view, card=facts.card(card, loaded, None, idle=False)), lambda: None)
    spare_the_heap()  # as a worker does
    taken: list[float] = []
    while len(taken) < DECISIONS:
        started = time.perf_counter()
        found = await decider.step()
        taken.append((time.perf_counter() - started) * 1000)
        assert found, "the models have work"
        await asyncio.sleep(0.02)  # a task runs; facts are gathered meanwhile
    before = time.process_time()
    await asyncio.sleep(GATHER_S)
    share = (time.process_time() - before) / GATHER_S * 100
    await facts.close()
    return taken, share


# --- many idle workers ------------------------------------------------------------------------------------------------


async def _idle(server: PrivateServer) -> list[Figure]:
    log = await EventLog.connect(Nats(url=server.url), "/bench")
    process = psutil.Process(server.pid)
    empty_mb = process.memory_info().rss / 1e6
    routes = [Route(lane, encode_token("echo")) for lane in LANES]
    logs = [EventLog(await Connection.open(Nats(url=server.url), f"w{n}"), f"/w{n}") for n in range(WORKERS)]
    queues = [WorkQueue(each.connection, 10.0) for each in logs]
    await queues[0].ensure(routes)
    tasks = [asyncio.create_task(_stand(queue, routes)) for queue in queues]
    tasks += [asyncio.create_task(_beat(each, n)) for n, each in enumerate(logs)]
    await asyncio.sleep(SETTLE_S)
    before = _seconds(process)
    await asyncio.sleep(WATCH_S)
    share = (_seconds(process) - before) / WATCH_S * 100
    size = process.memory_info().rss / 1e6
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*[each.close() for each in (*logs, log)])
    return [
        Figure("500 idle workers: nats-server", share, "% of a core", 10, at_least=False),
        Figure("the same, its memory", size, "MB", 300, at_least=False, note=f"empty {empty_mb:.0f} MB"),
    ]


async def _stand(queue: WorkQueue, routes: list[Route]) -> None:
    """Wait for work that never comes, as an idle worker does."""
    while True:
        await queue.wait(routes, 1)


async def _beat(log: EventLog, number: int) -> None:
    heartbeat = Settings().worker.heartbeat_s
    await asyncio.sleep(heartbeat * number / WORKERS)
    worker_id = f"bench-{number}"
    event = WorkerHeartbeat.model_validate(WorkerHeartbeat.example | {"worker_id": worker_id})
    while True:
        await log.append(log.fact_append(event, worker_subject(worker_id, "heartbeat"), worker_id, ttl_s=3600))
        await asyncio.sleep(heartbeat)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    publish(uvloop.run(measure()))
