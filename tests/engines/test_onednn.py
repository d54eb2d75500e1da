"""Linear layers through oneDNN: the same numbers, whatever the layer, and only where they are asked for."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.models.bert.modeling_bert import BertSelfOutput

from bitinglip.settings import Worker
from bitinglip.workers.engine import JobSucceeded, Linear, ModelSpec, Placement
from bitinglip.workers.enginehost import EngineHost
from bitinglip.workers.engines import embedding, onednn
from bitinglip.workers.engines.onednn import onednn_version, through_onednn
from bitinglip.workers.engines.quantize import tensor_bytes
from bitinglip.workers.engines.weights import Weights
from tests.engines.support import run


class _Tied(nn.Module):
    """An embedding whose weights are those of a linear layer too, and a layer without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 24)
        self.inner = nn.Linear(24, 24, bias=False)
        self.head = nn.Linear(24, 50)
        self.head.weight = self.words.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.inner(self.words(ids))))


def _gpt2() -> nn.Module:
    return GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0))


def _out(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        told = model(ids)
    return told if isinstance(told, torch.Tensor) else told.logits


def _ways(model: nn.Module) -> set[str]:
    return {type(layer).__name__ for layer in model.modules() if hasattr(layer, "bias") and hasattr(layer, "weight")}


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the processor is looked up; the test writes it."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(onednn, "_CPUINFO", path)
    onednn._mkl_is_slow.cache_clear()
    yield path
    onednn._mkl_is_slow.cache_clear()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("make", [_Tied, _gpt2])
def test_the_numbers_are_the_same(make: type[nn.Module], packed: bool) -> None:
    torch.manual_seed(3)
    plain = make().eval()
    other = copy.deepcopy(plain)
    assert through_onednn(other, "onednn", packed=packed) == onednn_version() != "unknown"
    assert _ways(plain) != _ways(other)
    for shape in ((1, 1), (1, 7), (3, 5)):
        ids = torch.randint(0, 50, shape)
        assert _out(other, ids) == pytest.approx(_out(plain, ids), abs=1e-5)
    assert tensor_bytes(other.parameters()) == tensor_bytes(plain.parameters())


def test_no_rows_and_one_without_others_are_rows_too() -> None:
    layer = nn.Linear(6, 4)
    model = nn.Sequential(copy.deepcopy(layer)).eval()
    through_onednn(model, "onednn", packed=True)
    with torch.inference_mode():
        for shape in ((6,), (0, 6), (2, 0, 6), (2, 3, 2, 6)):
            rows = torch.randn(shape)
            assert model(rows).shape == layer(rows).shape
            assert torch.allclose(model(rows), layer(rows), atol=1e-5)
        turned = torch.randn(5, 3, 6).transpose(0, 1)
        assert torch.allclose(model(turned), layer(turned), atol=1e-5)


def test_weights_that_are_an_embedding_too_stay_as_they_are() -> None:
    model = _Tied().eval()
    through_onednn(model, "onednn", packed=True)
    assert model.head.weight is model.words.weight
    assert not model.words.weight.is_mkldnn
    assert model.inner.weight.is_mkldnn


def test_other_precisions_and_devices_are_left_alone() -> None:
    half = nn.Sequential(nn.Linear(6, 4)).to(torch.bfloat16)
    nowhere = nn.Sequential(nn.Linear(6, 4, device="meta"))
    for model in (half, nowhere):
        assert through_onednn(model, "onednn", packed=True) is None
        assert type(model[0]) is nn.Linear


@pytest.mark.parametrize(
    ("vendor", "machine", "wanted", "changed"),
    [
        ("AuthenticAMD", "x86_64", "auto", True),
        ("GenuineIntel", "x86_64", "auto", False),
        ("GenuineIntel", "x86_64", "onednn", True),
        ("AuthenticAMD", "x86_64", "torch", False),
        ("ARM", "aarch64", "auto", False),
    ],
)
def test_the_processor_decides_unless_the_setting_does(
    cpuinfo: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, machine: str, wanted: Linear, changed: bool
) -> None:
    cpuinfo.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", "utf-8")
    monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
    model = nn.Sequential(nn.Linear(6, 4))
    assert (through_onednn(model, wanted) is not None) == changed
    assert (type(model[0]) is not nn.Linear) == changed


def _own_product(self: Any, hidden: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    return self.LayerNorm(nn.functional.linear(hidden, self.dense.weight, self.dense.bias) + before)


def test_a_model_that_takes_its_weights_itself_keeps_them_plain(
    minilm: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = _weights(minilm)
    assert packed.model.encoder.layer[0].intermediate.dense.weight.is_mkldnn
    told = packed.tokenizer("A cat sleeps.", return_tensors="pt")
    with torch.inference_mode():
        expected = packed.model(**told)[0]
        monkeypatch.setattr(BertSelfOutput, "forward", _own_product)
        plain = _weights(minilm)
        assert not any(parameter.is_mkldnn for parameter in plain.model.parameters())
        assert torch.allclose(plain.model(**told)[0], expected, atol=1e-4)


def _weights(spec: ModelSpec) -> Weights:
    model: Any = embedding.load(spec, Placement("cpu", linear="onednn"), lambda *_: None)
    return model._weights


@pytest.mark.asyncio(loop_scope="function")
async def test_an_engine_process_says_what_computed_a_result(minilm: ModelSpec) -> None:
    vectors: list[list[float]] = []
    for linear in ("onednn", "torch"):
        host = EngineHost(Worker(threads=1, linear=linear), "cpu")
        await host.start()
        try:
            (said,) = await run(host, minilm, {"input": "A cat sleeps on the sofa."})
            assert isinstance(said.answer, JobSucceeded)
            loaded = host.loaded[minilm.key]
            assert loaded.versions.get("onednn") == (onednn_version() if linear == "onednn" else None)
            vectors.append(said.result["embeddings"][0])
        finally:
            await host.stop(5)
    one, other = vectors
    assert math.dist(one, other) < 1e-5
