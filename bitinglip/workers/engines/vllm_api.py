"""What a vLLM server says, as far as we read it: the OpenAI API and vLLM's additions to it."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from pydantic import BaseModel, ValidationError

from bitinglip.workers.engines.failures import BadInputError, LoadError

LOOK_UP_TIMEOUT_S = 10.0
BAD_INPUT = (400, 413, 422)
"""HTTP statuses that mean that the task's input is at fault."""


class ServerError(Exception):
    """The server failed at a request, or what it said is not the API's."""


@dataclass(frozen=True, kw_only=True)
class Served:
    """A model as a server has it."""

    url: str
    name: str
    key: str | None = None
    """What the server knows us by."""
    context_tokens: int | None = None
    version: str | None = None
    """The server's."""

    @property
    def headers(self) -> dict[str, str]:
        """What goes with each request."""
        return {"Authorization": f"Bearer {self.key}"} if self.key else {}


# --- what a server says -----------------------------------------------------------------------------------------------


class Card(BaseModel):
    """A name that a server knows a model by."""

    id: str
    max_model_len: int | None = None


class Models(BaseModel):
    """All names that a server knows."""

    data: list[Card]


class Version(BaseModel):
    """The server's version."""

    version: str


class Count(BaseModel):
    """How many tokens a prompt has."""

    count: int


class Problem(BaseModel):
    """Why a request failed, in a refusal or in the midst of an answer."""

    message: str
    code: int | str | None = None


class Refusal(BaseModel):
    """The body of a response that is none; older versions have the message at the top."""

    error: Problem | None = None
    message: str | None = None


class Delta(BaseModel):
    """What a chat's piece adds."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    """The older name of `reasoning`; some versions send both."""


class Choice(BaseModel):
    """A piece of an answer: `text` where a prompt is continued, `delta` in a chat."""

    text: str | None = None
    delta: Delta = Delta()
    finish_reason: str | None = None


class Tokens(BaseModel):
    """Tokens that a request has used so far."""

    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class Chunk(BaseModel):
    """One event of a stream; the last one has the usage alone."""

    choices: list[Choice] = []
    usage: Tokens | None = None
    error: Problem | None = None


# --- before the first request -----------------------------------------------------------------------------------------


def look_up(url: str, reference: str, key: str | None = None) -> Served:
    """Ask a server which model it serves, by what name: the reference, or else the only one that it has.

    Raises:
        LoadError: it is not there, says something else, or serves several models of other names.
    """
    headers = Served(url=url, name=reference, key=key).headers
    with httpx.Client(headers=headers, timeout=LOOK_UP_TIMEOUT_S, trust_env=False) as client:
        try:
            cards = Models.model_validate_json(client.get(f"{url}/v1/models").raise_for_status().content).data
            version = client.get(f"{url}/version")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LoadError(f"{reference}: no vLLM server answers at {url}: {error}") from error
        except ValidationError as error:
            raise LoadError(f"{reference}: what answers at {url} is no vLLM server.") from error
    card = _card(cards, reference, url)
    return Served(url=url, name=card.id, key=key, context_tokens=card.max_model_len, version=_version(version))


def _card(cards: list[Card], reference: str, url: str) -> Card:
    named = [card for card in cards if card.id == reference] or cards
    if len(named) != 1:
        names = ", ".join(card.id for card in cards) or "none"
        raise LoadError(
            f"{reference}: the vLLM server at {url} does not serve it, but {names}: "
            "start it with `--served-model-name`, or serve the model by the name that it has there."
        )
    return named[0]


def _version(response: httpx.Response) -> str | None:
    """Return the server's version, if it tells it."""
    try:
        return Version.model_validate_json(response.content).version
    except ValidationError:
        return None


# --- what went wrong --------------------------------------------------------------------------------------------------


def problem(status: int, message: str) -> BadInputError | ServerError:
    """Return what a failure of this HTTP status means."""
    if status in BAD_INPUT:
        return BadInputError(message)
    return ServerError(f"The vLLM server failed (HTTP {status}): {message}")


def refusal(status: int, body: bytes) -> BadInputError | ServerError:
    """Return what a response that is no answer means."""
    try:
        said = Refusal.model_validate_json(body)
    except ValidationError:
        said = Refusal()
    message = said.error.message if said.error is not None else said.message
    return problem(status, message or body.decode(errors="replace") or "it does not say why")
