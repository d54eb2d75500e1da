"""What fits on a device: a model's need before it is loaded, and where its layers go if they find no room there."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from bitinglip.models.memory import LINEAR_BYTES, SHARE, estimate
from bitinglip.workers.engine import START_SERVER, ModelSpec, Placement
from bitinglip.workers.engines.torch_device import dtype_for, memory_bytes, places

log = logging.getLogger(__name__)


def budget_bytes(placement: Placement) -> int:
    """Return how many bytes models may take of the device, or of all devices together."""
    return placement.memory_bytes or sum(round(memory_bytes(device) * SHARE) for device in places(placement))


def need_bytes(spec: ModelSpec, placement: Placement) -> int:
    """Return about how many bytes a model takes, from its files' headers; 0 if they do not tell."""
    if spec.vllm == START_SERVER:
        return budget_bytes(placement)  # such a server takes what it finds
    if spec.path is None or spec.vllm is not None:
        return 0
    dtype = dtype_for(places(placement)[0], placement)
    own = 2 if spec.kind == "text-to-image" else None  # a pipeline is loaded in bfloat16, whatever its files have
    item_bytes = own if isinstance(dtype, str) else dtype.itemsize
    try:
        need = estimate(Path(spec.path), item_bytes, linear_bytes=LINEAR_BYTES.get(spec.quantize or ""))
        parts = [estimate(Path(folder), item_bytes).weights for folder in spec.parts.values()]
    except (OSError, ValueError) as error:
        log.warning("%s: the memory that it needs is not known: %s", spec.reference, error)
        return 0
    return need.total + sum(parts)


def spread(spec: ModelSpec, placement: Placement) -> dict[str, Any]:
    """Return what `from_pretrained` is told if a model does not fit on the first device; else nothing.

    Its layers are then laid out over the devices, main memory and the disk, in this order, as far as that is allowed.
    """
    devices = places(placement)
    first_budget = _budget_of(devices[0], placement)
    if placement.offload == "none" and len(devices) == 1:
        return {}
    if need_bytes(spec, placement) <= first_budget:
        return {}
    most: dict[int | str, int] = {_name(device): _budget_of(device, placement) for device in devices}
    if placement.offload != "none":
        most.setdefault("cpu", round(_main_memory() * SHARE))
    folder = placement.scratch / "offload"
    options: dict[str, Any] = {"device_map": "auto", "max_memory": most}
    return options | ({"offload_folder": str(folder)} if placement.offload == "disk" else {})


def _budget_of(device: Any, placement: Placement) -> int:
    """Return one device's share of what is set, or of what it has."""
    return placement.memory_bytes // len(places(placement)) or round(memory_bytes(device) * SHARE)


def _name(device: Any) -> int | str:
    """Return accelerate's name of a device."""
    return device.type if device.type in {"cpu", "mps"} else device.index or 0


def _main_memory() -> int:
    import psutil

    return psutil.virtual_memory().total
