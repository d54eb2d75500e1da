"""What a model is, by its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from bitinglip.models.kinds import architecture_of, context_of, kind_of, part_names


@pytest.mark.parametrize(
    ("config", "names", "kind"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, [], "text-generation"),
        ({"architectures": ["Qwen3ForCausalLM"]}, [], "text-generation"),
        ({"architectures": ["Qwen3ForCausalLM"]}, ["modules.json"], "embedding"),
        ({"architectures": ["BertModel"]}, [], "embedding"),
        ({"architectures": ["XLMRobertaForMaskedLM"]}, ["1_Pooling"], "embedding"),
        ({"architectures": ["WhisperForConditionalGeneration"]}, [], "speech-to-text"),
        ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}}, [], "image-to-text"),
        ({"architectures": ["T5ForConditionalGeneration"]}, [], None),
        ({"architectures": ["ViTForImageClassification"]}, [], None),
        ({"_class_name": "StableDiffusionXLPipeline"}, [], "text-to-image"),
        ({}, [], None),
        ({"architectures": []}, [], None),
        ({"architectures": "GPT2LMHeadModel"}, [], None),
        ({"architectures": [3]}, [], None),
    ],
)
def test_the_kind_is_the_architectures(config: dict[str, Any], names: list[str], kind: str | None) -> None:
    assert kind_of(config, names) == kind


def test_the_context_may_be_that_of_a_part_for_texts() -> None:
    assert context_of({"n_positions": 1024, "n_ctx": 5}) == 1024
    assert context_of({"text_config": {"max_position_embeddings": 4096}}) == 4096
    assert context_of({"max_position_embeddings": 512, "text_config": {"max_position_embeddings": 4096}}) == 512
    assert context_of({"max_position_embeddings": "many"}) is None


def test_a_pipelines_parts_are_those_that_are_there() -> None:
    index = {"_class_name": "XPipeline", "unet": ["diffusers", "UNet"], "safety_checker": [None, None], "n": [1, 2, 3]}
    assert part_names(index) == ["unet"]
    assert architecture_of(index) == "XPipeline"
