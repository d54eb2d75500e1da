"""One worker: ask the policy, pull, run, write down, repeat."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain

from bitinglip.errors import BitingLipError, NoServer
from bitinglip.events.log import EventLog
from bitinglip.events.queue import Delivery, WorkQueue
from bitinglip.events.routes import known_routes, listen_for_routes
from bitinglip.events.streams import PATIENCE_S, Route, within
from bitinglip.events.subjects import decode_queue
from bitinglip.processes import spare_the_heap
from bitinglip.settings import Settings
from bitinglip.workers.attempt import Scribe
from bitinglip.workers.batch import BatchRunner
from bitinglip.workers.batcher import group
from bitinglip.workers.engine import Loaded, ModelSpec
from bitinglip.workers.facts import Facts
from bitinglip.workers.files import Files
from bitinglip.workers.identity import Identity
from bitinglip.workers.lease import LeaseKeeper, Ledger
from bitinglip.workers.names import Names
from bitinglip.workers.policy import Load, Pull, Wait, after_service, decide
from bitinglip.workers.routebook import common_routes, fitting, name_in, regrouped, route_of, view_of, with_route
from bitinglip.workers.view import CardView, RouteView, WorkerView

log = logging.getLogger(__name__)

AWAY_S = 0.5
"""Pause before the next pull while the server is away."""
LONGEST_WAIT_S = 3600.0
"""Seconds after which a wait begins anew: a timer cannot be endless."""


class Drain:
    """Whether the worker is asked to take nothing new, and whether it has come to that."""

    def __init__(self) -> None:
        self.asked = False
        self.changed = asyncio.Event()
        self.reached = asyncio.Event()
        self.left = asyncio.Event()
        self.left.set()

    def ask(self, drained: bool) -> None:
        """Ask for it, or for the end of it."""
        self.asked = drained
        self.changed.clear() if drained else self.changed.set()

    def rest(self, resting: bool) -> None:
        """Say that nothing runs and nothing is taken, or that work is taken again."""
        (self.reached.set if resting else self.left.set)()
        (self.left.clear if resting else self.reached.clear)()


class Agent:
    """The loop of one worker: pulls for the models that it serves, and runs what it gets, batch by batch."""

    def __init__(
        self,
        event_log: EventLog,
        settings: Settings,
        identity: Identity,
        models: list[ModelSpec],
        ledger: Ledger | None = None,
    ) -> None:
        """`ledger` is told which work messages the worker holds."""
        self._log = event_log
        self._settings = settings
        self._stopping = False
        self._last = 0
        self._leases = LeaseKeeper(settings.worker.lease_s, ledger)
        self._queue = WorkQueue(event_log.connection, settings.worker.lease_s, self._leases.hold)
        self._drain = Drain()
        scribe = Scribe(event_log, settings.log.tick_ttl_s, lambda: self._stopping)
        folder = settings.data_dir / "scratch" / identity.worker_id
        self._files = Files(event_log.connection, folder, lambda: self._stopping)
        self.runner = BatchRunner(
            event_log, scribe, self._leases, settings, identity, models, self._files, lambda: self._leaving
        )
        self.noteworthy = asyncio.Event()
        """Set whenever there is something to tell early: an attempt has failed, which may be the fault of a device, or
        the memory of one that serves several models has changed."""
        self._identity = identity
        self._asked: set[Route] = set()
        self._coming: list[ModelSpec] | None = None
        self.facts = self._facts_of(models)
        self._names = Names(models)
        self._view = WorkerView(
            routes=common_routes((model.reference for model in models), self._names),
            card=CardView(identity.worker_id, identity.node_id, frozenset(settings.worker.labels)),
        )
        self._found: list[Route] = []
        self._unseen = False

    async def run(self) -> None:
        """Work until `stop` is called and what was running has ended.

        Raises:
            NoServer: the server is not there at the start.
        """
        await self._files.clear()
        routes = [route_of(view) for views in self._view.routes.values() for view in views]
        in_time = within(PATIENCE_S)
        try:
            await self._queue.ensure(routes, patient=lambda: in_time() and not self._stopping)
        except NoServer:
            if self._stopping:
                return  # it is no longer needed
            raise
        opened = await listen_for_routes(self._log.connection, self._hear_of)
        forget = self._log.connection.on_reconnect(self._look_again)
        self._look_again()
        cancels = await self.runner.listen_for_cancels()
        if self.facts is not None:
            await self._gather(self.facts)
        spare_the_heap()
        keeper = asyncio.create_task(self._leases.run(), name="leases")
        try:
            while not self._stopping:
                await (self._rest() if self._drain.asked else self._round())
        finally:
            await self._hand_back(await self._queue.close())
            await self.runner.close()
            keeper.cancel()
            forget()
            await self._log.connection.unsubscribe(opened)
            if self.facts is not None:
                await self.facts.close()
            await self._log.connection.unsubscribe(cancels)

    def know_card(self, memory_bytes: int | None) -> None:
        """Say what the worker's device has, before `run`: work may require it."""
        self._view = replace(self._view, card=replace(self._view.card, total_bytes=memory_bytes))
        several = "," in self._settings.worker.device  # what they have together nobody tells
        self.runner.device_bytes = None if several else memory_bytes

    def know_labels(self, labels: Iterable[str]) -> None:
        """Say which labels the worker has from now on."""
        card = replace(self._view.card, labels=frozenset(labels))
        before = self._view.routes
        self._view = replace(self._view, card=card, routes=fitting(before, card))
        for view in [view for views in before.values() for view in views if not card.meets(view.requires)]:
            self._queue.drop(route_of(view))
        if self.facts is not None:
            self.facts.routes_gone()
        self._look_again()

    def serve(self, models: Sequence[ModelSpec]) -> None:
        """Serve these models from now on, and no others: as soon as what runs has ended, with its own revisions."""
        self._coming = list(models)
        self._drain.changed.set()
        self._queue.interrupt()

    def stop(self) -> None:
        """Pull nothing more; what runs may end within the grace period, then it is handed back."""
        self._stopping = True
        self._drain.changed.set()
        self._queue.interrupt()
        self.runner.stop_after(self._settings.worker.grace_s)

    def drain(self) -> None:
        """Take nothing new: what runs goes on to its end, what was pulled and has not begun is handed back."""
        self._drain.ask(True)
        self._queue.interrupt()

    def undrain(self) -> None:
        """Take work again."""
        self._drain.ask(False)

    @property
    def draining(self) -> bool:
        """Whether it takes nothing new."""
        return self._drain.asked

    async def when_drained(self) -> None:
        """Wait until it is drained: nothing runs, nothing is held."""
        await self._drain.reached.wait()

    async def when_undrained(self) -> None:
        """Wait until it takes work again."""
        await self._drain.left.wait()

    async def _rest(self) -> None:
        self._drain.rest(True)
        while self._drain.asked and not self._stopping:
            self._drain.changed.clear()
            try:
                await self._take_models()
            except NoServer as error:
                log.debug("the models stay as they are: %s", error)
                await asyncio.sleep(AWAY_S)
                continue
            await self._drain.changed.wait()
        self._drain.rest(False)

    # --- models that come and go --------------------------------------------------------------------------------------

    async def _take_models(self) -> None:
        """Serve what is to be served from now on, while nothing runs.

        Raises:
            NoServer: it is tried again.
        """
        if (coming := self._coming) is None:
            return
        served, names = {model.reference for model in coming}, Names(coming)
        before = [view for views in self._view.routes.values() for view in views]
        kept = [view for view in before if name_in(view) in served]
        new = common_routes(served - {name_in(view) for view in before}, names)
        await self._queue.ensure([route_of(view) for views in new.values() for view in views])
        for view in [view for view in before if name_in(view) not in served]:
            self._queue.drop(route_of(view))
        self._names = names
        self._view = replace(self._view, routes=regrouped([*kept, *chain(*new.values())], names), idle=False)
        await self.runner.serve(coming)
        await self._know_models(coming)
        self._coming = None if self._coming is coming else self._coming
        self._look_again()

    async def _know_models(self, models: list[ModelSpec]) -> None:
        if self.facts is not None:
            await self.facts.serve(models)
        elif (facts := self._facts_of(models)) is not None:
            self.facts = facts
            try:
                await self._gather(facts)
            except NoServer:
                self.facts = None
                raise

    def _facts_of(self, models: list[ModelSpec]) -> Facts | None:
        """Return what gathers the facts for a worker of these models; one model needs none."""
        if len(Names(models).specs) < 2:
            return None
        return Facts(self._log, self._settings, self._identity.worker_id, models)

    async def _gather(self, facts: Facts) -> None:
        self.runner.engine.on_load = self._load_heard
        if self._view.card.total_bytes is not None:
            facts.device(self._view.card.total_bytes)
        await facts.start(lambda: replace(self._view, card=self.card()), self._queue.interrupt)

    def _serves(self, reference: str) -> bool:
        """Tell whether a model is still to be served."""
        return self._coming is None or any(model.reference == reference for model in self._coming)

    def card(self) -> CardView:
        """Return what this worker has and does, as far as it gathers facts."""
        idle = self._view.idle and self.runner.counts.running == 0
        if self.facts is None:
            return self._view.card
        return self.facts.card(self._view.card, self.runner.loaded, self.runner.engine.loading, idle)

    def _load_heard(self, reference: str, loaded: Loaded | None) -> None:
        if self.facts is not None and loaded is not None:
            self.facts.loaded(reference, loaded.load_ms / 1000, loaded.memory_bytes or loaded.need_bytes)
        self.noteworthy.set()

    async def _round(self) -> None:
        try:
            deliveries = await self._pull()
        except NoServer as error:
            log.debug("nothing to pull from: %s", error)
            await asyncio.sleep(AWAY_S)
            return
        batches = list(group(deliveries, self._model).values())
        for batch in batches[1:]:
            await self._hand_back(batch)  # somebody else may be idle, and this worker is not for as long as that takes
        for batch in batches[:1]:
            await self._serve(batch)

    async def _serve(self, batch: list[Delivery]) -> None:
        """Run a batch and, where its engine takes in new tasks between two steps, those that come meanwhile.

        They come until every row is taken, and for `worker.join_s` if there are other models whose turn it may be.
        """
        running = {asyncio.create_task(self._run(batch), name="batch")}
        reference = self._model(batch[0])
        if reference in self._view.routes and self.runner.joins(reference):
            others = len(self._view.routes) > 1
            until = time.monotonic() + self._settings.worker.join_s if others else math.inf
            await self._let_join(reference, running, until)
        await asyncio.gather(*running)

    async def _let_join(self, reference: str, running: set[asyncio.Task[None]], until: float) -> None:
        while self._lets_join and time.monotonic() < until and not all(task.done() for task in running):
            room = self._settings.worker.max_batch - self.runner.held
            if room <= 0:
                self.runner.freed.clear()
                await self.runner.freed.wait()
                continue
            try:
                await self._take_in()
                found = await self._wait_beside(self._view.routes[reference], room, running, until)
            except NoServer as error:
                log.debug("nothing joins: %s", error)
                return
            for route, some in group(found, lambda delivery: delivery.route).items():
                self._view = after_service(self._view, view_of(route, self._names), len(some), ())
            for task in [task for task in running if task.done()]:
                running.remove(task)
                task.result()
            if found:
                running.add(asyncio.create_task(self._run(found), name="batch"))

    async def _wait_beside(
        self, routes: Sequence[RouteView], room: int, running: set[asyncio.Task[None]], until: float
    ) -> list[Delivery]:
        """Wait for work until there is some, or the running tasks are done, or it is too late for more to join."""

        def look(_: object) -> None:
            if all(task.done() for task in running):
                self._queue.interrupt()

        for task in running:
            task.add_done_callback(look)
        left_s = min(until - time.monotonic(), LONGEST_WAIT_S)
        alarm = asyncio.get_running_loop().call_later(left_s, self._queue.interrupt)
        try:
            found = await self._ours(await self._queue.wait([route_of(view) for view in routes], room))
            if found:
                await asyncio.sleep(self._settings.worker.gather_ms / 1000)  # the batch runs on: nobody is kept waiting
            for route in {delivery.route for delivery in found}:
                found += await self._more(route, room - len(found))
            return found
        finally:
            alarm.cancel()
            for task in running:
                task.remove_done_callback(look)

    async def _run(self, batch: list[Delivery]) -> None:
        failed = self.runner.counts.failed
        try:
            if self._leaving or not self._serves(_reference(batch[0])):
                await self._hand_back(batch)
            else:
                await self._run_measured(batch)
        except NoServer as error:
            log.warning("a batch of %d is left to its leases: %s", len(batch), error)
        except BitingLipError:
            log.exception("a batch of %d is left to its leases", len(batch))
        finally:
            for delivery in batch:
                self._leases.release(delivery)
            if self.runner.counts.failed > failed:
                self.noteworthy.set()

    async def _run_measured(self, batch: list[Delivery]) -> None:
        """Run a batch; where facts are gathered, how long its tasks take is one of them."""
        if self.facts is None:
            await self.runner.run(batch)
            return
        started, loads_s = time.monotonic(), self.facts.loads_s
        await self.runner.run(batch)
        took_s = time.monotonic() - started - (self.facts.loads_s - loads_s)
        self.facts.ran(self._model(batch[0]), len(batch), max(0.0, took_s))

    def _hear_of(self, route: Route) -> None:
        self._found.append(route)
        self._queue.interrupt()

    def _look_again(self) -> None:
        """Look for queues that were opened while nobody here listened."""
        self._unseen = True
        self._queue.interrupt()

    async def _take_in(self) -> None:
        """Serve the queues that were found, if they are for this worker."""
        if self._unseen:
            self._found += await known_routes(self._log.connection)
            self._unseen = False
        while self._found:
            route = self._found[0]
            routes = with_route(self._view.routes, route, self._view.card, self._names)
            if routes is not self._view.routes:
                await self._queue.ensure([route])  # its lease is this worker's
                self._view = replace(self._view, routes=routes, idle=False)
            self._found.remove(route)

    async def _pull(self) -> list[Delivery]:
        await self._take_models()
        await self.runner.drop_strangers()
        await self._take_in()
        self._view = replace(self._view, loaded=self.runner.loaded)
        seen = self._view if self.facts is None else self.facts.view(self._view)
        step, most = decide(seen), self._settings.worker.max_batch
        self._asked = {route_of(view) for view in step.routes}
        if isinstance(step, Load):
            return await self._load(step, most)
        if isinstance(step, Wait):
            started = time.monotonic()
            found = await self._ours(await self._queue.wait([route_of(view) for view in step.routes], most))
            if time.monotonic() - started > self._settings.worker.gather_ms / 1000:
                self._last = 0  # it was idle
            self._view = replace(self._view, idle=not found)
            return await self._gathered(found)
        with nullcontext() if self.facts is None else self.facts.undisturbed():
            found = await self._first_of(step, most)
        return await self._gathered(found) if found else []

    async def _first_of(self, step: Pull, most: int) -> list[Delivery]:
        """Return what is there on the first of the routes that has work."""
        empty = list(step.empty)
        for view in step.routes:
            found = await self._ours(await self._queue.pull(route_of(view), most))
            if found:
                # Less than was asked for: the route is drained, so the next one may as well be waited for.
                self._view = replace(after_service(self._view, view, len(found), empty), idle=len(found) < most)
                return found
            empty.append(view)
        self._view = replace(self._view, idle=True)
        return []

    async def _load(self, step: Load, most: int) -> list[Delivery]:
        """Make room for a model, and take the work for it, which loads it; a pinned one is loaded without any."""
        assert self.facts is not None
        self.facts.order_done()
        found: list[Delivery] = []
        for view in step.routes:
            found = await self._ours(await self._queue.pull(route_of(view), most))
            if found:
                self._view = replace(after_service(self._view, view, len(found), ()), idle=False)
                break
        pinned = step.reference in map(self._names.of, self._settings.worker.pinned)
        if found or pinned:
            await self.runner.engine.drop(step.evicts)
        if not found and pinned:
            await self.runner.preload(step.reference)
        return found

    async def _ours(self, found: list[Delivery]) -> list[Delivery]:
        """Hand back what a request of an earlier wait has brought for a model that is no longer ours to load."""
        if self.facts is None:
            return found
        await self._hand_back([delivery for delivery in found if delivery.route not in self._asked])
        return [delivery for delivery in found if delivery.route in self._asked]

    async def _gathered(self, found: list[Delivery]) -> list[Delivery]:
        """Return a batch with what comes for it within milliseconds, if the last one was of several: there is load."""
        loaded, self._last = self._last > 1, len(found)
        pause_s, room = self._settings.worker.gather_ms / 1000, self._settings.worker.max_batch - len(found)
        if not (loaded and found and room > 0 and pause_s > 0) or self.runner.joins(_reference(found[0])):
            return found
        await asyncio.sleep(pause_s)
        found += await self._more(found[0].route, room)
        self._last = len(found)
        return found

    async def _more(self, route: Route, room: int) -> list[Delivery]:
        """Return what else is there on a route; nothing while the server is away: what is in hand already stays so."""
        if room <= 0:
            return []
        try:
            return await self._ours(await self._queue.pull(route, room))
        except NoServer as error:
            log.debug("nothing more to pull: %s", error)
            return []

    async def _hand_back(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            try:
                await delivery.nak()
            except NoServer:
                log.debug("a work message comes back when its lease ends")
            self._leases.release(delivery)

    def _model(self, delivery: Delivery) -> str:
        """Return the one name of the model that a task runs on."""
        return self._names.of(_reference(delivery))

    @property
    def _lets_join(self) -> bool:
        """Whether new tasks may join what runs: it goes on as long as they come."""
        return not self._leaving and self._coming is None

    @property
    def _leaving(self) -> bool:
        """Whether work that has not begun is to be handed back."""
        return self._stopping or self._drain.asked


def _reference(delivery: Delivery) -> str:
    return decode_queue(delivery.route.queue)[0]
