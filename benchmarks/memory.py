"""How far off are the estimates of memory, which are made before anything is loaded: beside what engines hold then.

    python -m benchmarks.memory

Each architecture that engines load, made small with random weights, and a Llama of 320 million parameters: in float32,
bfloat16 and int8, on the CPU. What an engine holds is counted tensor by tensor, as it reports it. For the large one the
process itself is looked at as well, before the load, after it, and after a run.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import uvloop

from benchmarks import bare
from benchmarks.support import Figure, publish, scratch
from bitinglip.models.memory import estimate
from bitinglip.models.store import find_models
from bitinglip.settings import Worker
from bitinglip.workers.engine import JobSpec, Loaded, ModelSpec
from bitinglip.workers.enginehost import EngineHost

MOST_OFF = 0.1
MIB = 2**20
TINY = {
    "tiny_models": ("make_story_model", "make_gpt2"),
    "tiny_texts": ("make_published_gpt2", "make_dialogpt"),
    "tiny_chats": ("make_llama", "make_r1"),
    "tiny_layouts": ("make_llava", "make_stable_diffusion_2_1", "make_sdxl"),
    "tiny_pictures": ("make_stable_diffusion", "make_blip"),
    "tiny_speech": ("make_whisper", "make_speecht5", "make_vits", "make_bark"),
}
"""Module in scripts/ -> its functions that make a model."""
PRECISIONS = ("float32", "bfloat16", "int8")
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 20,
    "num_attention_heads": 16,
}
LARGE_WORDS = 32_000


@dataclass(frozen=True, slots=True)
class Row:
    """One load of one model."""

    model: str
    architecture: str | None
    precision: str
    estimated: int
    """Bytes of the weights."""
    held: int
    """Bytes of the weights, of what is computed with them, and of nothing else."""
    need: int = 0
    """Bytes in all, running."""
    grown_loaded: int = 0
    """Bytes by which the process grew with the load."""
    grown_run: int = 0
    """The same, after a run."""

    @property
    def off(self) -> float:
        """By which part of what is held the estimate is off."""
        return self.estimated / self.held - 1

    def line(self) -> str:
        """Write it as a row of a Markdown table."""
        grown = f"{self.grown_loaded / MIB:,.0f} → {self.grown_run / MIB:,.0f} MiB" if self.grown_run else ""
        need = f"{self.need / MIB:,.0f} MiB" if self.grown_run else ""
        sizes = f"{self.estimated:,} | {self.held:,} | {self.off:+.1%}"
        return f"| {self.model} | {self.architecture} | {self.precision} | {sizes} | {need} | {grown} |"


async def measure() -> list[Figure]:
    """Load everything in every precision; tells by how much the worst estimate is off."""
    async with scratch() as folder:
        rows = [row for precision in PRECISIONS for row in await _small(folder, precision)]
        large = await asyncio.to_thread(_make_large, folder / "large")
        rows += [await _large(folder, large, precision) for precision in PRECISIONS]
    sys.stdout.write("| model | architecture | precision | weights, estimated | held | off | need | grown by |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- | --- | --- | --- |\n")
    sys.stdout.writelines(f"{row.line()}\n" for row in rows)
    small, big = [row for row in rows if row.need == 0], [row for row in rows if row.need]
    return [_figure("small models", small), _figure("a Llama of 320M parameters", big)]


def _figure(what: str, rows: list[Row]) -> Figure:
    worst = max(rows, key=lambda row: abs(row.off))
    note = f"{worst.model}, {worst.precision}; {len(rows)} loads"
    return Figure(f"estimate of the weights, {what}: worst", abs(worst.off) * 100, "%", MOST_OFF * 100, False, note)


async def _small(folder: Path, precision: str) -> list[Row]:
    host = await _host(folder, precision)
    try:
        loads = [await _load(host, spec, architecture, precision) for spec, architecture in _specs(folder)]
    finally:
        await host.stop()
    return [row for row in loads if row is not None]


def _specs(folder: Path) -> list[tuple[ModelSpec, str | None]]:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for module, makers in TINY.items():
        for maker in makers:
            make: Callable[[Path], Path] = getattr(importlib.import_module(f"scripts.{module}"), maker)
            make(folder / "small" / maker.removeprefix("make_"))
    from scripts.tiny_models import minilm_path

    names = [f"{path.name}={path}" for path in sorted((folder / "small").iterdir())]
    return [_spec(name, folder) for name in (*names, f"minilm={minilm_path()}")]


def _spec(name: str, folder: Path) -> tuple[ModelSpec, str | None]:
    (model,) = find_models([name], folder, folder)
    parts = {part: str(path) for part, path in model.parts.items()}
    return ModelSpec(kind=model.kind, reference=model.reference, path=str(model.path), parts=parts), model.architecture


async def _load(host: EngineHost, spec: ModelSpec, architecture: str | None, precision: str) -> Row | None:
    """Load a model; none if it cannot be had in this precision, which is told."""
    quantize, item_bytes, linear_bytes = {
        "float32": (None, 4, None),
        "bfloat16": (None, 2, None),
        "int8": ("int8", 4, 1.05),
    }[precision]
    answer = await host.load(spec.model_copy(update={"quantize": quantize}))
    if not isinstance(answer, Loaded):
        sys.stdout.write(f"{spec.reference}, {precision}: not loaded: {answer.failure.message}\n")
        return None
    need = estimate(Path(spec.path or ""), item_bytes, linear_bytes=linear_bytes)
    return Row(spec.reference, architecture, precision, need.weights, answer.memory_bytes)


async def _large(folder: Path, large: Path, precision: str) -> Row:
    """Load the large model into a process of its own, and have it run once."""
    spec, architecture = _spec(f"llama-320m={large}", folder)
    host = await _host(folder, precision)
    try:
        resident = partial(_resident, host.pid)
        before = resident()
        row = await _load(host, spec, architecture, precision)
        assert row is not None
        loaded = resident()
        (key,) = host.loaded
        job = JobSpec(task_id="t", params={"prompt": "w1 " * 500, "max_tokens": 32})
        async for _ in host.run(key, [job]):
            pass
        need = host.loaded[key].need_bytes
        return replace(row, need=need, grown_loaded=loaded - before, grown_run=resident() - before)
    finally:
        await host.stop()


async def _host(folder: Path, precision: str) -> EngineHost:
    dtype = "bfloat16" if precision == "bfloat16" else "float32"
    host = EngineHost(Worker(threads=2, dtype=dtype, max_loaded=1), "cpu", scratch=folder)
    await host.start()
    return host


def _resident(pid: int) -> int:
    return psutil.Process(pid).memory_info().rss


def _make_large(folder: Path) -> Path:
    """Make the large model, in bfloat16 as large ones are published."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    bare.make_tokenizer(folder)
    config = LlamaConfig(vocab_size=LARGE_WORDS, max_position_embeddings=4096, **LARGE, eos_token_id=None)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


async def main() -> None:
    """Measure and print."""
    publish(await measure())


if __name__ == "__main__":
    uvloop.run(main())
