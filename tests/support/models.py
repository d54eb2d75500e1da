"""Small models for tests, made in a process of their own: the test process stays free of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitinglip.cli.natsserver import cache_path

MAKERS = {
    "story": ("tiny_models", "make_story_model"),
    "gpt2": ("tiny_models", "make_gpt2"),
    "painter": ("tiny_pictures", "make_stable_diffusion"),
    "seer": ("tiny_pictures", "make_blip"),
    "listener": ("tiny_speech", "make_whisper"),
    "speaker": ("tiny_speech", "make_speecht5"),
    "vits": ("tiny_speech", "make_vits"),
    "bark": ("tiny_speech", "make_bark"),
    "published-gpt2": ("tiny_texts", "make_published_gpt2"),
    "dialogpt": ("tiny_texts", "make_dialogpt"),
    "llama": ("tiny_chats", "make_llama"),
    "r1": ("tiny_chats", "make_r1"),
    "llava": ("tiny_layouts", "make_llava"),
    "sd21": ("tiny_layouts", "make_stable_diffusion_2_1"),
    "sdxl": ("tiny_layouts", "make_sdxl"),
}
"""Name of a model -> the module in scripts/ and the function that makes it."""
MARKERS = ("config.json", "model_index.json")


_made: dict[str, Path] = {}


def model_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return the folder of a model, made once a session; outside CI the demo's own is taken if it is there."""
    if name not in _made:
        _made[name] = _make(factory, name)
    return _made[name]


def _make(factory: pytest.TempPathFactory, name: str) -> Path:
    made = cache_path().parent / "demo-models" / "demo" / name
    if any((made / marker).is_file() for marker in MARKERS) and "CI" not in os.environ:
        return made
    folder = factory.mktemp("models") / name
    module, maker = MAKERS[name]
    code = f"from pathlib import Path; from scripts.{module} import {maker} as make; make(Path({str(folder)!r}))"
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}  # two threads would wait for each other more than they work
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL, env=alone)
    return folder
