"""`image-to-text`: captions (BLIP), and models that chat about a picture: what `AutoModelForImageTextToText` loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, GenerationConfig
from transformers.generation.logits_process import LogitsProcessorList
from transformers.generation.stopping_criteria import StoppingCriteriaList

from bitinglip.tasks.parameters import ImageToTextParameters
from bitinglip.workers.engine import Job, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines import media
from bitinglip.workers.engines.failures import BadInputError, LoadError, described, is_out_of_memory, run_failure
from bitinglip.workers.engines.rows import Row
from bitinglip.workers.engines.steering import RowReader, RowSampler, end_tokens
from bitinglip.workers.engines.torch_device import give_memory_back
from bitinglip.workers.engines.weights import Weights, load_weights

MOST_PICTURES = 16
"""Pictures that are captioned together; memory may halve them."""
QUESTION = "Describe this image."
"""What a model that chats is asked if the task asks nothing."""


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load a model that says what it sees, from its folder."""
    weights = load_weights(AutoModelForImageTextToText, spec, placement, progress)
    try:
        processor = AutoProcessor.from_pretrained(spec.path, local_files_only=True, trust_remote_code=spec.trust_code)
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(f"{spec.reference}: its processor cannot be loaded: {described(error)}") from error
    return Seer(weights, processor)


class Seer:
    """A loaded captioner, or a model that chats about pictures."""

    def __init__(self, weights: Weights, processor: Any) -> None:
        self._weights = weights
        self._processor: Any = processor
        self._chats = bool(getattr(processor, "chat_template", None) or weights.tokenizer.chat_template)
        text = weights.model.config.get_text_config()
        self._ends = end_tokens(weights) | {
            token for token in (getattr(text, "sep_token_id", None),) if isinstance(token, int) and not self._chats
        }
        pad = weights.tokenizer.pad_token_id
        self._pad: int = min(self._ends, default=0) if pad is None else pad
        # What a checkpoint suggests (sampling, penalties, lengths) would be mixed into each call: parameters decide.
        for part in (weights.model, getattr(weights.model, "text_decoder", None)):
            if part is not None:
                part.generation_config = GenerationConfig()
        self.device = str(weights.device)
        self.dtype: str | None = weights.dtype
        self.versions = weights.versions
        self.memory_bytes = weights.memory_bytes

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job[ImageToTextParameters]], sink: Sink) -> None:
        """Say what is to be seen in each picture; those with the same prompt are captioned together."""
        alike: dict[Any, list[tuple[Row, Image.Image]]] = {}
        for job in jobs:
            try:
                image = media.read_image(job, "image", job.params.image)
                row = self._row(job, sink)
            except BadInputError as error:
                sink.fail(job.task_id, run_failure(error))
                continue
            alike.setdefault(job.task_id if self._chats else tuple(row.prompt), []).append((row, image))
        for rows in alike.values():
            for start in range(0, len(rows), MOST_PICTURES):
                self._generate(rows[start : start + MOST_PICTURES], sink)

    def unload(self) -> None:
        """Drop the weights."""
        self._weights.drop()
        self._processor = None

    def _row(self, job: Job[ImageToTextParameters], sink: Sink) -> Row:
        tokenizer, prompt = self._weights.tokenizer, job.params.prompt
        if self._chats or prompt is None:
            return Row(job, [], job.params.max_tokens, tokenizer, sink)
        ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        limit = getattr(self._weights.model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and len(ids) + 1 >= limit:
            raise BadInputError(f"prompt: it has {len(ids)} tokens, and this model takes fewer than {limit - 1}.")
        most = job.params.max_tokens if limit is None else min(job.params.max_tokens, limit - 1 - len(ids))
        return Row(job, ids, most, tokenizer, sink, continues=True, lead=prompt)

    # --- generation ---------------------------------------------------------------------------------------------------

    def _generate(self, rows: list[tuple[Row, Image.Image]], sink: Sink) -> None:
        """Bring rows to their end; without the memory for all at once, half of them first, from the beginning."""
        rows = [each for each in rows if not each[0].over and not each[0].check_cancelled()]
        if not rows:
            return
        try:
            self._generate_together([row for row, _ in rows], [image for _, image in rows])
        except Exception as error:  # noqa: BLE001  (whatever a library raises is the failure of these jobs alone)
            if not is_out_of_memory(error) or len(rows) == 1 or any(row.tokens for row, _ in rows):
                for row, _ in rows:
                    sink.fail(row.job.task_id, run_failure(error))
                return
        else:
            return
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        self._generate(rows[: len(rows) // 2], sink)
        self._generate(rows[len(rows) // 2 :], sink)

    def _generate_together(self, rows: list[Row], images: list[Image.Image]) -> None:
        inputs = self._chat_inputs(rows[0], images[0]) if self._chats else self._caption_inputs(rows, images)
        moved = {
            name: tensor.to(self._weights.device, self._weights.model.dtype if tensor.is_floating_point() else None)
            for name, tensor in inputs.items()
        }
        steering: dict[str, Any] = {
            "do_sample": False,  # `RowSampler` leaves each sampled row one token to choose
            "max_new_tokens": max(row.left for row in rows),
            "logits_processor": LogitsProcessorList([RowSampler(rows)]),
            "stopping_criteria": StoppingCriteriaList([RowReader(rows, self._ends)]),
        }
        if self._chats:
            steering["pad_token_id"] = self._pad
        self._weights.model.generate(**moved, **steering)

    def _caption_inputs(self, rows: list[Row], images: list[Image.Image]) -> dict[str, torch.Tensor]:
        """Return the pictures, (B, 3, H, W), and the prompts, (B, T): between two tokens that BLIP puts its own for."""
        inputs: dict[str, torch.Tensor] = {
            "pixel_values": self._processor.image_processor(images, return_tensors="pt")["pixel_values"]
        }
        if rows[0].prompt:
            ids = torch.tensor([[0, *row.prompt, 0] for row in rows])
            inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return inputs

    def _chat_inputs(self, row: Row, image: Image.Image) -> dict[str, torch.Tensor]:
        question = row.job.params.prompt or QUESTION
        content = [{"type": "image", "image": image}, {"type": "text", "text": question}]
        try:
            inputs = self._processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        except TemplateError as error:
            raise BadInputError(f"The model's chat template refuses this question: {error}") from error
        row.prompt = inputs["input_ids"][0].tolist()
        return dict(inputs)
