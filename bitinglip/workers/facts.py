"""What a worker with several models knows of the cluster: gathered in the background, never in a decision's way.

Queues are asked for once a second while there is work, ever more seldom while there is none, and at once when a peer
says that something has changed. A worker with one model has nothing to choose, and gathers nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

from bitinglip.errors import NoServer
from bitinglip.events.consumers import QueueState, queue_states
from bitinglip.events.log import EventLog
from bitinglip.events.streams import Route
from bitinglip.settings import Settings
from bitinglip.workers.engine import START_SERVER, ModelSpec
from bitinglip.workers.loading import Plan, plan
from bitinglip.workers.names import Names
from bitinglip.workers.peers import Peers
from bitinglip.workers.room import CPU, budget_bytes, need_bytes
from bitinglip.workers.routebook import route_of
from bitinglip.workers.view import CardView, ClusterView, Held, ModelView, RouteView, WorkerView

log = logging.getLogger(__name__)

LOOK_S, SELDOM = 1.0, 2.0
"""Seconds between two looks while there is work; while there is none each pause is so many times the one before."""
READ_BYTES_PER_S, LEAST_LOAD_S, SERVER_LOAD_S = 200e6, 2.0, 60.0
"""How long a load takes, as long as none was measured: by its bytes, or that of a server of its own."""
TASK_S = 1.0
"""How long a task takes, as long as none was measured."""
NEWEST = 0.3
"""Weight of the newest measure in an average."""
SLICE = 16
"""Models that are looked at in one go: a decision may be waiting."""
PATIENCE_S = 0.25
"""How long a question that takes the server long waits for a decision that asks for work."""
SURE_S = 30.0
"""How long the first task of a queue is taken for the first one, if nobody was given any: one that was cancelled may
have been before it."""


@dataclass(frozen=True, slots=True)
class _First:
    """The first waiting task of a queue, as the server had it at `asked_at`."""

    handed_out: int
    waiting: int
    since: float
    asked_at: float

    def holds(self, state: QueueState, now: float) -> bool:
        """Tell whether it is still the first one."""
        unmoved = state.handed_out == self.handed_out and state.waiting >= self.waiting
        return unmoved and now - self.asked_at < SURE_S


class Facts:
    """The facts of one worker, and the plan that follows from them."""

    def __init__(self, event_log: EventLog, settings: Settings, worker_id: str, models: Sequence[ModelSpec]) -> None:
        self._log = event_log
        self._settings = settings
        self._worker_id = worker_id
        self._names = Names(models)
        self._specs = {model.reference: model for model in self._names.specs}
        self._models: dict[str, ModelView] = {}
        self._task_s: dict[str, float] = {}
        self.loads_s = 0.0
        """Seconds that all loads took together."""
        self._wake = asyncio.Event()
        self._free = asyncio.Event()
        self._free.set()
        self._peers = Peers(event_log, worker_id, settings.worker.heartbeat_s, self._wake.set)
        self._routes: dict[str, tuple[RouteView, ...]] = {}
        self._first: dict[Route, _First] = {}
        self._since: dict[str, float] = {}
        self._used: dict[str, float] = {}
        self._bytes: dict[str, int] = {}
        self._total_bytes: int | None = None
        self._plan: Plan | None = None
        self._planned_busy = False
        """Whether the plan was made while this worker had something to do."""
        self._task: asyncio.Task[None] | None = None
        self._own: Callable[[], WorkerView] = lambda: WorkerView({})
        self._changed: Callable[[], None] = lambda: None

    async def start(self, own: Callable[[], WorkerView], changed: Callable[[], None]) -> None:
        """Look once, and go on in the background; `changed` is called when the plan has another line for us."""
        self._own, self._changed = own, changed
        await self._size(self._specs)
        await self._peers.start()
        await self._look()
        self._task = asyncio.create_task(self._run(), name="facts")

    async def serve(self, models: Sequence[ModelSpec]) -> None:
        """Take in which models the worker serves from now on."""
        self._names = Names(models)
        specs = {model.reference: model for model in self._names.specs}
        same = {name for name, spec in specs.items() if self._specs.get(name) == spec}
        self._models = {name: model for name, model in self._models.items() if name in same}
        await self._size({name: spec for name, spec in specs.items() if name not in same})
        self._specs = specs
        self.routes_gone()

    async def _size(self, specs: Mapping[str, ModelSpec]) -> None:
        """Take in what these models need."""
        self._models |= {name: await asyncio.to_thread(self._model, spec) for name, spec in specs.items()}

    async def close(self) -> None:
        """Gather no more."""
        if self._task is not None:
            self._task.cancel()
        await self._peers.close()

    # --- what a decision sees -----------------------------------------------------------------------------------------

    def view(self, view: WorkerView) -> WorkerView:
        """Return the view with the facts in it."""
        routes = {name: self._known(name, views) for name, views in view.routes.items()}
        card = self._own().card
        if card.idle and self._planned_busy:
            asyncio.get_running_loop().call_soon(self._plan_idle)
        return replace(view, routes=routes, models=self._models, card=card, plan=self._plan)

    def _known(self, reference: str, views: tuple[RouteView, ...]) -> tuple[RouteView, ...]:
        """Return a model's routes with what is known of them; those that were opened since the last look come last."""
        known = self._routes.get(reference, ())
        return known if len(known) == len(views) else (*known, *views[len(known) :])

    def card(self, card: CardView, loaded: frozenset[str], loading: str | None, idle: bool) -> CardView:
        """Return this worker's card, given what its engine has and does."""
        now = time.monotonic()
        self._since = {reference: self._since.get(reference, now) for reference in loaded}
        ordered = sorted(loaded, key=lambda reference: (self._used.get(reference, 0.0), reference))
        held = tuple(Held(name, self._taken(name), now - self._since[name]) for name in ordered)
        worker = self._settings.worker
        return replace(
            card,
            budget_bytes=self._budget(),
            most_loaded=worker.max_loaded,
            loaded=held,
            loading=loading,
            idle=idle and loading is None,
            idle_s=now - max(self._used.values(), default=0.0),
            serves=frozenset(self._specs),
            pinned=frozenset(map(self._names.of, worker.pinned)),
        )

    @contextmanager
    def undisturbed(self) -> Generator[None]:
        """Let a decision ask for work: meanwhile the server is asked for nothing that would keep that waiting."""
        self._free.clear()
        try:
            yield
        finally:
            self._free.set()

    def routes_gone(self) -> None:
        """Forget what is known of routes, some of which are no longer this worker's; they are looked at anew."""
        self._routes = {}
        self._wake.set()

    def order_done(self) -> None:
        """Forget what the plan told us to load: it is done, or there was nothing to do."""
        if self._plan is not None:
            loads = {name: order for name, order in self._plan.loads.items() if name != self._worker_id}
            self._plan = replace(self._plan, loads=loads)
        self._wake.set()

    # --- what is measured ---------------------------------------------------------------------------------------------

    def ran(self, reference: str, tasks: int, took_s: float) -> None:
        """Take in how long tasks of a model took."""
        self._used[reference] = time.monotonic()
        known = self._task_s.get(reference, took_s / tasks)
        self._task_s[reference] = known + (took_s / tasks - known) * NEWEST

    def loaded(self, reference: str, took_s: float, taken_bytes: int) -> None:
        """Take in what a load took."""
        self.loads_s += took_s
        self._used[reference] = time.monotonic()
        self._bytes[reference] = taken_bytes
        if reference in self._models:
            self._models[reference] = replace(self._models[reference], load_s=took_s)

    def device(self, total_bytes: int | None) -> None:
        """Take in how much memory the device has."""
        self._total_bytes = total_bytes

    def _taken(self, reference: str) -> int:
        model = self._models.get(reference)
        return max(self._bytes.get(reference, 0), model.need_bytes if model else 0)

    def _budget(self) -> int | None:
        return budget_bytes(self._settings.worker, self._total_bytes)

    def _model(self, spec: ModelSpec) -> ModelView:
        if spec.vllm == START_SERVER:
            return ModelView(spec.reference, self._budget() or 0, SERVER_LOAD_S)
        if spec.vllm is not None or spec.path is None:
            return ModelView(spec.reference)
        need = need_bytes(spec, self._settings.worker, on_cpu=self._settings.worker.device == CPU)
        return ModelView(spec.reference, need, LEAST_LOAD_S + need / READ_BYTES_PER_S)

    # --- gathering ----------------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        pause_s = LOOK_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._wake.wait()
                await asyncio.sleep(LOOK_S / 10)  # others may have something to say as well
            self._wake.clear()
            try:
                await self._look()
            except NoServer as error:
                log.debug("no facts: %s", error)
            work = any(route.depth for routes in self._routes.values() for route in routes)
            pause_s = LOOK_S if work else min(pause_s * SELDOM, self._settings.worker.heartbeat_s)

    async def _look(self) -> None:
        """Take the facts anew, and make the plan.

        Raises:
            NoServer: the server does not answer.
        """
        waiting = {state.route: state for state in await queue_states(self._log.connection, self._when_free)}
        own = self._own()
        routes: dict[str, tuple[RouteView, ...]] = {}
        for name, views in own.routes.items():
            routes[name] = tuple([await self._route(view, waiting) for view in views])
            if len(routes) % SLICE == 0:
                await asyncio.sleep(0)
        if self._own().routes is not own.routes:
            self._wake.set()  # they have changed meanwhile: what was found is of others
            return
        self._routes = routes
        self._make_plan()

    async def _when_free(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S):
                await self._free.wait()

    def _make_plan(self) -> None:
        """Make the plan of what is known; who waits for something else hears of a new line."""
        card, before = self._own().card, self._line()
        self._planned_busy = not card.idle
        self._plan = plan(ClusterView(self._routes, self._models, (card, *map(self._names.card, self._peers.cards()))))
        if self._line() != before:
            self._changed()

    def _plan_idle(self) -> None:
        """Plan anew for a card that has become idle: until then it waits for the work of its own models alone."""
        if self._planned_busy and self._own().card.idle:
            self._make_plan()

    def _line(self) -> tuple[Any, ...]:
        if self._plan is None:
            return ()
        return self._plan.loads.get(self._worker_id), self._plan.waits.get(self._worker_id)

    async def _route(self, view: RouteView, waiting: dict[Route, QueueState]) -> RouteView:
        state = waiting.get(route_of(view))
        depth, oldest_s = 0, 0.0
        if state is not None and not state.paused:  # what is paused is nothing to load a model for
            depth, oldest_s = state.waiting, await self._oldest_s(state)
        task_s = self._task_s.get(view.reference, TASK_S)
        return replace(view, depth=depth, oldest_s=oldest_s, task_s=task_s)

    async def _oldest_s(self, state: QueueState) -> float:
        """Return how long the first of a queue's tasks has waited; the server is asked when it may be another one."""
        if not state.waiting:
            self._first.pop(state.route, None)
            return 0.0
        first, now = self._first.get(state.route), time.monotonic()
        if first is None or not first.holds(state, now):
            oldest_s = await self._log.oldest_waiting_s(state) or 0.0
            first = self._first[state.route] = _First(state.handed_out, state.waiting, now - oldest_s, now)
        return now - first.since
