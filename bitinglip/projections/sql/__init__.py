"""The projections' SQL: files of named blocks, each begun by a line `-- name: <block>`.

A file writes its own tables as `self.<table>`: `self` stands for the schema that they are in. So a version can be made
beside another one, and any of them in a scratch schema, for the state of the past.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection
from functools import cache
from importlib import resources

PROJECTIONS: dict[str, tuple[str, ...]] = {
    "TASKS": ("events", "tasks", "batches"),
    "WORKERS": ("events", "workers", "nodes", "worker_restarts"),
    "MODELS": ("events", "models", "model_nodes", "model_aliases"),
    "SCHEDULES": ("events",),
    "LEDGER": ("events",),
}
"""The projections of each stream, in the order in which they are applied."""

PROGRESS = frozenset({"task.progressed"})
RESTARTS = frozenset({"node.worker_exited", "node.worker_commanded", "node.restarting_workers"})
DESCRIPTIONS = frozenset({"model.registered", "model.described"})
RETRY = "retry of a task"
"""Stands among the types of a batch for: one of its tasks asks for another one again."""
NAMES = (
    "events", "tasks", "batches", "workers", "nodes", "worker_restarts", "models", "model_nodes", "model_aliases",
)  # fmt: skip
_ONLY: dict[str, Callable[[str], bool]] = {
    "batches": lambda kind: kind.startswith("batch."),
    "worker_restarts": RESTARTS.__contains__,
    "models": DESCRIPTIONS.__contains__,
    "model_nodes": lambda kind: kind.startswith("model.") and kind not in DESCRIPTIONS,
    "model_aliases": lambda kind: kind.startswith("model.alias_"),
}
"""Projections that a batch is applied to only if it has an event for them: planning a statement costs milliseconds."""
_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_SELF = re.compile(r"\bself\.")
HOME = "main"
"""Schema of the tables that are served."""
SCRATCH = "temp.main"
"""Schema of a cursor's own temporary tables."""


@cache
def blocks(name: str, schema: str = HOME) -> dict[str, str]:
    """Return the blocks of one file by name, for its tables in a schema."""
    parts = _BLOCK.split(_SELF.sub(f"{schema}.", _text(name)))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def applied(stream: str, types: frozenset[str | None], schema: str = HOME) -> str:
    """Return the SQL that applies a staged batch, of events of these types, to every projection of a stream.

    What is no event has none.
    """
    return "\n".join(steps(name, types, schema) for name in PROJECTIONS[stream])


def steps(name: str, types: frozenset[str | None], schema: str = HOME, without: Collection[str] = ()) -> str:
    """Return the SQL that applies a staged batch, of events of these types, to one projection, some blocks left out."""
    return "\n".join(blocks(name, schema)[step] for step in _steps(name, types) if step not in without)


def scratch(name: str) -> str:
    """Return the SQL that makes a projection's table anew, empty, as a temporary one in `SCRATCH`."""
    return blocks(name, SCRATCH)["table"].partition(";")[0].replace("create table", "create or replace temp table", 1)


def _steps(name: str, types: frozenset[str | None]) -> tuple[str, ...]:
    if name in _ONLY:
        return ("apply",) if any(_ONLY[name](each) for each in types if each is not None) else ()
    if name != "tasks":
        return ("apply",)
    if types == PROGRESS:
        return ("progress",)
    needs = {"settle_queued": "task.queued", "add": "task.submitted", "retried": RETRY}
    steps = ("settle_queued", "change", "add", "retried", "update")
    return tuple(step for step in steps if needs.get(step) in {None, *types})


@cache
def version(name: str) -> str:
    """Return the version of a projection: a digest of all that makes its rows."""
    return hashlib.sha256((_text("batch") + _text(name)).encode()).hexdigest()[:16]


def _text(name: str) -> str:
    return (resources.files(__name__) / f"{name}.sql").read_text("utf-8")
