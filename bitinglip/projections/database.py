"""The DuckDB file of the projections, once it is open: reading it, and the one transaction that applies a batch.

The one place that touches DuckDB's loose types. A `Database` is used by one thread; each other thread takes a cursor.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import duckdb

from bitinglip.projections import sql
from bitinglip.projections.prepared import Prepared
from bitinglip.projections.versions import Version

FOLD_THREADS = 2
"""The least that a file in bulk is completed with: nobody is served from it yet."""
Params = Seq[Any] | Mapping[str, Any]

DATA_ERRORS = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InvalidInputException,
    ValueError,
)
"""What a message that cannot be read makes DuckDB (or Arrow) say; any other error is the file's or the machine's."""

WriteError = duckdb.Error
Interrupted = duckdb.InterruptException
StoppedError = duckdb.FatalException
"""The database has stopped after an error of the machine: it must be closed and opened again."""
NoTableError = duckdb.CatalogException


@dataclass(frozen=True, slots=True)
class Staged:
    """Events that are to be applied, and what is done of that already."""

    incoming: Any
    """The Arrow table (sequence, time_ns, payload)."""
    batches: Mapping[str, tuple[Any, frozenset[str]]] = field(default_factory=dict[str, tuple[Any, frozenset[str]]])
    """The Arrow table `batch` and the types of its events, by the SQL that made it."""


class Database:
    """One open DuckDB file, or a further cursor on it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self.applied_to: list[Version] = []
        """Versions of projections to which a batch is applied."""
        self.trailing: list[Build] = []
        """Those that are served as well, and applied later, by cursors and with checkpoints of their own."""
        self.corrupt: Counter[str] = Counter()
        """Messages of each stream that could not be read."""
        self._connection = connection
        self._parsed: dict[str, list[duckdb.Statement]] = {}
        self._prepared = Prepared(connection)

    def cursor(self) -> Database:
        """Return a cursor for another thread."""
        return Database(self._connection.cursor())

    def close(self) -> None:
        """Close this cursor, and those of what trails; the file is closed with the last of them."""
        for build in self.trailing:
            build.close()
        self._connection.close()

    def fold(self, threads: int) -> None:
        """Add the keys to a file that was filled in bulk, and write all into the file itself.

        `threads`: of what is served; this has at least `FOLD_THREADS`.
        """
        self._connection.execute(f"set threads = {max(threads, FOLD_THREADS)}")
        for version in self.applied_to:
            if key := version.projection.key(version.home):
                self._connection.execute(key)
        self._connection.execute("checkpoint")

    def interrupt(self) -> None:
        """Stop what this cursor runs; can be called by any thread."""
        self._connection.interrupt()

    def execute(self, statement: str, params: Params = ()) -> None:
        """Run statements, and drop their answer."""
        self._connection.execute(statement, params)

    def run(self, statements: str, params: Mapping[str, Any]) -> None:
        """Run statements, each with those of the parameters that it names."""
        for statement in self._connection.extract_statements(statements):
            self._connection.execute(statement, {name: params[name] for name in statement.named_parameters})

    def rows(self, statement: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        return self._connection.execute(statement, params).fetchall()

    def named_rows(self, statement: str, params: Params = ()) -> list[dict[str, Any]]:
        """Run one statement and return its rows, each by the names of the columns."""
        found = self._connection.execute(statement, params)
        names = [column[0] for column in found.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found.fetchall()]

    def arrow(self, statement: str, params: Params, rows_per_batch: int) -> Any:
        """Run one SELECT and return a pyarrow.RecordBatchReader, which makes the rows as they are asked for."""
        return self._connection.sql(statement, params=params or None).to_arrow_reader(rows_per_batch)

    def load(self, table: str, reader: Any) -> None:
        """Put all rows of a pyarrow.RecordBatchReader into a table."""
        self._connection.register("loaded", reader)
        try:
            self._connection.execute(f"insert into {table} select * from loaded")  # noqa: S608  (ours)
        finally:
            self._connection.unregister("loaded")

    def is_one_select(self, statement: str) -> bool:
        """Tell whether the text is exactly one statement, and one that only reads.

        Raises:
            duckdb.Error: it is no SQL.
        """
        found = self._connection.extract_statements(statement)
        return len(found) == 1 and found[0].type == duckdb.StatementType.SELECT

    @cached_property
    def home(self) -> str:
        """The schema of what is served, with the file's own name: temporary tables of the same names are not meant."""
        [(name,)] = self.rows("select current_database()")
        quoted = str(name).replace('"', '""')
        return f'"{quoted}".{sql.HOME}'

    @contextmanager
    def read_only(self) -> Generator[None]:
        """Refuse all writes to the file inside, and undo the rest."""
        try:
            self._connection.execute("begin transaction read only")
            yield
        finally:
            self.roll_back()

    def roll_back(self) -> None:
        """Undo the transaction, if there is one."""
        with suppress(duckdb.Error):
            self._connection.execute("rollback")
        self._prepared.rolled_back()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit what is done inside, or, after an error, roll it back."""
        self._connection.execute("begin transaction")
        try:
            yield
            self._connection.execute("commit")
        except BaseException:
            self.roll_back()
            raise

    # --- what is served -----------------------------------------------------------------------------------------------

    @property
    def served(self) -> list[Version]:
        """All versions that are kept up with the log."""
        return [*self.applied_to, *(version for build in self.trailing for version in build.applied_to)]

    def serve(self, versions: Seq[Version]) -> None:
        """Keep these up with the log from now on: at once, or, what trails, later."""
        before = {build.applied_to[0].home: build for build in self.trailing}
        trailing = [version for version in versions if version.projection.trails]
        self.applied_to = [version for version in versions if not version.projection.trails]
        self.trailing = [before.pop(version.home, None) or self.build([version]) for version in trailing]
        for build in before.values():
            build.close()

    # --- the projector's side -----------------------------------------------------------------------------------------

    def apply(self, stream: str, staged: Staged, sequence: int) -> None:
        """Apply events to the stream's projections, and move its checkpoint, in one transaction."""
        self._prepared.offer("incoming", staged.incoming)
        try:
            with self.transaction():
                for stage, versions in self._staged_alike(stream).items():
                    self._apply_to(versions, stream, staged.batches.get(stage))
                self._advance(stream, sequence)
        finally:
            self._prepared.let_go()

    def stagings(self, stream: str) -> Mapping[str, Mapping[str, str]]:
        """Return the statements by which the stream's events are taken apart, by their text: mostly one."""
        return {stage: versions[0].projection.staging for stage, versions in self._staged_alike(stream).items()}

    def take_apart(self, stream: str, incoming: Any, stagings: Mapping[str, Mapping[str, str]]) -> Staged:
        """Return an Arrow table of events taken apart by these statements; no table of the file is looked at."""
        self._prepared.offer("incoming", incoming)
        try:
            found: dict[str, tuple[Any, frozenset[str]]] = {}
            for stage, staging in stagings.items():
                types = self.stage(stream, staging)
                found[stage] = (self._prepared.table("batch"), types)
            return Staged(incoming, found)
        finally:
            self._prepared.let_go()

    def gather(self, statement: str, params: Params) -> None:
        """Let the rows of one SELECT be the batch that is staged next."""
        self._prepared.offer("incoming", self._connection.sql(statement, params=params).to_arrow_table())

    def stage(self, stream: str, staging: Mapping[str, str]) -> frozenset[str]:
        """Make `batch` of what is in `incoming`, and return the types of its events."""
        self._prepared.run(staging["stage"], {"stream": stream})
        found: list[tuple[str | None, bool]] = self._prepared.run(staging["types"]).fetchall()
        retries = frozenset({sql.RETRY} if any(retry for _, retry in found) else ())
        return frozenset(kind for kind, _ in found if kind is not None) | retries

    def run_again(self, statements: str) -> None:
        """Run statements that are run again and again, and so planned only once where that can be."""
        self._prepared.run(statements)

    def _staged_alike(self, stream: str) -> dict[str, list[Version]]:
        """Return what the stream is applied to, in groups for which a batch is staged by the same SQL: mostly one."""
        groups: dict[str, list[Version]] = {}
        for version in self.applied_to:
            if stream in version.projection.streams:
                groups.setdefault(version.projection.stage, []).append(version)
        return groups

    def _apply_to(self, versions: Seq[Version], stream: str, staged: tuple[Any, frozenset[str]] | None) -> None:
        if staged is None:
            types = self.stage(stream, versions[0].projection.staging)
        else:
            batch, types = staged
            self._prepared.offer("batch", batch)
        for version in versions:
            self._prepared.run(version.projection.applied(types, version.home))

    def _advance(self, stream: str, sequence: int) -> None:
        self._run(sql.blocks(sql.SYSTEM)["advance"], {"stream": stream, "sequence": sequence})

    def _run(self, statements: str, params: Params = ()) -> duckdb.DuckDBPyConnection:
        """Run statements that are run again and again, and so parsed only once; the last one has the answer."""
        if statements not in self._parsed:
            self._parsed[statements] = self._connection.extract_statements(statements)
        for statement in self._parsed[statements]:
            self._connection.execute(statement, params)
        return self._connection

    def checkpoints(self) -> dict[str, tuple[int, str | None]]:
        """Return, for each stream, the last applied sequence, and when the stream was made."""
        found = self._run(sql.blocks(sql.SYSTEM)["checkpoints"]).fetchall()
        return {stream: (sequence, created) for stream, sequence, created in found}

    def add_checkpoint(self, stream: str, created: str | None) -> None:
        """Begin a stream at its start."""
        self.execute(sql.blocks(sql.SYSTEM)["add_checkpoint"], {"stream": stream, "created": created})

    def try_out(self, version: Version, incoming: Any) -> None:
        """Apply events to one version, and undo it.

        Raises:
            duckdb.Error: its SQL does not fit what is staged now.
        """
        self._prepared.offer("incoming", incoming)
        self._connection.execute("begin transaction")
        try:
            self._prepared.run(version.projection.staging["stage"], {"stream": version.projection.streams[0]})
            self._prepared.run(version.projection.all_applied(version.home))
        finally:
            self.roll_back()

    def build(self, versions: Seq[Version]) -> Build:
        """Return a cursor by which versions are made that do not serve yet, or that trail."""
        return Build(self._connection.cursor(), versions)


class Build(Database):
    """A cursor by which versions are made, all as far as each other, with checkpoints of their own."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, versions: Seq[Version]) -> None:
        super().__init__(connection)
        self.applied_to = list(versions)

    def checkpoints(self) -> dict[str, tuple[int, str | None]]:
        """Return, for each stream, the last sequence that is applied to these versions."""
        home = self.applied_to[0].home
        found = dict(self.rows(sql.blocks(sql.SYSTEM)["build_checkpoints"], {"home": home}))
        return {stream: (found.get(stream, 0), None) for stream in self.streams}

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that these versions are made from."""
        return sql.streams(version.projection for version in self.applied_to)

    def _advance(self, stream: str, sequence: int) -> None:
        for version in self.applied_to:
            params = {"home": version.home, "stream": stream, "sequence": sequence}
            self._run(sql.blocks(sql.SYSTEM)["advance_build"], params)
