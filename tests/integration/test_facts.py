"""What a worker with several models knows, while its own routes change."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

from bitinglip.events.log import EventLog
from bitinglip.events.queue import WorkQueue
from bitinglip.events.streams import Route
from bitinglip.ids import TaskId
from bitinglip.settings import Settings
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.facts import Facts
from bitinglip.workers.policy import Wait, decide
from bitinglip.workers.view import CardView, Held, Requires, RouteView, WorkerView

ONE, OTHER = RouteView("normal", "org/a"), RouteView("normal", "org/b")
LABELLED = RouteView("normal", "org/a", requires=Requires(labels=frozenset({"eu"})))

SLACK_S = 0.2
"""A task is in the log a little before its submitter knows."""


class Worker:
    """The worker's own side: its view, and how often it was told of another plan."""

    def __init__(self) -> None:
        self.view = WorkerView({"org/a": (LABELLED, ONE), "org/b": (OTHER,)}, CardView("me"))

    def own(self) -> WorkerView:
        return self.view


async def test_a_route_that_is_gone_is_asked_no_more(log: EventLog, eventually: Any) -> None:
    models = [ModelSpec(kind="echo", reference=reference) for reference in ("org/a", "org/b")]
    facts, worker = Facts(log, Settings(), "me", models), Worker()
    await facts.start(worker.own, lambda: None)
    try:
        assert [route.requires for route in facts.view(worker.view).routes["org/a"]] == [
            LABELLED.requires,
            ONE.requires,
        ]
        worker.view = WorkerView({"org/a": (ONE,), "org/b": (OTHER,)}, CardView("me"))
        facts.routes_gone()
        assert facts.view(worker.view).routes["org/a"] == (ONE,)

        async def looked_at() -> bool:
            return [route.depth for route in facts.view(worker.view).routes["org/a"]] == [0]

        await eventually(looked_at)
    finally:
        await facts.close()


async def test_the_longest_wait_is_that_of_the_first_who_still_waits(log: EventLog, eventually: Any) -> None:
    inbox, queue, route = Inbox(log, inline_max_bytes=1024), WorkQueue(log.connection, 30.0), Route("normal", "org=2Fa")
    await queue.ensure([route])
    models = [ModelSpec(kind="echo", reference=reference) for reference in ("org/a", "org/b")]
    facts, worker = Facts(log, Settings(), "me", models), Worker()
    worker.view = WorkerView({"org/a": (ONE,), "org/b": (OTHER,)}, CardView("me"))

    def seen() -> RouteView:
        return facts.view(worker.view).routes["org/a"][0]

    async def submit() -> tuple[TaskId, float]:
        task = SubmitTask(kind="echo", model="org/a", params={"message": 1})
        return (await inbox.submit(task)).task_id, time.monotonic()

    _, first_at = await submit()
    await facts.start(worker.own, lambda: None)
    try:
        await eventually(lambda: seen().oldest_s > 1.5)  # nobody was given any: it ages from look to look
        second, second_at = await submit()
        await eventually(lambda: seen().depth == 2)
        assert seen().oldest_s > 1.5
        _, third_at = await submit()
        await eventually(lambda: seen().depth == 3)
        assert await queue.pull(route, 1)
        await eventually(lambda: seen().depth == 2)
        assert seen().oldest_s < time.monotonic() - second_at + SLACK_S < time.monotonic() - first_at
        await inbox.cancel(second, CancelTask())
        await eventually(lambda: seen().depth == 1)
        assert seen().oldest_s < time.monotonic() - third_at + SLACK_S
    finally:
        await facts.close()
        await queue.close()


async def test_who_becomes_idle_waits_at_once_for_what_nobody_has_loaded(log: EventLog) -> None:
    """Without another look at the queues, of which the next may be seconds away."""
    queue = WorkQueue(log.connection, 30.0)
    await queue.ensure([Route("normal", "org=2Fa"), Route("normal", "org=2Fb")])
    models = [ModelSpec(kind="text-generation", reference=name, path=f"/none/{name}") for name in ("org/a", "org/b")]
    facts, worker, changed = Facts(log, Settings(), "me", models), Worker(), asyncio.Event()
    busy = WorkerView({"org/a": (ONE,), "org/b": (OTHER,)}, CardView("me", loaded=(Held("org/a"),)))
    worker.view = busy
    await facts.start(worker.own, changed.set)
    try:
        assert facts.view(busy).plan is not None
        step = decide(replace(facts.view(busy), idle=True, loaded=frozenset({"org/a"})))
        assert isinstance(step, Wait)
        assert [route.reference for route in step.routes] == ["org/a"]
        idle = worker.view = replace(busy, card=replace(busy.card, idle=True), idle=True, loaded=frozenset({"org/a"}))
        changed.clear()
        looked = log.connection.client.stats["out_msgs"]
        facts.view(idle)
        await changed.wait()
        assert log.connection.client.stats["out_msgs"] == looked
        step = decide(facts.view(idle))
        assert isinstance(step, Wait)
        assert {route.reference for route in step.routes} == {"org/a", "org/b"}
    finally:
        await facts.close()
        await queue.close()
