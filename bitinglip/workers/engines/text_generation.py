"""`text-generation`: any causal language model that `AutoModelForCausalLM` loads, streamed, in static batches.

Each row of a batch has sampling parameters, a seed, stop texts and a length of its own, and is answered as soon as it ends.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList
from transformers.generation.logits_process import LogitsProcessor
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from bitinglip.events.task import Usage
from bitinglip.tasks.parameters import TextGenerationParameters
from bitinglip.workers.engine import Job, ModelSpec, Placement, Sink
from bitinglip.workers.engines.decoding import Detokenizer, StopScanner
from bitinglip.workers.engines.failures import BadInputError, failure_of, is_out_of_memory
from bitinglip.workers.engines.sampling import sample_scores
from bitinglip.workers.engines.torch_device import give_memory_back, place, versions, weights_folder

log = logging.getLogger(__name__)

MOST_ROWS = 32
"""Rows of one static batch."""


class Row:
    """One job of a batch: what it has said so far, and whether it is over."""

    def __init__(
        self, job: Job, params: TextGenerationParameters, prompt: list[int], most: int, tokenizer: Any
    ) -> None:
        self.job = job
        self.params = params
        self.prompt = prompt
        self.most = most
        self.over = False
        self.seed = params.seed
        if self.seed is None and params.temperature > 0:
            self.seed = secrets.randbits(63)
        self.generator = torch.Generator().manual_seed(self.seed or 0)
        self.count = 0
        self.text = ""
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopScanner(params.stop)

    def take(self, token: int, ends: frozenset[int], sink: Sink) -> None:
        """Take the row's next token, report what it adds, and end the row if that was the last one."""
        if self.job.cancelled.is_set():
            self.over = True
            sink.cancel(self.job.task_id)
            return
        self.count += 1
        ended = token in ends
        piece = "" if ended else self._detokenizer.push(token)
        last = ended or self.count >= self.most
        if last:
            piece += self._detokenizer.finish()
        added, stopped = self._stops.push(piece, last=last)
        self.text += added
        if stopped or last:
            sink.progress(self.job.task_id, self.count, self.most, "token", added)
            self._end("stop" if ended or stopped else "length", sink)
        elif added:
            sink.progress(self.job.task_id, self.count, self.most, "token", added)

    def _end(self, reason: str, sink: Sink) -> None:
        self.over = True
        result = {"text": self.text, "finish_reason": reason, "seed": self.seed}
        sink.succeed(self.job.task_id, result, Usage(input_tokens=len(self.prompt), output_tokens=self.count))


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> TextGenerator:
    """Load a causal language model from its folder."""
    path = weights_folder(spec)
    device = place(placement)
    progress(0, 2)
    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    progress(1, 2)
    model = AutoModelForCausalLM.from_pretrained(
        path, dtype="auto", local_files_only=True, use_safetensors=True, trust_remote_code=False
    )
    progress(2, 2)
    return TextGenerator(model.to(device).eval(), tokenizer, device)


class TextGenerator:
    """A loaded causal language model."""

    def __init__(self, model: Any, tokenizer: Any, device: torch.device) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._ends = _end_tokens(model, tokenizer)
        self._context: int | None = getattr(model.config, "max_position_embeddings", None)
        self.device = str(device)
        self.dtype: str | None = str(model.dtype).removeprefix("torch.")
        self.versions = versions()

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], sink: Sink) -> None:
        """Generate for all jobs, the longer prompts together."""
        rows = [row for job in jobs if (row := self._row(job, sink)) is not None]
        rows.sort(key=lambda row: len(row.prompt))
        for start in range(0, len(rows), MOST_ROWS):
            self._generate(rows[start : start + MOST_ROWS], sink)

    def unload(self) -> None:
        """Drop the weights."""
        self._model = None
        give_memory_back()

    def _row(self, job: Job, sink: Sink) -> Row | None:
        try:
            params = TextGenerationParameters.model_validate(job.params)
            prompt = self._prompt(params)
        except (ValidationError, BadInputError) as error:
            sink.fail(job.task_id, failure_of(BadInputError(str(error)), "bad_input"))
            return None
        room = params.max_tokens if self._context is None else min(params.max_tokens, self._context - len(prompt))
        return Row(job, params, prompt, room, self._tokenizer)

    def _prompt(self, params: TextGenerationParameters) -> list[int]:
        ids = self._chat(params) if params.messages is not None else self._tokenizer(params.prompt)["input_ids"]
        if not ids:
            raise BadInputError("The prompt has no tokens for this model.")
        if self._context is not None and len(ids) >= self._context:
            raise BadInputError(f"The prompt has {len(ids)} tokens; this model's context holds {self._context}.")
        return ids

    def _chat(self, params: TextGenerationParameters) -> list[int]:
        if self._tokenizer.chat_template is None:
            raise BadInputError("This model has no chat template: send 'prompt' instead of 'messages'.")
        turns = [{"role": turn.role, "content": turn.content} for turn in params.messages or ()]
        text = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generate(self, rows: list[Row], sink: Sink) -> None:
        try:
            self._generate_together(rows, sink)
        except Exception as error:
            # Rows that have said something already cannot start over within this attempt.
            fresh = [row for row in rows if not row.over and row.count == 0]
            if not is_out_of_memory(error) or len(rows) == 1 or len(fresh) < len(rows):
                raise
            log.warning("no room for %d rows at once; trying half of them", len(rows))
            give_memory_back()
            for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                self._generate(half, sink)

    def _generate_together(self, rows: list[Row], sink: Sink) -> None:
        ids, mask = self._left_padded(rows)  # (B, T), (B, T)
        pad = self._pad_token()
        config = GenerationConfig(
            max_new_tokens=max(row.most for row in rows), do_sample=False, pad_token_id=pad, eos_token_id=None
        )
        self._model.generate(
            input_ids=ids,
            attention_mask=mask,
            generation_config=config,
            streamer=_RowStreamer(rows, self._ends, sink),
            logits_processor=LogitsProcessorList([_RowSampler(rows)]),
            stopping_criteria=StoppingCriteriaList([_RowsOver(rows)]),
        )

    def _left_padded(self, rows: list[Row]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(len(row.prompt) for row in rows)
        pad = self._pad_token()
        ids = [[pad] * (width - len(row.prompt)) + row.prompt for row in rows]
        mask = [[0] * (width - len(row.prompt)) + [1] * len(row.prompt) for row in rows]
        return torch.tensor(ids, device=self.device), torch.tensor(mask, device=self.device)

    def _pad_token(self) -> int:
        pad = self._tokenizer.pad_token_id
        return pad if pad is not None else min(self._ends, default=0)


class _RowStreamer(BaseStreamer):
    """Hands each step's tokens to their rows; `generate` calls it with the prompts first."""

    def __init__(self, rows: list[Row], ends: frozenset[int], sink: Sink) -> None:
        self._rows = rows
        self._ends = ends
        self._sink = sink
        self._prompts_seen = False

    def put(self, value: torch.Tensor) -> None:
        """Take the prompts (B, T), then one token a row (B) each step."""
        if not self._prompts_seen:
            self._prompts_seen = True
            return
        for row, token in zip(self._rows, value.reshape(-1).tolist(), strict=True):
            if not row.over:
                row.take(token, self._ends, self._sink)

    def end(self) -> None:
        """Nothing is left to say: each row was answered when it ended."""


class _RowsOver(StoppingCriteria):
    """Stops each row when it is over, and the batch with the last of them."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # pyright: ignore
        return torch.tensor([row.over for row in self._rows], device=input_ids.device)  # (B)


class _RowSampler(LogitsProcessor):
    """Makes `argmax` draw from each row's own distribution with its own generator (the Gumbel-max trick)."""

    def __init__(self, rows: list[Row]) -> None:
        self._sampled = [(index, row) for index, row in enumerate(rows) if row.params.temperature > 0]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # pyright: ignore
        for index, row in self._sampled:
            if not row.over:
                scores[index] = sample_scores(scores[index], row.params.temperature, row.params.top_p, row.generator)
        return scores  # (B, V)


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    ends: set[int] = set()
    for owner in (model.generation_config, model.config, tokenizer):
        found = getattr(owner, "eos_token_id", None)
        ends.update(found if isinstance(found, list) else [] if found is None else [found])
    return frozenset(ends)
