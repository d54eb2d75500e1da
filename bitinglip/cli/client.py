"""Speaking HTTP to a gateway: JSON requests, problems as exceptions, event streams that resume by themselves."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import httpx
import orjson

from bitinglip.errors import GatewayUnreachable
from bitinglip.settings import Settings

CONNECT_S = 5.0
ANSWER_S = 90.0
SEND_S = 600.0
"""For the answer to a file of a model, which the gateway has to put on its disk, and perhaps to read once more."""
QUIET_S = 60.0
"""A stream that brings not even a heartbeat for this long is taken up anew."""
RESUME_S = (0.2, 0.5, 1.0, 2.0)
RESUME_MOST = 30
"""Tries to take up a stream before the gateway counts as gone."""


@dataclass
class ProblemAnswer(Exception):
    """The gateway answered with a problem (RFC 9457)."""

    status: int
    document: dict[str, Any]

    def __str__(self) -> str:
        """Say what the gateway said."""
        return str(self.document.get("detail") or self.document.get("title") or f"HTTP {self.status}")

    @property
    def remedy(self) -> str:
        """What can be done."""
        return str(self.document.get("remedy") or "")

    @property
    def exit_code(self) -> int:
        """By who can act: the caller 2, the key's owner 3, time 4, us 70."""
        if self.status in {401, 403, 429}:
            return 3
        return {4: 2, 5: 70}.get(self.status // 100, 70) if self.status != 503 else 4


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event of a stream."""

    id: str
    type: str
    data: dict[str, Any]


class Client:
    """A gateway, as the command line sees it."""

    def __init__(self, settings: Settings, url: str | None = None) -> None:
        self.url = (url or settings.gateway.url).rstrip("/")
        key = settings.gateway.api_key
        headers = {"Authorization": f"Bearer {key.get_secret_value()}"} if key else {}
        timeout = httpx.Timeout(ANSWER_S, connect=CONNECT_S)
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=timeout, trust_env=False)

    def get(self, path: str, params: dict[str, Any] | None = None) -> Any:
        """GET a JSON document.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers.
        """
        return self.request("GET", path, params=params)

    def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        headers: dict[str, str] | None = None,
    ) -> Any:
        """Send a request and return the JSON document that comes back.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers.
        """
        content = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": "application/json"} | (headers or {}) if content is not None else headers
        try:
            answer = self._http.request(method, path, params=_given(params), content=content, headers=headers)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _problem(answer.status_code, answer.content)
        return orjson.loads(answer.content) if answer.content else None

    def upload(self, path: str, body: BinaryIO, media_type: str) -> Any:
        """POST bytes as they are read, and return the JSON document that comes back.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers.
        """
        try:
            answer = self._http.post(path, content=body, headers={"Content-Type": media_type})
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _problem(answer.status_code, answer.content)
        return orjson.loads(answer.content)

    def send(self, path: str, body: Iterable[bytes], size_bytes: int) -> Any:
        """PUT so many bytes as they come, and return the JSON document that comes back.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers, or the connection broke.
        """
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size_bytes)}
        timeout = httpx.Timeout(SEND_S, connect=CONNECT_S)
        try:
            answer = self._http.put(path, content=body, headers=headers, timeout=timeout)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _problem(answer.status_code, answer.content)
        return orjson.loads(answer.content)

    def download(self, path: str, target: BinaryIO) -> None:
        """GET bytes into a file as they come.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers.
        """
        try:
            with self._http.stream("GET", path) as answer:
                if answer.is_error:
                    raise _problem(answer.status_code, answer.read())
                for chunk in answer.iter_bytes():
                    target.write(chunk)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def media_type(self, path: str) -> str:
        """Return the media type of what is there.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers.
        """
        try:
            answer = self._http.head(path)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        if answer.is_error:
            raise _problem(answer.status_code, answer.content)
        return answer.headers.get("content-type", "application/octet-stream")

    def export(self, path: str, body: Any, target: BinaryIO) -> bool:
        """POST a question, and write the answer into a file as it comes; returns whether rows are missing.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers, or the answer broke off.
        """
        headers = {"Content-Type": "application/json"}
        try:
            with self._http.stream("POST", path, content=orjson.dumps(body), headers=headers) as answer:
                if answer.is_error:
                    raise _problem(answer.status_code, answer.read())
                for chunk in answer.iter_bytes():
                    target.write(chunk)
                return answer.headers.get("x-truncated") == "true"
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def events(
        self, path: str, params: dict[str, Any] | None = None, *, ended: Callable[[ServerEvent], bool] = lambda _: False
    ) -> Iterator[ServerEvent]:
        """Yield the events of a stream until it ends, taken up after the last one whenever the connection breaks.

        Raises:
            ProblemAnswer: the gateway refused.
            GatewayUnreachable: nothing answers, many times over.
        """
        last: str | None = None
        failures = 0
        while True:
            try:
                for event in self._stream(path, params, last):
                    failures, last = 0, event.id or last
                    yield event
                    if ended(event):
                        return
            except httpx.TransportError as error:
                failures += 1
                if failures > RESUME_MOST or (last is None and isinstance(error, httpx.ConnectError)):
                    raise self._unreachable(error) from error
                time.sleep(RESUME_S[min(failures, len(RESUME_S)) - 1])
            except ProblemAnswer as problem:
                failures += 1
                if problem.status != 503 or last is None or failures > RESUME_MOST:
                    raise
                time.sleep(RESUME_S[-1])
            else:
                return

    def _stream(self, path: str, params: dict[str, Any] | None, last: str | None) -> Iterator[ServerEvent]:
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        timeout = httpx.Timeout(QUIET_S, connect=CONNECT_S)
        with self._http.stream("GET", path, params=_given(params), headers=headers, timeout=timeout) as answer:
            if answer.is_error:
                raise _problem(answer.status_code, answer.read())
            yield from _parse(answer.iter_lines())

    def _unreachable(self, error: Exception) -> GatewayUnreachable:
        return GatewayUnreachable(url=self.url, problem=str(error) or type(error).__name__)


def _parse(lines: Iterator[str]) -> Iterator[ServerEvent]:
    """Read a stream's lines: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    fields: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in fields:
                yield ServerEvent(fields.get("id", ""), fields.get("event", "message"), orjson.loads(fields["data"]))
            fields = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            fields[name] = f"{fields[name]}\n{value}" if name == "data" and name in fields else value


def _problem(status: int, content: bytes) -> ProblemAnswer:
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        document = {"detail": content[:200].decode(errors="replace")}
    return ProblemAnswer(status, cast("dict[str, Any]", document) if isinstance(document, dict) else {})


def _given(params: dict[str, Any] | None) -> dict[str, Any] | None:
    return {name: value for name, value in params.items() if value is not None} if params else None
