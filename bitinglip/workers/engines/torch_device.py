"""Devices through torch's accelerator API: CUDA, ROCm, XPU, MPS, or the CPU."""

from __future__ import annotations

import gc
from importlib.metadata import version
from pathlib import Path

import torch

from bitinglip.workers.engine import ModelSpec, Placement
from bitinglip.workers.engines.failures import UnusableModelError

PACKAGES = ("torch", "transformers")


def place(placement: Placement) -> torch.device:
    """Return the device that was asked for; `auto` is the first accelerator, or the CPU."""
    if placement.threads:
        torch.set_num_threads(placement.threads)
    if placement.device != "auto":
        return torch.device(placement.device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def give_memory_back() -> None:
    """Free what nothing refers to any more, on the device as well."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result depends on."""
    return {name: version(name) for name in PACKAGES}


def weights_folder(spec: ModelSpec) -> Path:
    """Return the folder of a model's snapshot, having looked that it can be loaded.

    Raises:
        UnusableModelError: it is not there, or has no safetensors.
    """
    path = Path(spec.path or "")
    if spec.path is None or not (path / "config.json").is_file():
        raise UnusableModelError(f"{spec.reference}: there is no model in {spec.path}.")
    if not any(path.glob("*.safetensors")):
        raise UnusableModelError(
            f"{spec.reference}: there are no safetensors files in its folder; weights in other formats are not loaded."
        )
    return path
