"""Embeddings with MiniLM's real weights."""

from __future__ import annotations

import asyncio
import math

import pytest

from bitinglip.settings import Worker
from bitinglip.workers.engine import JobFailed, JobSpec, JobSucceeded, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from tests.engines.support import load, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT, KITTEN, MARKET = "A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell on Monday."


def cosine(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True)) / (math.hypot(*one) * math.hypot(*other))


async def test_what_means_the_same_is_near(shared_host: EngineHost, minilm: ModelSpec) -> None:
    (said,) = await run(shared_host, minilm, {"input": [CAT, KITTEN, MARKET]})
    cat, kitten, market = said.result["embeddings"]
    assert said.result["dimensions"] == len(cat) == 384
    assert cosine(cat, kitten) > 0.5 > 0.2 > cosine(cat, market)
    assert [round(math.hypot(*vector), 5) for vector in (cat, kitten, market)] == [1.0, 1.0, 1.0]


async def test_texts_of_many_tasks_keep_their_places(shared_host: EngineHost, minilm: ModelSpec) -> None:
    texts = [f"Text number {n} is {'very ' * (n % 7)}long." for n in range(40)]
    alone = [(await run(shared_host, minilm, {"input": text}))[0].result["embeddings"][0] for text in texts[:5]]
    together = await run(shared_host, minilm, *[{"input": [text, MARKET]} for text in texts])
    for one, said in zip(alone, together, strict=False):
        assert cosine(one, said.result["embeddings"][0]) > 0.9999
    assert all(cosine(said.result["embeddings"][1], together[0].result["embeddings"][1]) > 0.9999 for said in together)


async def test_vectors_may_keep_their_length(shared_host: EngineHost, minilm: ModelSpec) -> None:
    plain, unit = await run(shared_host, minilm, {"input": CAT, "normalize": False}, {"input": CAT})
    one, other = plain.result["embeddings"][0], unit.result["embeddings"][0]
    assert math.hypot(*one) > 1.5
    assert cosine(one, other) > 0.9999


async def test_what_is_too_long_is_refused_alone_and_not_cut_silently(
    shared_host: EngineHost, minilm: ModelSpec
) -> None:
    long, good = await run(shared_host, minilm, {"input": [CAT, "word " * 5000]}, {"input": CAT})
    assert isinstance(long.answer, JobFailed)
    assert long.answer.failure.kind == "bad_input"
    assert "input.1" in long.answer.failure.message
    assert good.result["dimensions"] == 384


async def test_passes_run_side_by_side(minilm: ModelSpec) -> None:
    """Texts keep their places, and a short one that comes meanwhile does not wait for the long ones."""
    host = EngineHost(Worker(threads=2), "cpu")
    await host.start()
    try:
        texts = [f"Text number {n} is {'very ' * (n % 7)}long." for n in range(40)]
        together = await run(host, minilm, *[{"input": [text, MARKET]} for text in texts])
        for text, said in list(zip(texts, together, strict=True))[::8]:
            (alone,) = await run(host, minilm, {"input": text, "deterministic": True})
            assert cosine(alone.result["embeddings"][0], said.result["embeddings"][0]) > 0.9999
        assert await _ended(host, await load(host, minilm)) == ["short", "long"]
    finally:
        await host.stop()


async def _ended(host: EngineHost, key: str) -> list[str]:
    """Run long texts, and a short one as soon as a lane is idle; returns which task ended first."""
    ended, begun = list[str](), asyncio.Event()

    async def heard(task_id: str, texts: list[str]) -> None:
        async for messages in host.run(key, [JobSpec(task_id=task_id, params={"input": texts})]):
            begun.set()  # the short ones among the long are done
            ended.extend(message.task_id for message in messages if isinstance(message, JobSucceeded))

    long = asyncio.create_task(heard("long", ["market " * 250] * 8 + [CAT] * 8))
    await begun.wait()
    await heard("short", [KITTEN])
    await long
    return ended
