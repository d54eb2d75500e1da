"""A batch on its way into the database: what is applied already is skipped, what cannot be read is marked and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq

from bitinglip.events.envelope import RawMessage
from bitinglip.projections.batch import corrupt, to_arrow
from bitinglip.projections.database import DATA_ERRORS, Database, Staged

log = logging.getLogger(__name__)


def write(database: Database, stream: str, *batches: Seq[RawMessage]) -> None:
    """Apply a stream's messages to all that is served, also to what trails.

    Raises:
        WriteError: see `write_prompt`.
    """
    write_prompt(database, stream, *batches)
    write_trailing(database, stream, *batches)


def write_trailing(database: Database, stream: str, *batches: Seq[RawMessage]) -> None:
    """Apply messages that all else has been applied to already to what trails.

    Raises:
        WriteError: see `write_prompt`.
    """
    for build in database.trailing:
        if stream in build.streams:
            write_prompt(build, stream, *batches)


def write_prompt(database: Database, stream: str, *batches: Seq[RawMessage], staged: Staged | None = None) -> None:
    """Apply a stream's messages, in order and exactly once each, in one transaction; not to what trails.

    `staged`: all of them, if they are taken apart already.

    Raises:
        WriteError: the database could not be written; everything up to its checkpoint is.
    """
    applied = database.checkpoints()[stream][0]
    ahead = [_after(applied, batch) for batch in batches if batch and batch[-1].sequence > applied]
    if ahead:
        _apply(database, stream, ahead, staged if sum(map(len, ahead)) == sum(map(len, batches)) else None)


def _after(applied: int, batch: Seq[RawMessage]) -> Seq[RawMessage]:
    if batch[0].sequence > applied:
        return batch
    return [message for message in batch if message.sequence > applied]


def _apply(database: Database, stream: str, batches: Seq[Seq[RawMessage]], staged: Staged | None = None) -> None:
    try:
        database.apply(stream, staged or Staged(to_arrow(batches)), batches[-1][-1].sequence)
    except DATA_ERRORS as error:
        _narrow(database, stream, [message for batch in batches for message in batch], error)


def _narrow(database: Database, stream: str, messages: Seq[RawMessage], error: Exception) -> None:
    """Halve the batch until the message is alone that cannot be applied."""
    if len(messages) > 1:
        middle = len(messages) // 2
        _apply(database, stream, [messages[:middle]])
        _apply(database, stream, [messages[middle:]])
        return
    log.error("the event at %s:%d is not readable: %s", stream, messages[0].sequence, error)
    database.apply(stream, Staged(to_arrow([[corrupt(messages[0], stream)]])), messages[0].sequence)
    database.corrupt[stream] += 1
