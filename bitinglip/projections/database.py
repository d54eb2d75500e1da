"""The DuckDB file of the projections: opening it, its versions, and the one transaction that applies a batch.

The one place that touches DuckDB's loose types. A `Database` is used by one thread; each other thread takes a cursor.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb

from bitinglip.errors import InvalidConfig, ProjectionFileBusy
from bitinglip.projections import sql
from bitinglip.settings import Projections

log = logging.getLogger(__name__)

Params = Seq[Any] | Mapping[str, Any]

WAL_BYTES = "256MB"
"""Size of the write-ahead log at which DuckDB folds it into the file: larger is faster to write, slower to open."""
BULK_BYTES = "1GB"
"""The same for a file that is filled at once: what is folded at the end is folded by all threads, and at once."""

DATA_ERRORS = (
    duckdb.DataError,
    duckdb.IntegrityError,
    duckdb.InvalidInputException,
    ValueError,
)
"""What a message that cannot be read makes DuckDB (or Arrow) say; any other error is the file's or the machine's."""

WriteError = duckdb.Error
Interrupted = duckdb.InterruptException


class UnusableFileError(Exception):
    """The file is not a database, or one that other SQL has made: it can only be made anew from the log."""


class Database:
    """One open DuckDB file, or a further cursor on it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection
        self._parsed: dict[str, list[duckdb.Statement]] = {}

    def cursor(self) -> Database:
        """Return a cursor for another thread."""
        return Database(self._connection.cursor())

    def close(self) -> None:
        """Close this cursor; the file is closed with the last of them."""
        self._connection.close()

    def fold(self, threads: int) -> None:
        """Write all that is committed into the file itself, with so many threads."""
        self._connection.execute(f"set threads = {threads}")
        self._connection.execute("checkpoint")

    def interrupt(self) -> None:
        """Stop what this cursor runs; can be called by any thread."""
        self._connection.interrupt()

    def execute(self, statement: str, params: Params = ()) -> None:
        """Run statements, and drop their answer."""
        self._connection.execute(statement, params)

    def rows(self, statement: str, params: Params = ()) -> list[tuple[Any, ...]]:
        """Run one statement and return its rows."""
        return self._connection.execute(statement, params).fetchall()

    def arrow(self, statement: str, params: Params, rows_per_batch: int) -> Any:
        """Run one SELECT and return a pyarrow.RecordBatchReader, which makes the rows as they are asked for."""
        return self._connection.sql(statement, params=params or None).to_arrow_reader(rows_per_batch)

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
        self._connection.execute("begin transaction read only")
        try:
            yield
        finally:
            with suppress(duckdb.Error):
                self._connection.execute("rollback")

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit what is done inside, or, after an error, roll it back."""
        self._connection.execute("begin transaction")
        try:
            yield
        except BaseException:
            with suppress(duckdb.Error):
                self._connection.execute("rollback")
            raise
        self._connection.execute("commit")

    # --- the projector's side -----------------------------------------------------------------------------------------

    def apply(self, stream: str, incoming: Any, sequence: int) -> None:
        """Apply an Arrow table of events to the stream's projections, and move its checkpoint, in one transaction."""
        self._connection.register("incoming", incoming)
        try:
            with self.transaction():
                self._run(sql.applied(stream, self.stage(stream)))
                self._run(sql.blocks("system")["advance"], {"stream": stream, "sequence": sequence})
        finally:
            with suppress(duckdb.Error):
                self._connection.unregister("incoming")

    def stage(self, stream: str) -> frozenset[str]:
        """Make `batch` of what is in `incoming`, and return the types of its events."""
        self._run(sql.blocks("batch")["stage"], {"stream": stream})
        found: list[tuple[str, bool]] = self._run(sql.blocks("batch")["types"]).fetchall()
        retries = frozenset({sql.RETRY} if any(retry for _, retry in found) else ())
        return frozenset(kind for kind, _ in found) | retries

    def run(self, statements: str) -> None:
        """Run statements that are run again and again, and so parsed only once."""
        self._run(statements)

    def _run(self, statements: str, params: Params = ()) -> duckdb.DuckDBPyConnection:
        """Run statements that are run again and again, and so parsed only once; the last one has the answer."""
        if statements not in self._parsed:
            self._parsed[statements] = self._connection.extract_statements(statements)
        for statement in self._parsed[statements]:
            self._connection.execute(statement, params)
        return self._connection

    def checkpoints(self) -> dict[str, tuple[int, str | None]]:
        """Return, for each stream, the last applied sequence, and when the stream was made."""
        found = self._run(sql.blocks("system")["checkpoints"]).fetchall()
        return {stream: (sequence, created) for stream, sequence, created in found}

    def add_checkpoint(self, stream: str, created: str | None) -> None:
        """Begin a stream at its start."""
        self.execute(sql.blocks("system")["add_checkpoint"], {"stream": stream, "created": created})


def open_database(path: Path, settings: Projections) -> Database:
    """Open the file of the projections; one that is unusable is made anew, empty.

    Raises:
        ProjectionFileBusy: another process has it open.
        InvalidConfig: DuckDB refuses a setting.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return _open(path, settings)
    except UnusableFileError as error:
        log.warning("the read model in %s is made anew from the log: %s", path, error)
        discard(path)
        return _open(path, settings)


def create_bulk(path: Path, settings: Projections) -> Database:
    """Make a new file that is to be filled at once: without a write-ahead log, it is worth nothing until it is closed.

    One thread fills it: a second costs a quarter more work for the same rows, and the log is read meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    database = Database(_connect(":memory:", settings.model_copy(update={"threads": 1}), attaches=True))
    try:
        database.execute("set timezone = 'UTC'")
        database.execute(f"attach '{str(path).replace(chr(39), 2 * chr(39))}' as bulk (recovery_mode no_wal_writes)")
        database.execute("use bulk")
        database.execute("set global enable_external_access = false")
        _check_versions(database)
    except BaseException:
        database.close()
        raise
    return database


def discard(path: Path) -> None:
    """Remove a database file with all that lies beside it, its write-ahead log first."""
    wal = path.with_name(path.name + ".wal")
    for leftover in (*path.parent.glob(f"{wal.name}*"), path):
        leftover.unlink(missing_ok=True)


def _open(path: Path, settings: Projections) -> Database:
    database = Database(_connect(path, settings))
    try:
        database.execute("set global timezone = 'UTC'")
        database.execute("set global lock_configuration = true")
        _check_versions(database)
    except duckdb.Error as error:
        database.close()
        raise UnusableFileError(str(error)) from error
    except UnusableFileError:
        database.close()
        raise
    return database


def _connect(path: Path | str, settings: Projections, *, attaches: bool = False) -> duckdb.DuckDBPyConnection:
    try:
        return duckdb.connect(
            path,
            config={
                "memory_limit": settings.memory_limit,
                "threads": settings.threads,
                "wal_autocheckpoint": BULK_BYTES if attaches else WAL_BYTES,
                "preserve_insertion_order": False,
                "python_enable_replacements": False,
                "enable_external_access": attaches,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "allow_community_extensions": False,
            },
        )
    except duckdb.Error as error:
        text = str(error)
        if "lock on file" in text or "different configuration" in text:
            raise ProjectionFileBusy(path=str(path), problem=text.partition("\n")[0]) from error
        if isinstance(error, duckdb.ParserException | duckdb.InvalidInputException):
            raise InvalidConfig(problem=f"projections: {text.partition(chr(10))[0]}") from error
        raise UnusableFileError(text) from error


def _check_versions(database: Database) -> None:
    wanted = {name: sql.version(name) for name in sql.NAMES}
    if not database.rows("select 1 from duckdb_tables() where not temporary limit 1"):
        _create(database, wanted)
        return
    found = dict(database.rows(sql.blocks("system")["versions"]))
    changed = [name for name in wanted if found.get(name) != wanted[name]]
    if changed:
        raise UnusableFileError(f"its SQL has changed ({', '.join(changed)})")


def _create(database: Database, versions: Mapping[str, str]) -> None:
    with database.transaction():
        database.execute(sql.blocks("system")["table"])
        for name, version in versions.items():
            database.execute(sql.blocks(name)["table"])
            database.execute(sql.blocks("system")["add_version"], {"projection": name, "version": version})
