"""`embedding`: texts to vectors, with any encoder that `AutoModel` loads.

Texts of all tasks share forward passes, and new tasks join between two of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from bitinglip.workers.engines.lanes import LaneRun, Lanes, lanes_on
from bitinglip.workers.engines.passes import passes
from bitinglip.workers.engines.pooling import Pooling, read_pooling
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights

log = logging.getLogger(__name__)

MOST = {"cpu": 16}
MOST_ON_CARD = 128
"""Texts in one forward pass, by the device's type; memory may halve them."""
WINDOW = 256
"""Texts among which those of the next pass are chosen."""
QUANTUM = 8
"""Texts of a task whose turn is one pass later: a task of a few texts does not wait for one of thousands."""
PASS_COST = {"cpu": 64}
PASS_COST_IN_LANE = 20
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
        """Take one text's vector, which may be no more of use; the last one makes the answer."""
        if self.over:
            return
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
    weights = load_weights(AutoModel, spec, placement, progress, packed=True)
    if weights.onednn and not _runs(weights):
        weights.drop()
        weights = load_weights(AutoModel, spec, placement, progress)
    return Embedder(weights, pooling)


class Embedder:
    """A loaded encoder."""

    def __init__(self, weights: Weights, pooling: Pooling) -> None:
        self._weights = weights
        self._encoder = _Encoder(weights, pooling)
        self._lanes = lanes_on(weights.device)
        self.device = str(weights.device)
        self.dtype: str | None = weights.dtype
        self.versions = weights.versions
        self.memory_bytes = weights.memory_bytes

    def run(self, jobs: Sequence[Job[EmbeddingParameters]], sink: Sink) -> None:
        """Embed all texts of all jobs, those of similar lengths together; a job is answered with its last text.

        One pass follows the other, so that nothing but the jobs decides which texts share one.
        """
        one = replace(self._lanes, count=1, threads=self._lanes.all_threads)
        LaneRun(one, _TextPasses(self._encoder, one, jobs, sink, list)).until_done()

    def run_joining(self, jobs: Sequence[Job[EmbeddingParameters]], sink: Sink, intake: Intake) -> None:
        """Embed all texts of all jobs, and of those that come meanwhile; on a CPU passes run side by side."""
        lanes = LaneRun(self._lanes, _TextPasses(self._encoder, self._lanes, jobs, sink, intake.take))
        with intake.tell(lanes.tell):
            lanes.until_done()

    def unload(self) -> None:
        """Drop the weights."""
        self._weights.drop()


class _Encoder:
    """From a job to its texts' tokens, and from tokens to vectors."""

    def __init__(self, weights: Weights, pooling: Pooling) -> None:
        self._weights = weights
        self._pooling = pooling
        limits = (pooling.most_tokens, weights.tokenizer.model_max_length, _positions(weights))
        self._most_tokens = min(limit for limit in limits if limit is not None)
        self.device_type = weights.device.type

    def texts(self, job: Job[EmbeddingParameters], sink: Sink) -> list[_Text]:
        """Return a job's texts; one that has too long a text is answered here. The tokenizer bears one caller."""
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

    def vectors(self, texts: list[_Text]) -> list[list[float]]:
        """Return the texts' vectors; without the memory for all at once, half of them are embedded first."""
        try:
            return self._pass(texts)
        except Exception as error:
            if not is_out_of_memory(error) or len(texts) == 1:
                raise
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        half = len(texts) // 2
        return [*self.vectors(texts[:half]), *self.vectors(texts[half:])]

    def _pass(self, texts: list[_Text]) -> list[list[float]]:
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


class _TextPasses:
    """The texts that wait, and which of them share the next pass."""

    def __init__(
        self,
        encoder: _Encoder,
        lanes: Lanes,
        jobs: Sequence[Job[EmbeddingParameters]],
        sink: Sink,
        more: Callable[[], Sequence[tuple[Sequence[Job[Any]], Sink]]],
    ) -> None:
        """`more` returns jobs that have come since it was called last."""
        self._encoder = encoder
        self._new: list[tuple[Sequence[Job[Any]], Sink]] = [(jobs, sink)]
        self._more = more
        self._most = MOST.get(encoder.device_type, MOST_ON_CARD)
        self._cost = PASS_COST.get(encoder.device_type, PASS_COST_ON_CARD)
        if lanes.count > 1:
            self._cost = PASS_COST_IN_LANE
        self._waiting: list[tuple[int, int, _Text]] = []  # a heap: whose turn it is, and which came first
        self._arrivals = count()
        self._turn = 0

    def take(self, free: int) -> list[_Text] | None:
        """Return the texts of the next pass: the first one, and those that it costs the least to have with it."""
        self._arrive()
        while self._waiting:
            window = [heappop(self._waiting) for _ in range(min(len(self._waiting), WINDOW))]
            window = [each for each in window if not each[2].answer.check_cancelled()]
            if window:
                waiting = len(window) + len(self._waiting)
                together = self._together([text for _, _, text in window], -(-waiting // free))
                done = set(map(id, together))
                for each in window:
                    if id(each[2]) not in done:
                        heappush(self._waiting, each)
                self._turn += 1
                return together
        return None

    def more(self) -> bool:
        """Tell whether texts wait."""
        return bool(self._waiting)

    def run(self, taken: list[_Text]) -> list[list[float]]:
        """Return the vectors of a pass."""
        return self._encoder.vectors(taken)

    def finish(self, taken: list[_Text], result: list[list[float]]) -> None:
        """Give each text its vector; a job is answered with its last one."""
        for text, vector in zip(taken, result, strict=True):
            text.answer.take(text.index, vector)

    def _arrive(self) -> None:
        new, self._new = self._new, []
        for jobs, sink in [*new, *self._more()]:
            for job in jobs:
                for text in self._encoder.texts(job, sink):
                    heappush(self._waiting, (self._turn + text.index // QUANTUM, next(self._arrivals), text))

    def _together(self, window: list[_Text], share: int) -> list[_Text]:
        ordered = sorted(window)
        end = 0
        for size in passes([text.length for text in ordered], min(self._most, share), self._cost):
            end += size
            if any(text is window[0] for text in ordered[end - size : end]):
                return ordered[end - size : end]
        raise AssertionError("the passes take each text")


@torch.inference_mode()
def _runs(weights: Weights) -> bool:
    """Tell whether a model runs with packed weights: one that takes its layers' weights itself does not."""
    ids = weights.tokenizer(["a"])["input_ids"]
    try:
        weights.model(**weights.tokenizer.pad({"input_ids": ids}, return_tensors="pt"))
    except RuntimeError as error:  # torch's, of an operation that such weights do not know
        log.info("%s takes its layers' weights itself, so they are not packed: %s", type(weights.model).__name__, error)
        return False
    return True


def _short_numbers(vectors: torch.Tensor) -> list[list[float]]:
    """Return numbers that are as short as float32 allows: `tolist` would write each with twice the digits."""
    return orjson.loads(orjson.dumps(vectors.cpu().numpy(), option=orjson.OPT_SERIALIZE_NUMPY))


def _positions(weights: Weights) -> int | None:
    """Return the model's own limit; one that numbers its positions after the padding's (RoBERTa) has fewer."""
    config: Any = weights.model.config
    positions = getattr(config, "max_position_embeddings", None)
    offset = (config.pad_token_id or 0) + 1 if "roberta" in config.model_type else 0
    return positions - offset if isinstance(positions, int) and positions > offset else None
