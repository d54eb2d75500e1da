"""Which queue a task waits in: pure."""

from __future__ import annotations

from bitinglip.events import subjects
from bitinglip.events.subjects import ANY_WORK, WorkClass
from bitinglip.events.task import TaskSubmitted
from bitinglip.tasks.state import Task


def route_of(task: TaskSubmitted) -> tuple[str, str]:
    """Return the lane and the queue that a task waits in at first.

    Each API key has queues of its own, and so has work that not every worker may take: what a worker pulls is then
    its choice, and nothing has to be handed back.
    """
    return task.lane, subjects.encode_queue(task.model, work_class(task))


def route_now(task: Task) -> tuple[str, str]:
    """Return the lane and the queue that a task waits in from now on: another one once it has outgrown a device."""
    work = work_class(task.submitted)._replace(vram_gb=task.vram_gb)
    return task.submitted.lane, subjects.encode_queue(task.submitted.model, work)


def work_class(task: TaskSubmitted) -> WorkClass:
    """Return the class of a task's work."""
    if task.requires is None:
        return WorkClass(share=task.key_id or "")
    return WorkClass(task.key_id or "", task.requires.vram_gb, tuple(sorted(set(task.requires.labels))))


def is_common(task: TaskSubmitted) -> bool:
    """Tell whether any worker of the model may run it, and nobody's share is counted."""
    return work_class(task) == ANY_WORK
