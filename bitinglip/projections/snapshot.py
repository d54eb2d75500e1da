"""Snapshots: a copy of the read model in the object store, so that a new gateway starts in seconds.

A copy is read in one read-only transaction, while the writer goes on, into a new file with the same tables; that is
compressed, stored, and told of in LEDGER. Whoever starts takes the newest that fits: the same versions of all
projections, the digest that LEDGER says, streams that are still the same. Only this release's SQL is ever run: the text
in a file that came from elsewhere must be ours to the letter.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import shutil
from collections.abc import Callable
from collections.abc import Sequence as Seq
from pathlib import Path

from bitinglip.errors import BitingLipError, Conflict, ProjectionBuilding
from bitinglip.events import snapshots, subjects
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import decode
from bitinglip.events.ledger import LedgerSnapshot
from bitinglip.events.log import EventLog
from bitinglip.events.streams import LEDGER
from bitinglip.projections import sql, versions
from bitinglip.projections.arrow import pa
from bitinglip.projections.database import Database, WriteError
from bitinglip.projections.ground import Ground, begin
from bitinglip.projections.opening import create_bulk, discard, open_database
from bitinglip.projections.sql import Catalogue

log = logging.getLogger(__name__)

ABOUT = "readmodel"
SUFFIX = ".snapshot"
PACKED = ".zst"
KEPT = 2
"""Snapshots that stay in the bucket."""
MUCH = 100_000
"""Sequences by which a file must be behind a snapshot for that to be fetched in its place."""
ROWS_PER_BATCH = 20_000


class UnfitSnapshotError(Exception):
    """A snapshot is not what was told of it, or not of this log, or not of this release."""


def beside(path: Path) -> Path:
    """Return where a snapshot is made, or unpacked."""
    return path.with_name(path.name + SUFFIX)


def sweep(path: Path) -> None:
    """Remove what a snapshot that did not come to its end has left."""
    discard(beside(path))
    _packed(path).unlink(missing_ok=True)


async def told(log: EventLog) -> list[tuple[int, LedgerSnapshot]]:
    """Return the snapshots that LEDGER tells of, each with its sequence, the newest first.

    Raises:
        NoServer: the log cannot be asked.
    """
    messages = await get_after(log.connection, LEDGER, subjects.ledger_subject(ABOUT, "snapshot"), 0)
    events = [(message.sequence, decode(message, LEDGER).event) for message in reversed(messages)]
    return [(sequence, event) for sequence, event in events if isinstance(event, LedgerSnapshot)]


# --- making -----------------------------------------------------------------------------------------------------------


async def make(database: Database, path: Path, ground: Ground) -> LedgerSnapshot:
    """Copy what an open file has, store the copy, tell of it, and drop all but the last two.

    Raises:
        ProjectionBuilding: a projection is being made anew.
        Conflict: another gateway has made one meanwhile.
        NoServer: the log did not take it.
    """
    event_log = ground.log
    before = (await told(event_log))[:1]
    name = f"snapshot-{event_log.ids()}"
    try:
        reached = await _on_a_thread(database, lambda cursor: _copy(cursor, path, ground))
        size_bytes, sha256 = await asyncio.to_thread(_measure, _packed(path))
        await snapshots.put(event_log.connection, name, _packed(path))
    finally:
        await asyncio.to_thread(sweep, path)
    event = LedgerSnapshot(
        file=name, checkpoints=reached, versions=_versions(ground.catalogue), size_bytes=size_bytes, sha256=sha256
    )
    kept = [event.file, *(other.file for _, other in before)][:KEPT]
    try:
        await event_log.append(event_log.ledger_append(event, ABOUT, before[0][0] if before else 0))
    except Conflict:
        kept = [other.file for _, other in await told(event_log)][:KEPT]
        raise
    finally:
        await snapshots.keep(event_log.connection, frozenset(kept))
    return event


async def _on_a_thread(database: Database, work: Callable[[Database], dict[str, int]]) -> dict[str, int]:
    """Run the work with a cursor of its own; if we are cancelled, it is stopped first."""
    cursor = database.cursor()
    running = asyncio.ensure_future(asyncio.to_thread(work, cursor))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not running.done():
            cursor.interrupt()
            await asyncio.wait([running], timeout=0.1)
        raise
    finally:
        cursor.close()


def _copy(cursor: Database, path: Path, ground: Ground) -> dict[str, int]:
    """Copy all rows into a new file and pack it; returns up to where they are."""
    sweep(path)
    copy = create_bulk(beside(path), ground.settings, ground.catalogue)
    try:
        with cursor.read_only():
            reached = cursor.checkpoints()
            _copy_rows(cursor, copy, ground.catalogue)
        for stream, (sequence, created) in reached.items():
            copy.add_checkpoint(stream, created)
            copy.execute(sql.blocks(sql.SYSTEM)["advance"], {"stream": stream, "sequence": sequence})
        copy.fold(ground.settings.threads)
    finally:
        copy.close()
    with beside(path).open("rb") as whole, pa.output_stream(str(_packed(path)), compression="zstd") as packed:
        shutil.copyfileobj(whole, packed, 1 << 20)
    return {stream: sequence for stream, (sequence, _) in reached.items()}


def _copy_rows(cursor: Database, copy: Database, catalogue: Catalogue) -> None:
    here = {version.name: version for version in versions.served(versions.read(cursor))}
    for version in versions.read(copy):
        mine = here.get(version.name)
        if mine is None or mine.projection != catalogue[version.name]:
            raise ProjectionBuilding(projection=version.name, applied=0, last=0)
        for (table,) in copy.rows(sql.blocks(sql.SYSTEM)["tables"], {"home": version.home}):
            reader = cursor.arrow(f'from {mine.home}."{table}"', (), ROWS_PER_BATCH)
            copy.load(f'{version.home}."{table}"', reader)
        if version.projection.trails:
            _copy_checkpoints(cursor, copy, mine.home, version.home)
    copy.load("main.archived", cursor.arrow("from main.archived", (), ROWS_PER_BATCH))


def _copy_checkpoints(cursor: Database, copy: Database, home: str, new_home: str) -> None:
    blocks = sql.blocks(sql.SYSTEM)
    for stream, sequence in cursor.rows(blocks["build_checkpoints"], {"home": home}):
        copy.execute(blocks["advance_build"], {"home": new_home, "stream": stream, "sequence": sequence})


# --- fetching ---------------------------------------------------------------------------------------------------------


async def fetch(path: Path, ground: Ground) -> bool:
    """Put the newest snapshot that fits in the place of a file that is not there, or far behind; tell whether it was.

    Whatever is wrong with one is logged, and the next one, or the log, is used.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(sweep, path)
        fitting = [event for _, event in await told(ground.log) if event.versions == _versions(ground.catalogue)][:KEPT]
        if not fitting or not await asyncio.to_thread(_is_worth_it, path, ground, fitting[0]):
            return False
    except (BitingLipError, OSError) as error:
        log.warning("no snapshot of the read model is used: %s", error)
        return False
    for event in fitting:
        try:
            await _fetch(path, ground, event)
        except (UnfitSnapshotError, BitingLipError, WriteError, OSError) as error:
            log.warning("the snapshot %s of the read model is not used: %s", event.file, error)
        else:
            log.info("the read model begins with the snapshot %s", event.file)
            return True
        finally:
            await asyncio.to_thread(sweep, path)
    return False


def _is_worth_it(path: Path, ground: Ground, event: LedgerSnapshot) -> bool:
    if not path.exists():
        return True
    database = open_database(path, ground.settings, ground.catalogue)
    try:
        reached = sum(sequence for sequence, _ in database.checkpoints().values())
    finally:
        database.close()
    return reached + MUCH <= sum(event.checkpoints.values())


async def _fetch(path: Path, ground: Ground, event: LedgerSnapshot) -> None:
    if not await snapshots.get(ground.log.connection, event.file, _packed(path)):
        raise UnfitSnapshotError("it is not in the object store any more")
    if await asyncio.to_thread(_measure, _packed(path)) != (event.size_bytes, event.sha256):
        raise UnfitSnapshotError("its bytes are not those that LEDGER tells of")
    await asyncio.to_thread(_unpack, path)
    database = await asyncio.to_thread(open_database, beside(path), ground.settings, ground.catalogue)
    try:
        _check(database, event, ground.catalogue)
        if (problem := await begin(database, ground.log)) is not None:
            raise UnfitSnapshotError(problem)
    finally:
        await asyncio.to_thread(database.close)
    await asyncio.to_thread(_put_in_place, path)


def _check(database: Database, event: LedgerSnapshot, catalogue: Catalogue) -> None:
    found = {stream: sequence for stream, (sequence, _) in database.checkpoints().items()}
    if found != event.checkpoints:
        raise UnfitSnapshotError("its checkpoints are not those that LEDGER tells of")
    if {version.name: version.projection for version in versions.served(versions.read(database))} != dict(catalogue):
        raise UnfitSnapshotError("its projections are not those of this release")


def _unpack(path: Path) -> None:
    with pa.input_stream(str(_packed(path)), compression="zstd") as packed, beside(path).open("wb") as whole:
        shutil.copyfileobj(packed, whole, 1 << 20)


def _put_in_place(path: Path) -> None:
    discard(path)
    beside(path).replace(path)


def _packed(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX + PACKED)


def _measure(path: Path) -> tuple[int, str]:
    """Return a file's size in bytes, and its SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _versions(catalogue: Catalogue) -> dict[str, str]:
    return {name: projection.version for name, projection in catalogue.items()}


# --- now and then -----------------------------------------------------------------------------------------------------


async def is_due(ground: Ground, applied: Seq[int]) -> bool:
    """Tell whether so many events came since the last snapshot, anybody's, that another one is to be made.

    Raises:
        NoServer: the log cannot be asked.
    """
    last = (await told(ground.log))[:1]
    reached = sum(last[0][1].checkpoints.values()) if last else 0
    return sum(applied) - reached >= ground.settings.snapshot_events > 0
