"""Models in memory: what fits, what makes room, what is laid out elsewhere, and in which precision."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from PIL import Image, ImageStat

from bitinglip.models.memory import estimate
from bitinglip.settings import Worker
from bitinglip.workers.engine import Loaded, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_models import STORY
from tests.engines.support import load, run

BEGIN = "Once upon a time"
GIB = 2**30

StartHost = Callable[[Worker], Awaitable[EngineHost]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[StartHost]:
    """Start engine processes with other settings than usual."""
    hosts: list[EngineHost] = []

    async def start_one(settings: Worker) -> EngineHost:
        (tmp_path / "scratch").mkdir(exist_ok=True)
        host = EngineHost(settings, "cpu", scratch=tmp_path / "scratch")
        hosts.append(host)
        await host.start()
        return host

    yield start_one
    for host in hosts:
        await host.stop()


def need(model: ModelSpec) -> int:
    return estimate(Path(model.path or ""), item_bytes=4).total


async def test_what_a_model_takes_is_estimated_before_and_measured_after(
    start: StartHost, story: ModelSpec, gpt2: ModelSpec
) -> None:
    host = await start(Worker(threads=1))
    for model in (story, gpt2):
        loaded = await host.load(model)
        assert isinstance(loaded, Loaded)
        assert loaded.need_bytes == need(model)
        assert loaded.memory_bytes == pytest.approx(estimate(Path(model.path or ""), 4).weights, rel=0.05)


async def test_the_least_recently_used_model_makes_room_and_comes_back(
    start: StartHost, story: ModelSpec, gpt2: ModelSpec
) -> None:
    budget = (max(need(story), need(gpt2)) + 1000) / GIB
    host = await start(Worker(threads=1, memory_gb=budget, max_loaded=9))
    story_key = await load(host, story)
    gpt2_key = await load(host, gpt2)
    assert set(host.loaded) == {gpt2_key}
    (said,) = await run(host, story, {"prompt": BEGIN})
    assert said.result["text"] == STORY[BEGIN]
    assert set(host.loaded) == {story_key}


async def test_models_stay_together_while_there_is_room(start: StartHost, story: ModelSpec, gpt2: ModelSpec) -> None:
    host = await start(Worker(threads=1, memory_gb=1, max_loaded=9))
    keys = {await load(host, story), await load(host, gpt2)}
    assert set(host.loaded) == keys


async def test_what_fits_nowhere_is_refused_with_what_to_do_and_drops_nothing(
    start: StartHost, story: ModelSpec, gpt2: ModelSpec
) -> None:
    smaller, larger = sorted((story, gpt2), key=need)
    host = await start(Worker(threads=1, memory_gb=(need(smaller) + 1000) / GIB))
    key = await load(host, smaller)
    answer = await host.load(larger)
    assert isinstance(answer, LoadFailed)
    assert answer.failure.retryable, "another worker may have more memory"
    assert "worker.offload" in answer.failure.message
    assert set(host.loaded) == {key}


async def test_layers_without_room_stay_on_the_disk_and_say_the_same(start: StartHost, story: ModelSpec) -> None:
    weights = estimate(Path(story.path or ""), 4).weights
    host = await start(Worker(threads=1, memory_gb=0.6 * weights / GIB, offload="disk"))
    loaded = await host.load(story)
    assert isinstance(loaded, Loaded), loaded
    assert loaded.memory_bytes < weights
    said = await run(host, story, *[{"prompt": begin} for begin in STORY])
    assert [each.result["text"] for each in said] == list(STORY.values())


async def test_linear_layers_can_be_brought_to_eight_bits(start: StartHost, story: ModelSpec) -> None:
    host = await start(Worker(threads=1))
    plain = await host.load(story)
    smaller = story.model_copy(update={"quantize": "int8", "reference": "smaller"})
    quantised = await host.load(smaller)
    assert isinstance(plain, Loaded)
    assert isinstance(quantised, Loaded), quantised
    assert quantised.dtype == "int8"
    assert quantised.memory_bytes < 0.6 * plain.memory_bytes
    assert quantised.need_bytes < plain.need_bytes
    said = await run(host, smaller, *[{"prompt": begin} for begin in STORY])
    assert [each.result["text"] for each in said] == list(STORY.values())


async def test_a_pipelines_denoiser_can_be_brought_to_eight_bits(start: StartHost, painter: ModelSpec) -> None:
    host = await start(Worker(threads=1))
    plain = await host.load(painter)
    smaller = painter.model_copy(update={"quantize": "int8", "reference": "smaller"})
    quantised = await host.load(smaller)
    assert isinstance(plain, Loaded)
    assert isinstance(quantised, Loaded), quantised
    assert (plain.dtype, quantised.dtype) == ("float32", "int8")
    assert quantised.memory_bytes < plain.memory_bytes
    params = {"prompt": "a red picture", "steps": 12, "guidance": 2, "seed": 1}
    (said,) = await run(host, smaller, params)
    with Image.open(said.result["images"][0]["$file"]) as picture:
        red, green, blue = ImageStat.Stat(picture.convert("RGB")).mean
    assert red > 2 * max(green, blue)


async def test_what_cannot_be_quantised_here_says_so(start: StartHost, story: ModelSpec) -> None:
    host = await start(Worker(threads=1))
    answer = await host.load(story.model_copy(update={"quantize": "int4"}))
    assert isinstance(answer, LoadFailed)
    assert "no int4 on a CPU" in answer.failure.message


async def test_the_precision_can_be_set(start: StartHost, story: ModelSpec) -> None:
    host = await start(Worker(threads=1, dtype="bfloat16"))
    loaded = await host.load(story)
    assert isinstance(loaded, Loaded)
    assert loaded.dtype == "bfloat16"
    assert loaded.memory_bytes < 0.6 * estimate(Path(story.path or ""), 4).weights
    (said,) = await run(host, story, {"prompt": BEGIN})
    assert said.result["text"] == STORY[BEGIN]


async def test_unloading_gives_the_place_back(start: StartHost, story: ModelSpec) -> None:
    host = await start(Worker(threads=1))
    key = await load(host, story)
    await host.unload(key)
    await host.unload("nothing")
    assert not host.loaded
