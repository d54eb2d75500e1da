"""From what a repository tells to `model.described`: pure, whoever read it and from where."""

from __future__ import annotations

from collections.abc import Sequence

from bitinglip.events.model import ModelDescribed, ModelFile, Source
from bitinglip.models.kinds import PARTS, architecture_of, context_of, kind_of
from bitinglip.models.memory import Known

MOST_TAGS = 100


def described(
    reference: str,
    revision: str,
    files: Sequence[ModelFile],
    known: Known,
    *,
    source: Source,
    asked_revision: str | None = None,
    licence: str | None = None,
    tags: Sequence[str] = (),
    gated: bool = False,
    by: str | None = None,
) -> ModelDescribed:
    """Return the fact of what a revision is.

    Args:
        reference: The model's name.
        revision: The commit, or the digest of a folder.
        files: The files that are loaded.
        known: What its configuration and the headers of these files tell.
        source: Where the files come from.
        asked_revision: The branch, tag or commit that led to this revision.
        licence: Its licence's name.
        tags: Words about it; some hundred of them are kept.
        gated: Whether its owner must let one in.
        by: Who asked.
    """
    architecture = architecture_of(known.config)
    return ModelDescribed(
        reference=reference,
        revision=revision,
        source=source,
        asked_revision=asked_revision,
        kind=kind_of(known.config, known.names),
        architecture=architecture,
        parameters=known.parameters,
        dtype=known.dtype,
        size_bytes=sum(file.size_bytes for file in files),
        need_bytes=known.needs(),
        context_tokens=context_of(known.config),
        licence=licence,
        tags=list(tags[:MOST_TAGS]),
        gated=gated,
        files=list(files),
        parts={part: name for part, name in PARTS.get(architecture or "", {}).items() if part not in known.names},
        by=by,
    )
