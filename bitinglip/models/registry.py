"""Which models the cluster knows, as a fold over the MODELS stream's facts."""

from __future__ import annotations

from bitinglip.events import subjects
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelRegistered
from bitinglip.events.streams import MODELS
from bitinglip.models.store import StoredModel


async def register(log: EventLog, model: StoredModel) -> None:
    """Tell the log that this model can be run, unless that is the last thing it heard of it.

    Raises:
        NoServer: the server did not answer.
    """
    event = ModelRegistered(
        reference=model.reference,
        kind=model.kind,
        revision=model.revision,
        architecture=model.architecture,
        size_bytes=model.size_bytes,
        context_tokens=model.context_tokens,
    )
    subject = subjects.model_subject(model.reference, "registered")
    last = await log.read_last(MODELS, subject)
    if last is None or last.event != event:
        await log.append(log.fact_append(event, subject, model.reference))
