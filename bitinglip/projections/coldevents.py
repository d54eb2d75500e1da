"""The archive's files as a part of the table `events`: one view over the rows that are here and those that left.

`archived` says, for each stream, up to where its lasting events are read from the archive: what the table still has of
them is not shown, and is dropped. It moves on after the files are here, and in one transaction with the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bitinglip.events import model, node, schedule, task, worker
from bitinglip.events.registry import REGISTRY
from bitinglip.projections import sql

if TYPE_CHECKING:
    from bitinglip.projections.database import Database

EVENTS = "events"
"""Name of the projection, and of its table."""
DECLARING = (model, node, schedule, task, worker)
"""Modules that have types of ticks: the registry knows those that are imported."""
NONE = "none/none/none.parquet"
"""A file without rows, so that there is one."""


def attach(database: Database, folder: Path | None) -> None:
    """Make what the view needs: the table `archived`, and the view `cold.events` of the files in a folder."""
    if folder is not None and not (folder / NONE).exists():
        _make_none(database, folder / NONE)
    files = "" if folder is None else _quoted(folder / "*" / "*" / "*.parquet")
    blocks = sql.blocks(sql.SYSTEM)
    database.execute(blocks["archived"])
    database.execute(blocks["cold_none"] if folder is None else blocks["cold"].replace("$files", files))


def _make_none(database: Database, path: Path) -> None:
    """Make the file without rows; never a half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    begun = path.with_suffix(".new")
    database.execute(sql.blocks(sql.SYSTEM)["cold_file"].replace("$file", _quoted(begun)))
    begun.replace(path)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def joined(home: str) -> str:
    """Return the events of a version of the table, and of the archive, as a relation."""
    ticks = ", ".join(f"'{name}'" for name, cls in REGISTRY.items() if not cls.lasting)
    return sql.blocks(sql.SYSTEM, home)["joined"].replace("$ticks", ticks)


def drop(database: Database, homes: Iterable[str], stream: str, up_to: int) -> None:
    """Let the lasting events of a stream, up to a sequence, be read from the archive; they are dropped here."""
    ticks = [name for name, cls in REGISTRY.items() if not cls.lasting]
    told = {"stream": stream, "up_to": up_to}
    with database.transaction():
        for home in homes:
            database.execute(sql.blocks(sql.SYSTEM, home)["drop_archived"], told | {"ticks": ticks})
        database.execute(sql.blocks(sql.SYSTEM)["set_archived"], told)
