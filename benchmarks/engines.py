"""What the platform leaves of an engine's speed: real models, through HTTP, events and SSE, beside plain scripts.

Each plain script runs before and after the platform does, three times over, so that a machine that is slower by the
minute cannot favour either: each ratio is to the mean of the two beside it, and the median of the three is told.

    python -m benchmarks.engines [--litserve FOLDER]

FOLDER is where `pip install --target FOLDER litserve` has put it; without one, that figure is left out.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import orjson
import uvloop

from benchmarks import bare
from benchmarks.load import Poster, RefusedError, follow_one
from benchmarks.support import Figure, gateway, nats_server, process, publish, scratch
from scripts.tiny_models import minilm_path

CLIENTS, ROUNDS = 64, 16
TURNS = 3
CANCELS = 10
LITSERVE = "BENCH_LITSERVE"


async def measure() -> list[Figure]:
    """Measure text generation, embeddings, one task alone, and a cancel."""
    async with scratch() as folder:
        llama = await asyncio.to_thread(bare.make_llama, folder / "llama")
        return [*await _text(folder, llama), *await _embeddings(folder), await _alone(folder)]


# --- text generation --------------------------------------------------------------------------------------------------


async def _text(folder: Path, llama: Path) -> list[Figure]:
    async def tokens_per_s() -> float:
        answer = await plain("text", llama)
        return max(answer["per_s"].values())

    async with platform(folder / "text", f"bench/llama={llama}", BITINGLIP_WORKER_MAX_BATCH=bare.TASKS) as url:
        await run(url, generation("w1", 4))

        async def ours() -> float:
            started = time.perf_counter()
            await asyncio.gather(*[run(url, generation(prompt, bare.TOKENS)) for prompt in bare.prompts()])
            return bare.TASKS * bare.TOKENS / (time.perf_counter() - started)

        ratio, note = await beside(ours, tokens_per_s, "tokens/s; plain script, best static batch")
        cancels = [await _cancel(url) for _ in range(CANCELS)]
    step_ms = statistics.median(step for _, step in cancels)
    over_ms = statistics.median(taken for taken, _ in cancels)
    return [
        Figure("text generation, 32 tasks × 64 tokens, to a plain script", ratio, "", 0.85, at_least=True, note=note),
        Figure("cancel → task.cancelled at the client, beyond one step", over_ms - step_ms, "ms (median)", 50,
               at_least=False, note=f"{over_ms:.1f} ms in all, a step takes {step_ms:.1f} ms"),
    ]  # fmt: skip


def generation(prompt: str, tokens: int) -> bytes:
    """Return the body of a text generation."""
    params = {"prompt": prompt, "max_tokens": tokens}
    return orjson.dumps({"kind": "text-generation", "model": "bench/llama", "params": params})


async def _cancel(url: str) -> tuple[float, float]:
    """Cancel a generation in its midst; returns milliseconds to its end, and of one step."""
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        headers = {"Content-Type": "application/json"}
        task = (await client.post("/v1/tasks", content=generation("w1 w2", 4000), headers=headers)).json()["task_id"]
        async with client.stream("GET", f"/v1/tasks/{task}/events") as events:
            cancelled_at, first, steps = 0.0, 0.0, 0
            async for line in events.aiter_lines():
                if line.startswith("event: task.cancelled"):
                    return (time.perf_counter() - cancelled_at) * 1000, 1000 * (cancelled_at - first) / max(1, steps)
                if not line.startswith("data:") or '"task.progressed"' not in line or cancelled_at:
                    continue
                step = json.loads(line[5:])["data"]["step"]
                if not first:
                    first, steps = time.perf_counter(), -step
                elif step + steps >= 40:
                    steps += step
                    cancelled_at = time.perf_counter()
                    await client.delete(f"/v1/tasks/{task}")
    raise RuntimeError("the cancelled task has no end")


# --- embeddings -------------------------------------------------------------------------------------------------------


async def _embeddings(folder: Path) -> list[Figure]:
    minilm = minilm_path()

    async def loop() -> float:
        return (await plain("embed", minilm))["per_s"]

    async with platform(folder / "embed", f"bench/minilm={minilm}", BITINGLIP_WORKER_MAX_BATCH=CLIENTS) as url:
        await embedded(url)
        ratio, note = await beside(lambda: embedded(url), loop, "texts/s; plain batched loop")
    figures = [Figure("embeddings, 64 clients × 1 text, to a plain loop", ratio, "", 0.8, True, note)]
    if os.environ.get(LITSERVE):
        theirs, note = await _litserve(minilm, loop)
        note = f"LitServe {theirs:.2f} of the loop beside it: {note}"
        figures.append(Figure("embeddings, to LitServe with dynamic batching", ratio / theirs, "", 1.3, True, note))
    return figures


def embedding(text: str) -> bytes:
    """Return the body of an embedding."""
    return orjson.dumps({"kind": "embedding", "model": "bench/minilm", "params": {"input": text}})


async def clients(asks: Sequence[Callable[[str], Awaitable[Any]]]) -> float:
    """Have many clients ask, each for the next text of one list as soon as it has an answer; returns texts a second."""
    texts = bare.texts(len(asks) * ROUNDS)
    left = iter(texts)

    async def client(ask: Callable[[str], Awaitable[Any]]) -> None:
        for text in left:
            await ask(text)

    started = time.perf_counter()
    await asyncio.gather(*map(client, asks))
    return len(texts) / (time.perf_counter() - started)


async def embedded(url: str) -> float:
    """Have many keep-alive clients embed texts through the platform; returns texts a second."""
    posters = [waiter(url) for _ in range(CLIENTS)]

    def ask(poster: Poster) -> Callable[[str], Awaitable[bytes]]:
        return lambda text: ended(poster, embedding(text))

    try:
        return await clients([ask(poster) for poster in posters])
    finally:
        for poster in posters:
            await poster.close()


def waiter(url: str) -> Poster:
    """Return a client whose posts are answered with the task that has ended: as one asks for an embedding."""
    address = urlsplit(url)
    return Poster(address.hostname or "", address.port or 0, ("Prefer: wait=60",))


async def ended(poster: Poster, body: bytes) -> bytes:
    """Run one task; returns the answer, which has the result in it.

    Raises:
        RefusedError: the task did not succeed in time.
    """
    answer = await poster.post("/v1/tasks", body)
    if b'"state":"succeeded"' not in answer:
        raise RefusedError(answer[:200].decode(errors="replace"))
    return answer


async def _litserve(minilm: Path, loop: Callable[[], Awaitable[float]]) -> tuple[float, str]:
    """Return LitServe's texts a second as a share of the plain loop's, and both."""
    env = {**os.environ, "PYTHONPATH": os.environ[LITSERVE]}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = (sys.executable, "-m", "benchmarks.litserver", str(minilm), str(port))
    server = await asyncio.create_subprocess_exec(*command, env=env, stdout=subprocess.DEVNULL, start_new_session=True)
    posters = [Poster("127.0.0.1", port) for _ in range(CLIENTS)]

    def ask(poster: Poster) -> Callable[[str], Awaitable[bytes]]:
        return lambda text: poster.post("/predict", orjson.dumps({"input": text}))

    try:
        await _until_up(posters[0])
        asks = [ask(poster) for poster in posters]
        await clients(asks)
        return await beside(lambda: clients(asks), loop, "texts/s; plain batched loop")
    finally:
        for poster in posters:
            await poster.close()
        os.killpg(server.pid, signal.SIGKILL)  # its processes outlive a polite end of the first
        await server.wait()


async def _until_up(poster: Poster) -> None:
    for _ in range(600):
        try:
            await poster.post("/predict", b'{"input": "warm"}')
        except (OSError, RefusedError):
            await asyncio.sleep(0.1)
        else:
            return
    raise RuntimeError("LitServe does not come up")


# --- one task alone ---------------------------------------------------------------------------------------------------


async def _alone(folder: Path) -> Figure:
    minilm = minilm_path()
    async with platform(folder / "one", f"bench/minilm={minilm}") as url:
        await run(url, embedding("warm"))
        before = (await plain("one", minilm))["ms"]
        poster, taken = waiter(url), list[float]()
        for text in bare.texts(bare.ROUNDS + 5):
            started = time.perf_counter()
            await ended(poster, embedding(text))
            taken.append((time.perf_counter() - started) * 1000)
        await poster.close()
        after = (await plain("one", minilm))["ms"]
    ours, base = statistics.median(taken[5:]), (before + after) / 2
    note = f"{ours:.1f} ms through HTTP, answered with the result; the bare call {before:.1f} before, {after:.1f} after"
    return Figure(
        "one embedding alone, added to the bare call", ours - base, "ms (median)", 5, at_least=False, note=note
    )


# --- what they share --------------------------------------------------------------------------------------------------


@asynccontextmanager
async def platform(folder: Path, model: str, **settings: Any) -> AsyncIterator[str]:
    """Run a log, a gateway and a worker for one model; yields the gateway's address."""
    folder.mkdir()
    async with (
        nats_server(folder) as server,
        process("worker", server.url, folder, BITINGLIP_WORKER_MODELS=model, **settings),
        gateway(server.url, folder) as (_, ready),
    ):
        yield ready["url"]


async def beside(
    ours: Callable[[], Awaitable[float]], base: Callable[[], Awaitable[float]], what: str
) -> tuple[float, str]:
    """Measure two rates in turn; returns the median of the first one's ratios to the second, and what was measured."""
    bases, rates = [await base()], list[float]()
    for _ in range(TURNS):
        rates.append(await ours())
        bases.append(await base())
    ratio = statistics.median(
        rate * 2 / (before + after) for rate, (before, after) in zip(rates, pairwise(bases), strict=True)
    )
    return ratio, f"{_told(rates)} {what}: {_told(bases)}"


def _told(rates: list[float]) -> str:
    return ", ".join(f"{rate:.0f}" for rate in rates)


async def run(url: str, body: bytes) -> float:
    """Run a task to its end, over HTTP and SSE; returns seconds."""
    address = urlsplit(url)
    return await follow_one(address.hostname or "", address.port or 0, "/v1/tasks", body)


async def plain(what: str, *folders: Path) -> dict[str, Any]:
    """Run a plain script in a process of its own."""
    command = (sys.executable, "-m", "benchmarks.bare", what, *map(str, folders))
    script = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    output, _ = await script.communicate()
    return json.loads(output)


if __name__ == "__main__":
    if "--litserve" in sys.argv:
        os.environ[LITSERVE] = sys.argv[sys.argv.index("--litserve") + 1]
    publish(uvloop.run(measure()))
