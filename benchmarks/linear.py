"""float32 linear layers of a model on this CPU: torch's own way, oneDNN's, and oneDNN's with weights in its layout.

    python -m benchmarks.linear [ROWS...]

Each figure is the time of all linear layers of a model, one after the other, for so many rows: tokens of a prompt, or
tasks that each get one token. In turns, and the median of the turns.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from bitinglip.workers.engines.onednn import onednn_version, through_onednn

MODELS = {
    "MiniLM": [*[(384, 384)] * 4, (384, 1536), (1536, 384)] * 6,
    "Llama of 32M": [*[(512, 512)] * 4, (512, 1376), (512, 1376), (1376, 512)] * 9,
    "GPT-2": [(768, 2304), (768, 768), (768, 3072), (3072, 768)] * 12,
}
"""Inputs and outputs of the layers."""
ROWS = (1, 4, 16, 30, 128)
TURNS = 15


def ways(shapes: Iterable[tuple[int, int]]) -> dict[str, nn.ModuleList]:
    """Return the same layers, computed in each way."""
    plain = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in shapes).eval()
    unpacked, packed = copy.deepcopy(plain), copy.deepcopy(plain)
    through_onednn(unpacked, "onednn")
    through_onednn(packed, "onednn", packed=True)
    return {"torch": plain, "oneDNN": unpacked, "oneDNN, its layout": packed}


@torch.inference_mode()
def measure(layers: dict[str, nn.ModuleList], shapes: Sequence[tuple[int, int]], rows: int) -> dict[str, float]:
    """Return the milliseconds of each way."""
    taken: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(TURNS):
        for name, some in layers.items():
            inputs = {width: torch.randn(rows, width) for width, _ in shapes}
            started = time.perf_counter()
            for layer, (width, _) in zip(some, shapes, strict=True):
                layer(inputs[width])
            taken[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(times[TURNS // 3 :]) for name, times in taken.items()}


def main(rows: Iterable[int]) -> None:
    """Print a table."""
    sys.stdout.write(f"oneDNN {onednn_version()}, {torch.get_num_threads()} threads\n\n")
    sys.stdout.write("| model | rows | torch | oneDNN | oneDNN, its layout |\n| --- | --- | --- | --- | --- |\n")
    for model, shapes in MODELS.items():
        layers = ways(shapes)
        for each in rows:
            told = " | ".join(f"{time_ms:.1f} ms" for time_ms in measure(layers, shapes, each).values())
            sys.stdout.write(f"| {model} | {each} | {told} |\n")


if __name__ == "__main__":
    main([int(each) for each in sys.argv[1:]] or ROWS)
