"""What a model is, by its configuration: its architecture, the kind of task that it serves, its context; pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

Config = Mapping[str, Any]
"""A model's `config.json`, or a pipeline's `model_index.json`."""

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")
KIND_OF_ARCHITECTURE: dict[tuple[str, ...], str] = {
    ("Pipeline",): "text-to-image",
    ("ForTextToSpeech", "VitsModel", "BarkModel"): "text-to-speech",
    ("WhisperForConditionalGeneration", "ForSpeechSeq2Seq"): "speech-to-text",
    ("BlipForConditionalGeneration", "ForImageTextToText"): "image-to-text",
    ("ForCausalLM", "LMHeadModel"): "text-generation",
    ("Model", "ForMaskedLM"): "embedding",
}
"""How the names of architectures end, and the kind that runs them; the first that fits counts."""
VISION_LANGUAGE = ("ForConditionalGeneration",)
"""Such a model takes pictures if its configuration has a part for them."""
POOLING = frozenset({"modules.json", "1_Pooling"})
"""What sentence-transformers puts beside a model: then it is one that makes vectors."""
PARTS: dict[str, dict[str, str]] = {"SpeechT5ForTextToSpeech": {"vocoder": "microsoft/speecht5_hifigan"}}
"""Architecture -> the models that it needs beside it: what they are to it, and where they are published."""
TAGS_OF_KIND: dict[str, tuple[str, ...]] = {
    "text-generation": ("text-generation",),
    "embedding": ("sentence-similarity", "feature-extraction"),
    "image-to-text": ("image-to-text", "image-text-to-text"),
    "text-to-image": ("text-to-image",),
    "speech-to-text": ("automatic-speech-recognition",),
    "text-to-speech": ("text-to-speech",),
}
"""Kind -> what the hub calls such models (`pipeline_tag`)."""


def architecture_of(config: Config) -> str | None:
    """Return the name of a model's class; a pipeline's stands for an architecture."""
    named = config.get("architectures") or [config.get("_class_name")]
    first = cast("list[object]", named)[0] if isinstance(named, list) else None
    return first if isinstance(first, str) else None


def kind_of(config: Config, names: Collection[str]) -> str | None:
    """Return the kind of task that a model serves; none if no engine takes it.

    `names`: what lies in its folder, files and folders.
    """
    if POOLING & set(names):
        return "embedding"
    architecture = architecture_of(config)
    if architecture is None:
        return None
    for ends, kind in KIND_OF_ARCHITECTURE.items():
        if architecture.endswith(ends):
            return kind
    return "image-to-text" if "vision_config" in config and architecture.endswith(VISION_LANGUAGE) else None


def context_of(config: Config) -> int | None:
    """Return a model's longest context in tokens; none if its configuration tells none."""
    text = language_of(config)
    found = [each.get(field) for each in (config, text) for field in CONTEXT_FIELDS]
    return next((value for value in found if isinstance(value, int)), None)


def language_of(config: Config) -> Config:
    """Return the configuration of a model's part for texts, which may be the whole."""
    text = config.get("text_config")
    return cast("Config", text) if isinstance(text, dict) else config


def part_names(index: Config) -> list[str]:
    """Return the folders of a pipeline's parts, by its `model_index.json`."""
    pairs = {name: cast("list[object]", value) for name, value in index.items() if isinstance(value, list)}
    return [name for name, value in pairs.items() if len(value) == 2 and all(isinstance(each, str) for each in value)]
