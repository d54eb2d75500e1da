"""Stands in for a vLLM server: the same API over real HTTP, and words that a test can foretell.

    python -m tests.support.standin_vllm serve FOLDER --host 127.0.0.1 --port 8000 --served-model-name NAME

An answer is `word1 word2 …`; sampled, each word bears a number drawn by the seed. A prompt may begin with what is to
happen (see `SWITCHES`). A request with a field that vLLM does not know is refused: a typo of ours must fail.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

VERSION = "0.0.0+standin"
CONTEXT_TOKENS = 512
WHOLE = 8
"""Words of an answer that nothing ends before."""
SWITCHES = {
    "hold": "says one word, and the others after a `POST /standin`",
    "meet": "says one word, and the others when as many requests are there as the prompt says",
    "forever": "says one word, and then no more",
    "deaf": "does not even begin to answer",
    "refuse": "HTTP 400",
    "fail": "HTTP 500",
    "stumble": "an error in the midst of the answer",
    "cut": "closes the connection in the midst of the answer",
    "crash": "ends the server in the midst of the answer",
    "abort": "ends the answer for a reason of the server's own",
    "odd": "says words with ends of lines of every sort, and characters of many bytes",
    "think": "says in a chat what it thinks first",
    "thought": "the same, by the older name of the field",
}
ODD_WORDS = ["one\u2028two", "three\x85four", "\x0bfive\x1c", "🦉", "data: [DONE]", "\n\ndata: {}", "\r\nnine", "end"]
GREEDY = 1e-5


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Asked(_Body):
    """The fields of a request, with vLLM's defaults."""

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 0.5
    top_k: int = 20
    min_p: float = 0.5
    repetition_penalty: float = 1.3
    presence_penalty: float = 0.3
    frequency_penalty: float = 0.3
    stop: list[str] = []
    seed: int | None = None


T = TypeVar("T", bound=Asked)


class AskedPrompt(Asked):
    prompt: str


class Turn(_Body):
    role: str
    content: str


class AskedChat(Asked):
    messages: list[Turn]


class Standin:
    """The server's state: what was asked for, and what became of it."""

    def __init__(self, names: list[str], settings: dict[str, Any], key: str | None) -> None:
        self.names = names
        self.settings = settings
        self.key = key
        self.held = asyncio.Event()
        self.met = asyncio.Event()
        self.running = 0
        self.most_running = 0
        self.asked: list[dict[str, Any]] = []
        self.left: list[str] = []

    def app(self) -> Starlette:
        """Return the routes of the API, and one more that tells what happened here."""
        return Starlette(
            routes=[
                Route("/health", lambda _: Response()),
                Route("/version", lambda _: JSONResponse({"version": VERSION})),
                Route("/v1/models", self.models),
                Route("/v1/completions", self.complete, methods=["POST"]),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/tokenize", self.tokenize, methods=["POST"]),
                Route("/standin", self.tell),
                Route("/standin", self.release, methods=["POST"]),
            ],
            exception_handlers={HTTPException: _refused},
        )

    async def models(self, request: Request) -> Response:
        self._check_key(request)
        cards = [{"id": name, "object": "model", "max_model_len": CONTEXT_TOKENS} for name in self.names]
        return JSONResponse({"object": "list", "data": cards})

    async def tell(self, request: Request) -> Response:
        seen = {"most_running": self.most_running, "asked": self.asked, "left": self.left}
        return JSONResponse(self.settings | seen)

    async def release(self, _: Request) -> Response:
        self.held.set()
        return Response()

    async def tokenize(self, request: Request) -> Response:
        asked = await request.json()
        text = asked.get("prompt") or "".join(turn["content"] for turn in asked["messages"])
        return JSONResponse({"count": len(text.split()), "max_model_len": CONTEXT_TOKENS, "tokens": []})

    async def complete(self, request: Request) -> Response:
        asked = await self._read(request, AskedPrompt)
        return await self._answer(request, asked, asked.prompt, is_chat=False)

    async def chat(self, request: Request) -> Response:
        asked = await self._read(request, AskedChat)
        return await self._answer(request, asked, asked.messages[-1].content, is_chat=True)

    def _check_key(self, request: Request) -> None:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            raise HTTPException(401, "Unauthorized")

    async def _read(self, request: Request, fields: type[T]) -> T:
        self._check_key(request)
        body = await request.json()
        try:
            asked = fields.model_validate(body)
        except ValidationError as error:
            raise HTTPException(400, str(error)) from error
        self.asked.append(body)
        if asked.model not in self.names:
            raise HTTPException(404, f"The model `{asked.model}` does not exist.")
        return asked

    async def _answer(self, request: Request, asked: Asked, prompt: str, *, is_chat: bool) -> Response:
        switch = prompt.split()[0]
        count = len(prompt.split())
        if count + asked.max_tokens > CONTEXT_TOKENS:
            raise HTTPException(400, f"This model's maximum context length is {CONTEXT_TOKENS} tokens.")
        if switch in {"refuse", "fail"}:
            raise HTTPException(400 if switch == "refuse" else 500, f"It was asked to {switch}.")
        if switch == "deaf":
            await self._until_left(request, prompt)
        return StreamingResponse(self._stream(request, asked, prompt, switch, is_chat), media_type="text/event-stream")

    async def _stream(
        self, request: Request, asked: Asked, prompt: str, switch: str, is_chat: bool
    ) -> AsyncIterator[str]:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            async for event in self._events(request, asked, prompt, switch, is_chat):
                yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
            yield "data: [DONE]\n\n"
        finally:
            self.running -= 1

    async def _events(
        self, request: Request, asked: Asked, prompt: str, switch: str, is_chat: bool
    ) -> AsyncIterator[dict[str, Any]]:
        pieces = _pieces(asked, switch, is_chat)
        count = len(prompt.split())
        if is_chat:
            yield _chunk(is_chat, "", None, None, _usage(count, 0))
        for done, (thought, text) in enumerate(pieces[: asked.max_tokens], 1):
            await asyncio.sleep(0)  # sleep-ok: the server takes turns
            last = done == min(len(pieces), asked.max_tokens)
            reason = ("length" if done < len(pieces) else "stop") if last else None
            usage = _usage(count, done) if asked.stream_options.continuous_usage_stats else None
            yield _chunk(is_chat, text, thought if is_chat else None, "abort" if switch == "abort" else reason, usage)
            if done == 1:
                await self._do(request, switch, prompt)
            if done == 2 and switch == "stumble":
                yield {"error": {"message": "It was asked to stumble.", "type": "InternalServerError", "code": 500}}
                return
        if asked.stream_options.include_usage:
            yield {"choices": [], "usage": _usage(count, min(len(pieces), asked.max_tokens))}

    async def _do(self, request: Request, switch: str, prompt: str) -> None:
        match switch:
            case "hold":
                await self.held.wait()
            case "meet":
                if self.running >= int(prompt.split()[1]):
                    self.met.set()
                await self.met.wait()
            case "forever":
                await self._until_left(request, prompt)
            case "cut":
                raise ConnectionResetError("it was asked to")
            case "crash":
                sys.stderr.write("RuntimeError: it was asked to crash\n")
                sys.stderr.flush()
                os._exit(3)
            case _:
                pass

    async def _until_left(self, request: Request, prompt: str) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.left.append(prompt)


def _pieces(asked: Asked, switch: str, is_chat: bool) -> list[tuple[tuple[str, str] | None, str]]:
    """Return the pieces of an answer: what is thought, with its field, or else what is said."""
    words = [f"word{number} " for number in range(1, WHOLE + 1)]
    if switch == "odd":
        words = ODD_WORDS
    elif asked.temperature > GREEDY:
        dice = random.Random(asked.seed)
        words = [f"word{dice.randrange(10**6)} " for _ in range(WHOLE)]
    text = "".join(words)
    ends = [at for stop in asked.stop if (at := text.find(stop)) >= 0]
    if ends:
        words = [text[: min(ends)]]
    thoughts: list[tuple[tuple[str, str] | None, str]] = []
    if is_chat and switch in {"think", "thought"}:
        field = "reasoning" if switch == "think" else "reasoning_content"
        thoughts = [((field, f"thought{number} "), "") for number in range(1, 4)]
    return [*thoughts, *((None, word) for word in words)]


def _chunk(
    is_chat: bool, text: str, thought: tuple[str, str] | None, reason: str | None, usage: dict[str, int] | None
) -> dict[str, Any]:
    said: dict[str, Any] = {"text": text}
    if is_chat:
        said = {"delta": {"content": text} if thought is None else dict([thought])}
    choice = {"index": 0, **said, "finish_reason": reason}
    return {"choices": [choice]} | ({} if usage is None else {"usage": usage})


def _usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem = {"message": error.detail, "type": "Error", "code": error.status_code}
    return JSONResponse({"error": problem}, status_code=error.status_code)


def main() -> None:
    """Serve, unless the folder holds a file `broken` that says why not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--served-model-name", nargs="+", required=True)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true")
    args = parser.parse_args()
    broken = args.folder / "broken"
    if broken.exists():
        sys.exit(f"ValueError: {broken.read_text()} in {args.folder}")
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    settings = {"dtype": args.dtype, "trust_remote_code": args.trust_remote_code, "cards": seen}
    standin = Standin(args.served_model_name, settings, os.environ.get("VLLM_API_KEY"))
    listener = socket.create_server((args.host, args.port))
    sys.stdout.write(f"{listener.getsockname()[1]}\n")
    sys.stdout.flush()
    uvicorn.Server(uvicorn.Config(standin.app(), log_level="critical")).run(sockets=[listener])


if __name__ == "__main__":
    main()
