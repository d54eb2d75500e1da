"""The projections' SQL: a file a projection, of named blocks, each begun by a line `-- name: <block>`.

A file says in its head from which streams it is made: `-- streams: TASKS WORKERS`. Its blocks:

- `table` makes its tables and indexes, and comments on every table and column.
- `key`, if there is one, adds keys to them: at once, or, to a file that is filled in bulk, when it is full, since an
  index costs more than the rows. So no other block may rely on it (an `on conflict` does).
- Every other block applies a staged batch (`batch`, see `batch.sql`), in the order of the file, in the transaction that
  moves the checkpoint. A line `-- when: task.queued batch.*` under a block's name: only if the batch has an event of
  such a type (`*` stands for anything; `retry` for a task that asks for another one again); planning a statement costs
  milliseconds however few its rows are. `-- alone: task.progressed`: if the batch has events of such types and no
  others, this block is all that is applied; else it is passed over.
- `prune`, if there is one, is run about once a minute, in a transaction of its own, when nothing waits to be written;
  it drops, or makes smaller, what is old. It may use the parameters `$now` (timestamp, UTC, by the log's clock),
  `$before` (what was recorded before it has been here for as long as ticks stay), `$since` (`$before` of the last time
  that this version was pruned: what is older is done already; the epoch, the first time), and `$ticks` (the types of
  events that do not last, a list). What it does must depend on the rows and these times alone, and must be bounded: a
  minute's share of the work at most, but for the first time.

A file may have parts: `-- parts: queues usage` in its head. They are further files, each with tables of its own and its
own blocks, which follow those of the file and use its temporary tables: together they are one projection.

A file writes its own tables as `self.<table>`: `self` stands for the schema that they are in. So a version can be made
beside another one, and any of them in a scratch schema, for the state of the past. It reads no table of another file.
What a statement makes for those after it, `create or replace temp table <name> as ...`, is an Arrow table (see
`prepared.py`): it can be made anew, not updated, and statements that read nothing else are planned once. So a block
that has much to say reads the file's own tables in a short statement before it. Those names no other file uses; the
names of all tables are different.

A line `-- trails` in its head: it is applied some seconds after the others, in transactions and with checkpoints of its
own (see `trailing.py`), and before somebody asks for it. So it costs little, and what it costs delays nobody.

A new file here is a new projection; there is no list to add it to.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache, cached_property
from importlib import resources

HOME = "main"
"""Schema in which all tables can be asked: of views, or, where there is but one version, of the tables themselves."""
SCRATCH = "temp.main"
"""Schema of a cursor's own temporary tables."""
RETRY = "retry"
"""Stands among the types of a batch for: one of its tasks asks for another one again."""
STAGE, SYSTEM = "batch", "system"
"""The files that are no projections."""
TABLE, KEY, PRUNE = "table", "key", "prune"
_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_STREAMS = re.compile(r"^-- streams: (.+)\n", re.MULTILINE)
_TRAILS = re.compile(r"^-- trails$", re.MULTILINE)
_TABLES = re.compile(r"^create (?:table|view) self\.(\w+)", re.MULTILINE)
_PARTS = re.compile(r"^-- parts: (.+)\n", re.MULTILINE)
_CONDITION = re.compile(r"\A-- (when|alone): (.+)\n")
_SELF = re.compile(r"\bself\.")

Types = Iterable[str | None]


@dataclass(frozen=True)
class Projection:
    """One version of a projection: all that makes its rows."""

    name: str
    text: str
    """Its file, and its parts after it."""
    stage: str
    """The file that stages a batch for it."""

    @cached_property
    def version(self) -> str:
        """A digest of all that makes its rows."""
        return hashlib.sha256((self.stage + self.text).encode()).hexdigest()[:16]

    @cached_property
    def streams(self) -> tuple[str, ...]:
        """The streams that it is made from."""
        return _listed(_STREAMS, self.text)

    @cached_property
    def trails(self) -> bool:
        """Whether it may be applied later than the others."""
        return _TRAILS.search(self.text) is not None

    @cached_property
    def tables(self) -> tuple[str, ...]:
        """The names of its tables and views."""
        return tuple(_TABLES.findall(self.text))

    @property
    def staging(self) -> dict[str, str]:
        """The SQL that stages a batch: its blocks by name."""
        return _parse(self.stage, HOME)

    def table(self, schema: str) -> str:
        """Return the SQL that makes its tables in a schema."""
        return self._blocks(schema)[TABLE]

    def key(self, schema: str) -> str | None:
        """Return the SQL that adds the keys of its tables; none if `table` says it all."""
        return self._blocks(schema).get(KEY)

    def prune(self, schema: str) -> str | None:
        """Return the SQL that drops what is old; none if nothing is to be."""
        return self._blocks(schema).get(PRUNE)

    def scratch(self) -> str:
        """Return the SQL that makes its table (the first, if it has several) anew, empty, as a temporary one."""
        first = self.table(SCRATCH).partition(";")[0]
        return first.replace("create table", "create or replace temp table", 1)

    def applied(self, types: Types, schema: str, without: Collection[str] = ()) -> str:
        """Return the SQL that applies a staged batch of events of these types; empty if it has none for it.

        `without`: blocks that are left out.
        """
        told = frozenset(kind for kind in types if kind is not None)
        steps = {name: text for name, text in self._steps(schema).items() if name not in without}
        alone = [name for name, text in steps.items() if _stands_alone(text, told)]
        return "\n".join(steps[name] for name in alone or steps if alone or _is_for(steps[name], told))

    def all_applied(self, schema: str) -> str:
        """Return the SQL of all blocks that apply a batch."""
        return "\n".join(self._steps(schema).values())

    def _steps(self, schema: str) -> dict[str, str]:
        return {name: text for name, text in self._blocks(schema).items() if name not in {TABLE, KEY, PRUNE}}

    def _blocks(self, schema: str) -> dict[str, str]:
        return _parse(self.text, schema)


Catalogue = Mapping[str, Projection]
"""Projections by name, in the order in which they are applied."""


def catalogue(texts: Mapping[str, str]) -> Catalogue:
    """Return the projections of a folder's files, given by name, `batch` among them."""
    parts = {name: _listed(_PARTS, text) for name, text in texts.items()}
    apart = {STAGE, SYSTEM, *(part for each in parts.values() for part in each)}
    whole = {name: "\n".join(texts[part] for part in (name, *parts[name])) for name in texts if name not in apart}
    made = [Projection(name, text, texts[STAGE]) for name, text in whole.items()]
    ordered = sorted(made, key=lambda projection: (-len(projection.streams), projection.name))
    return {projection.name: projection for projection in ordered}


def texts() -> dict[str, str]:
    """Return the files of this folder by name."""
    files = resources.files(__name__).iterdir()
    return {file.name.removesuffix(".sql"): file.read_text("utf-8") for file in files if file.name.endswith(".sql")}


def streams(projections: Iterable[Projection]) -> tuple[str, ...]:
    """Return the streams that any of these is made from."""
    return tuple(dict.fromkeys(stream for projection in projections for stream in projection.streams))


def _listed(line: re.Pattern[str], text: str) -> tuple[str, ...]:
    found = line.search(text)
    return tuple(found[1].split()) if found else ()


CATALOGUE: Catalogue = catalogue(texts())
"""The projections of this release."""
NAMES = tuple(CATALOGUE)
STREAMS = streams(CATALOGUE.values())


def parsed(text: str, schema: str = HOME) -> dict[str, str]:
    """Return the blocks of a text by name, for tables in a schema."""
    return _parse(text, schema)


def blocks(name: str, schema: str = HOME) -> dict[str, str]:
    """Return the blocks of one file by name, for its tables in a schema."""
    return _parse(_text(name), schema)


def applied(stream: str, types: Types, schema: str = HOME) -> str:
    """Return the SQL that applies a staged batch, of events of these types, to every projection of a stream.

    What is no event has none.
    """
    told = frozenset(types)
    chosen = [projection for projection in CATALOGUE.values() if stream in projection.streams]
    return "\n".join(projection.applied(told, schema) for projection in chosen)


@cache
def _parse(text: str, schema: str) -> dict[str, str]:
    parts = _BLOCK.split(_SELF.sub(f"{schema}.", text))
    found: dict[str, str] = {}
    for name, block in zip(parts[1::2], parts[2::2], strict=True):
        found[name] = found.get(name, "") + block
    return found


@cache
def _text(name: str) -> str:
    return (resources.files(__name__) / f"{name}.sql").read_text("utf-8")


def _stands_alone(block: str, types: frozenset[str]) -> bool:
    kind, patterns = _condition(block)
    return kind == "alone" and bool(types) and all(_fits(each, patterns) for each in types)


def _is_for(block: str, types: frozenset[str]) -> bool:
    kind, patterns = _condition(block)
    return kind == "" or (kind == "when" and any(_fits(each, patterns) for each in types))


def _condition(block: str) -> tuple[str, tuple[str, ...]]:
    found = _CONDITION.match(block)
    return (found[1], tuple(found[2].split())) if found else ("", ())


def _fits(kind: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(kind, pattern) for pattern in patterns)
