"""Devices through torch's accelerator API: CUDA, ROCm, XPU, MPS, or the CPU."""

from __future__ import annotations

import gc

import psutil
import torch

from bitinglip.workers.engine import Placement


def place(placement: Placement) -> torch.device:
    """Return the device that was asked for, the first of them if there are several."""
    return places(placement)[0]


def places(placement: Placement) -> list[torch.device]:
    """Return the devices that were asked for; `auto` is the first accelerator, or the CPU."""
    if placement.threads:
        torch.set_num_threads(placement.threads)
    if placement.device != "auto":
        return [torch.device(name.strip()) for name in placement.device.split(",")]
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return [accelerator or torch.device("cpu")]


def dtype_for(device: torch.device, placement: Placement, own: str | None = None) -> torch.dtype | str:
    """Return the precision to load weights in: what is asked for, else the checkpoint's own; on a CPU float32.

    `own`: name of the checkpoint's precision, if it is known; a card that cannot do bfloat16 takes float16 for it.
    """
    if placement.dtype != "auto":
        return getattr(torch, placement.dtype)
    if device.type == "cpu":
        return torch.float32
    return torch.float16 if own == "bfloat16" and not _has_bfloat16(device) else "auto"


def memory_bytes(device: torch.device) -> int:
    """Return how much memory a device has, of which some may be in use."""
    if device.type in {"cpu", "mps"}:
        return psutil.virtual_memory().total
    return torch.accelerator.get_memory_info(device)[1]


def allocated_bytes(devices: list[torch.device]) -> int:
    """Return how much memory this process's tensors take of accelerators; a CPU's are not counted."""
    cards = [device for device in devices if device.type not in {"cpu", "mps"}]
    return sum(torch.accelerator.memory_allocated(device) for device in cards)


def give_memory_back() -> None:
    """Free what nothing refers to any more, on the device as well."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()


def _has_bfloat16(device: torch.device) -> bool:
    """Tell whether a card does bfloat16 itself; NVIDIA's before 2020 only act as if."""
    if device.type != "cuda":
        return True
    return torch.cuda.is_bf16_supported(including_emulation=False)
