"""Linear layers in a smaller precision, by torchao; and what tensors take that are not as large as they seem."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch

from bitinglip.workers.engine import ModelSpec
from bitinglip.workers.engines.failures import UnusableModelError


def torchao_config(spec: ModelSpec, device: torch.device) -> Any:
    """Return torchao's configuration for the precision that is set for a model; none if none is set.

    Raises:
        UnusableModelError: torchao is not installed, or has nothing for this precision on this device.
    """
    if spec.quantize is None:
        return None
    if find_spec("torchao") is None:
        raise UnusableModelError(
            f"{spec.reference}: `worker.quantize` needs torchao: `pip install 'bitinglip[quantize]'`, or take it out."
        )
    from torchao.quantization import Int4WeightOnlyConfig, Int8WeightOnlyConfig

    if spec.quantize == "int8":
        return Int8WeightOnlyConfig()
    if device.type == "cpu":
        raise UnusableModelError(f"{spec.reference}: there is no int4 on a CPU: set `{spec.reference}=int8`.")
    return Int4WeightOnlyConfig()


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Return what tensors take; of a quantised one, which looks as large as before, its parts are counted."""
    return sum(part.numel() * part.element_size() for tensor in tensors for part in _parts(tensor))


def _parts(tensor: torch.Tensor) -> Iterable[torch.Tensor]:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        yield tensor
        return
    for name in flatten()[0]:
        yield from _parts(getattr(tensor, name))
