"""Small models for tests, made in a process of their own: the test process stays free of torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bitinglip.cli.natsserver import cache_path

MAKERS = {"story": "make_story_model", "gpt2": "make_gpt2"}


def model_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """Return the folder of a model, made once a session; outside CI the demo's own is taken if it is there."""
    made = cache_path().parent / "demo-models" / "demo" / name
    if (made / "config.json").is_file() and "CI" not in os.environ:
        return made
    folder = factory.mktemp("models") / name
    code = (
        f"from pathlib import Path; from scripts.tiny_models import {MAKERS[name]} as make; make(Path({str(folder)!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
    return folder
