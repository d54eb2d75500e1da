"""`text-generation`: any causal language model that `AutoModelForCausalLM` loads, streamed, in batches.

Each row of a batch has sampling parameters, a seed, stop texts and a length of its own, and is answered when it ends.
Rows leave and join between two steps (`stepping.py`). A model whose cache is not plain attention over all tokens (with
sliding windows, or with states) runs in static batches, by `generate`; new rows then wait for the batch's end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from bitinglip.tasks.parameters import TextGenerationParameters
from bitinglip.workers.engine import Intake, Job, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines.failures import BadInputError, is_out_of_memory, run_failure
from bitinglip.workers.engines.kvcache import RowCache
from bitinglip.workers.engines.rows import Row
from bitinglip.workers.engines.steering import RowReader, RowSampler, end_tokens
from bitinglip.workers.engines.stepping import MOST_ROWS, Stepper
from bitinglip.workers.engines.thinking import Tags
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights

log = logging.getLogger(__name__)

CONTEXT_FIELDS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length", "max_seq_len")


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load a causal language model from its folder."""
    return TextGenerator(load_weights(AutoModelForCausalLM, spec, placement, progress))


class TextGenerator:
    """A loaded causal language model."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._ends = end_tokens(weights)
        self._pad = _pad_token(weights, self._ends)
        self._context = _context_tokens(weights.model.config)
        self._tags = Tags.of(weights.tokenizer)
        layers = RowCache.layers_of(weights.model.config)
        self._stepper = Stepper(weights, layers, self._ends, self._pad, _fail) if layers else None
        # What a checkpoint suggests (sampling, penalties, end tokens) would be mixed into each call: parameters decide.
        weights.model.generation_config = GenerationConfig()
        self.device = str(weights.device)
        self.dtype: str | None = weights.dtype
        self.versions = weights.versions
        self.memory_bytes = weights.memory_bytes

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job[TextGenerationParameters]], sink: Sink) -> None:
        """Generate for all jobs together."""
        self._bring_to_end(self._rows(jobs, sink), list)

    @torch.inference_mode()
    def run_joining(self, jobs: Sequence[Job[TextGenerationParameters]], sink: Sink, intake: Intake) -> None:
        """Generate for all jobs together, and for those that come meanwhile."""

        def more() -> list[Row]:
            return [row for others, their_sink in intake.take() for row in self._rows(others, their_sink)]

        self._bring_to_end(self._rows(jobs, sink), more)

    def unload(self) -> None:
        """Drop the weights."""
        self._stepper = None
        self._weights.drop()

    def _bring_to_end(self, rows: list[Row], more: Callable[[], list[Row]]) -> None:
        if self._stepper is not None:
            self._stepper.run(rows, more)
            return
        while rows:
            for start in range(0, len(rows), MOST_ROWS):
                self._generate(rows[start : start + MOST_ROWS])
            rows = more()

    # --- prompts ------------------------------------------------------------------------------------------------------

    def _rows(self, jobs: Sequence[Job[TextGenerationParameters]], sink: Sink) -> list[Row]:
        return [row for job in jobs if (row := self._row(job, sink)) is not None]

    def _row(self, job: Job[TextGenerationParameters], sink: Sink) -> Row | None:
        try:
            prompt = self._prompt(job.params)
        except BadInputError as error:
            sink.fail(job.task_id, run_failure(error))
            return None
        room = job.params.max_tokens if self._context is None else self._context - len(prompt)
        tags = None if job.params.messages is None else self._tags
        return Row(
            job,
            prompt,
            min(job.params.max_tokens, room),
            self._weights.tokenizer,
            sink,
            stops=job.params.stop,
            continues=job.params.prompt is not None,
            tags=tags,
            thinking=tags is not None and tags.opened(prompt, self._weights.tokenizer),
        )

    def _prompt(self, params: TextGenerationParameters) -> list[int]:
        tokenizer = self._weights.tokenizer
        if params.messages is None:
            ids = tokenizer(params.prompt)["input_ids"]
        else:
            ids = tokenizer(self._chat(params), add_special_tokens=False)["input_ids"]
        if not ids:
            raise BadInputError("The prompt has no tokens for this model: send a longer one.")
        if self._context is not None and len(ids) >= self._context:
            raise BadInputError(
                f"The prompt has {len(ids)} tokens, and this model takes fewer than {self._context}: shorten it."
            )
        return ids

    def _chat(self, params: TextGenerationParameters) -> str:
        tokenizer = self._weights.tokenizer
        if tokenizer.chat_template is None:
            raise BadInputError("This model has no chat template: send 'prompt' instead of 'messages'.")
        turns = [turn.model_dump() for turn in params.messages or ()]
        try:
            return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        except TemplateError as error:
            raise BadInputError(f"The model's chat template refuses these messages: {error}") from error

    # --- generation ---------------------------------------------------------------------------------------------------

    def _generate(self, rows: list[Row]) -> None:
        """Bring rows to their end; without the memory for all at once, half of them first, from where they are."""
        rows = [row for row in rows if not row.over and not row.check_cancelled()]
        if not rows:
            return
        try:
            self._generate_together(rows)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            problem = error.with_traceback(None)  # which would hold the tensors of its frames
        else:
            return
        give_memory_back()
        if len(rows) == 1:
            _fail(rows[0], problem)
            return
        log.warning("no room for %d rows at once; trying half of them", len(rows))
        self._generate(rows[: len(rows) // 2])
        self._generate(rows[len(rows) // 2 :])

    def _generate_together(self, rows: list[Row]) -> None:
        ids, mask = self._left_padded([row.prompt + row.tokens for row in rows])  # (B, T), (B, T)
        self._weights.model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max(row.left for row in rows),
            do_sample=False,  # `RowSampler` leaves each sampled row one token to choose
            pad_token_id=self._pad,
            logits_processor=LogitsProcessorList([RowSampler(rows)]),
            stopping_criteria=StoppingCriteriaList([RowReader(rows, self._ends)]),
        )

    def _left_padded(self, texts: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width = max(map(len, texts))
        ids = [[self._pad] * (width - len(text)) + text for text in texts]
        mask = [[0] * (width - len(text)) + [1] * len(text) for text in texts]
        return torch.tensor(ids, device=self._weights.device), torch.tensor(mask, device=self._weights.device)


def _fail(row: Row, error: Exception) -> None:
    row.fail(run_failure(error))


def _pad_token(weights: Weights, ends: Iterable[int]) -> int:
    pad: int | None = weights.tokenizer.pad_token_id
    return min(ends, default=0) if pad is None else pad  # it is masked out, so any will do


def _context_tokens(config: Any) -> int | None:
    text = config.get_text_config()
    return next((size for field in CONTEXT_FIELDS if isinstance(size := getattr(text, field, None), int)), None)
