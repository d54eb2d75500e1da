"""Devices through torch's accelerator API: CUDA, ROCm, XPU, MPS, or the CPU."""

from __future__ import annotations

import gc

import torch

from bitinglip.workers.engine import Placement


def place(placement: Placement) -> torch.device:
    """Return the device that was asked for; `auto` is the first accelerator, or the CPU."""
    if placement.threads:
        torch.set_num_threads(placement.threads)
    if placement.device != "auto":
        return torch.device(placement.device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def dtype_for(device: torch.device) -> torch.dtype | str:
    """Return the precision to load weights in: the checkpoint's own, but on a CPU float32, which each of them can."""
    return torch.float32 if device.type == "cpu" else "auto"


def give_memory_back() -> None:
    """Free what nothing refers to any more, on the device as well."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
