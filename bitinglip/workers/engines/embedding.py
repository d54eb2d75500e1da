"""`embedding`: texts to vectors, with any encoder that `AutoModel` loads.

Texts of all tasks share forward passes, and new tasks join between two of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

import orjson
import torch
from transformers import AutoModel

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import EmbeddingParameters
from bitinglip.workers.engine import Intake, Job, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines.failures import BadInputError, is_out_of_memory, run_failure
from bitinglip.workers.engines.passes import passes
from bitinglip.workers.engines.pooling import Pooling, read_pooling
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights

MOST = {"cpu": 32}
MOST_ON_CARD = 128
"""Texts in one forward pass, by the device's type; memory may halve them."""
WINDOW = 256
"""Texts among which those of the next pass are chosen."""
QUANTUM = 8
"""Texts of a task whose turn is one pass later: a task of a few texts does not wait for one of thousands."""
PASS_COST = {"cpu": 64}
PASS_COST_ON_CARD = 4096
"""What a forward pass costs besides its tokens, in tokens (benchmarks/README.md)."""


@dataclass(slots=True)
class _Answer:
    """What is known of one job's answer."""

    job: Job[EmbeddingParameters]
    sink: Sink
    vectors: list[list[float]]
    tokens: int = 0
    done: int = 0
    over: bool = False

    def take(self, index: int, vector: list[float]) -> None:
        """Take one text's vector; the last one makes the answer."""
        self.vectors[index] = vector
        self.done += 1
        if self.done < len(self.vectors):
            self.sink.progress(self.job.task_id, self.done, len(self.vectors), "text")
            return
        self.over = True
        result = {"embeddings": self.vectors, "dimensions": len(vector)}
        self.sink.succeed(self.job.task_id, result, Usage(input_tokens=self.tokens))

    def check_cancelled(self) -> bool:
        """Answer the job if it was cancelled; tells whether it is over."""
        if self.job.cancelled.is_set() and not self.over:
            self.over = True
            self.sink.cancel(self.job.task_id)
        return self.over


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
        """Embed all texts of all jobs, those of similar lengths together; a job is answered with its last text."""
        self._embed_all(jobs, sink, list)

    @torch.inference_mode()
    def run_joining(self, jobs: Sequence[Job[EmbeddingParameters]], sink: Sink, intake: Intake) -> None:
        """Embed all texts of all jobs, and of those that come meanwhile."""
        self._embed_all(jobs, sink, intake.take)

    def unload(self) -> None:
        """Drop the weights."""
        self._weights.drop()

    def _embed_all(
        self,
        jobs: Sequence[Job[EmbeddingParameters]],
        sink: Sink,
        more: Callable[[], Sequence[tuple[Sequence[Job[Any]], Sink]]],
    ) -> None:
        waiting: list[tuple[int, int, _Text]] = []  # a heap: whose turn it is, and which came first
        arrivals = count()
        new = [(jobs, sink)]
        for turn in count():
            for some, their_sink in [*new, *more()]:
                for text in (text for job in some for text in self._texts(job, their_sink)):
                    heappush(waiting, (turn + text.index // QUANTUM, next(arrivals), text))
            new = []
            if not waiting:
                return
            window = [heappop(waiting) for _ in range(min(len(waiting), WINDOW))]
            window = [each for each in window if not each[2].answer.check_cancelled()]
            if window:
                together = self._together([text for _, _, text in window])
                self._embed(together)
                done = set(map(id, together))
                for each in window:
                    if id(each[2]) not in done:
                        heappush(waiting, each)

    def _together(self, window: list[_Text]) -> list[_Text]:
        """Return the texts of the next pass: the first one, and those that it costs the least to have with it."""
        kind = self._weights.device.type
        ordered = sorted(window)
        most, cost = MOST.get(kind, MOST_ON_CARD), PASS_COST.get(kind, PASS_COST_ON_CARD)
        end = 0
        for size in passes([text.length for text in ordered], most, cost):
            end += size
            if any(text is window[0] for text in ordered[end - size : end]):
                return ordered[end - size : end]
        raise AssertionError("the passes take each text")

    def _texts(self, job: Job[EmbeddingParameters], sink: Sink) -> list[_Text]:
        inputs = [job.params.input] if isinstance(job.params.input, str) else list(job.params.input)
        answer = _Answer(job, sink, [[] for _ in inputs])
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

    def _embed(self, texts: list[_Text]) -> None:
        """Embed texts; without the memory for all at once, half of them first."""
        try:
            vectors = self._vectors(texts)
        except Exception as error:
            if not is_out_of_memory(error) or len(texts) == 1:
                raise
            vectors = None
        if vectors is not None:
            for text, vector in zip(texts, vectors, strict=True):
                text.answer.take(text.index, vector)
            return
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        self._embed(texts[: len(texts) // 2])
        self._embed(texts[len(texts) // 2 :])

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


def _short_numbers(vectors: torch.Tensor) -> list[list[float]]:
    """Return numbers that are as short as float32 allows: `tolist` would write each with twice the digits."""
    return orjson.loads(orjson.dumps(vectors.cpu().numpy(), option=orjson.OPT_SERIALIZE_NUMPY))


def _positions(weights: Weights) -> int | None:
    """Return the model's own limit; one that numbers its positions after the padding's (RoBERTa) has fewer."""
    config: Any = weights.model.config
    positions = getattr(config, "max_position_embeddings", None)
    offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return positions - offset if isinstance(positions, int) and positions > offset else None
