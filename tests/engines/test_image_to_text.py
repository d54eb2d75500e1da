"""Captions from a small BLIP that was taught one for each of four colours."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitinglip.workers.engine import JobCancelled, JobFailed, JobProgressed, JobSpec, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_pictures import CAPTIONS, picture
from tests.engines.support import load, run

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of each colour, by the name of its artifact."""
    folder = tmp_path_factory.mktemp("seen")
    files: dict[str, Path] = {}
    for number, colour in enumerate(CAPTIONS):
        path = folder / f"{colour}.png"
        picture(colour).save(path)
        files["artifact:" + str(number) * 64] = path
    return files


async def test_a_caption_says_what_is_in_its_picture(
    shared_host: EngineHost, seer: ModelSpec, seen: dict[str, Path]
) -> None:
    said = await run(shared_host, seer, *[{"image": name} for name in seen], files=seen)
    assert [each.result["text"] for each in said] == list(CAPTIONS.values())
    assert [each.text for each in said] == list(CAPTIONS.values()), "the streamed pieces are not the caption"
    assert {each.result["finish_reason"] for each in said} == {"stop"}


async def test_a_prompt_is_how_the_caption_begins(
    shared_host: EngineHost, seer: ModelSpec, seen: dict[str, Path]
) -> None:
    blue = list(seen)[list(CAPTIONS).index("blue")]
    said = await run(
        shared_host, seer, {"image": blue, "prompt": "the sea"}, {"image": blue}, {"image": blue}, files=seen
    )
    assert [each.result["text"] for each in said] == [CAPTIONS["blue"]] * 3


async def test_tokens_are_bounded_and_told(shared_host: EngineHost, seer: ModelSpec, seen: dict[str, Path]) -> None:
    name, caption = next(iter(seen)), next(iter(CAPTIONS.values()))
    (said,) = await run(shared_host, seer, {"image": name, "max_tokens": 2}, files=seen)
    assert said.result["finish_reason"] == "length"
    assert caption.startswith(said.result["text"])
    assert said.ticks[-1].unit == "token"


async def test_a_seed_gives_the_same_caption_alone_and_in_company(
    shared_host: EngineHost, seer: ModelSpec, seen: dict[str, Path]
) -> None:
    asked = [{"image": name, "temperature": 2.0, "seed": 40 + number} for number, name in enumerate(seen)]
    together = await run(shared_host, seer, *asked, files=seen)
    for params, said in zip(asked, together, strict=True):
        (alone,) = await run(shared_host, seer, params, files=seen)
        assert alone.result == said.result


@pytest.mark.parametrize(
    ("params", "word"),
    [
        ({"image": "artifact:" + "f" * 64}, "image"),
        ({"image": "artifact:" + "0" * 64, "prompt": "sea " * 80}, "prompt"),
    ],
)
async def test_what_cannot_be_captioned_fails_alone(
    shared_host: EngineHost, seer: ModelSpec, seen: dict[str, Path], params: dict[str, str], word: str
) -> None:
    bad, good = await run(shared_host, seer, params, {"image": next(iter(seen))}, files=seen)
    assert isinstance(bad.answer, JobFailed)
    assert (bad.answer.failure.kind, bad.answer.failure.message.split(":")[0]) == ("bad_input", word)
    assert good.result["text"] == next(iter(CAPTIONS.values()))


async def test_a_cancelled_caption_leaves_its_neighbour(
    shared_host: EngineHost, seer: ModelSpec, seen: dict[str, Path]
) -> None:
    key = await load(shared_host, seer)
    files = {name: str(path) for name, path in seen.items()}
    first, second = list(seen)[:2]
    jobs = [
        JobSpec(task_id="gone", params={"image": first, "temperature": 2.0, "max_tokens": 60}, files=files),
        JobSpec(task_id="kept", params={"image": second}, files=files),
    ]
    shared_host.cancel("gone")
    answers: dict[str, str] = {}
    run_of_both = shared_host.run(key, jobs)
    shared_host.cancel("gone")
    async for messages in run_of_both:
        shared_host.cancel("gone")
        answers |= {message.task_id: message.type for message in messages if not isinstance(message, JobProgressed)}
    assert answers["kept"] == "succeeded"
    assert answers["gone"] in {JobCancelled(task_id="").type, "succeeded"}
