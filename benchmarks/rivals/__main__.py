"""BitingLip beside Celery, taskiq and arq: no-op tasks, 100 in flight and one at a time, results known to the client.

    python -m benchmarks.rivals --rivals FOLDER [--redis PROGRAM] [--rounds N] [--only NAME ...]

FOLDER has a folder for each, where `pip install --target` has put it: FOLDER/celery (`celery[redis] hiredis`),
FOLDER/taskiq (`taskiq taskiq-nats taskiq-redis hiredis uvloop`), FOLDER/arq (`arq`). In each round everyone has its
turn, with a fresh server and one worker process of its own, and a floor is taken: our events from a bare loop of
nats-py. Every second round goes the other way round. The figures are medians over the rounds. With us the log is on,
and the client projects it, as a gateway does.

Each rival runs as it was seen to be fastest: Celery's pool `solo` was faster than `prefork` and `threads` (which is
measured too, for it alone runs 100 tasks at a time), arq polls every 5 ms and its client every 20, taskiq pulls one
message at a time (its pulls of several stall) and its client polls every 10 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from benchmarks.support import Figure, machine, nats_server, scratch, worker
from benchmarks.throughput import bare_loop, submit
from bitinglip.events.log import EventLog
from bitinglip.settings import Nats

FLOOR = 5000
READY_S, STOP_S = 10.0, 10.0


@dataclass(frozen=True, slots=True)
class Rival:
    """How another queue is run."""

    module: str
    folder: str
    server: str
    worker: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict[str, str])


def _celery(*options: str) -> tuple[str, ...]:
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "error")
    return ("celery", "-A", "benchmarks.rivals.celery_side", "worker", *options, *quiet)


TASKIQ = ("taskiq", "worker", "benchmarks.rivals.taskiq_side:broker", "--workers", "1", "--max-async-tasks", "100",
          "--log-level", "ERROR")  # fmt: skip
ARQ = ("arq", "benchmarks.rivals.arq_side.WorkerSettings", "--custom-log-dict", "benchmarks.rivals.arq_side.QUIET")
RIVALS = {
    "celery": Rival("celery_side", "celery", "redis", _celery("-P", "solo"), {"RIVAL_PREFETCH": "100"}),
    "celery, threads": Rival("celery_side", "celery", "redis", _celery("-P", "threads", "-c", "100")),
    "taskiq": Rival("taskiq_side", "taskiq", "nats and redis", TASKIQ),
    "taskiq, no results": Rival("taskiq_side", "taskiq", "nats", TASKIQ),
    "arq": Rival("arq_side", "arq", "redis", ARQ),
}

Turn = Callable[[Path], Awaitable[dict[str, float]]]


async def main(asked: argparse.Namespace) -> None:
    """Run the rounds, and print the table and the JSON."""
    turns: dict[str, Turn] = {"floor": _floor, "ours": _ours}
    for name in asked.only or RIVALS:
        turns[name] = _turn(RIVALS[name], asked)
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in turns}
    for number in range(asked.rounds):
        for name in list(turns)[:: -1 if number % 2 else 1]:
            async with scratch() as folder:
                taken[name].append(await turns[name](folder))
            sys.stdout.write(f"round {number + 1}, {name}: {_told(taken[name][-1])}\n")
            sys.stdout.flush()
    _publish(taken)


# --- turns ------------------------------------------------------------------------------------------------------------


async def _floor(folder: Path) -> dict[str, float]:
    async with nats_server(folder) as server:
        log = await EventLog.connect(Nats(url=server.url), "/bench")
        await submit(log, "floor", FLOOR)
        per_s = await bare_loop(server.url, FLOOR)
        await log.close()
    return {"per_s": per_s}


async def _ours(folder: Path) -> dict[str, float]:
    async with nats_server(folder) as server, worker(server.url, folder):
        return await _client("ours", {**os.environ, "RIVAL_URL": server.url})


def _turn(rival: Rival, asked: argparse.Namespace) -> Turn:
    async def turn(folder: Path) -> dict[str, float]:
        packages = os.pathsep.join([str(asked.rivals / rival.folder), os.getcwd()])
        env = {**os.environ, **rival.env, "PYTHONPATH": packages}
        async with _servers(rival.server, folder, asked.redis) as urls:
            env |= urls
            async with _running((sys.executable, "-m", *rival.worker), env):
                return await _client(rival.module, env)

    return turn


async def _client(module: str, env: dict[str, str]) -> dict[str, float]:
    command = (sys.executable, "-m", f"benchmarks.rivals.{module}")
    client = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.PIPE)
    output, _ = await client.communicate()
    return json.loads(output)


@asynccontextmanager
async def _servers(kind: str, folder: Path, redis: str) -> AsyncIterator[dict[str, str]]:
    """Run fresh servers with their own defaults, on loopback; yields where they are, as the sides read it."""
    async with AsyncExitStack() as stack:
        urls: dict[str, str] = {}
        if "nats" in kind:
            urls["RIVAL_URL"] = (await stack.enter_async_context(nats_server(folder))).url
        if "redis" in kind:
            url = await stack.enter_async_context(_redis(folder, redis))
            urls["RIVAL_REDIS" if urls else "RIVAL_URL"] = url
        yield urls


@asynccontextmanager
async def _redis(folder: Path, program: str) -> AsyncIterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (program, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder))
    async with _running(command, dict(os.environ)):
        await _until_open(port)
        yield f"redis://127.0.0.1:{port}"


@asynccontextmanager
async def _running(command: tuple[str, ...], env: dict[str, str]) -> AsyncIterator[None]:
    """Run a program, and end it with all that it started."""
    child = await asyncio.create_subprocess_exec(
        *command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        with suppress(TimeoutError):
            async with asyncio.timeout(STOP_S):
                await child.wait()
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


async def _until_open(port: int) -> None:
    until = time.monotonic() + READY_S
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return


# --- what is told -----------------------------------------------------------------------------------------------------


def _told(figures: dict[str, float]) -> str:
    alone = f", {figures['ms']:.2f} ms alone, p99 {figures['p99_ms']:.1f}" if "ms" in figures else ""
    return f"{figures['per_s']:,.0f} tasks/s{alone}"


def _median(rounds: list[dict[str, float]], what: str) -> float:
    return statistics.median(each[what] for each in rounds)


def _publish(taken: dict[str, list[dict[str, float]]]) -> None:
    sys.stdout.write("\n| | tasks/s, 100 in flight | ms, one at a time |\n| --- | --- | --- |\n")
    for name, rounds in taken.items():
        alone = f"{_median(rounds, 'ms'):.2f}" if "ms" in rounds[0] else ""
        sys.stdout.write(f"| {name} | {_median(rounds, 'per_s'):,.0f} | {alone} |\n")
    figures = _ratios(taken)
    sys.stdout.write("\n| question | measured | wanted | met | note |\n| --- | --- | --- | --- | --- |\n")
    sys.stdout.writelines(f"{figure.row()}\n" for figure in figures)
    document = {"machine": machine(), "rounds": taken, "figures": [figure.json() for figure in figures]}
    sys.stdout.write(json.dumps(document) + "\n")


def _ratios(taken: dict[str, list[dict[str, float]]]) -> list[Figure]:
    """Compare ours with the best of Celery's pools, and with the best of the others that keep results, or do not."""
    celery = [name for name in taken if name.startswith("celery")]
    others = [name for name in taken if name in ("taskiq", "arq")]
    bare = [name for name in taken if name.endswith("no results")]
    figures = list[Figure]()
    if celery:
        figures.append(_faster(taken, "Celery's", celery, 3))
        quickest = min(_median(taken[name], "ms") for name in celery)
        ratio = _median(taken["ours"], "ms") / quickest
        figures.append(Figure("latency one at a time, to Celery's", ratio, "", 0.5, at_least=False))
    if others:
        figures.append(_faster(taken, "that of the best of the others", others, 1.5))
    if bare:
        figures.append(_faster(taken, "that of taskiq without results", bare, 1.5))
    return figures


def _faster(taken: dict[str, list[dict[str, float]]], whose: str, names: list[str], bound: float) -> Figure:
    best = max(names, key=lambda name: _median(taken[name], "per_s"))
    per_s = _median(taken[best], "per_s")
    return Figure(f"completion rate, to {whose}", _median(taken["ours"], "per_s") / per_s, "", bound, True, best)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", type=Path, required=True)
    parser.add_argument("--redis", default=shutil.which("redis-server"), help="the redis-server program")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=RIVALS)
    return parser.parse_args()


if __name__ == "__main__":
    uvloop.run(main(_arguments()))
