"""What a worker with several models knows, while its own routes change."""

from __future__ import annotations

from typing import Any

from bitinglip.events.log import EventLog
from bitinglip.settings import Settings
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.facts import Facts
from bitinglip.workers.view import CardView, Requires, RouteView, WorkerView

ONE, OTHER = RouteView("normal", "org/a"), RouteView("normal", "org/b")
LABELLED = RouteView("normal", "org/a", requires=Requires(labels=frozenset({"eu"})))


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
