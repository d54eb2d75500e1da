"""What a model needs of a worker's device, and whether it could ever fit there: told without torch."""

from __future__ import annotations

import logging
from pathlib import Path

from bitinglip.events.worker import DeviceReading
from bitinglip.models.memory import LINEAR_BYTES, SHARE, estimate
from bitinglip.settings import Worker
from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.view import GIB

log = logging.getLogger(__name__)

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CPU = "cpu"
"""What the reading of a worker without a card is named."""


def budget_bytes(settings: Worker, total_bytes: int | None) -> int | None:
    """Return what models may take of a device that has so much memory; none: not known."""
    if settings.memory_gb is not None:
        return round(settings.memory_gb * GIB)
    return None if total_bytes is None else round(total_bytes * SHARE)


def need_bytes(spec: ModelSpec, settings: Worker, *, on_cpu: bool) -> int:
    """Return what a model needs, running, in the precision that it is loaded in; 0: not known, or nothing."""
    if spec.vllm is not None or spec.path is None:
        return 0
    item_bytes = ITEM_BYTES["float32"] if settings.dtype == "auto" and on_cpu else ITEM_BYTES.get(settings.dtype)
    try:
        return estimate(Path(spec.path), item_bytes, linear_bytes=LINEAR_BYTES.get(spec.quantize or "")).total
    except (OSError, ValueError) as error:
        log.debug("%s: the memory that it needs is not known: %s", spec.reference, error)
        return 0


def too_large(spec: ModelSpec, settings: Worker, device: DeviceReading) -> str | None:
    """Say why a model can never fit this worker's device; none if it may."""
    if settings.offload != "none" or ("," in settings.device and settings.memory_gb is None):
        return None
    budget = budget_bytes(settings, device.memory_total_bytes)
    need = need_bytes(spec, settings, on_cpu=device.name == CPU)
    if budget is None or need <= budget:
        return None
    return f"it needs about {need / GIB:.1f} GiB, and models may take {budget / GIB:.1f} GiB here"
