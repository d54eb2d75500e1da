"""Opening the file of the projections, and what may be wrong with it: made anew if it is ours, refused if not.

The file can be made anew from the log at any time. So one that is damaged, half-written, of a newer DuckDB or of
another layout is not mended. One that is a database of something else is left alone, and so is one that cannot be
written.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import duckdb

from bitinglip.errors import InvalidConfig, ProjectionFileBusy, ProjectionFileForeign, ProjectionFileRefused
from bitinglip.projections import coldevents, sql, versions
from bitinglip.projections.batch import to_arrow
from bitinglip.projections.database import Database
from bitinglip.projections.sql import Catalogue
from bitinglip.projections.versions import FORMAT, Version
from bitinglip.settings import Projections

log = logging.getLogger(__name__)

WAL_BYTES = "256MB"
"""Size of the write-ahead log at which DuckDB folds it into the file: larger is faster to write, slower to open."""
BULK_BYTES = "1GB"
"""The same for a file that is filled at once: what is folded at the end is folded by all threads, and at once."""
UNUSABLE = ".unusable"
"""Suffix of a file that was set aside."""

_BUSY = ("lock on file", "different configuration")
_REFUSED = (
    "Permission denied", "Read-only file system", "Is a directory", "No space left", "File too large", "quota exceeded",
)  # fmt: skip
"""What the machine says when it does not let us read or write: the file is no worse for it."""
_DAMAGED = (
    "Corrupt ",
    "Could not read enough bytes",
    "not a valid DuckDB database file",
    "Failure while replaying WAL",
)


class UnusableFileError(Exception):
    """The file is not a database, or one of another layout: it can only be made anew from the log."""


def open_database(path: Path, settings: Projections, catalogue: Catalogue = sql.CATALOGUE) -> Database:
    """Open the file of the projections; one that is unusable is made anew, empty.

    Raises:
        ProjectionFileBusy: another process has it open.
        ProjectionFileForeign: it is a database of something else.
        ProjectionFileRefused: it cannot be read or written: no permission, no room.
        InvalidConfig: DuckDB refuses a setting.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _open(path, settings, catalogue)
        except UnusableFileError as error:
            log.warning("the read model in %s is made anew from the log: %s", path, error)
            _clear(path, settings)
            return _open(path, settings, catalogue)
    except OSError as error:
        raise ProjectionFileRefused(path=str(path), problem=error.strerror or str(error)) from error


def create_bulk(path: Path, settings: Projections, catalogue: Catalogue = sql.CATALOGUE) -> Database:
    """Make a new file that is to be filled at once: without a write-ahead log, it is worth nothing until it is closed.

    One thread fills it: a second costs a quarter more work for the same rows, and the log is read meanwhile.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    database = Database(_connect(":memory:", settings.model_copy(update={"threads": 1}), spills=path))
    try:
        database.execute("set global timezone = 'UTC'")  # of its cursors, too
        database.execute(f"attach '{str(path).replace(chr(39), 2 * chr(39))}' as bulk (recovery_mode no_wal_writes)")
        database.execute("use bulk")
        _close_to_files(database, settings)
        _prepare(database, path, settings, catalogue, keyed=False)
    except BaseException:
        database.close()
        raise
    return database


def discard(path: Path) -> None:
    """Remove a database file with all that lies beside it, its write-ahead log first."""
    wal = path.with_name(path.name + ".wal")
    for leftover in (*path.parent.glob(f"{wal.name}*"), path):
        leftover.unlink(missing_ok=True)


def is_damaged(error: BaseException) -> bool:
    """Tell whether an error says that the file itself is broken, and only a new one helps."""
    return any(mark in str(error) for mark in _DAMAGED)


def has_no_room(error: BaseException) -> bool:
    """Tell whether an error says that the machine does not let us write; it may later."""
    return any(mark in str(error) for mark in _REFUSED)


def _clear(path: Path, settings: Projections) -> None:
    """Remove an unusable file; one whose place was chosen by hand may be something else, and is only set aside."""
    if settings.path is not None and path.exists():
        path.replace(path.with_name(path.name + UNUSABLE))
    discard(path)


def _open(path: Path, settings: Projections, catalogue: Catalogue) -> Database:
    database = Database(_connect(path, settings))
    try:
        database.execute("set global timezone = 'UTC'")
        database.execute("pragma disable_checkpoint_on_shutdown")  # see `Generation.close`
        _close_to_files(database, settings)
        database.execute("set global lock_configuration = true")
        _prepare(database, path, settings, catalogue)
    except duckdb.Error as error:
        database.close()
        raise _meaning(error, path) from error
    except BaseException:
        database.close()
        raise
    return database


def _connect(path: Path | str, settings: Projections, *, spills: Path | None = None) -> duckdb.DuckDBPyConnection:
    """Connect. `spills`: the file that is to be attached; what does not fit into memory goes beside it."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.memory_limit,
        "threads": settings.threads,
        "wal_autocheckpoint": WAL_BYTES if spills is None else BULK_BYTES,
        "preserve_insertion_order": False,
        "python_enable_replacements": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "allow_community_extensions": False,
    }
    if spills is not None:
        config["temp_directory"] = f"{spills}.tmp"
    try:
        return duckdb.connect(path, config=config)
    except duckdb.Error as error:
        raise _meaning(error, path) from error


def _meaning(error: duckdb.Error, path: Path | str) -> Exception:
    text = str(error)
    problem = text.partition("\n")[0]
    if any(mark in text for mark in _BUSY):
        return ProjectionFileBusy(path=str(path), problem=problem)
    if has_no_room(error):
        return ProjectionFileRefused(path=str(path), problem=problem)
    if isinstance(error, duckdb.ParserException | duckdb.InvalidInputException):
        return InvalidConfig(problem=f"projections: {problem}")
    return UnusableFileError(problem)


def _close_to_files(database: Database, settings: Projections) -> None:
    """Let nothing be read from now on but this file and the copies of the archive."""
    if settings.archive_path is not None:
        folder = str(settings.archive_path.absolute()).replace("'", "''")
        database.execute(f"set global allowed_directories = ['{folder}']")
    database.execute("set global enable_external_access = false")


def _prepare(
    database: Database, path: Path, settings: Projections, catalogue: Catalogue, *, keyed: bool = True
) -> None:
    """Make the tables, or bring those of the file to this release."""
    tables = {name for (name,) in database.rows("select table_name from duckdb_tables() where not temporary")}
    if not tables:
        coldevents.attach(database, settings.archive_path)
        versions.create(database, catalogue, keyed=keyed)
    elif not tables >= {"checkpoints", "projection_versions"}:
        raise ProjectionFileForeign(path=str(path))
    elif "storage_format" not in tables or database.rows(sql.blocks(sql.SYSTEM)["format"]) != [(FORMAT,)]:
        raise UnusableFileError("it was laid out by another release")
    else:
        coldevents.attach(database, settings.archive_path)
        versions.reconcile(database, catalogue)
    database.checkpoints()  # what is damaged here is of no use
    served = versions.served(versions.read(database))
    applicable = [version for version in served if _is_applicable(database, version, catalogue)]
    if keyed:
        for version in applicable:
            if version.projection.trails:
                versions.trail(database, version)
        database.serve(applicable)
    else:  # nobody asks before it is full
        database.applied_to = applicable
    database.corrupt.update(dict(_corrupt(database, served)))


def _is_applicable(database: Database, version: Version, catalogue: Catalogue) -> bool:
    """Tell whether what is staged now can be applied to an older version; if not, its rows stay as they are."""
    if version.projection == catalogue[version.name]:
        return True
    try:
        database.try_out(version, to_arrow([[]]))
    except duckdb.Error as error:
        log.warning("the former version of %s stays as it is until the new one is made: %s", version.name, error)
        return False
    return True


def _corrupt(database: Database, served: list[Version]) -> list[tuple[Any, ...]]:
    if not any(version.name == "events" for version in served):
        return []
    return database.rows("select stream, count(*) from events where type = 'corrupt' group by stream")
