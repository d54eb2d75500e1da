"""Pictures from a small Stable Diffusion that was taught four colours by their prompts."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitinglip.tasks.parameters import TextToImageParameters, TextToImageResult
from bitinglip.workers.engine import (
    FILE,
    JobCancelled,
    JobFailed,
    JobProgressed,
    JobSpec,
    JobSucceeded,
    LoadFailed,
    ModelSpec,
)
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_pictures import COLOURS
from tests.engines.support import load, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

CAT: dict[str, Any] = {"prompt": "a cat", "steps": 4, "seed": 11}
ALIKE = 2
"""Levels of 255 by which a picture may differ when it is drawn in company."""


def pictures(result: dict[str, Any]) -> list[Image.Image]:
    """Open the files of a result."""
    drawn: list[Image.Image] = []
    for image in result["images"]:
        with Image.open(image[FILE]) as picture:
            picture.load()
            drawn.append(picture)
    return drawn


def far(one: Image.Image, other: Image.Image) -> int:
    """Return the largest difference of two pictures."""
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


async def test_a_picture_is_of_the_models_own_size_and_tells_how_it_was_drawn(
    shared_host: EngineHost, painter: ModelSpec
) -> None:
    (said,) = await run(shared_host, painter, CAT)
    (picture,) = pictures(said.result)
    assert (picture.format, picture.size, picture.mode) == ("PNG", (64, 64), "RGB")
    told = json.loads(picture.text["parameters"])  # pyright: ignore[reportAttributeAccessIssue]
    assert {name: told[name] for name in CAT} == CAT
    assert (told["model"], told["width"], told["scheduler"]) == ("painter", 64, "default")
    assert set(told["versions"]) - {"onednn"} == {"torch", "transformers", "diffusers"}
    assert told["versions"]["torch"]


async def test_pictures_drawn_together_are_those_drawn_alone(shared_host: EngineHost, painter: ModelSpec) -> None:
    asked = [CAT, CAT | {"seed": 12, "n": 2}, CAT | {"prompt": "a dog"}, CAT | {"steps": 5}]
    together = await run(shared_host, painter, *asked)
    for params, said in zip(asked, together, strict=True):
        (alone,) = await run(shared_host, painter, params)
        assert [far(*pair) <= ALIKE for pair in zip(pictures(alone.result), pictures(said.result), strict=True)]
        for one, other in zip(pictures(alone.result), pictures(said.result), strict=True):
            assert far(one, other) <= ALIKE
    (cat,), (first, second), (dog,), (slow,) = (pictures(said.result) for said in together)
    assert min(far(*pair) for pair in ((cat, first), (first, second), (cat, dog), (cat, slow))) > ALIKE
    assert [image["seed"] for image in together[1].result["images"]] == [12, 13]
    used = [said.answer.usage.images for said in together if isinstance(said.answer, JobSucceeded)]
    assert used == [1, 2, 1, 1]


@pytest.mark.parametrize("guidance", [2.0, 4.0])
async def test_the_prompt_says_what_is_drawn(shared_host: EngineHost, painter: ModelSpec, guidance: float) -> None:
    asked = [{"prompt": f"a {name} picture", "steps": 12, "seed": 3, "guidance": guidance} for name in COLOURS]
    said = await run(shared_host, painter, *asked)
    for name, each in zip(COLOURS, said, strict=True):
        mean = np.asarray(pictures(each.result)[0], dtype=float).mean(axis=(0, 1))
        near = min(COLOURS, key=lambda other: float(np.abs(mean - COLOURS[other]).sum()))
        assert near == name, f"a {name} picture has the mean colour {mean}"


async def test_the_same_picture_alone_is_the_same_file(shared_host: EngineHost, painter: ModelSpec) -> None:
    one, other = [(await run(shared_host, painter, CAT))[0].result["images"][0][FILE] for _ in range(2)]
    assert Path(one).read_bytes() == Path(other).read_bytes()


async def test_a_seed_that_was_drawn_is_told_and_repeats(shared_host: EngineHost, painter: ModelSpec) -> None:
    (drawn,) = await run(shared_host, painter, {"prompt": "a cat", "steps": 2})
    seed = drawn.result["images"][0]["seed"]
    (again,) = await run(shared_host, painter, {"prompt": "a cat", "steps": 2, "seed": seed})
    assert far(*pictures(drawn.result), *pictures(again.result)) == 0


async def test_size_guidance_and_what_is_not_wanted_count(shared_host: EngineHost, painter: ModelSpec) -> None:
    plain, wide, free, unwanted = await run(
        shared_host,
        painter,
        CAT,
        CAT | {"width": 96, "height": 32},
        CAT | {"guidance": 1.0},
        CAT | {"negative_prompt": "grey"},
    )
    assert pictures(wide.result)[0].size == (96, 32)
    (base,) = pictures(plain.result)
    assert far(base, *pictures(free.result)) > ALIKE
    assert far(base, *pictures(unwanted.result)) > ALIKE


@pytest.mark.parametrize("steps", [1, 3, 6])
async def test_every_scheduler_draws(shared_host: EngineHost, painter: ModelSpec, steps: int) -> None:
    known = TextToImageParameters.model_json_schema()["properties"]["scheduler"]["enum"]
    said = await run(shared_host, painter, *[CAT | {"scheduler": name, "steps": steps} for name in known])
    drawn = {name: pictures(each.result)[0] for name, each in zip(known, said, strict=True)}
    assert far(drawn["default"], drawn["ddim"]) <= ALIKE, "the model was published with DDIM"
    if steps > 1:
        assert far(drawn["euler-ancestral"], drawn["ddim"]) > ALIKE


async def test_a_given_picture_is_kept_as_far_as_the_strength_leaves_it(
    shared_host: EngineHost, painter: ModelSpec, tmp_path: Path
) -> None:
    given = tmp_path / "given.png"
    Image.new("RGB", (77, 50), (220, 40, 40)).save(given)
    name = "artifact:" + "a" * 64
    weak, strong, absent = await run(
        shared_host,
        painter,
        CAT | {"steps": 10, "image": name, "strength": 0.1},
        CAT | {"steps": 10, "image": name, "strength": 1.0},
        CAT | {"image": "artifact:" + "b" * 64},
        files={name: given},
    )
    assert [pictures(said.result)[0].size for said in (weak, strong)] == [(72, 48), (72, 48)]
    assert far(*pictures(weak.result), *pictures(strong.result)) > ALIKE
    assert isinstance(absent.answer, JobFailed)
    assert absent.answer.failure.kind == "bad_input"


@pytest.mark.parametrize(
    ("params", "word"), [({"width": 100}, "width"), ({"image": "artifact:" + "a" * 64, "strength": 0.1}, "strength")]
)
async def test_what_cannot_be_drawn_says_which_parameter_is_wrong(
    shared_host: EngineHost, painter: ModelSpec, tmp_path: Path, params: dict[str, Any], word: str
) -> None:
    given = tmp_path / "given.png"
    Image.new("RGB", (64, 64)).save(given)
    bad, good = await run(shared_host, painter, CAT | params, CAT, files={"artifact:" + "a" * 64: given})
    assert isinstance(bad.answer, JobFailed)
    assert (bad.answer.failure.kind, bad.answer.failure.retryable) == ("bad_input", False)
    assert bad.answer.failure.message.startswith(word)
    assert len(good.result["images"]) == 1


async def test_steps_are_told_with_what_is_left_and_small_previews(tmp_path: Path, painter: ModelSpec) -> None:
    from bitinglip.settings import Worker

    host = EngineHost(Worker(threads=1, ticks_per_s=100), "cpu", scratch=tmp_path)
    await host.start()
    try:
        (said,) = await run(host, painter, CAT | {"steps": 40, "n": 2})
    finally:
        await host.stop()
    assert said.ticks[-1].step == said.ticks[-1].total == 80
    assert {tick.unit for tick in said.ticks} == {"step"}
    left = [tick.left_ms for tick in said.ticks if tick.left_ms is not None]
    assert left[-1] == 0 < left[0]
    shown = [tick.preview for tick in said.ticks if tick.preview]
    assert 2 <= len(shown) <= 20
    head, _, body = shown[-1].partition(",")
    picture = Image.open(io.BytesIO(base64.b64decode(body)))
    assert (head, picture.format, picture.size) == ("data:image/webp;base64", "WEBP", (8, 8))
    assert len(shown[-1]) < 4096


async def test_a_preview_has_the_colours_of_the_picture(painter: ModelSpec) -> None:
    """In a process of its own: tests are free of torch."""
    import asyncio
    import sys

    code = f"""
import torch
from diffusers import AutoencoderKL
from bitinglip.workers.engines.latents import LatentPreview
vae = AutoencoderKL.from_pretrained({painter.path!r}, subfolder="vae")
preview = LatentPreview.fit(vae, torch.device("cpu"), torch.float32)
torch.manual_seed(5)
latents = torch.randn(1, 4, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
seen = torch.nn.functional.adaptive_avg_pool2d(vae.decode(latents / vae.config.scaling_factor).sample, (16, 16))
rows = latents.permute(0, 2, 3, 1).reshape(-1, 4)
told = torch.cat([rows, torch.ones(256, 1)], 1) @ preview._weights
seen = seen.permute(0, 2, 3, 1).reshape(-1, 3)
print(float(((told - seen) ** 2).mean() / seen.var(dim=0).mean()))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert float(out.split()[-1]) < 0.05, "the map does not explain the colours"


async def test_a_cancel_stops_within_a_step_and_the_pipeline_draws_on(
    shared_host: EngineHost, painter: ModelSpec
) -> None:
    key = await load(shared_host, painter)
    jobs = [JobSpec(task_id="long", params=CAT | {"steps": 500, "n": 16})]
    steps = 0
    answer = None
    async for messages in shared_host.run(key, jobs):
        for message in messages:
            if isinstance(message, JobProgressed):
                steps = message.step
                shared_host.cancel("long")
            else:
                answer = message
    assert isinstance(answer, JobCancelled)
    assert steps < 500
    (said,) = await run(shared_host, painter, CAT)
    assert len(said.result["images"]) == 1


async def test_a_cancelled_job_leaves_its_neighbour_to_the_end(shared_host: EngineHost, painter: ModelSpec) -> None:
    key = await load(shared_host, painter)
    jobs = [JobSpec(task_id=name, params=CAT | {"steps": 60}) for name in ("gone", "kept")]
    answers: dict[str, str] = {}
    async for messages in shared_host.run(key, jobs):
        shared_host.cancel("gone")
        answers |= {message.task_id: message.type for message in messages if not isinstance(message, JobProgressed)}
    assert answers == {"gone": "cancelled", "kept": "succeeded"}


async def test_the_result_is_of_the_documented_shape(shared_host: EngineHost, painter: ModelSpec) -> None:
    (said,) = await run(shared_host, painter, CAT)
    stored = {"sha256": "a" * 64, "size_bytes": 1}
    images = [
        {name: value for name, value in image.items() if name != FILE} | stored for image in said.result["images"]
    ]
    assert set(images[0]) == set(TextToImageResult.model_validate({"images": images}).images[0].model_dump())


async def test_weights_that_could_run_code_are_refused(
    shared_host: EngineHost, painter: ModelSpec, tmp_path: Path
) -> None:
    import shutil

    copy = Path(shutil.copytree(painter.path or "", tmp_path / "copy"))
    for file in copy.rglob("*.safetensors"):
        file.rename(file.with_suffix(".bin"))
    loaded = await shared_host.load(ModelSpec(kind="text-to-image", reference="copy", path=str(copy)))
    assert isinstance(loaded, LoadFailed)
    assert "safetensors" in loaded.failure.message
    assert not loaded.failure.retryable
