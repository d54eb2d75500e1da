"""A batch on its way into the database: what is applied already is skipped, what cannot be read is marked and kept."""

from __future__ import annotations

import logging
from collections.abc import Sequence as Seq

from bitinglip.events.envelope import RawMessage
from bitinglip.projections.batch import corrupt, to_arrow
from bitinglip.projections.database import DATA_ERRORS, Database

log = logging.getLogger(__name__)


def write(database: Database, stream: str, messages: Seq[RawMessage]) -> None:
    """Apply a stream's messages, in order and exactly once each.

    Raises:
        WriteError: the database could not be written; everything up to its checkpoint is.
    """
    applied = database.checkpoints()[stream][0]
    if messages and messages[0].sequence <= applied:
        messages = [message for message in messages if message.sequence > applied]
    if messages:
        _apply(database, stream, messages)


def _apply(database: Database, stream: str, messages: Seq[RawMessage]) -> None:
    try:
        database.apply(stream, to_arrow(messages), messages[-1].sequence)
    except DATA_ERRORS as error:
        _narrow(database, stream, messages, error)


def _narrow(database: Database, stream: str, messages: Seq[RawMessage], error: Exception) -> None:
    """Halve the batch until the message is alone that cannot be applied."""
    if len(messages) > 1:
        middle = len(messages) // 2
        _apply(database, stream, messages[:middle])
        _apply(database, stream, messages[middle:])
        return
    log.error("the event at %s:%d is not readable: %s", stream, messages[0].sequence, error)
    database.apply(stream, to_arrow([corrupt(messages[0], stream)]), messages[0].sequence)
