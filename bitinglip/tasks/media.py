"""Media parameters on their way into the log: whatever form they come in, there they are artifacts.

A data URL is stored; `task:ID/N` becomes what that task has made. So a task's event says which bytes it was given, and
a repeat of it is given the same.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection, Iterator
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import orjson

from bitinglip.errors import ArtifactExpired, ArtifactNotFound, InvalidInput, TaskIsForgotten
from bitinglip.events import artifacts
from bitinglip.events.log import EventLog
from bitinglip.events.task import ArtifactRef, TaskSucceeded
from bitinglip.ids import TaskId, is_ulid
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.parameters import ARTIFACT_FORM, PARAMETERS, Media, media_in

_DATA_URL = re.compile(
    r"data:(?P<type>[\w.+-]+/[\w.+-]+)(?:;[\w.+-]+=[^;,]*)*(?P<base64>;base64)?,(?P<body>.*)", re.DOTALL
)
_MADE_BY = re.compile(r"task:(?P<task>[0-9A-Za-z]+)(?:/(?P<number>\d{1,4}))?")


async def resolve(log: EventLog, command: SubmitTask, *, keep_data: bool = False) -> SubmitTask:
    """Return the command with every media parameter in the form `artifact:SHA256`.

    `keep_data` leaves data URLs as they are: those of a private task are sealed with its other parameters.

    Raises:
        InvalidInput: a parameter cannot be read, or there are no such bytes; the error names it.
        NoServer: the log or the object store cannot be asked.
    """
    params = await resolve_params(log, command.kind, command.params, command.depends_on, keep_data=keep_data)
    return command if params is command.params else command.model_copy(update={"params": params})


async def resolve_params(
    log: EventLog, kind: str, params: dict[str, Any], later: Collection[TaskId] = (), *, keep_data: bool = False
) -> dict[str, Any]:
    """Do the same for parameters of a kind, but leave what tasks in `later` are to make.

    Raises:
        InvalidInput, NoServer: see there.
    """
    found: dict[str, Any] = {}
    for name, media, text in media_in(PARAMETERS[kind], params):
        if later and _maker(text) in later:
            continue
        try:
            if keep_data and text.startswith("data:"):
                _checked_data(media, text)
                continue
            reference = await _reference(log, media, text)
        except (_UnreadableError, ArtifactNotFound, ArtifactExpired, TaskIsForgotten) as error:
            raise InvalidInput(field=f"params.{name}", problem=str(error)) from error
        if not _is(media, reference.media_type):
            problem = f"{reference.media_type} is no {media.sort}"
            raise InvalidInput(field=f"params.{name}", problem=problem)
        found[name] = ARTIFACT_FORM + reference.sha256
    return params | found if found else params


def _maker(text: str) -> str | None:
    """Return the task whose result `task:ID/N` is; none for another form."""
    match = _MADE_BY.fullmatch(text)
    return None if match is None else match["task"]


class _UnreadableError(Exception):
    """A media parameter that cannot be read; the text says why."""


async def _reference(log: EventLog, media: Media, text: str) -> ArtifactRef:
    if text.startswith("data:"):
        return await artifacts.put(log.connection, *_checked_data(media, text))
    if text.startswith("task:"):
        return await _made_by(log, media, text)
    return await artifacts.find(log.connection, text.removeprefix(ARTIFACT_FORM))


def _checked_data(media: Media, text: str) -> tuple[bytes, str]:
    body, media_type = read_data_url(text)
    if not _is(media, media_type):
        raise _UnreadableError(f"{media_type} is no {media.sort}")
    return body, media_type


def read_data_url(text: str) -> tuple[bytes, str]:
    """Return the bytes and the media type of a data URL (RFC 2397)."""
    match = _DATA_URL.fullmatch(text)
    if match is None:
        raise _UnreadableError("not a data URL: data:TYPE/SUBTYPE;base64,…")
    body = unquote_to_bytes(match["body"])
    if match["base64"]:
        try:
            body = base64.b64decode(b"".join(body.split()), validate=True)
        except binascii.Error as error:
            raise _UnreadableError(f"the data URL is not base64: {error}") from error
    if not body:
        raise _UnreadableError("the data URL is empty")
    return body, match["type"].lower()


async def _made_by(log: EventLog, media: Media, text: str) -> ArtifactRef:
    match = _MADE_BY.fullmatch(text)
    if match is None or not is_ulid(match["task"]):
        raise _UnreadableError("not of the form task:ID or task:ID/N")
    task_id = TaskId(match["task"])
    events = [recorded.event for recorded in await log.read_task(task_id)]
    if not events:
        raise _UnreadableError(f"there is no task {task_id}")
    ended = next((event for event in events if isinstance(event, TaskSucceeded)), None)
    if ended is None:
        raise _UnreadableError(f"task {task_id} has not succeeded (yet): wait for its end, then submit this one")
    made = [reference for reference in _artifacts_in(await _result(log, ended)) if _is(media, reference.media_type)]
    number = int(match["number"] or 0)
    if number >= len(made):
        raise _UnreadableError(f"task {task_id} has made {len(made)} of the sort {media.sort!r}; they count from 0")
    return await artifacts.find(log.connection, made[number].sha256)


async def _result(log: EventLog, ended: TaskSucceeded) -> Any:
    if ended.result_ref is None:
        return ended.result
    body, _ = await artifacts.get(log.connection, ended.result_ref.sha256)
    return orjson.loads(body)


def _artifacts_in(value: Any) -> Iterator[ArtifactRef]:
    if isinstance(value, list):
        for item in cast("list[Any]", value):
            yield from _artifacts_in(item)
    elif isinstance(value, dict):
        part = cast("dict[str, Any]", value)
        if {"sha256", "size_bytes", "media_type"} <= part.keys():
            yield ArtifactRef(sha256=part["sha256"], size_bytes=part["size_bytes"], media_type=part["media_type"])
        else:
            for item in part.values():
                yield from _artifacts_in(item)


def _is(media: Media, media_type: str) -> bool:
    """Whether bytes of this type may be of this sort; what they really are, the engine finds out."""
    return media_type.startswith((f"{media.sort}/", "application/octet-stream", "application/ogg"))
