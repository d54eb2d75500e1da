"""The subject grammar, pure, both ways.

    bl.task.<task_id>.<event>[.<lane>.<queue>]      stream TASKS
    bl.queue.<lane>.<queue>.<task_id>               stream QUEUE, sourced from TASKS by the server
    bl.timer.<task_id>.<attempt>                    stream TASKS: schedules, each the `queued` of a coming attempt
    bl.timer.<task_id>.expiry                       stream TASKS: schedules, each the `due` of a task's expiry
    bl.timer.<task_id>.after                        stream TASKS: schedules, each the `due` of a task that waits
    bl.due.<task_id>.expiry | after                 stream TASKS: no event; what the reactor is to look at
    bl.batch.<batch_id>.<event>[.<part>]            stream TASKS; `<part>` for `extended`
    bl.worker.<worker_id>.<event>                   stream WORKERS
    bl.node.<node_id>.<event>                       stream WORKERS
    bl.model.<queue>.<event>                        stream MODELS; `queue_paused`, `queue_resumed` are of its queues
    bl.schedule.<schedule_id>.<event>               stream SCHEDULES
    bl.query.<name>.<event>                         stream LEDGER: about a saved query
    bl.ledger.<stream>.<event>                      stream LEDGER: about a stream, or `readmodel` for its snapshots,
                                                    or the id of a key that signs
    bl.alarm.<schedule_id>.set | due                stream SCHEDULES: a scheduled message, and what becomes of it
    bl.live.task.<task_id>.<event>[...]             republished from TASKS, for live tails
    bl.live.queue.<lane>.<queue>                    not stored: a queue was opened
    bl.control.node.<node_id>.<command>             requests to a node's agent, in no stream

`<queue>` is a model's reference as one token: letters, digits, `-` and `_` stand for themselves, every other byte of
its UTF-8 is `=` and two hex digits. Work that only some workers may take, or that is to get its fair share, has a queue
of its own: `~` and its class as a token follow. A token holds no wildcard, dot or space, so it can name a consumer.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from bitinglip.ids import TaskId, is_ulid

TASKS = "bl.task.>"
BATCHES = "bl.batch.>"
TIMERS = "bl.timer.>"
DUES = "bl.due.>"
SCHEDULED_SUBMISSIONS = "bl.task.*.submitted"
"""The `submitted` of tasks that start later: those that are ready at once have a route in their subject."""
DEPENDENTS = "bl.timer.*.after"
"""Says of each task that waits for others when it is looked at next."""
WORKERS = ("bl.worker.>", "bl.node.>")
MODELS = "bl.model.>"
SCHEDULES = "bl.schedule.>"
SCHEDULES_CREATED = "bl.schedule.*.created"
LEDGER = "bl.ledger.>"
QUERIES = "bl.query.>"
ALARMS = "bl.alarm.>"
ALARMS_DUE = "bl.alarm.*.due"
LIVE_PREFIX = "bl.live."
LIVE_TASKS = "bl.live.task.>"

_PLAIN = re.compile(rb"[A-Za-z0-9_-]")
_TOKEN = re.compile(r"(?:[A-Za-z0-9_-]|=[0-9A-F]{2})+")
_QUEUE = re.compile(rf"({_TOKEN.pattern})(?:~({_TOKEN.pattern}))?")
LANES = frozenset({"interactive", "normal", "batch"})
_ROUTED = frozenset({"submitted", "queued"})


class WorkClass(NamedTuple):
    """What tells the work of one queue from other work for the same model in the same lane."""

    share: str = ""
    """API key whose work it is: keys share a worker fairly. Empty: nobody's."""
    vram_gb: float = 0.0
    """Memory that the device must have, in GiB."""
    labels: tuple[str, ...] = ()
    """Labels that the worker must have, sorted."""


class TaskSubject(NamedTuple):
    """A subject of the TASKS stream, in parts; `lane` and `queue` come together, on routed events alone."""

    task_id: TaskId
    event: str
    lane: str | None = None
    queue: str | None = None

    def __str__(self) -> str:
        """Write the subject."""
        route = f".{self.lane}.{self.queue}" if self.lane is not None else ""
        return f"bl.task.{self.task_id}.{self.event}{route}"


def parse_task_subject(subject: str) -> TaskSubject:
    """Read a subject of the TASKS stream.

    Raises:
        ValueError: it is not one.
    """
    parts = subject.split(".")
    if len(parts) not in (4, 6) or parts[:2] != ["bl", "task"] or not is_ulid(parts[2]):
        raise ValueError(f"not a task subject: {subject!r}")
    if len(parts) == 6 and (parts[3] not in _ROUTED or _QUEUE.fullmatch(parts[5]) is None):
        raise ValueError(f"not a routed task subject: {subject!r}")
    return TaskSubject(TaskId(parts[2]), *parts[3:])


def task_events(task_id: TaskId) -> str:
    """Return the filter of all events of one task."""
    return f"bl.task.{task_id}.>"


def live_task_events(task_id: TaskId) -> str:
    """Return the subject on which a task's events are republished as they are stored."""
    return f"bl.live.task.{task_id}.>"


def live_of(subject: str) -> str:
    """Return the subject on which messages of this subject are republished."""
    return LIVE_PREFIX + subject.removeprefix("bl.")


def stored_of(live_subject: str) -> str:
    """Return the stored subject of a republished message."""
    return "bl." + live_subject.removeprefix(LIVE_PREFIX)


ROUTES_OPENED = "bl.live.queue.*.*"
LEADER_ELECTED = "$JS.EVENT.ADVISORY.CONSUMER.LEADER_ELECTED.QUEUE.*"
"""Where the server says that a consumer of the queue has moved to another server of the cluster."""

LOG_LEADER_ELECTED = "$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.TASKS"
"""Where the server says that the log has moved to another server of the cluster."""

LIVE_CANCEL_REQUESTS = "bl.live.task.*.cancel_requested"


def timer(task_id: TaskId, attempt: int) -> str:
    """Return the subject of the timer of a coming attempt: the scheduled message that becomes its `queued`."""
    return f"bl.timer.{task_id}.{attempt}"


def expiry_timer(task_id: TaskId) -> str:
    """Return the subject of the scheduled message that says when a task expires."""
    return f"bl.timer.{task_id}.expiry"


def expiry_due(task_id: TaskId) -> str:
    """Return the subject on which the server says that a task's expiry is due."""
    return f"bl.due.{task_id}.expiry"


def look_timer(task_id: TaskId) -> str:
    """Return the subject of the scheduled message that says when a task that waits for others is looked at next."""
    return f"bl.timer.{task_id}.after"


def look_due(task_id: TaskId) -> str:
    """Return the subject on which the server says that a task that waits for others is to be looked at."""
    return f"bl.due.{task_id}.after"


def batch_events(batch_id: str) -> str:
    """Return the filter of all events of one batch; those of its tasks are not among them."""
    return f"bl.batch.{batch_id}.>"


def batch_subject(batch_id: str, event_type: str, part: str | None) -> str:
    """Return the subject of a batch's event; each part that is added has one of its own."""
    return f"bl.batch.{batch_id}.{event_type.removeprefix('batch.')}" + (f".{part}" if part else "")


def batch_states(batch_id: str) -> str:
    """Return the filter of a batch's events but for what was added to it."""
    return f"bl.batch.{batch_id}.*"


def batch_parts(batch_id: str, part: str = "*") -> str:
    """Return the filter of what was added to a batch; or the subject of one part of it."""
    return f"bl.batch.{batch_id}.extended.{part}"


def schedule_events(schedule_id: str) -> str:
    """Return the filter of all events of one schedule."""
    return f"bl.schedule.{schedule_id}.>"


def matches(pattern: str, subject: str) -> bool:
    """Tell whether a subject is one of those that a filter stands for.

    >>> matches("bl.task.*.queued.>", "bl.task.01A.queued.normal.m"), matches("bl.task.>", "bl.task")
    (True, False)
    """
    wanted, found = pattern.split("."), subject.split(".")
    if wanted[-1] == ">":
        wanted, found = wanted[:-1], found[: len(wanted) - 1] if len(found) >= len(wanted) else []
    return len(wanted) == len(found) and all(each in {"*", token} for each, token in zip(wanted, found, strict=True))


def query_subject(name: str, event: str) -> str:
    """Return the subject of a saved query's event."""
    return f"bl.query.{encode_token(name)}.{event}"


def query_events(name: str) -> str:
    """Return the filter of all events of one saved query."""
    return f"bl.query.{encode_token(name)}.*"


def ledger_subject(about: str, event: str) -> str:
    """Return the subject of an event about a stream of the log, or about the `readmodel`."""
    return f"bl.ledger.{about}.{event}"


def alarm(schedule_id: str) -> str:
    """Return the subject of the scheduled message that says when a schedule fires next."""
    return f"bl.alarm.{schedule_id}.set"


def alarm_due(schedule_id: str) -> str:
    """Return the subject on which the server says that a schedule's time has come."""
    return f"bl.alarm.{schedule_id}.due"


def queue_filter(lane: str, queue: str) -> str:
    """Return the filter of the work for one model in one lane."""
    return f"bl.queue.{lane}.{queue}.*"


def queue_subject(lane: str, queue: str, task_id: TaskId) -> str:
    """Return the subject of one task's work message."""
    return f"bl.queue.{lane}.{queue}.{task_id}"


def work_of(task_id: TaskId) -> str:
    """Return the filter of one task's work messages, whatever the queue."""
    return queue_subject("*", "*", task_id)


def consumer_name(lane: str, queue: str) -> str:
    """Return the durable consumer's name for one model in one lane."""
    return f"{lane}-{queue}"


def is_consumer_name(name: str) -> bool:
    """Tell whether this is the name of a queue's consumer, as `consumer_name` writes it."""
    lane, _, queue = name.partition("-")
    try:
        decode_queue(queue)
    except ValueError:
        return False
    return lane in LANES


def route_opened(lane: str, queue: str) -> str:
    """Return the subject on which the workers hear of a new queue."""
    return f"bl.live.queue.{lane}.{queue}"


def worker_subject(worker_id: str, event: str) -> str:
    """Return the subject of a worker's event."""
    return f"bl.worker.{worker_id}.{event}"


def node_subject(node_id: str, event: str) -> str:
    """Return the subject of a node's event."""
    return f"bl.node.{node_id}.{event}"


def node_command(node_id: str, command: str) -> str:
    """Return the subject on which a node takes a command: a request, which is in no stream."""
    return f"bl.control.node.{node_id}.{command}"


def model_subject(reference: str, event: str) -> str:
    """Return the subject of a model's event."""
    return f"bl.model.{encode_token(reference)}.{event}"


def model_events(reference: str) -> str:
    """Return the filter of all events of one model and its queues."""
    return f"bl.model.{encode_token(reference)}.*"


@lru_cache(maxsize=8192)
def encode_token(text: str) -> str:
    """Encode any non-empty text as one subject token.

    Raises:
        ValueError: the text is empty.
    """
    if not text:
        raise ValueError("an empty text has no subject token")
    return "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f"={byte:02X}" for byte in text.encode())


def decode_token(token: str) -> str:
    """Decode a subject token into the text that it stands for.

    Raises:
        ValueError: it is not a token that `encode_token` writes.
    """
    if _TOKEN.fullmatch(token) is None:
        raise ValueError(f"not an encoded token: {token!r}")
    text = re.sub(r"=([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), token).encode("latin-1").decode()
    if encode_token(text) != token:
        raise ValueError(f"not the canonical token of {text!r}: {token!r}")
    return text


ANY_WORK = WorkClass()


def encode_queue(reference: str, work: WorkClass = ANY_WORK) -> str:
    """Return the token of the queue for a model's work of one class.

    >>> encode_queue("org/m", WorkClass(vram_gb=16, labels=("eu",)))
    'org=2Fm~vram=3D16=2Clabel=3Deu'
    """
    said = [
        *([f"share={encode_token(work.share)}"] if work.share else []),
        *([f"vram={work.vram_gb:.12g}"] if work.vram_gb else []),
        *[f"label={encode_token(label)}" for label in sorted(set(work.labels))],
    ]
    token = encode_token(reference)
    return f"{token}~{encode_token(','.join(said))}" if said else token


@lru_cache(maxsize=8192)
def decode_queue(queue: str) -> tuple[str, WorkClass]:
    """Return the model's reference and the class of a queue's token.

    Raises:
        ValueError: it is not a token that `encode_queue` writes.
    """
    found = _QUEUE.fullmatch(queue)
    if found is None:
        raise ValueError(f"not a queue: {queue!r}")
    reference = decode_token(found[1])
    said = [part.partition("=")[::2] for part in decode_token(found[2]).split(",")] if found[2] else []
    work = WorkClass(
        share=next((decode_token(value) for name, value in said if name == "share"), ""),
        vram_gb=next((float(value) for name, value in said if name == "vram"), 0.0),
        labels=tuple(decode_token(value) for name, value in said if name == "label"),
    )
    if encode_queue(reference, work) != queue:
        raise ValueError(f"not the canonical token of a queue: {queue!r}")
    return reference, work
