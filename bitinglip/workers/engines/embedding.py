"""`embedding`: texts to vectors, with any encoder that `AutoModel` loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import torch
from transformers import AutoModel

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import EmbeddingParameters
from bitinglip.workers.engine import Job, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines.failures import BadInputError, is_out_of_memory, run_failure
from bitinglip.workers.engines.pooling import Pooling, read_pooling
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights

PASS_TOKENS = 4096
FEWEST, MOST = 8, 32
"""Texts in one forward pass: as many as have some `PASS_TOKENS` tokens together, within these bounds."""


@dataclass(slots=True)
class _Answer:
    """What is known of one job's answer."""

    job: Job[EmbeddingParameters]
    vectors: list[list[float]]
    tokens: int = 0
    done: int = 0
    over: bool = False


@dataclass(slots=True, order=True)
class _Text:
    """One text of one job; they sort by length, so that little is padded."""

    length: int
    ids: list[int] = field(compare=False)
    answer: _Answer = field(compare=False)
    index: int = field(compare=False)


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load an encoder from its folder."""
    pooling = read_pooling(spec)
    return Embedder(load_weights(AutoModel, spec, placement, progress), pooling)


class Embedder:
    """A loaded encoder."""

    def __init__(self, weights: Weights, pooling: Pooling) -> None:
        self._weights = weights
        self._pooling = pooling
        limits = (pooling.most_tokens, weights.tokenizer.model_max_length, _positions(weights))
        self._most_tokens = min(limit for limit in limits if limit is not None)
        self.device = str(weights.device)
        self.dtype: str | None = weights.dtype
        self.versions = weights.versions
        self.memory_bytes = weights.memory_bytes

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job[EmbeddingParameters]], sink: Sink) -> None:
        """Embed all texts of all jobs, sorted by length, some at a time; a job is answered with its last text."""
        texts = sorted(text for job in jobs for text in self._texts(job, sink))
        while texts := [text for text in texts if not _cancelled(text.answer, sink)]:
            size = min(MOST, max(FEWEST, PASS_TOKENS // texts[-1].length))
            self._embed(texts[-size:], sink)
            del texts[-size:]

    def unload(self) -> None:
        """Drop the weights."""
        self._weights.drop()

    def _texts(self, job: Job[EmbeddingParameters], sink: Sink) -> list[_Text]:
        inputs = [job.params.input] if isinstance(job.params.input, str) else list(job.params.input)
        answer = _Answer(job, [[] for _ in inputs])
        texts = [
            _Text(len(ids), ids, answer, index)
            for index, ids in enumerate(self._weights.tokenizer(inputs, truncation=False)["input_ids"])
        ]
        longest = max(texts)
        if longest.length > self._most_tokens:
            problem = f"has {longest.length} tokens, and this model takes {self._most_tokens}: split it"
            sink.fail(job.task_id, run_failure(BadInputError(f"input.{longest.index}: the text {problem}.")))
            return []
        answer.tokens = sum(text.length for text in texts)
        return texts

    def _embed(self, texts: list[_Text], sink: Sink) -> None:
        """Embed texts; without the memory for all at once, half of them first."""
        try:
            vectors = self._vectors(texts)
        except Exception as error:
            if not is_out_of_memory(error) or len(texts) == 1:
                raise
            vectors = None
        if vectors is not None:
            for text, vector in zip(texts, vectors, strict=True):
                _take(text, vector, sink)
            return
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        self._embed(texts[: len(texts) // 2], sink)
        self._embed(texts[len(texts) // 2 :], sink)

    def _vectors(self, texts: list[_Text]) -> list[list[float]]:
        ids = {"input_ids": [text.ids for text in texts]}
        batch = self._weights.tokenizer.pad(ids, return_tensors="pt").to(self._weights.device)
        hidden = self._weights.model(**batch).last_hidden_state  # (B, T, D)
        vectors = self._pooling.pool(hidden, batch["attention_mask"])  # (B, D)
        norms = vectors.norm(dim=1, keepdim=True).clamp_min(1e-12)  # (B, 1)
        wanted = torch.tensor([[text.answer.job.params.normalize] for text in texts], device=vectors.device)
        vectors = torch.where(wanted, vectors / norms, vectors)
        if not bool(vectors.isfinite().all()):
            raise ArithmeticError("the model gave a vector that is not finite")
        return _short_numbers(vectors)


def _take(text: _Text, vector: list[float], sink: Sink) -> None:
    answer = text.answer
    answer.vectors[text.index] = vector
    answer.done += 1
    if answer.done < len(answer.vectors):
        sink.progress(answer.job.task_id, answer.done, len(answer.vectors), "text")
        return
    answer.over = True
    result = {"embeddings": answer.vectors, "dimensions": len(vector)}
    sink.succeed(answer.job.task_id, result, Usage(input_tokens=answer.tokens))


def _cancelled(answer: _Answer, sink: Sink) -> bool:
    if answer.job.cancelled.is_set() and not answer.over:
        answer.over = True
        sink.cancel(answer.job.task_id)
    return answer.over


def _short_numbers(vectors: torch.Tensor) -> list[list[float]]:
    """Return numbers that are as short as float32 allows: `tolist` would write each with twice the digits."""
    return orjson.loads(orjson.dumps(vectors.cpu().numpy(), option=orjson.OPT_SERIALIZE_NUMPY))


def _positions(weights: Weights) -> int | None:
    """Return the model's own limit; one that numbers its positions after the padding's (RoBERTa) has fewer."""
    config: Any = weights.model.config
    positions = getattr(config, "max_position_embeddings", None)
    offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return positions - offset if isinstance(positions, int) and positions > offset else None
