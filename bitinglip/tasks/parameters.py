"""What each kind of task takes and gives: one parameter model and one result model a kind.

They are the only statement of it: the gateway's validation, the OpenAPI document, the command line and the engines all
read these models.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]


class Parameters(BaseModel):
    """Base of every kind's parameters; unknown ones are refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Result(BaseModel):
    """Base of every kind's result."""

    model_config = ConfigDict(frozen=True)


class EchoParameters(Parameters):
    """Gives back what it got, after some idle steps: for tests, benchmarks and a first look."""

    message: Any = Field(default=None, description="Any JSON value; it is the result.")
    steps: int = Field(default=0, ge=0, le=100_000, description="Progress steps to report first.")
    step_ms: float = Field(default=0.0, ge=0, le=60_000, description="Milliseconds that one step takes.")
    fail: Literal["bad_input", "out_of_memory", "crash"] | None = Field(
        default=None, description="Fail in this way instead, on every attempt."
    )


class EchoResult(Result):
    """What `echo` answers."""

    message: Any


class ChatMessage(Parameters):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: Text = Field(description="What is said.")


class TextGenerationParameters(Parameters):
    """Continue a prompt, or answer a conversation; one of the two is given."""

    prompt: Text | None = Field(default=None, description="Text to continue.")
    messages: tuple[ChatMessage, ...] | None = Field(
        default=None,
        min_length=1,
        max_length=1000,
        description="Conversation to answer, through the model's own chat template.",
    )
    max_tokens: int = Field(default=256, ge=1, le=131_072, description="Most tokens to generate.")
    temperature: float = Field(
        default=0.0, ge=0.0, le=2.0, description="Randomness; 0 takes the likeliest token each time."
    )
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Sample among the likeliest tokens of this total probability."
    )
    stop: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(
        default=(), max_length=16, description="Texts that end the answer; they are not part of it."
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the sampling; none: one is drawn and told in the result."
    )

    @model_validator(mode="after")
    def _one_input(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("give either 'prompt' or 'messages'")
        return self


class TextGenerationResult(Result):
    """What `text-generation` answers."""

    text: str
    finish_reason: Literal["stop", "length"]
    """`stop`: the model ended, or a stop text came; `length`: `max_tokens` or the model's context was reached."""
    seed: int | None = None


class EmbeddingParameters(Parameters):
    """Turn texts into vectors."""

    input: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=2048)] = Field(
        description="One text, or up to 2048."
    )
    normalize: bool = Field(default=True, description="Scale each vector to length 1.")


class EmbeddingResult(Result):
    """What `embedding` answers: one vector a text, in the order given."""

    embeddings: list[list[float]]
    dimensions: int


PARAMETERS: dict[str, type[Parameters]] = {
    "echo": EchoParameters,
    "text-generation": TextGenerationParameters,
    "embedding": EmbeddingParameters,
}
"""The kinds, and what each takes."""

RESULTS: dict[str, type[Result]] = {
    "echo": EchoResult,
    "text-generation": TextGenerationResult,
    "embedding": EmbeddingResult,
}
"""The kinds, and what each gives."""

KINDS = tuple(PARAMETERS)
