"""One task on a vLLM server: the request, and its answer as it streams in."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic import ValidationError

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import TextGenerationParameters
from bitinglip.workers.engine import Job, Sink
from bitinglip.workers.engines.failures import BadInputError
from bitinglip.workers.engines.vllm_api import Choice, Chunk, Count, Served, ServerError, problem, refusal

CONNECT_TIMEOUT_S = 10.0
SEED_BITS = 32
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
"""What a checkpoint suggests would be mixed into each request that leaves these out: parameters decide."""


def connect(served: Served) -> httpx.AsyncClient:
    """Return a client for as many requests as there are; each has a connection, so that none meets a stale one."""
    return httpx.AsyncClient(
        base_url=served.url,
        headers=served.headers,
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        timeout=httpx.Timeout(None, connect=CONNECT_TIMEOUT_S),
        trust_env=False,
        verify=served.url.startswith("https:"),  # or certificates are read that nobody looks at
    )


async def ask(
    client: httpx.AsyncClient, served: Served, job: Job[TextGenerationParameters], sink: Sink
) -> tuple[dict[str, Any], Usage]:
    """Run a job as one streaming request; returns its result.

    Raises:
        BadInputError: the server refuses the input.
        ServerError: the server failed.
        httpx.TransportError: it is not there, or was lost.
    """
    seed = job.params.seed
    if seed is None and job.params.temperature > 0:
        seed = secrets.randbits(SEED_BITS)
    return await _ask(client, served, _request(job.params, served.name, seed), Answer(job, sink, seed))


async def _ask(
    client: httpx.AsyncClient, served: Served, request: dict[str, Any], answer: Answer
) -> tuple[dict[str, Any], Usage]:
    path = "/v1/completions" if "prompt" in request else "/v1/chat/completions"
    async with client.stream("POST", path, json=request) as response:
        if response.status_code == httpx.codes.OK:
            return await answer.read(response, request["max_tokens"])
        refused = refusal(response.status_code, await response.aread())
    room = await _room(client, served, request) if isinstance(refused, BadInputError) else None
    if room is None:
        raise refused
    return await _ask(client, served, request | {"max_tokens": room}, answer)


async def _room(client: httpx.AsyncClient, served: Served, request: dict[str, Any]) -> int | None:
    """Return how many tokens the context leaves after the prompt, if they are fewer than were asked for.

    vLLM refuses what could be too long in the end; with us an answer ends where the context does.
    """
    if served.context_tokens is None:
        return None
    asked = {name: request[name] for name in ("model", "prompt", "messages") if name in request}
    response = await client.post("/tokenize", json=asked)
    try:
        room = served.context_tokens - Count.model_validate_json(response.content).count
    except ValidationError:
        return None  # it has no such route, or cannot read the prompt: what it said before counts
    return room if 0 < room < request["max_tokens"] else None


def _request(params: TextGenerationParameters, model: str, seed: int | None) -> dict[str, Any]:
    asked: dict[str, Any] = {"prompt": params.prompt}
    if params.messages is not None:
        asked = {"messages": [turn.model_dump() for turn in params.messages]}
    return {
        **asked,
        **NEUTRAL,
        "model": model,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "stop": list(params.stop),
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        **({} if seed is None else {"seed": seed}),
    }


# --- an answer --------------------------------------------------------------------------------------------------------


class Answer:
    """What a server has said to one request so far; its pieces are told as they come."""

    def __init__(self, job: Job[TextGenerationParameters], sink: Sink, seed: int | None) -> None:
        self._task_id = job.task_id
        self._sink = sink
        self._seed = seed
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._finish_reason: str | None = None
        self._usage = Usage()

    async def read(self, response: httpx.Response, most: int) -> tuple[dict[str, Any], Usage]:
        """Read it to its end, of `most` tokens at most; returns the job's result."""
        async for data in _events(response):
            self._take(data, most)
        if self._finish_reason not in {"stop", "length"}:
            raise ServerError(f"The vLLM server ended the answer early ({self._finish_reason or 'no reason given'}).")
        result = {"text": "".join(self._texts), "finish_reason": self._finish_reason, "seed": self._seed}
        if thought := "".join(self._thoughts):
            result["reasoning"] = thought
        return result, self._usage

    def _take(self, data: bytes, most: int) -> None:
        try:
            chunk = Chunk.model_validate_json(data)
        except ValidationError as error:
            raise ServerError("The vLLM server sent what is no part of an answer.") from error
        if chunk.error is not None:
            code = chunk.error.code
            raise problem(code if isinstance(code, int) else httpx.codes.INTERNAL_SERVER_ERROR, chunk.error.message)
        if chunk.usage is not None:
            used = chunk.usage
            self._usage = Usage(input_tokens=used.prompt_tokens, output_tokens=used.completion_tokens or 0)
        for choice in chunk.choices:
            self._say(choice, most)

    def _say(self, choice: Choice, most: int) -> None:
        delta = choice.delta
        text = choice.text or delta.content or ""
        thought = delta.reasoning or delta.reasoning_content or ""
        self._finish_reason = choice.finish_reason or self._finish_reason
        if not text and not thought:
            return
        self._texts.append(text)
        self._thoughts.append(thought)
        step = self._usage.output_tokens or len(self._texts)  # a piece may be of several tokens
        self._sink.progress(self._task_id, step, most, "token", text or None, thought or None)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    """Yield the data of a stream's events; a line ends with a newline alone, for its text may have the other ends."""
    rest = b""
    async for piece in response.aiter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            if data and line.startswith(b"data:"):
                yield data
