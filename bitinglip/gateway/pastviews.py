"""The cluster at a moment of the past, in the shapes of the answers about now; run on a thread, in one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, timedelta
from typing import Any

from bitinglip.events.envelope import Recorded
from bitinglip.events.model import QueueEvent
from bitinglip.events.pauses import lanes_paused
from bitinglip.events.registry import Event
from bitinglip.events.schedule import ScheduleEvent
from bitinglip.events.streams import MODELS, SCHEDULES, TASKS
from bitinglip.gateway import liveness, modelviews, schedules
from bitinglip.gateway.estimates import RATE_S, wait_s
from bitinglip.gateway.knownmodels import KnownModels
from bitinglip.projections.moment import Moment
from bitinglip.projections.past import Past, QueueThen
from bitinglip.settings import Settings
from bitinglip.tasks.schedules import Schedule, fold_schedule

BATCHES_MOST = 50
UNHEARD_WORKER = (
    "running", "done", "failed", "loaded", "rss_bytes", "device_name", "device_memory_total_bytes",
    "device_memory_used_bytes", "device_utilisation_percent", "device_temperature_c", "device_power_w", "seen_at",
)  # fmt: skip
"""What only heartbeats tell of a worker."""
UNHEARD_NODE = ("cpu_percent", "memory_used_bytes", "disk_free_bytes", "rss_bytes", "workers", "seen_at")
View = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Silence:
    """How long a node and a worker live after their last sign of life."""

    node: timedelta
    worker: timedelta

    @classmethod
    def of(cls, settings: Settings) -> Silence:
        """Return it as the settings have it."""
        return cls(liveness.silence(settings.node.heartbeat_s), liveness.silence(settings.worker.heartbeat_s))


def told(moment: Moment) -> View:
    """Return what an answer says of its moment."""
    return {"time": moment.at, "sequence": moment.of(TASKS)}


def workers(past: Past, silence: timedelta) -> list[View]:
    """Return the workers: one that was silent is `gone`; what heartbeats told is null where they are gone."""
    shown: list[View] = []
    for row, heard in past.workers():
        gone = heard and row.state != "stopped" and row.seen_at < past.moment.at - silence
        view = asdict(row) | ({"state": "gone"} if gone else {})
        shown.append(view if heard else view | dict.fromkeys(UNHEARD_WORKER))
    return shown


def nodes(past: Past, silence: timedelta) -> list[View]:
    """Return the nodes: one that was silent is `offline`; what heartbeats told is null where they are gone."""
    shown: list[View] = []
    for row, heard in past.nodes():
        gone = heard and row.seen_at < past.moment.at - silence
        view = asdict(row) | ({"state": "offline"} if gone else {})
        shown.append(view if heard else view | dict.fromkeys(UNHEARD_NODE))
    return shown


def queues(past: Past) -> list[View]:
    """Return what waited and ran by lane and model, all API keys and requirements together, and what was paused.

    Raises:
        PastTooLarge: too many tasks were on their way.
    """
    paused = _paused(past.history(MODELS))
    found = {(each.lane, each.model): each for each in past.queues()}
    ended = past.ended_since(past.moment.at - timedelta(seconds=RATE_S))
    shown: list[View] = []
    for lane, model in sorted({*found, *paused}):
        _, _, waiting, running, since = found.get((lane, model)) or QueueThen(lane, model, 0, 0, None)
        rate = ended.get((lane, model), 0) / RATE_S
        stopped = (lane, model) in paused
        shown.append({
            "lane": lane, "model": model, "key": None, "requires": None, "depth": waiting + running,
            "waiting": waiting, "running": running,
            "oldest_s": since and round((past.moment.at - since.replace(tzinfo=UTC)).total_seconds(), 3),
            "rate_per_s": round(rate, 3), "estimated_wait_s": wait_s(waiting, rate, paused=stopped), "paused": stopped,
        })  # fmt: skip
    return shown


def models(past: Past) -> list[View]:
    """Return the models that were known, with where they were, and what tasks had made of them.

    Raises:
        PastTooLarge: too many tasks were on their way.
    """
    known = KnownModels()
    for recorded in past.history(MODELS):
        known.fold(recorded)
    return modelviews.listed(known, past.model_usage())


def schedules_then(past: Past) -> list[View]:
    """Return the schedules that there were, the oldest first, each with the time that was its next one."""
    found = [fold_schedule(history) for history in _by_schedule(past.history(SCHEDULES)).values()]
    living = [each for each in found if each is not None and each.state != "deleted"]
    passed = [_passed(each, past.moment) for each in sorted(living, key=lambda each: each.id)]
    return [schedules.shown(each, each.created.task) for each in passed]


def cluster(past: Past, silence: Silence) -> View:
    """Return all of it together.

    Raises:
        PastTooLarge: too many tasks were on their way.
    """
    return {
        "as_of": told(past.moment),
        "tasks": past.counts(),
        "nodes": nodes(past, silence.node),
        "workers": workers(past, silence.worker),
        "queues": queues(past),
        "models": models(past),
        "batches": past.batches(BATCHES_MOST),
        "schedules": schedules_then(past),
    }


def _paused(history: list[Recorded]) -> set[tuple[str, str]]:
    changes: dict[str, list[Event]] = defaultdict(list)
    for recorded in history:
        if isinstance(recorded.event, QueueEvent):
            changes[recorded.event.model].append(recorded.event)
    return {(lane, model) for model, told in changes.items() for lane in lanes_paused(told)}


def _by_schedule(history: list[Recorded]) -> Mapping[str, list[Recorded]]:
    found: dict[str, list[Recorded]] = defaultdict(list)
    for recorded in history:
        if isinstance(recorded.event, ScheduleEvent):
            found[recorded.event.schedule_id].append(recorded)
    return found


def _passed(schedule: Schedule, moment: Moment) -> Schedule:
    """Let times before the moment count as passed: what fired then is a tick, which the log may not have any more."""
    return schedule._replace(since=max(schedule.since, moment.at))
