"""Models of pictures in their published layouts: BLIP and a LLaVA see, stable-diffusion-2-1-base and an SDXL draw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bitinglip.workers.engine import FILE, JobSucceeded, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_layouts import QUESTIONS
from scripts.tiny_pictures import CAPTIONS, picture
from tests.engines.support import Said, run
from tests.support.models import model_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A LLaVA that knows two questions and four colours."""
    return _spec("image-to-text", "llava", model_folder(tmp_path_factory, "llava"))


@pytest.fixture(scope="module")
def blip(seer: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """blip-image-captioning-base, in small, with the files that were published."""
    folder = tmp_path_factory.mktemp("models") / "blip"
    shutil.copytree(seer.path or "", folder, ignore=shutil.ignore_patterns("processor_config.json", "generation_*"))
    settings = json.loads((Path(seer.path or "") / "processor_config.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 2  # which is none: its texts end with `sep_token_id`
    names = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    ends = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]"}
    files = {
        "config.json": config,
        "preprocessor_config.json": settings["image_processor"] | {"processor_class": "BlipProcessor"},
        "special_tokens_map.json": {**ends, "unk_token": "[UNK]"},
        "tokenizer_config.json": {
            **ends,
            "do_lower_case": True,
            "model_max_length": 512,
            "processor_class": "BlipProcessor",
            "tokenizer_class": "BertTokenizer",
            "unk_token": "[UNK]",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in sorted(names, key=names.__getitem__)))
    for name in ("pytorch_model.bin", "tf_model.h5"):
        (folder / name).write_bytes(b"not to be read")
    return _spec("image-to-text", "Salesforce/blip-image-captioning-base", folder)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A picture of each colour, by the name of its artifact."""
    folder = tmp_path_factory.mktemp("seen")
    files = {"artifact:" + str(number) * 64: folder / f"{colour}.png" for number, colour in enumerate(CAPTIONS)}
    for path in files.values():
        picture(path.stem).save(path)
    return files


def _spec(kind: str, reference: str, path: Path) -> ModelSpec:
    return ModelSpec(kind=kind, reference=reference, path=str(path))


@pytest.fixture(scope="module")
def sd21(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """stable-diffusion-2-1-base, in small."""
    return _spec("text-to-image", "sd21", model_folder(tmp_path_factory, "sd21"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """A Stable Diffusion XL, in small."""
    return _spec("text-to-image", "sdxl", model_folder(tmp_path_factory, "sdxl"))


# --- BLIP and LLaVA ---------------------------------------------------------------------------------------------------


async def test_blip_says_what_is_in_a_picture(shared_host: EngineHost, blip: ModelSpec, seen: dict[str, Path]) -> None:
    blue = list(seen)[list(CAPTIONS).index("blue")]
    said = await run(
        shared_host, blip, *[{"image": name} for name in seen], {"image": blue, "prompt": "the sea"}, files=seen
    )
    assert [each.result["text"] for each in said] == [*CAPTIONS.values(), CAPTIONS["blue"]]
    assert {each.result["finish_reason"] for each in said} == {"stop"}


@pytest.mark.parametrize("question", [None, *QUESTIONS])
async def test_llava_answers_by_the_picture_and_the_question(
    shared_host: EngineHost, llava: ModelSpec, seen: dict[str, Path], question: str | None
) -> None:
    asked: dict[str, Any] = {} if question is None else {"prompt": question}
    said = await run(shared_host, llava, *[asked | {"image": name} for name in seen], files=seen)
    answers = list(QUESTIONS[question or "Describe this image."].values())
    assert [each.result["text"] for each in said] == answers
    assert [each.text for each in said] == answers
    assert {each.result["finish_reason"] for each in said} == {"stop"}


async def test_llavas_tokens_are_bounded_and_counted(
    shared_host: EngineHost, llava: ModelSpec, seen: dict[str, Path]
) -> None:
    (said,) = await run(shared_host, llava, {"image": next(iter(seen)), "max_tokens": 2}, files=seen)
    assert said.result["finish_reason"] == "length"
    assert isinstance(said.answer, JobSucceeded)
    assert said.answer.usage.input_tokens is not None
    assert said.answer.usage.input_tokens > 16, "the picture's patches count"
    assert said.answer.usage.output_tokens == 2


# --- Stable Diffusion -------------------------------------------------------------------------------------------------

CAT: dict[str, Any] = {"prompt": "a cat", "steps": 4, "seed": 11}


def drawn(said: Said) -> np.ndarray[Any, Any]:
    """Open the one picture of a result: (H, W, 3)."""
    (image,) = said.result["images"]
    with Image.open(image[FILE]) as opened:
        return np.asarray(opened.convert("RGB"), dtype=int)


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
async def test_it_draws_by_the_prompt_and_the_seed_in_the_size_that_is_asked_for(
    shared_host: EngineHost, request: pytest.FixtureRequest, name: str
) -> None:
    model: ModelSpec = request.getfixturevalue(name)
    asked = [CAT, CAT, CAT | {"seed": 12}, CAT | {"prompt": "a dog"}, CAT | {"width": 96, "height": 32}]
    said = [(await run(shared_host, model, params))[0] for params in asked]
    cat, again, other, dog, wide = map(drawn, said)
    assert (cat.shape, wide.shape) == ((64, 64, 3), (32, 96, 3))
    assert cat.std() > 1, "weights of nothing draw a plain picture"
    assert (cat == again).all()
    assert (cat != other).any()
    assert (cat != dog).any()


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
async def test_it_draws_from_a_picture_as_far_as_the_strength_leaves_it(
    shared_host: EngineHost, request: pytest.FixtureRequest, name: str, seen: dict[str, Path]
) -> None:
    given = CAT | {"image": next(iter(seen)), "width": 64, "height": 64}
    model: ModelSpec = request.getfixturevalue(name)
    asked = [given | {"strength": strength, "steps": 10} for strength in (0.2, 1.0)]
    near, far = map(drawn, await run(shared_host, model, *asked, files=seen))
    red = np.asarray(picture("red", 64), dtype=int)
    assert near.shape == far.shape == red.shape
    assert np.abs(near - red).mean() < np.abs(far - red).mean()


@pytest.mark.parametrize("name", ["sd21", "sdxl"])
async def test_it_draws_with_every_number_of_steps_and_previews_them(
    shared_host: EngineHost, request: pytest.FixtureRequest, name: str
) -> None:
    model: ModelSpec = request.getfixturevalue(name)
    for steps in (1, 2, 5):
        (said,) = await run(shared_host, model, CAT | {"steps": steps, "guidance": 3.0})
        assert drawn(said).shape == (64, 64, 3)
        assert said.ticks[-1].step == said.ticks[-1].total
        assert said.ticks[-1].step in {steps, steps + 1}, "PNDM takes one more"
        assert (said.ticks[-1].preview or "").startswith("data:image/")
