"""`events replay --into`: another gateway is asked for what was asked of this one, at the same pace.

Tasks that wait for others wait for their new ones; artifacts that parameters name go along. What cannot be asked for
again is counted, by why.
"""

from __future__ import annotations

import hashlib
import io
import re
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from bitinglip.cli import render
from bitinglip.cli.client import Client, ProblemAnswer, ServerEvent
from bitinglip.cli.recorded import Pace, Part, conditions, time_of

REPLAY_OF = "replay_of"
GONE = frozenset({404, 410})
_ARTIFACT = re.compile(r"artifact:([0-9a-f]{64})")


class NotAgainError(Exception):
    """A task cannot be asked for again; the text is the word that it is counted under."""


def run(source: Client, target: Client, arrivals: Part, pace: Pace, *, as_json: bool) -> int:
    """Submit the recorded arrivals to the target, and print what became of them; returns 1 if it refused some.

    Raises:
        GatewayUnreachable: one of the gateways does not answer.
    """
    again, started = Again(source, target, pace.speed), time.monotonic()
    for event in pace.keep(arrivals.events(source)):
        again.submit(event)
    told = {name: again.counts[name] for name in ("submitted", "private", "gone", "without_result", "refused")}
    told["artifacts"] = len(again.moved)
    took_s = round(time.monotonic() - started, 3)
    if as_json:
        render.json(told | {"took_s": took_s, "problems": dict(again.problems)})
    else:
        for problem, count in again.problems.items():
            render.note(f"refused {count}: {problem}")
        told_of = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in told.items())
        render.line(f"{told_of}; {took_s:g} s")
    return 1 if told["refused"] else 0


class Again:
    """Asks for recorded tasks once more, and remembers which new task is which old one's."""

    def __init__(self, source: Client, target: Client, speed: float) -> None:
        self.counts: Counter[str] = Counter()
        self.problems: Counter[str] = Counter()
        self.moved: set[str] = set()
        """Digests of the artifacts that the target has got."""
        self._source = source
        self._target = target
        self._speed = speed
        self._ids: dict[str, str] = {}

    def submit(self, event: ServerEvent) -> None:
        """Ask for one task; what keeps that from being done is counted."""
        old = event.data["data"]["task_id"]
        try:
            answer = self._target.request("POST", "/v1/tasks", body=self._body(event))
        except NotAgainError as reason:
            self.counts[str(reason)] += 1
        except ProblemAnswer as problem:
            self.counts["refused"] += 1
            self.problems[str(problem)] += 1
        else:
            self._ids[old] = answer["task_id"]
            self.counts["submitted"] += 1

    def _body(self, event: ServerEvent) -> dict[str, Any]:
        told: dict[str, Any] = event.data["data"]
        if told.get("private"):
            raise NotAgainError("private")
        body: dict[str, Any] = {
            "kind": told["kind"],
            "model": told.get("alias") or told["model"],
            "lane": told["lane"],
            "params": self._renewed(self._params(told)),
            "metadata": (told.get("metadata") or {}) | {REPLAY_OF: told["task_id"]},
            "retry": told.get("retry") or {},
        }
        return body | conditions(told) | self._times(told, time_of(event)) | self._dependencies(told)

    def _times(self, told: dict[str, Any], at: datetime) -> dict[str, Any]:
        """Return when it may start and expires, as long after its submission as then; a wait goes at the pace."""
        found: dict[str, Any] = {}
        if told.get("run_at"):
            found["delay_s"] = max(0.0, (datetime.fromisoformat(told["run_at"]) - at).total_seconds()) / self._speed
        if told.get("expires_at"):
            left: timedelta = datetime.fromisoformat(told["expires_at"]) - at
            found["expires_at"] = (datetime.now(UTC) + left).isoformat()
        return found

    def _dependencies(self, told: dict[str, Any]) -> dict[str, Any]:
        ids = [self._ids[each] for each in told.get("depends_on") or () if each in self._ids]
        return {"depends_on": ids, "on_failure": told.get("on_failure") or "cancel"} if ids else {}

    def _params(self, told: dict[str, Any]) -> dict[str, Any]:
        if told.get("params_ref") is None:
            return told.get("params") or {}
        try:
            return self._source.get(f"/v1/artifacts/{told['params_ref']['sha256']}")
        except ProblemAnswer as problem:
            if problem.status not in GONE:
                raise
            raise NotAgainError("gone") from problem

    def _renewed(self, value: Any) -> Any:
        """Return parameters with the results of new tasks in the place of old ones', and their artifacts moved."""
        if isinstance(value, list):
            return [self._renewed(each) for each in cast("list[Any]", value)]
        if isinstance(value, dict):
            part = cast("dict[str, Any]", value)
            if "$result" not in part:
                return {name: self._renewed(each) for name, each in part.items()}
            if part["$result"] not in self._ids:
                raise NotAgainError("without_result")
            return part | {"$result": self._ids[part["$result"]]}
        if isinstance(value, str) and (match := _ARTIFACT.fullmatch(value)) is not None:
            self._move(match[1])
        return value

    def _move(self, digest: str) -> None:
        """Take an artifact along; it has the same digest there."""
        if digest in self.moved:
            return
        body = io.BytesIO()
        try:
            self._source.download(f"/v1/artifacts/{digest}", body)
        except ProblemAnswer as problem:
            if problem.status not in GONE:
                raise
            raise NotAgainError("gone") from problem
        if hashlib.sha256(body.getvalue()).hexdigest() != digest:
            raise NotAgainError("private")  # what a private task made: it came opened
        body.seek(0)
        media_type = self._source.media_type(f"/v1/artifacts/{digest}")
        self._target.upload("/v1/artifacts", body, media_type)
        self.moved.add(digest)
