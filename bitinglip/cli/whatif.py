"""`events replay --what-if`: the recorded arrivals in the simulator, beside what really happened.

The simulator runs as a process of its own. Each task takes what it took (a task of a batch, its part of it); one that
never ran, what its model's tasks took on average. Sizes and load times of models are what workers told of them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from statistics import fmean, median
from typing import Any

import orjson

from bitinglip.cli import render
from bitinglip.cli.client import Client, ServerEvent
from bitinglip.cli.recorded import Part, time_of
from bitinglip.errors import InvalidInput

GIB = 2**30
UNKNOWN_BYTES = 1 << 50
"""A card whose memory nobody told takes every model."""
LANES = ("interactive", "normal", "batch")
TYPES = ("task.submitted", "task.queued", "task.assigned", "task.succeeded", "task.failed", "task.dead_lettered")
ENDS = frozenset({"task.succeeded", "task.failed", "task.dead_lettered"})
_CARDS = re.compile(r"(?:(\d{1,5})x)?(\d+(?:\.\d+)?)\s*G(?:i?B)?", re.IGNORECASE)


@dataclass(slots=True)
class Past:
    """A task as the log tells it."""

    submitted: dict[str, Any]
    came_at: datetime
    ready_at: datetime | None
    wait_ms: float | None = None
    batch_size: int = 1
    run_ms: float | None = None
    ended_at: datetime | None = None
    workers: set[str] = field(default_factory=set[str])

    @property
    def run_s(self) -> float | None:
        """Seconds of a card that it took; none if it never ran."""
        return None if self.run_ms is None else self.run_ms / 1000 / self.batch_size


def run(
    gateway: Client,
    begin: int | datetime,
    end: int | datetime | None,
    cards: str | None,
    policies: list[str],
    *,
    as_json: bool,
) -> None:
    """Simulate the arrivals of a part of the log, and print the figures beside those of what happened.

    Raises:
        InvalidInput: the cards or a policy cannot be read, or no task became ready to run in that part.
    """
    told_of = tasks_of(Part("tasks", begin, end, TYPES).events(gateway)).values()
    tasks = [task for task in told_of if task.ready_at is not None]  # others asked nothing of a card
    if not tasks:
        raise InvalidInput(field="--from", problem="no task became ready to run in this part of the log")
    loaded = list(Part("workers", 1, None, ("worker.model_loaded",)).events(gateway))
    sizes = read_cards(cards) if cards is not None else _real_cards(gateway, tasks)
    question = {
        "arrivals": arrivals_of(tasks, names_of(loaded)),
        "models": models_of(loaded),
        "cards": sizes,
        "policies": list(dict.fromkeys(policies)),
    }
    told = {"happened": happened(tasks, loaded), "cards": len(sizes)} | _asked(question)
    render.json(told) if as_json else _print(told)


def tasks_of(events: Iterable[ServerEvent]) -> dict[str, Past]:
    """Return the tasks that were submitted among these events, in the order in which they came."""
    found: dict[str, Past] = {}
    for event in events:
        told, at = event.data["data"], time_of(event)
        if event.type == "task.submitted":
            delayed = told.get("run_at") or told.get("depends_on")
            found[told["task_id"]] = Past(told, at, None if delayed else at)
        elif told["task_id"] in found:
            _follow(found[told["task_id"]], event.type, told, at)
    return found


def _follow(task: Past, type_: str, told: dict[str, Any], at: datetime) -> None:
    if type_ == "task.queued":
        task.ready_at = task.ready_at or at
    elif type_ == "task.assigned":
        task.wait_ms = told["wait_ms"] if task.wait_ms is None else task.wait_ms
        task.batch_size = max(1, told["batch_size"])
        task.workers.add(told["worker_id"])
    elif type_ in ENDS:
        task.run_ms, task.ended_at = told.get("run_ms"), at


def arrivals_of(tasks: list[Past], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return what comes into the simulation: tasks that became ready, with what they take.

    `names`: the one name of each model that has another one besides.
    """
    ready = [task for task in tasks if task.ready_at is not None]
    if not ready:
        return []
    first = min(_ready(task) for task in ready)
    runs: dict[str, list[float]] = {}

    def model_of(task: Past) -> str:
        return names.get(task.submitted["model"], task.submitted["model"])

    for task in tasks:
        if task.run_s is not None:
            runs.setdefault(model_of(task), []).append(task.run_s)
    usual = fmean([each for some in runs.values() for each in some] or [0.0])
    return [
        {
            "at_s": (_ready(task) - first).total_seconds(),
            "lane": task.submitted["lane"],
            "key": task.submitted.get("key_id") or "",
            "model": model_of(task),
            "run_s": task.run_s if task.run_s is not None else fmean(runs.get(model_of(task), [usual])),
        }
        for task in ready
    ]


def names_of(loaded: Iterable[ServerEvent]) -> dict[str, str]:
    """Return the names with a revision of models that were loaded by their names alone."""
    told = [event.data["data"] for event in loaded]
    return {
        f"{each['reference']}@{each['revision']}": each["reference"]
        for each in told
        if each["revision"] and "@" not in each["reference"]
    }


def models_of(loaded: Iterable[ServerEvent]) -> dict[str, dict[str, Any]]:
    """Return what each model takes, by what workers told of their loads: the most memory, the median of the times."""
    found: dict[str, list[dict[str, Any]]] = {}
    for event in loaded:
        found.setdefault(event.data["data"]["reference"], []).append(event.data["data"])
    return {
        reference: {
            "need_bytes": max(max(each["need_bytes"], each["memory_bytes"]) for each in loads),
            "load_s": median(each["load_ms"] for each in loads) / 1000,
        }
        for reference, loads in found.items()
    }


def happened(tasks: list[Past], loaded: Iterable[ServerEvent]) -> dict[str, Any]:
    """Return the figures of what really happened, as the simulator has them."""
    begun = min(task.came_at for task in tasks)
    ended = max([task.ended_at for task in tasks if task.ended_at is not None], default=begun)
    makespan_s = (ended - begun).total_seconds()
    workers = {worker for task in tasks for worker in task.workers}
    busy_s = sum(task.run_s or 0.0 for task in tasks)
    waits: dict[str, list[float]] = {lane: [] for lane in LANES}
    for task in tasks:
        waits[task.submitted["lane"]] += [] if task.wait_ms is None else [task.wait_ms / 1000]
    return {
        "tasks": len(tasks),
        "waits_s": {lane: [_quantile(each, 0.5), _quantile(each, 0.99)] for lane, each in waits.items() if each},
        "loads": sum(begun <= time_of(event) <= ended for event in loaded),
        "utilisation": round(busy_s / len(workers) / makespan_s, 3) if workers and makespan_s else 0.0,
        "makespan_s": round(makespan_s, 2),
        "unserved": sum(task.wait_ms is None for task in tasks),
        "cards": len(workers),
    }


def read_cards(text: str) -> list[int]:
    """Return the memory of each card, in bytes; a GB is a GiB here, as cards are sold.

    Raises:
        InvalidInput: it is not of the form 8x8GB,2x24GB.
    """
    sizes: list[int] = []
    for part in text.split(","):
        match = _CARDS.fullmatch(part.strip())
        if match is None or float(match[2]) == 0 or match[1] == "0":
            raise InvalidInput(field="--cards", problem=f"{part.strip()!r} is not of the form 8x8GB or 24GB")
        sizes += [int(float(match[2]) * GIB)] * int(match[1] or 1)
    return sizes


def _real_cards(gateway: Client, tasks: list[Past]) -> list[int]:
    """Return the cards of the workers that ran the tasks, or, if none did, of all that there are."""
    ran = {worker for task in tasks for worker in task.workers}
    told: list[dict[str, Any]] = gateway.get("/v1/workers")["workers"]
    workers = {each["worker_id"]: each.get("device_memory_total_bytes") for each in told}
    return [workers.get(name) or UNKNOWN_BYTES for name in ran or workers] or [UNKNOWN_BYTES]


def _asked(question: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "bitinglip.workers.simulation"]
    ended = subprocess.run(command, input=orjson.dumps(question), capture_output=True, check=False)
    if ended.returncode != 0:
        raise InvalidInput(field="--what-if", problem=ended.stderr.decode(errors="replace").strip()[-500:])
    return orjson.loads(ended.stdout)


def _print(told: dict[str, Any]) -> None:
    columns = {"happened": told["happened"], **told["results"]}
    rows = [["cards", told["happened"]["cards"], *[told["cards"] for _ in told["results"]]]]
    rows += [[name, *[each[name] for each in columns.values()]] for name in ("tasks", "unserved", "loads")]
    for lane in LANES:
        waits = [each["waits_s"].get(lane) for each in columns.values()]
        if any(waits):
            rows.append([f"wait {lane} p50 / p99", *[f"{w[0]:g} / {w[1]:g} s" if w else None for w in waits]])
    rows.append(["utilisation", *[f"{each['utilisation']:.0%}" for each in columns.values()]])
    rows.append(["makespan", *[f"{each['makespan_s']:g} s" for each in columns.values()]])
    render.table(["", *columns], rows)
    if told["fits_nowhere"]:
        render.note(f"{told['fits_nowhere']} tasks fit on none of these cards, and are left out.")


def _ready(task: Past) -> datetime:
    assert task.ready_at is not None
    return task.ready_at


def _quantile(values: list[float], part: float) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)
