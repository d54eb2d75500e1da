"""Linear layers through oneDNN, on CPUs that torch's own way is slow on.

torch has float32 products made by MKL, whose fast kernels are for Intel's CPUs alone: on an AMD EPYC those of oneDNN,
which torch has as well, take a half to two thirds of the time (benchmarks/README.md has the figures). torch's compiler
would choose them, and wants a C++ compiler and seconds a model for it; here the layers call the operator that it would.
"""

from __future__ import annotations

import platform
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bitinglip.workers.engine import Linear

_CPUINFO = Path("/proc/cpuinfo")


def through_onednn(model: nn.Module, wanted: Linear, *, packed: bool = False) -> str | None:
    """Have a model's float32 linear layers on the CPU run through oneDNN; returns its version, none if none does.

    `wanted`: `auto` is `onednn` on an x86-64 CPU that is not Intel's. `packed`: bring the weights into oneDNN's own
    layout once, in place of doing it for every product; the load takes that much longer.
    """
    if wanted == "torch" or (wanted == "auto" and not _mkl_is_slow()) or not torch.backends.mkldnn.is_available():
        return None
    users = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    modules: Iterator[Any] = model.modules()
    layers = [layer for layer in modules if type(layer) in _WAYS and _is_plain(layer.weight)]
    for layer in layers:
        pack = packed and users[id(layer.weight)] == 1  # what is an embedding as well must stay as it is
        layer.__class__ = _WAYS[type(layer)]
        if pack:
            layer.weight = nn.Parameter(_packed(layer.matrix), requires_grad=False)
    return onednn_version() if layers else None


@cache
def onednn_version() -> str:
    """Return the version of torch's oneDNN."""
    found = re.search(r"MKL-DNN v([\d.]+)", torch.__config__.show())
    return found.group(1) if found else "unknown"


class _OneDnnLinear(nn.Linear):
    @property
    def matrix(self) -> torch.Tensor:
        """The weights, a row for each output."""
        return self.weight

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _product(input, self.matrix, self.bias)


class _OneDnnConv1D(Conv1D):
    """GPT-2's linear layer, whose weights lie the other way, until they are packed."""

    @property
    def matrix(self) -> torch.Tensor:
        """The weights, a row for each output."""
        return self.weight if self.weight.is_mkldnn else self.weight.t()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _product(x, self.matrix, self.bias)


_WAYS: dict[type[Any], type[Any]] = {nn.Linear: _OneDnnLinear, Conv1D: _OneDnnConv1D}


def _product(rows: torch.Tensor, matrix: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the product of rows (..., K) with a matrix (N, K), and the bias added: (..., N)."""
    if _is_plain(rows):
        return torch.ops.mkldnn._linear_pointwise(rows, matrix, bias, "none", [], "")
    return nn.functional.linear(rows, matrix.to_dense() if matrix.is_mkldnn else matrix, bias)


def _packed(matrix: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(matrix.detach().contiguous(), None)


def _is_plain(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor is one that oneDNN is asked for: a quantised weight only looks like float32."""
    known = type(tensor) in (torch.Tensor, nn.Parameter)
    return known and tensor.dtype is torch.float32 and tensor.device.type == "cpu" and tensor.numel() > 0


@cache
def _mkl_is_slow() -> bool:
    """Tell whether this is an x86-64 CPU that is not Intel's."""
    if platform.machine().lower() not in {"x86_64", "amd64"}:
        return False
    return "GenuineIntel" not in (_CPUINFO.read_text("utf-8") if _CPUINFO.exists() else platform.processor())
