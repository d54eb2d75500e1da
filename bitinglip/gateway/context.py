"""What a gateway is made of, opened together and handed to every request."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator
from collections.abc import Sequence as Seq
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from starlette.requests import Request

from bitinglip.errors import TaskNotFound
from bitinglip.events import subjects
from bitinglip.events.absence import confirm_absent
from bitinglip.events.log import EventLog
from bitinglip.events.notary import Notary
from bitinglip.events.signing import SigningKey
from bitinglip.events.sourcing import Sourcing
from bitinglip.events.streams import TASKS
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway.archiver import ArchiveKeeper
from bitinglip.gateway.catalogue import Catalogue
from bitinglip.gateway.closing import Closing
from bitinglip.gateway.completions import Completions
from bitinglip.gateway.keysweep import KeySweep
from bitinglip.gateway.metrics import Metrics
from bitinglip.gateway.openqueues import OpenQueues
from bitinglip.gateway.overdue import OverdueWork
from bitinglip.gateway.pressure import Pressure
from bitinglip.gateway.uploaded import Uploaded, open_uploaded
from bitinglip.ids import TaskId, Ulids
from bitinglip.projections.archive import Archive
from bitinglip.projections.readmodel import ReadModel
from bitinglip.projections.rows import TaskRow
from bitinglip.settings import Settings
from bitinglip.tasks.batches import Batches
from bitinglip.tasks.inbox import Inbox
from bitinglip.tasks.reactor import Reactor
from bitinglip.tasks.retry import policies_of_kinds
from bitinglip.tasks.scheduler import Scheduler
from bitinglip.tasks.stranded import StrandedWork

RECENT_MOST = 20_000
"""Tasks whose last sequence a gateway remembers, to let their readers read their writes."""


class Recent:
    """The last sequence that this gateway published or showed for each of the latest tasks and batches; bounded."""

    def __init__(self, most: int = RECENT_MOST) -> None:
        self._most = most
        self._sequences: OrderedDict[str, int] = OrderedDict()

    def note(self, task_id: str, sequence: int) -> None:
        """Remember that the task reached this sequence."""
        self._sequences[task_id] = max(sequence, self._sequences.pop(task_id, 0))
        if len(self._sequences) > self._most:
            self._sequences.popitem(last=False)

    def note_task(self, task_id: str, sequence: int, batch_id: str | None) -> None:
        """Remember it of the task, and of its batch, which tells of it as well."""
        for each in (task_id, batch_id):
            if each is not None:
                self.note(each, sequence)

    def of(self, task_id: str) -> int:
        """Return the sequence that an answer about the task must contain; 0 if any answer will do."""
        return self._sequences.get(task_id, 0)


@dataclass(frozen=True)
class Gateway:
    """The parts of one gateway."""

    settings: Settings
    log: EventLog
    inbox: Inbox
    readmodel: ReadModel
    catalogue: Catalogue
    metrics: Metrics
    queues: OpenQueues
    pressure: Pressure
    key_id: str | None
    """Name of the key that callers use; none on a gateway without one."""
    closing: Closing
    """Set when the gateway shuts down: whoever waits for events stops waiting."""
    scheduler: Scheduler
    batches: Batches
    uploaded: Uploaded
    archiver: ArchiveKeeper
    recent: Recent = field(default_factory=Recent)

    async def let_in(self, tasks: Seq[TaskSubmitted]) -> None:
        """Find room for tasks, and make the queues that they need; all of them are let in, or none.

        Raises:
            QueueFull, KeyFull: too many wait already.
            TooManyQueues: a queue is needed that may not be made.
            NoServer: the server does not answer.
        """
        await self.pressure.admit(tasks)
        try:
            for each in tasks:
                await self.queues.ensure(each)
        except BaseException:
            self.pressure.take_back(tasks)
            raise

    async def task(self, task_id: TaskId) -> TaskRow:
        """Return a task as the read model has it, with everything that this gateway published about it.

        Raises:
            TaskNotFound: the log has no such task.
            ProjectionBehind: the read model is too far behind.
            NoServer: the read model does not have it, and the log cannot be asked.
        """
        if sequence := self.recent.of(task_id):
            await self.readmodel.wait(TASKS, sequence)
        row = await self.readmodel.queries.task(task_id)
        return row if row is not None else await self._task_from_elsewhere(task_id)

    async def _task_from_elsewhere(self, task_id: TaskId) -> TaskRow:
        """Return a task that came through another gateway a moment ago."""
        last = await self.log.read_last(TASKS, subjects.task_events(task_id))
        if last is None:
            await confirm_absent(self.log, task_id)
            raise TaskNotFound(task_id=task_id)
        await self.readmodel.wait(TASKS, last.sequence)
        row = await self.readmodel.queries.task(task_id)
        if row is None:
            raise TaskNotFound(task_id=task_id)
        return row


@asynccontextmanager
async def open_gateway(
    settings: Settings, metrics: Metrics, key_id: str | None, closing: Closing
) -> AsyncGenerator[Gateway]:
    """Open the parts, and close them in the opposite order.

    Raises:
        NoServer: the event log cannot be reached.
    """
    async with AsyncExitStack() as stack:
        log = await EventLog.connect(settings.nats, source=f"/gateway/{Ulids()().lower()}")
        stack.push_async_callback(log.close)
        files = Archive(log, settings.archive_path)
        files.sweep()
        log.connection.cold = files
        projections = settings.projections.model_copy(update={"archive_path": settings.archive_path})
        readmodel = await ReadModel.open(projections, settings.projections_path, log)
        stack.push_async_callback(readmodel.close)
        files.locate = readmodel.span_of_task
        catalogue = await Catalogue.open(log)
        stack.push_async_callback(catalogue.close)
        queues = OpenQueues(log.connection, settings.worker.lease_s, settings.gateway.queues_most)
        pressure = Pressure(log, settings.gateway.queue_most, settings.gateway.key_most)
        stack.push_async_callback(pressure.close)
        inbox = Inbox(
            log,
            settings.log.inline_max_bytes,
            policies_of_kinds(settings.tasks.retry),
            queues.ensure,
            catalogue.resolve,
            private=settings.tasks.private,
        )
        reactor, scheduler = Reactor(log, inbox, settings.tasks.followed_most), Scheduler(log, inbox)
        for part in (reactor, scheduler, Sourcing(log.connection)):
            await part.start()
            stack.push_async_callback(part.close)
        batches = Batches(log, inbox)
        completions = Completions(readmodel, batches)
        completions.start()
        stack.push_async_callback(completions.close)
        stranded = StrandedWork(log, inbox)
        stranded.start()
        stack.push_async_callback(stranded.close)
        overdue = OverdueWork(log, readmodel, reactor, scheduler, stranded)
        overdue.start()
        stack.push_async_callback(overdue.close)
        sweep = KeySweep(log, readmodel)
        sweep.start()
        stack.push_async_callback(sweep.close)
        uploaded = await open_uploaded(settings, log.connection, catalogue)
        stack.push_async_callback(uploaded.close)
        if settings.audit.enabled:
            notary = Notary(log, settings.audit, SigningKey.load_or_create(settings.audit_key_path))
            notary.start()
            stack.push_async_callback(notary.close)
        archiver = ArchiveKeeper(log, files, readmodel, settings.archive)
        archiver.start()
        stack.push_async_callback(archiver.close)
        stack.callback(closing.set)
        yield Gateway(
            settings,
            log,
            inbox,
            readmodel,
            catalogue,
            metrics,
            queues,
            pressure,
            key_id,
            closing,
            scheduler,
            batches,
            uploaded,
            archiver,
        )


def gateway_of(request: Request) -> Gateway:
    """Return the gateway that serves this request."""
    return request.scope["gateway"]
