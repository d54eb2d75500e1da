"""The routes about the log itself, as the OpenAPI document tells them."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.events.ledger import LedgerArchived
from bitinglip.gateway.archive import MEDIA_TYPE, STREAMS
from bitinglip.gateway.schemas import (
    FLAG,
    OPTIONAL,
    TEXT,
    WHOLE,
    Operation,
    array_of,
    in_path,
    in_query,
    object_of,
)

STREAM = in_query("stream", "Only this stream.", {"type": "string", "enum": list(STREAMS)})
FILE = in_path("file", "Its name, as the index has it; its slashes stand as they are.", ".+")
ARCHIVED_FILE = object_of(
    stream=TEXT, day=TEXT, file=TEXT, first_sequence=WHOLE, last_sequence=WHOLE, events=WHOLE, size_bytes=WHOLE,
    sha256=TEXT, last_time_ns={"type": ["integer", "null"]},
)  # fmt: skip
assert set(ARCHIVED_FILE["properties"]) == set(LedgerArchived.model_fields)
ARCHIVED_STREAM = object_of(
    stream=TEXT, archived_to=WHOLE, trimmed_to=WHOLE, last_sequence=WHOLE, messages=WHOLE, behind_events=WHOLE,
    behind_s={"type": "number"}, events=WHOLE, size_bytes=WHOLE, files=array_of(ARCHIVED_FILE),
)  # fmt: skip
TRIMMED = object_of(stream=TEXT, up_to_sequence=WHOLE, removed=WHOLE)

LOG_OPERATIONS = (
    Operation(
        "get", "/v1/log/archive", "What of the log is archived, what is on the server, and how far the archive is.",
        {200: object_of(streams=array_of(ARCHIVED_STREAM), problem=OPTIONAL)},
        (errors.InvalidInput, errors.NoServer), (STREAM,),
    ),
    Operation(
        "post", "/v1/log/archive", "Archive what makes whole files, and let leave the server what can.",
        {200: object_of(archived=array_of(ARCHIVED_FILE), trimmed={"oneOf": [TRIMMED, {"type": "null"}]})},
        (errors.InvalidInput, errors.StreamFull, errors.ArchiveDamaged, errors.ProjectionBehind, errors.NoServer),
        (STREAM, in_query("now", "`true`: all that there is, not only whole files.", FLAG)),
    ),
    Operation(
        "get", "/v1/log/archive/{file}", "A file of the archive (Parquet), checked against the index.", {200: {}},
        (errors.ArchiveFileNotFound, errors.ArchiveDamaged, errors.NoServer),
        (FILE,), media_types=(MEDIA_TYPE,),
    ),
)  # fmt: skip
