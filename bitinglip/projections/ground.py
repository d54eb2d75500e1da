"""What a read model is made of: settings, where it reads, what it makes of that; and whether a file is of this log."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.events.log import EventLog
from bitinglip.projections import sql
from bitinglip.projections.database import Database
from bitinglip.projections.source import LogSource, Source
from bitinglip.projections.sql import STREAMS, Catalogue
from bitinglip.settings import Projections


@dataclass(frozen=True, slots=True, kw_only=True)
class Ground:
    """What a read model is made of: its settings, where it reads, and what it makes of that."""

    settings: Projections
    log: EventLog
    source: Source
    catalogue: Catalogue

    @classmethod
    def of(cls, settings: Projections, log: EventLog, catalogue: Catalogue = sql.CATALOGUE) -> Ground:
        """Return the ground of a read model that reads the log alone."""
        return cls(settings=settings, log=log, source=LogSource(log), catalogue=catalogue)


async def begin(database: Database, log: EventLog) -> str | None:
    """Begin streams without a checkpoint; say what is wrong with a checkpoint that cannot be of this log."""
    known = database.checkpoints()
    for stream in STREAMS:
        created, last = await log.stream_created(stream), await log.last_sequence(stream)
        applied, stored = known.get(stream, (0, None))
        if stored is None:
            database.add_checkpoint(stream, created)
        elif stored != created:
            return f"the stream {stream} was made anew"
        elif applied > last:
            return f"its checkpoint {applied} is beyond the last event {last} of {stream}"
    return None
