"""One row of a batch of texts: what was asked, what was said so far, and whether it is over."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

from bitinglip.events.task import Failure, Usage
from bitinglip.tasks.parameters import ImageToTextParameters, TextGenerationParameters
from bitinglip.workers.engine import Job, Sink
from bitinglip.workers.engines.decoding import StopScanner
from bitinglip.workers.engines.sampling import COLDEST, Dice
from bitinglip.workers.engines.thinking import Splitter, Spoken, Tags

SEED_BITS = 32


class Row:
    """A job on its way; it is answered as soon as it ends, whatever its neighbours still have to say.

    Args:
        job: The job, whose parameters say how to sample.
        prompt: Tokens that it begins with.
        most: Most tokens to generate.
        tokenizer: Turns tokens into text.
        sink: Where it is answered.
        stops: Texts that end the answer.
        continues: Whether the text goes on from the prompt's, or begins anew.
        lead: What the answer's text begins with, before anything is generated.
        tags: The tokens around what the model thinks before it answers; none: all is answer.
        thinking: Whether the prompt has begun the thought.
    """

    def __init__(
        self,
        job: Job[TextGenerationParameters] | Job[ImageToTextParameters],
        prompt: list[int],
        most: int,
        tokenizer: Any,
        sink: Sink,
        *,
        stops: Sequence[str] = (),
        continues: bool = False,
        lead: str = "",
        tags: Tags | None = None,
        thinking: bool = False,
    ) -> None:
        self.job = job
        self.prompt = prompt
        self.tokens: list[int] = []
        self.most = most
        self.over = False
        self._sink = sink
        self._text: list[str] = []
        self._thought: list[str] = []
        self._lead = lead
        self._splitter = Splitter(tokenizer, prompt if continues else (), tags, thinking=thinking)
        self._stops = StopScanner(stops)
        self.sampled = job.params.temperature >= COLDEST
        self._seed = job.params.seed
        if self.sampled and self._seed is None:
            self._seed = secrets.randbits(SEED_BITS)
        self.dice = Dice(self._seed or 0)

    @property
    def left(self) -> int:
        """Tokens that may still be generated."""
        return self.most - len(self.tokens)

    def take(self, token: int, ends: frozenset[int]) -> None:
        """Take the row's next token, report what it adds, and end the row if it was the last one."""
        if self.over or self.check_cancelled():
            return
        self.tokens.append(token)
        ended = token in ends
        last = ended or self.left == 0
        thought, answer = Spoken() if ended else self._splitter.push(token)
        if last:
            left = self._splitter.finish()
            thought, answer = thought + left.thought, answer + left.answer
        text, stopped = self._stops.push(answer, last=last)
        self._say(thought, text)
        if stopped or last:
            self._succeed("stop" if ended or stopped else "length")

    def check_cancelled(self) -> bool:
        """End the row if its job was cancelled; tells whether it was."""
        if self.job.cancelled.is_set() and not self.over:
            self.over = True
            self._sink.cancel(self.job.task_id)
        return self.job.cancelled.is_set()

    def fail(self, failure: Failure) -> None:
        """End the row with a failure, unless it is over."""
        if not self.over:
            self.over = True
            self._sink.fail(self.job.task_id, failure)

    def _say(self, thought: str, text: str) -> None:
        if self._lead:
            text, self._lead = self._lead + text, ""
        self._thought.append(thought)
        self._text.append(text)
        self._sink.progress(self.job.task_id, len(self.tokens), self.most, "token", text or None, thought or None)

    def _succeed(self, reason: str) -> None:
        self.over = True
        seed = self._seed if self.sampled or self.job.params.seed is not None else None
        result = {"text": "".join(self._text), "finish_reason": reason, "seed": seed}
        if thought := "".join(self._thought):
            result["reasoning"] = thought
        self._sink.succeed(
            self.job.task_id, result, Usage(input_tokens=len(self.prompt), output_tokens=len(self.tokens))
        )
