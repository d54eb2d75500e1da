"""The versions of projections in a file: which serve, which are being made, and the views by which they are asked.

Every version has its tables in a schema of its own. What serves is asked by views in `main`, with the columns that this
release's questions need: where the version that serves is an older one, a column that it lacks is null.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from bitinglip.projections import coldevents, sql
from bitinglip.projections.sql import HOME, Catalogue, Projection

if TYPE_CHECKING:
    from bitinglip.projections.database import Database

FORMAT = 2
"""Layout of the file; 1 had all tables in `main`, and no number."""


@dataclass(frozen=True, slots=True)
class Version:
    """A version of a projection in a file."""

    home: str
    """Schema of its tables."""
    projection: Projection
    serving: bool
    """Whether it is asked, and kept up with the log; else it is being made."""

    @property
    def name(self) -> str:
        """Name of the projection."""
        return self.projection.name


def create(database: Database, catalogue: Catalogue, *, keyed: bool = True) -> None:
    """Make the tables of a new file: all versions serve from the first event on.

    Without keys it is filled faster; `Database.fold` adds them.
    """
    with database.transaction():
        database.execute(sql.blocks(sql.SYSTEM)["table"])
        database.execute(sql.blocks(sql.SYSTEM)["set_format"], {"format": FORMAT})
        for projection in catalogue.values():
            publish(database, add(database, projection, serving=True, keyed=keyed))


def read(database: Database) -> list[Version]:
    """Return all versions in the file."""
    found = database.rows(sql.blocks(sql.SYSTEM)["versions"])
    return [Version(home, Projection(name, text, stage), serving) for home, name, _, serving, text, stage in found]


def reconcile(database: Database, catalogue: Catalogue) -> None:
    """Bring the file to the projections of this release.

    What has changed is begun anew beside the old version, which serves on; what is no more is dropped.
    """
    with database.transaction():
        for version in read(database):
            if not _is_wanted(version, catalogue):
                _hide(database, version)
                drop(database, version)
        here = read(database)
        for projection in catalogue.values():
            if not any(version.projection == projection for version in here):
                add(database, projection, serving=False)
        here, columns = read(database), _all_columns(database)
        for version in served(here):
            wanted = next(each for each in here if each.projection == catalogue[version.name])
            if not _is_published(columns, version, wanted):
                publish(database, version, wanted)


def add(database: Database, projection: Projection, *, serving: bool, keyed: bool = True) -> Version:
    """Make the empty tables of a version."""
    taken = {version.home for version in read(database)}
    stem = f"{projection.name}_{projection.version}"
    home = next(name for name in (f"{stem}_{number}" for number in range(len(taken) + 1)) if name not in taken)
    database.execute(f"create schema {home}")
    database.execute(projection.table(home))
    if keyed and (key := projection.key(home)):
        database.execute(key)
    told = {"home": home, "projection": projection.name, "version": projection.version, "serving": serving}
    database.execute(sql.blocks(sql.SYSTEM)["add_version"], told | {"text": projection.text, "stage": projection.stage})
    return Version(home, projection, serving)


def drop(database: Database, version: Version) -> None:
    """Remove a version with all its rows."""
    database.execute(f"drop schema if exists {version.home} cascade")
    for block in ("drop_version", "drop_build"):
        database.execute(sql.blocks(sql.SYSTEM)[block], {"home": version.home})


def take_over(database: Database, made: Seq[Version]) -> None:
    """Let versions that are made serve in the place of the old ones."""
    with database.transaction():
        for version in read(database):
            if version.serving and any(version.name == each.name for each in made):
                _hide(database, version)
                drop(database, version)
        for version in made:
            publish(database, version)
            database.execute(sql.blocks(sql.SYSTEM)["serve_version"], {"home": version.home})
            if version.projection.trails:
                trail(database, version)
            else:
                database.execute(sql.blocks(sql.SYSTEM)["drop_build"], {"home": version.home})


def trail(database: Database, version: Version) -> None:
    """Let a version have checkpoints of its own from now on: where it has none, those of all others."""
    streams = list(version.projection.streams)
    database.execute(sql.blocks(sql.SYSTEM)["trail"], {"home": version.home, "streams": streams})


def publish(database: Database, version: Version, wanted: Version | None = None) -> None:
    """Make the views by which a version is asked, with the columns and comments of the one that is wanted."""
    wanted = wanted or version
    _hide(database, version)
    known = _all_columns(database)
    here = known[version.home]
    comments = dict(database.rows(sql.blocks(sql.SYSTEM)["comments"], {"home": wanted.home}))
    for table, columns in known[wanted.home].items():
        if table in here:
            chosen = ", ".join(_column(name, kind, here[table]) for name, (kind, _) in columns.items())
            view = f'{HOME}."{table}"'
            rows = coldevents.joined(version.home) if table == coldevents.EVENTS else f'{version.home}."{table}"'
            database.execute(f"create view {view} as select {chosen} from {rows}")  # noqa: S608  (ours)
            _comment(database, f"view {view}", comments[table])
            for name, (_, comment) in columns.items():
                _comment(database, f'column {view}."{name}"', comment)


def served(versions: Iterable[Version]) -> list[Version]:
    """Return those that serve."""
    return [version for version in versions if version.serving]


_Columns = dict[str, dict[str, tuple[str, str | None]]]
"""By table and column: type and comment."""


def _all_columns(database: Database) -> Mapping[str, _Columns]:
    """Return the columns of all tables and views, by schema: DuckDB takes as long to tell those of one."""
    found: defaultdict[str, _Columns] = defaultdict(dict)
    for (home, table), group in groupby(database.rows(sql.blocks(sql.SYSTEM)["columns"]), lambda row: row[:2]):
        found[home][table] = {name: (kind, comment) for _, _, name, kind, comment in group}
    return found


def _column(name: str, kind: str, here: dict[str, tuple[str, Any]]) -> str:
    if name not in here:
        return f'null::{kind} as "{name}"'
    return f'"{name}"' if here[name][0] == kind else f'try_cast("{name}" as {kind}) as "{name}"'


def _comment(database: Database, about: str, comment: str | None) -> None:
    if comment is not None:
        database.execute(f"comment on {about} is '{comment.replace(chr(39), 2 * chr(39))}'")


def _hide(database: Database, version: Version) -> None:
    """Remove the views of a version that serves."""
    for table in _all_columns(database)[version.home] if version.serving else ():
        database.execute(f'drop view if exists {HOME}."{table}"')


def _is_wanted(version: Version, catalogue: Catalogue) -> bool:
    if version.name not in catalogue:
        return False
    return version.serving or version.projection == catalogue[version.name]


def _is_published(columns: Mapping[str, _Columns], version: Version, wanted: Version) -> bool:
    told, here, asked = (columns[home] for home in (HOME, version.home, wanted.home))
    return all(told.get(table) == asked[table] for table in asked if table in here)
