"""What each kind of task takes and gives: one parameter model and one result model a kind.

They are the only statement of it: the gateway's validation, the OpenAPI document, the command line and the engines all
read these models.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]


@dataclass(frozen=True, slots=True)
class Media:
    """Marks a parameter whose value is bytes of this sort, given as one of `MEDIA_FORMS`."""

    sort: Literal["image", "audio"]


MEDIA_FORMS = (
    "a data: URL, 'artifact:SHA256' of an upload, or 'task:ID' (or 'task:ID/N', from 0) for what another task made"
)
MediaText = Annotated[str, Field(min_length=1, max_length=64 * 2**20, pattern=r"^(data:|artifact:|task:)")]
ImageInput = Annotated[MediaText, Media("image")]
AudioInput = Annotated[MediaText, Media("audio")]
ARTIFACT_FORM = "artifact:"
"""How a media parameter begins in the log: the gateway brings the other forms to this one."""


class Parameters(BaseModel):
    """Base of every kind's parameters; unknown ones are refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelParameters(Parameters):
    """Base of the parameters of every kind that runs on a model."""

    deterministic: bool = Field(
        default=False,
        description="Run in a batch of one: the same input then gives the same bytes on the same device and versions.",
    )


class Result(BaseModel):
    """Base of every kind's result."""

    model_config = ConfigDict(frozen=True)


def media_in(params: type[Parameters], values: dict[str, Any]) -> Iterator[tuple[str, Media, str]]:
    """Yield the media parameters that are given: name, sort and text."""
    for name, field in params.model_fields.items():
        marks = [mark for mark in field.metadata if isinstance(mark, Media)]
        value = values.get(name)
        if marks and isinstance(value, str):
            yield name, marks[0], value


class EchoParameters(ModelParameters):
    """Gives back what it got, after some idle steps: for tests, benchmarks and a first look."""

    message: Any = Field(default=None, description="Any JSON value; it is the result.")
    steps: int = Field(default=0, ge=0, le=100_000, description="Progress steps to report first.")
    step_ms: float = Field(default=0.0, ge=0, le=60_000, description="Milliseconds that one step takes.")
    fail: Literal["bad_input", "out_of_memory", "crash", "device_fault"] | None = Field(
        default=None, description="Fail in this way instead, on every attempt."
    )
    needs_gb: float | None = Field(
        default=None,
        ge=0,
        description="Run out of memory on a worker whose `worker.memory_gb` is less than so many GiB.",
    )


class EchoResult(Result):
    """What `echo` answers."""

    message: Any


class ChatMessage(Parameters):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"] = Field(description="Who speaks.")
    content: Text = Field(description="What is said.")


class TextGenerationParameters(ModelParameters):
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
    reasoning: str | None = None
    """What a model that thinks before it answers (DeepSeek-R1, Qwen3) thought; its answer in `text` is without it."""


class EmbeddingParameters(ModelParameters):
    """Turn texts into vectors."""

    input: Text | Annotated[tuple[Text, ...], Field(min_length=1, max_length=2048)] = Field(
        description="One text, or up to 2048."
    )
    normalize: bool = Field(default=True, description="Scale each vector to length 1.")


class EmbeddingResult(Result):
    """What `embedding` answers: one vector a text, in the order given."""

    embeddings: list[list[float]]
    dimensions: int


class Artifact(Result):
    """Bytes that a task made: fetched with `GET /v1/artifacts/{sha256}`."""

    sha256: str
    size_bytes: int
    media_type: str


Side = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]


class TextToImageParameters(ModelParameters):
    """Draw pictures from a description, or change a given picture after one."""

    prompt: Annotated[str, Field(max_length=100_000)] = Field(description="What is to be seen.")
    negative_prompt: Annotated[str, Field(max_length=100_000)] = Field(
        default="", description="What is not to be seen; without effect at a guidance of 1 or less."
    )
    width: Side | None = Field(default=None, description="Width in pixels, a multiple of 8; none: the model's own.")
    height: Side | None = Field(default=None, description="Height in pixels, a multiple of 8; none: the model's own.")
    steps: int = Field(default=25, ge=1, le=500, description="Denoising steps.")
    guidance: float = Field(
        default=7.5, ge=0.0, le=50.0, description="How closely the prompt is followed; at 1 or less it is not enforced."
    )
    scheduler: Literal["default", "ddim", "dpm++", "euler", "euler-ancestral", "lms", "pndm", "unipc"] = Field(
        default="default", description="How noise is removed; 'default' is what the model was published with."
    )
    n: int = Field(default=1, ge=1, le=16, description="Pictures to draw, each with a seed of its own.")
    seed: Seed | None = Field(
        default=None,
        description="Seed of the first picture, one more for each further one; none: it is drawn and told.",
    )
    image: ImageInput | None = Field(default=None, description=f"A picture to begin from: {MEDIA_FORMS}.")
    strength: float = Field(
        default=0.8, gt=0.0, le=1.0, description="How much of the given picture is drawn anew; without one, no effect."
    )


class Picture(Artifact):
    """One picture of a result, a PNG that bears its parameters."""

    width: int
    height: int
    seed: int


class TextToImageResult(Result):
    """What `text-to-image` answers."""

    images: list[Picture]


class ImageToTextParameters(ModelParameters):
    """Say what is to be seen in a picture, or answer a question about it."""

    image: ImageInput = Field(description=f"The picture: {MEDIA_FORMS}.")
    prompt: Text | None = Field(
        default=None, description="How the caption begins or, with a model that chats, what is asked about the picture."
    )
    max_tokens: int = Field(default=64, ge=1, le=8192, description="Most tokens to generate.")
    temperature: float = Field(
        default=0.0, ge=0.0, le=2.0, description="Randomness; 0 takes the likeliest token each time."
    )
    top_p: float = Field(
        default=1.0, gt=0.0, le=1.0, description="Sample among the likeliest tokens of this total probability."
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the sampling; none: one is drawn and told in the result."
    )


class ImageToTextResult(Result):
    """What `image-to-text` answers."""

    text: str
    finish_reason: Literal["stop", "length"]
    seed: int | None = None


class TextToSpeechParameters(ModelParameters):
    """Speak a text."""

    text: Annotated[str, Field(min_length=1, max_length=20_000)] = Field(description="What is said.")
    voice: Annotated[str, Field(min_length=1, max_length=100)] | None = Field(
        default=None, description="A voice that the model has, by name or number; none: its first."
    )
    speaker_embedding: Annotated[tuple[float, ...], Field(min_length=1, max_length=4096)] | None = Field(
        default=None, description="A voice as a vector, for models that take one (SpeechT5: 512 numbers)."
    )
    speed: float = Field(default=1.0, ge=0.25, le=4.0, description="Speed of speaking, for models that can vary it.")
    format: Literal["wav", "flac", "opus"] = Field(default="wav", description="Format of the sound.")
    seed: Seed | None = Field(
        default=None, description="Seed, for models that draw at random; none: one is drawn and told in the result."
    )

    @model_validator(mode="after")
    def _one_voice(self) -> Self:
        if self.voice is not None and self.speaker_embedding is not None:
            raise ValueError("give either 'voice' or 'speaker_embedding'")
        return self


class Sound(Artifact):
    """The sound of a result."""

    sample_rate: int
    """Samples a second."""
    seconds: float


class TextToSpeechResult(Result):
    """What `text-to-speech` answers."""

    audio: Sound
    seed: int | None = None


class SpeechToTextParameters(ModelParameters):
    """Write down what is said in a recording."""

    audio: AudioInput = Field(description=f"The recording: {MEDIA_FORMS}.")
    language: Annotated[str, Field(min_length=2, max_length=32)] | None = Field(
        default=None, description="Language that is spoken, as 'en' or 'english'; none: found out by the model."
    )
    translate: bool = Field(default=False, description="Write it in English, whatever is spoken.")
    timestamps: Literal["none", "segment", "word"] = Field(
        default="none", description="Whether to tell when each segment, or each word, was said."
    )


class Segment(Result):
    """A piece of a transcript, in seconds from the start."""

    start_s: float
    end_s: float | None
    text: str


class SpeechToTextResult(Result):
    """What `speech-to-text` answers."""

    text: str
    language: str | None = None
    seconds: float
    """Length of the recording."""
    segments: list[Segment] = []


PARAMETERS: dict[str, type[ModelParameters]] = {
    "echo": EchoParameters,
    "text-generation": TextGenerationParameters,
    "embedding": EmbeddingParameters,
    "text-to-image": TextToImageParameters,
    "image-to-text": ImageToTextParameters,
    "text-to-speech": TextToSpeechParameters,
    "speech-to-text": SpeechToTextParameters,
}
"""The kinds, and what each takes."""

RESULTS: dict[str, type[Result]] = {
    "echo": EchoResult,
    "text-generation": TextGenerationResult,
    "embedding": EmbeddingResult,
    "text-to-image": TextToImageResult,
    "image-to-text": ImageToTextResult,
    "text-to-speech": TextToSpeechResult,
    "speech-to-text": SpeechToTextResult,
}
"""The kinds, and what each gives."""

KINDS = tuple(PARAMETERS)
