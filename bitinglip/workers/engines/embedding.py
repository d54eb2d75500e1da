"""`embedding`: texts to vectors with any encoder that `AutoModel` loads; pooled as its sentence-transformers files say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import torch
from pydantic import ValidationError
from transformers import AutoModel, AutoTokenizer

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import EmbeddingParameters
from bitinglip.workers.engine import Job, ModelSpec, Placement, Sink
from bitinglip.workers.engines.failures import BadInputError, failure_of
from bitinglip.workers.engines.torch_device import give_memory_back, place, versions, weights_folder

SUB_BATCH = 16
"""Texts in one forward pass. Sorted by length, 8 to 32 are about as fast (measured with MiniLM on a CPU)."""
FALLBACK_TOKENS = 512


@dataclass(slots=True)
class _Request:
    """One task: its texts, and the vectors found so far."""

    job: Job
    texts: Sequence[str]
    normalize: bool
    vectors: list[list[float] | None]
    tokens: int = 0
    done: int = 0


@dataclass(slots=True, order=True)
class _Text:
    """One text of one task, ordered by its length in tokens."""

    length: int
    ids: list[int] = field(compare=False)
    request: _Request = field(compare=False)
    index: int = field(compare=False)


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> Embedder:
    """Load an encoder from its folder."""
    path = weights_folder(spec)
    device = place(placement)
    progress(0, 2)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    progress(1, 2)
    model = AutoModel.from_pretrained(path, local_files_only=True, use_safetensors=True, trust_remote_code=False)
    progress(2, 2)
    return Embedder(model.to(device).eval(), tokenizer, _pooling(path), device)


class Embedder:
    """A loaded encoder."""

    def __init__(self, model: Any, tokenizer: Any, pooling: str, device: torch.device) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._pooling = pooling
        limit = getattr(model.config, "max_position_embeddings", None) or FALLBACK_TOKENS
        self._most_tokens = min(tokenizer.model_max_length, limit)
        self.device = str(device)
        self.dtype: str | None = str(model.dtype).removeprefix("torch.")
        self.versions = versions()

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], sink: Sink) -> None:
        """Embed all texts of all jobs, sorted by length, in sub-batches."""
        requests = [request for job in jobs if (request := self._request(job, sink)) is not None]
        texts = sorted(text for request in requests for text in self._texts(request))
        for start in range(0, len(texts), SUB_BATCH):
            chosen = [text for text in texts[start : start + SUB_BATCH] if not text.request.job.cancelled.is_set()]
            if chosen:
                self._embed(chosen, sink)
        for request in requests:
            if request.job.cancelled.is_set():
                sink.cancel(request.job.task_id)

    def unload(self) -> None:
        """Drop the weights."""
        self._model = None
        give_memory_back()

    def _request(self, job: Job, sink: Sink) -> _Request | None:
        try:
            params = EmbeddingParameters.model_validate(job.params)
        except ValidationError as error:
            sink.fail(job.task_id, failure_of(BadInputError(str(error)), "bad_input"))
            return None
        texts = (params.input,) if isinstance(params.input, str) else params.input
        return _Request(job, texts, params.normalize, [None] * len(texts))

    def _texts(self, request: _Request) -> list[_Text]:
        encoded = self._tokenizer(list(request.texts), truncation=True, max_length=self._most_tokens)["input_ids"]
        request.tokens = sum(map(len, encoded))
        return [_Text(len(ids), ids, request, index) for index, ids in enumerate(encoded)]

    def _embed(self, texts: list[_Text], sink: Sink) -> None:
        batch = self._tokenizer.pad({"input_ids": [text.ids for text in texts]}, return_tensors="pt").to(self.device)
        hidden = self._model(**batch).last_hidden_state  # (B, T, D)
        pooled = self._pool(hidden, batch["attention_mask"])  # (B, D)
        lengths = pooled.norm(dim=1, keepdim=True).clamp_min(1e-12)
        for text, plain, unit in zip(texts, pooled, pooled / lengths, strict=True):
            text.request.vectors[text.index] = (unit if text.request.normalize else plain).tolist()
            text.request.done += 1
            self._report(text.request, sink)

    def _pool(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if self._pooling == "cls":
            return hidden[:, 0].float()
        weights = mask.unsqueeze(-1).float()  # (B, T, 1)
        return (hidden.float() * weights).sum(1) / weights.sum(1).clamp_min(1e-9)

    def _report(self, request: _Request, sink: Sink) -> None:
        total = len(request.texts)
        if request.done < total:
            sink.progress(request.job.task_id, request.done, total, "text")
            return
        vectors = [vector for vector in request.vectors if vector is not None]
        result = {"embeddings": vectors, "dimensions": len(vectors[0])}
        sink.succeed(request.job.task_id, result, Usage(input_tokens=request.tokens))


def _pooling(path: Path) -> str:
    """Read `1_Pooling/config.json` of sentence-transformers; the mean over the tokens where there is none."""
    file = path / "1_Pooling" / "config.json"
    if not file.is_file():
        return "mean"
    return "cls" if orjson.loads(file.read_bytes()).get("pooling_mode_cls_token") else "mean"
