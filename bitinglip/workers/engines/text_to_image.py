"""`text-to-image`: any pipeline that diffusers' `AutoPipelineForText2Image` loads, from a text or a picture as well."""

from __future__ import annotations

import inspect
import json
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.auto_pipeline import AutoPipelineForImage2Image, AutoPipelineForText2Image
from PIL import Image

from bitinglip.events.task import Usage
from bitinglip.models.memory import variant
from bitinglip.tasks.parameters import TextToImageParameters
from bitinglip.workers.engine import Job, Linear, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines import media
from bitinglip.workers.engines.budget import spread
from bitinglip.workers.engines.failures import (
    BadInputError,
    LoadError,
    UnusableModelError,
    described,
    is_out_of_memory,
    run_failure,
)
from bitinglip.workers.engines.latents import LatentPreview
from bitinglip.workers.engines.onednn import through_onednn
from bitinglip.workers.engines.quantize import tensor_bytes, torchao_config
from bitinglip.workers.engines.torch_device import dtype_for, give_memory_back, place

log = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "diffusers")
MOST_PICTURES = 8
"""Pictures of one pipeline call; memory may halve them."""
SEED_BITS = 31
PREVIEWS = 8
"""Previews of one picture, at most about so many."""
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-ancestral": "EulerAncestralDiscreteScheduler",
    "lms": "LMSDiscreteScheduler",
    "pndm": "PNDMScheduler",
    "unipc": "UniPCMultistepScheduler",
}
SCHEDULER_SETTINGS = {"pndm": {"skip_prk_steps": True}}
"""What a scheduler needs besides the model's own settings: without this one, PNDM fails at few steps."""


class _CancelledError(Exception):
    """Every job of a call was cancelled: the pipeline stops at this step, and can be used again."""


@dataclass(slots=True)
class _Job:
    """A job on its way: the pictures that it has so far."""

    job: Job[TextToImageParameters]
    sink: Sink
    width: int
    height: int
    seed: int
    image: Image.Image | None
    pictures: dict[int, Image.Image] = field(default_factory=dict[int, Image.Image])
    over: bool = False

    def check_cancelled(self) -> bool:
        """Answer the job if it was cancelled; tells whether it is over."""
        if self.job.cancelled.is_set() and not self.over:
            self.over = True
            self.sink.cancel(self.job.task_id)
        return self.over


_Picture = tuple[_Job, int]
"""One picture to draw: its job, and which of the job's pictures it is."""


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Load a pipeline from its folder.

    Raises:
        UnusableModelError: its weights are no safetensors, or it draws no pictures from texts.
        LoadError: the folder is missing or broken.
    """
    folder = _folder(spec)
    device = place(placement)
    wanted = dtype_for(device, placement, "bfloat16")
    dtype = torch.bfloat16 if isinstance(wanted, str) else wanted
    quantization = torchao_config(spec, device)
    progress(0, 1)
    try:
        pipeline = AutoPipelineForText2Image.from_pretrained(
            folder,
            dtype=dtype,
            variant=variant(folder),
            use_safetensors=None if spec.trust_pickles else True,
            local_files_only=True,
        )
    except Exception as error:
        problem = described(error).splitlines()[0].replace(str(folder), spec.reference)
        raise LoadError(f"{spec.reference}: {problem}") from error
    if quantization is not None:
        _quantize(pipeline, quantization)
    if device.type != "cpu" and spread(spec, placement):
        pipeline.enable_model_cpu_offload(device=device)  # one part at a time is on the card
    else:
        pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    preview = LatentPreview.fit(getattr(pipeline, "vae", None), device, dtype)
    progress(1, 1)
    return Painter(spec, pipeline, preview, device, dtype, placement.linear)


class Painter:
    """A loaded pipeline."""

    def __init__(
        self,
        spec: ModelSpec,
        pipeline: Any,
        preview: LatentPreview | None,
        device: torch.device,
        dtype: torch.dtype,
        linear: Linear,
    ) -> None:
        self._spec = spec
        self._preview = preview
        self._pipeline: Any = pipeline
        self._published: Any = pipeline.scheduler
        self._unit = int(getattr(pipeline, "vae_scale_factor", 8))
        self.device = str(device)
        self.dtype: str | None = spec.quantize or str(dtype).removeprefix("torch.")
        parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
        self.versions = {name: version(name) for name in PACKAGES}
        if device.type == "cpu":
            for onednn in filter(None, [through_onednn(part, linear) for part in parts]):
                self.versions["onednn"] = onednn
        self.memory_bytes = tensor_bytes(tensor for part in parts for tensor in (*part.parameters(), *part.buffers()))

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job[TextToImageParameters]], sink: Sink) -> None:
        """Draw the pictures of all jobs, those of the same shape together."""
        calls: dict[Any, list[_Picture]] = {}
        for job in jobs:
            try:
                drawn = self._job(job, sink)
            except BadInputError as error:
                sink.fail(job.task_id, run_failure(error))
                continue
            calls.setdefault(_shape(drawn), []).extend((drawn, number) for number in range(job.params.n))
        for pictures in calls.values():
            for start in range(0, len(pictures), MOST_PICTURES):
                self._draw(pictures[start : start + MOST_PICTURES])

    def unload(self) -> None:
        """Drop the weights."""
        self._pipeline = self._published = None
        give_memory_back()

    def _job(self, job: Job[TextToImageParameters], sink: Sink) -> _Job:
        params = job.params
        image = media.read_image(job, "image", params.image) if params.image else None
        own = self._own_side()
        width, height = params.width or own, params.height or own
        if image is not None:
            width = params.width or max(self._unit, image.width // self._unit * self._unit)
            height = params.height or max(self._unit, image.height // self._unit * self._unit)
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        for name, side in (("width", width), ("height", height)):
            if side % self._unit:
                raise BadInputError(f"{name}: this model draws multiples of {self._unit} pixels, not {side}.")
        if image is not None and int(params.steps * params.strength) < 1:
            raise BadInputError("strength: with so few steps, nothing of the picture would be drawn anew: take more.")
        seed = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
        return _Job(job, sink, width, height, seed, image)

    def _own_side(self) -> int:
        side = getattr(getattr(_denoiser(self._pipeline), "config", None), "sample_size", None)
        return (side if isinstance(side, int) else 64) * self._unit

    # --- drawing ------------------------------------------------------------------------------------------------------

    def _draw(self, pictures: list[_Picture]) -> None:
        """Draw pictures in one call; without the memory for all at once, half of them first."""
        pictures = [picture for picture in pictures if not picture[0].check_cancelled()]
        if not pictures:
            return
        try:
            drawn = self._call(pictures)
        except _CancelledError:
            return
        except Exception as error:  # noqa: BLE001  (whatever a library raises is the failure of these jobs alone)
            if not is_out_of_memory(error) or len(pictures) == 1:
                _fail(pictures, error)
                return
        else:
            for (job, number), image in zip(pictures, drawn, strict=True):
                self._take(job, number, image)
            return
        give_memory_back()  # here, where the exception no longer holds the tensors of its frames
        log.warning("no room for %d pictures at once; trying half of them", len(pictures))
        self._draw(pictures[: len(pictures) // 2])
        self._draw(pictures[len(pictures) // 2 :])

    def _call(self, pictures: list[_Picture]) -> list[Image.Image]:
        first = pictures[0][0]
        params = first.job.params
        pipeline: Any = self._pipeline if first.image is None else AutoPipelineForImage2Image.from_pipe(self._pipeline)
        pipeline.scheduler = self._scheduler(params.scheduler)
        # What a pipeline tells comes first: some schedulers (PNDM) take a step more than they were asked for.
        steps = params.steps if first.image is None else int(params.steps * params.strength)
        arguments: dict[str, Any] = {
            "prompt": [job.job.params.prompt for job, _ in pictures],
            "negative_prompt": [job.job.params.negative_prompt for job, _ in pictures],
            "num_inference_steps": params.steps,
            "guidance_scale": params.guidance,
            "generator": [torch.Generator("cpu").manual_seed(job.seed + number) for job, number in pictures],
            "callback_on_step_end": lambda pipe, step, _time, tensors: self._stepped(
                pictures, step + 1, getattr(pipe, "num_timesteps", steps), tensors
            ),
        }
        if first.image is None:
            arguments |= {"width": first.width, "height": first.height}
        else:
            arguments |= {"image": [job.image for job, _ in pictures], "strength": params.strength}
        known = inspect.signature(pipeline.__call__).parameters
        if params.guidance <= 1 or "negative_prompt" not in known:
            del arguments["negative_prompt"]
        return pipeline(**{name: value for name, value in arguments.items() if name in known}).images

    def _stepped(self, pictures: list[_Picture], step: int, steps: int, tensors: dict[str, Any]) -> dict[str, Any]:
        firsts = {id(job): (job, row) for row, (job, _) in reversed(list(enumerate(pictures)))}
        for job, row in firsts.values():
            if not job.check_cancelled():
                self._show(job, tensors.get("latents"), row, step, steps)
                here = sum(other is job for other, _ in pictures)
                done = len(job.pictures) * steps + here * step
                job.sink.progress(job.job.task_id, done, job.job.params.n * steps, "step")
        if all(job.over for job, _ in firsts.values()):
            raise _CancelledError
        return tensors

    def _show(self, job: _Job, latents: Any, row: int, step: int, steps: int) -> None:
        """Show what a job's first picture of this call looks like by now, every few steps."""
        every = max(1, steps // PREVIEWS)
        if self._preview is not None and isinstance(latents, torch.Tensor) and latents.ndim == 4 and step % every == 0:
            job.sink.preview(job.job.task_id, self._preview.draw(latents[row]))

    def _scheduler(self, name: str) -> Any:
        """Return a fresh scheduler: some keep what they did in the call before."""
        if name == "default":
            return self._published.from_config(self._published.config)
        try:
            settings = SCHEDULER_SETTINGS.get(name, {})
            return getattr(diffusers, SCHEDULERS[name]).from_config(self._published.config, **settings)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise BadInputError(f"scheduler: {name!r} does not fit this model ({error}).") from error

    def _take(self, job: _Job, number: int, image: Image.Image) -> None:
        if job.check_cancelled():
            return
        job.pictures[number] = image
        params = job.job.params
        if len(job.pictures) < params.n:
            return
        job.over = True
        images = [self._write(job, index) for index in range(params.n)]
        job.sink.succeed(job.job.task_id, {"images": images}, Usage(images=len(images)))

    def _write(self, job: _Job, number: int) -> dict[str, Any]:
        seed = job.seed + number
        told = job.job.params.model_dump(exclude={"image", "seed", "n"}) | {
            "seed": seed,
            "width": job.width,
            "height": job.height,
            "model": self._spec.reference,
            "revision": self._spec.revision,
            "versions": self.versions,
        }
        notes = {"parameters": json.dumps(told, ensure_ascii=False, sort_keys=True)}
        return media.write_image(job.job, job.pictures[number], notes, seed=seed)


def _denoiser(pipeline: Any) -> Any:
    """Return the part that does most of the work, and takes most of the memory."""
    return getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)


def _quantize(pipeline: Any, config: Any) -> None:
    from torchao.quantization import quantize_

    quantize_(_denoiser(pipeline), config)


def _shape(job: _Job) -> tuple[Any, ...]:
    """What must be equal for pictures to be drawn in one call."""
    params = job.job.params
    alone = job.job.task_id if job.image is not None else None
    return job.width, job.height, params.steps, params.guidance, params.scheduler, alone


def _fail(pictures: list[_Picture], error: Exception) -> None:
    for job, _ in pictures:
        if not job.over:
            job.over = True
            job.sink.fail(job.job.task_id, run_failure(error))


def _folder(spec: ModelSpec) -> Path:
    folder = Path(spec.path or "")
    if spec.path is None or not (folder / "model_index.json").is_file():
        raise LoadError(f"{spec.reference}: its folder is not on this machine, or has no model_index.json.")
    if not any(folder.rglob("*.safetensors")) and not spec.trust_pickles:
        raise UnusableModelError(
            f"{spec.reference}: it has no safetensors files, and weights in other formats can run code when they are "
            "loaded: convert them with diffusers' `save_pretrained`, or name the model in `worker.trust_pickles`."
        )
    return folder
