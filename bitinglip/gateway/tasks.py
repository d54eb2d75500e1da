"""Tasks: submit, look at, cancel."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from bitinglip.errors import InvalidInput, TaskNotFound
from bitinglip.events.task import TaskSubmitted
from bitinglip.gateway import admission, events, eventstream, past, requests, sse, unsealing, waiting
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.pastviews import told
from bitinglip.gateway.responses import json
from bitinglip.ids import TaskId
from bitinglip.projections.moment import Moment
from bitinglip.projections.taskrow import row_of
from bitinglip.tasks import media
from bitinglip.tasks.commands import CancelTask, SubmitTask
from bitinglip.tasks.inbox import Accepted

KEY_MOST = 255
REASON_MOST = 512


async def submit(request: Request) -> Response:
    """Answer `POST /v1/tasks`: put a task into the log; if asked for, wait for its end or stream its events."""
    gateway = gateway_of(request)
    requests.only(request)
    key = idempotency_key(request)
    command = SubmitTask.from_json(await requests.read_json(request, gateway.settings.gateway.max_body_bytes))
    await admission.admit(gateway, command.model, command.kind)
    command = await media.resolve(gateway.log, command, keep_data=gateway.inbox.is_private(command.private))
    event = await gateway.inbox.prepare(command, key_id=gateway.key_id, idempotency_key=key)
    await gateway.let_in([event])
    streamed, wait_s = requests.wants(request, eventstream.MEDIA_TYPE), requests.preferred_wait(request)
    if not streamed and not wait_s:
        accepted = await _append(gateway, event, request)
        return json(_accepted(accepted), 202, _headers(accepted))
    follower = await events.Follower.open(gateway, event.task_id)
    try:
        accepted = await _append(gateway, event, request)
        headers = _headers(accepted)
        if streamed:
            batches = follower.batches(_before(accepted), heard_all=accepted.created)
            batches = unsealing.batches(gateway, event.task_id, batches) if event.private else batches
            beside = await waiting.events_of_model(gateway, event.model, event.kind)
            return sse.stream(gateway, batches, headers, ends=events.ends, closed=follower.close, beside=beside)
        answer = await _wait(gateway, follower, accepted, wait_s or 0, headers)
    except BaseException:
        await follower.close()
        raise
    await follower.close()
    return answer


async def get_task(request: Request) -> Response:
    """Answer `GET /v1/tasks/{task_id}`; one that waits for its model says how that comes along."""
    requests.only(request, (past.AS_OF,))
    gateway = gateway_of(request)
    if (moment := await past.moment_of(request)) is not None:
        return json(await _task_then(request, moment))
    row = await gateway.task(requests.task_id_of(request))
    awaited = waiting.waiting_for(gateway, row.model, row.kind) if row.state == "queued" else None
    if awaited is None and not row.private:
        return json(row)
    return json(await unsealing.shown(gateway, row) | ({} if awaited is None else {"waiting_for": awaited}))


async def cancel(request: Request) -> Response:
    """Answer `DELETE /v1/tasks/{task_id}`: 200 if the task has ended by that, 202 if its worker was asked to stop."""
    gateway = gateway_of(request)
    requests.only(request, ("reason",))
    reason = requests.one(request, "reason")
    if reason is not None and len(reason) > REASON_MOST:
        raise InvalidInput(field="reason", problem=f"has more than {REASON_MOST} characters")
    task_id = requests.task_id_of(request)
    task = await gateway.inbox.cancel(task_id, CancelTask(by=gateway.key_id, reason=reason))
    gateway.recent.note_task(task_id, task.sequence, task.submitted.batch_id)
    content = {"task_id": task_id, "state": task.state, "cancel_requested": not task.ended, "links": links(task_id)}
    return json(content, 200 if task.ended else 202)


async def retry(request: Request) -> Response:
    """Answer `POST /v1/tasks/{task_id}/retry`: the same request once more, as a new task."""
    gateway = gateway_of(request)
    requests.only(request, ("force",))
    force = requests.choice("force", requests.one(request, "force"), "false", ("true", "false")) == "true"
    task_id = requests.task_id_of(request)
    accepted = await gateway.inbox.retry(task_id, force=force, request_id=request.scope["request_id"])
    for each in (task_id, accepted.task_id):  # the old one tells of the new one
        gateway.recent.note(each, accepted.sequence)
    return json(_accepted(accepted) | {"retry_of": task_id}, 202, _headers(accepted))


def links(task_id: TaskId) -> dict[str, str]:
    """Return where a task and its events are."""
    return {"self": f"/v1/tasks/{task_id}", "events": f"/v1/tasks/{task_id}/events"}


async def _task_then(request: Request, moment: Moment) -> dict[str, Any]:
    task_id = requests.task_id_of(request)
    row = await past.at(request, moment, lambda state: state.task(task_id))
    if row is None:
        raise TaskNotFound(task_id=task_id)
    return await unsealing.shown(gateway_of(request), row) | {past.AS_OF: told(moment)}


async def _append(gateway: Gateway, event: TaskSubmitted, request: Request) -> Accepted:
    started = time.perf_counter()
    accepted = await gateway.inbox.append(event, request.scope["request_id"])
    gateway.recent.note(accepted.task_id, accepted.sequence)
    if accepted.created:
        gateway.metrics.observe_submit(event.kind, event.lane, time.perf_counter() - started)
    else:
        gateway.pressure.take_back([event])
    return accepted


async def _wait(
    gateway: Gateway, follower: events.Follower, accepted: Accepted, wait_s: int, headers: dict[str, str]
) -> Response:
    granted_s = min(float(wait_s), gateway.settings.gateway.wait_max_s)
    headers["Preference-Applied"] = f"wait={granted_s:g}"
    told = await follower.to_the_end(_before(accepted), granted_s, heard_all=accepted.created)
    if told is None:
        return json(_accepted(accepted), 202, headers)
    gateway.recent.note(accepted.task_id, told[-1].sequence)
    # A task that was just made has no others after it, and all its events are at hand: no need to ask the read model.
    row = row_of(told) if accepted.created else None
    return json(await unsealing.shown(gateway, row or await gateway.task(accepted.task_id)), 200, headers)


def _accepted(accepted: Accepted) -> dict[str, Any]:
    return {
        "task_id": accepted.task_id,
        "state": "scheduled" if accepted.waits else "queued",
        "sequence": accepted.sequence,
        "links": links(accepted.task_id),
    }


def _headers(accepted: Accepted) -> dict[str, str]:
    headers = {"Location": links(accepted.task_id)["self"]}
    return headers if accepted.created else headers | {"Idempotency-Replayed": "true"}


def _before(accepted: Accepted) -> int:
    """Return the sequence after which all of the task's events lie."""
    return accepted.sequence - 1 if accepted.created else 0


def idempotency_key(request: Request) -> str | None:
    """Return the caller's idempotency key; none if none is given.

    Raises:
        InvalidInput: it is too long, or has characters that a header cannot.
    """
    if b"idempotency-key" not in request.scope["header_map"]:
        return None
    key = requests.header(request, b"idempotency-key")
    if not (0 < len(key) <= KEY_MOST and key.isascii() and key.isprintable()):
        raise InvalidInput(field="Idempotency-Key", problem=f"must be 1 to {KEY_MOST} printable ASCII characters")
    return key
