"""Asking a hub: its API of models, small files, heads of large ones. Blocking; what goes wrong is one of our errors.

No more of a file travels than was asked for, whatever the hub sends. huggingface_hub does the downloads, not this: it
reads its environment when it is imported, waits without end in places, and is larger than the rest of a gateway.
httpx is loaded with the first question: it takes 4 MB, and a gateway may never ask a hub.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, NoReturn, cast
from urllib.parse import quote

import orjson
from pydantic import SecretStr

from bitinglip import __version__
from bitinglip.errors import (
    BitingLipError,
    BrokenModel,
    HubOffline,
    HubTokenRefused,
    HubUnreachable,
    ModelGated,
    ModelNotOnHub,
    RevisionNotOnHub,
)
from bitinglip.models.headers import LENGTH_BYTES, Tensor, header_bytes, parse_header
from bitinglip.models.reference import Reference

if TYPE_CHECKING:
    import httpx

HUB = "https://huggingface.co"
TIMEOUT_S = 15.0
"""Seconds of silence after which a request is given up."""
HEAD_BYTES = 100_000
"""What is read of a safetensors file at once: most headers are no longer."""
MOST_SMALL_BYTES = 16 * 2**20
"""Largest configuration that is read, and largest answer."""
BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105  (the hub's words)
TRUE = frozenset({"1", "ON", "YES", "TRUE"})

Query = Sequence[tuple[str, str]]


class HubClient:
    """A hub at an address, asked in one's own name or in nobody's."""

    def __init__(self, endpoint: str | None, token: SecretStr | None, client: httpx.Client) -> None:
        self.endpoint = (endpoint or os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")
        self._client = client
        self._headers = {"User-Agent": f"bitinglip/{__version__}", "Accept-Encoding": "identity"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token.get_secret_value()}"

    def info(self, model: Reference) -> object:
        """Return what the hub tells of a model at a revision, its files with sizes and digests among it.

        Raises:
            ModelNotOnHub: it has no such model, or doesn't show it.
            RevisionNotOnHub: the model has no such revision.
            ModelGated: its owner has to let one in.
            HubUnreachable: it does not answer, or not as it should.
        """
        at = f"/revision/{quote(model.revision, safe='')}" if model.revision else ""
        return self._json(f"/api/models/{model.name}{at}", [("blobs", "true")], model)

    def models(self, query: Query) -> Iterator[object]:
        """Yield the models that a query finds, page after page.

        Raises:
            HubUnreachable: it does not answer, or not as it should.
        """
        url, asked = f"{self.endpoint}/api/models", query
        while url:
            body, answer = self._read(url, asked, MOST_SMALL_BYTES, None, None)
            page = self._parsed(body)
            if not isinstance(page, list):
                self._unlike("it lists no models")
            yield from cast("list[object]", page)
            url, asked = answer.links.get("next", {}).get("url", ""), []

    def file(self, model: Reference, path: str, most: int = MOST_SMALL_BYTES) -> bytes:
        """Return the content of a small file.

        Raises:
            BrokenModel: it is larger than `most` bytes.
        """
        body, _ = self._read(self._place(model, path), [], most + 1, None, model)
        if len(body) > most:
            raise BrokenModel(reference=model.name, path=path, problem=f"it has more than {most} bytes")
        return body

    def header(self, model: Reference, path: str, size_bytes: int) -> list[Tensor]:
        """Return what the head of a safetensors file of this size tells.

        Raises:
            BrokenModel: it is no safetensors file.
        """
        try:
            return parse_header(self._head(self._place(model, path), model, size_bytes))
        except ValueError as error:
            raise BrokenModel(reference=model.name, path=path, problem=str(error)) from error

    def _head(self, url: str, model: Reference, size_bytes: int) -> bytes:
        """Read a header, and as little more as can be."""
        end = min(HEAD_BYTES, size_bytes)
        head, _ = self._read(url, [], end, (0, end), model) if end else (b"", None)
        stop = LENGTH_BYTES + header_bytes(head)
        if stop > size_bytes:
            raise ValueError("its header is longer than the file")
        if stop > len(head):
            head += self._read(url, [], stop - len(head), (len(head), stop), model)[0]
        return head[LENGTH_BYTES:stop]

    def _place(self, model: Reference, path: str) -> str:
        return f"{self.endpoint}/{model.name}/resolve/{quote(model.revision or 'main', safe='')}/{quote(path)}"

    def _json(self, path: str, query: Query, model: Reference) -> object:
        body, _ = self._read(f"{self.endpoint}{path}", query, MOST_SMALL_BYTES, None, model)
        return self._parsed(body)

    def _parsed(self, body: bytes) -> object:
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            self._unlike("it does not answer in JSON")

    def _read(
        self, url: str, query: Query, most: int, part: tuple[int, int] | None, model: Reference | None
    ) -> tuple[bytes, httpx.Response]:
        """Read at most so many bytes of an answer; `part`: its first byte, and the one behind its last."""
        import httpx

        headers = self._headers | ({"Range": f"bytes={part[0]}-{part[1] - 1}"} if part else {})
        try:
            with self._client.stream("GET", url, params=[*query] or None, headers=headers) as answer:
                if answer.is_error:
                    self._refused(answer, model)
                skip = part[0] if part and not answer.headers.get("content-range") else 0  # it knows no ranges
                return _bounded(answer, skip, most), answer
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise HubUnreachable(endpoint=self.endpoint, problem=str(error) or type(error).__name__) from error

    def _refused(self, answer: httpx.Response, model: Reference | None) -> NoReturn:
        if answer.headers.get("x-error-message") == BAD_TOKEN:
            raise HubTokenRefused(endpoint=self.endpoint)
        if model is not None and answer.is_client_error and (error := _refusal(answer, model, self.endpoint)):
            raise error
        self._unlike(f"it answers with status {answer.status_code}", answer.headers.get("retry-after", ""))

    def _unlike(self, problem: str, retry_after: str = "") -> NoReturn:
        more = {"retry_after_s": int(retry_after)} if retry_after.isdigit() else {}
        raise HubUnreachable(endpoint=self.endpoint, problem=problem, **more)


@contextmanager
def hub_client(endpoint: str | None, token: SecretStr | None) -> Iterator[HubClient]:
    """Open connections to a hub for a while.

    Args:
        endpoint: Its address; none: what HF_ENDPOINT says, or the hub's own.
        token: Of the account in whose name it is asked.

    Raises:
        HubOffline: HF_HUB_OFFLINE is set: it is not to be asked.
    """
    if variable := offline(os.environ):
        raise HubOffline(variable=variable)
    import httpx

    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=True) as client:
        yield HubClient(endpoint, token, client)


def hub_token(environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """Return the token that the environment has for the hub: it is in no file of ours, and in no answer."""
    token = environ.get("HF_TOKEN", "").strip()
    return SecretStr(token) if token else None


def offline(environ: Mapping[str, str]) -> str | None:
    """Return the variable that forbids to ask the hub, if one does: huggingface_hub's own ones are heeded."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return next((name for name in names if environ.get(name, "").upper() in TRUE), None)


def _refusal(answer: httpx.Response, model: Reference, endpoint: str) -> BitingLipError | None:
    """Return what an answer's status and code mean; none if that is nothing about the model."""
    message = answer.headers.get("x-error-message")
    match answer.headers.get("x-error-code"), answer.status_code:
        case "GatedRepo", HTTPStatus.UNAUTHORIZED:
            return ModelGated(name=model.name, problem="it is not read without a token, and none is set")
        case "GatedRepo", _:
            return ModelGated(name=model.name, problem="the token's account has not been let in")
        case "RevisionNotFound", _:
            return RevisionNotOnHub(name=model.name, revision=model.revision or "main")
        case "EntryNotFound", _:
            return BrokenModel(reference=model.name, path=message or "a file", problem="the hub has it not")
        case ("RepoNotFound", _) | (_, HTTPStatus.UNAUTHORIZED | HTTPStatus.NOT_FOUND):
            return ModelNotOnHub(name=model.name, endpoint=endpoint)
        case _, HTTPStatus.FORBIDDEN:
            return ModelGated(name=model.name, problem=message or "the token does not allow to read it")
        case _:
            return None


def _bounded(answer: httpx.Response, skip: int, most: int) -> bytes:
    """Return at most so many bytes of a body, from behind those that are to be skipped."""
    body = bytearray()
    for piece in answer.iter_bytes():
        body += piece
        if len(body) >= skip + most:
            break
    return bytes(body[skip : skip + most])
