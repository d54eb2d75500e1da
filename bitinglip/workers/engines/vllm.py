"""`text-generation` on a vLLM server: one that we start, or one that runs already.

vLLM lives in an environment of its own and is spoken to over HTTP. Each job is a request of its own: vLLM puts together
what runs at a time, so that a new job joins whenever it comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from bitinglip.events.task import Failure, Usage
from bitinglip.tasks.parameters import TextGenerationParameters
from bitinglip.workers.engine import START_SERVER, Intake, Job, LoadedModel, ModelSpec, Placement, Sink
from bitinglip.workers.engines.failures import BadInputError, LoadError, UnusableModelError, described, run_failure
from bitinglip.workers.engines.vllm_api import Served, ServerError, look_up
from bitinglip.workers.engines.vllm_request import ask, connect
from bitinglip.workers.engines.vllm_server import Server

POLL_S = 0.01
"""How soon a new job begins, and a cancelled one ends, while others run."""
EXIT_S = 1.0
"""How long a server that breaks off is given to end: its connections are closed before it is gone."""

Outcome = tuple[dict[str, Any], Usage] | Failure


def load(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> LoadedModel:
    """Start a server for a model and wait until it is up, or find the model on the server that runs.

    Raises:
        UnusableModelError: the model is not one for vLLM as we use it.
        LoadError: the server does not come up, is not there, or does not serve the model.
    """
    if spec.kind != "text-generation":
        raise UnusableModelError(f"{spec.reference}: vLLM runs text-generation here, and this is {spec.kind}.")
    model = _start(spec, placement, progress) if spec.vllm == START_SERVER else _join(spec)
    progress(1, 1)
    return model


def _start(spec: ModelSpec, placement: Placement, progress: Callable[[int, int], None]) -> VllmModel:
    server = Server(spec, _safe_folder(spec), placement)
    try:
        server.wait_until_up(progress)
        served = look_up(server.url, spec.reference, server.key)
    except BaseException:
        server.stop()
        raise
    return VllmModel(served, placement.device, None if placement.dtype == "auto" else placement.dtype, server)


def _join(spec: ModelSpec) -> VllmModel:
    url = (spec.vllm or "").rstrip("/").removesuffix("/v1")
    return VllmModel(look_up(url, spec.reference), url)


def _safe_folder(spec: ModelSpec) -> Path:
    folder = Path(spec.path or "")
    if spec.path is None or not folder.is_dir():
        raise LoadError(f"{spec.reference}: its folder is not on this machine.")
    if spec.quantize is not None:
        raise UnusableModelError(
            f"{spec.reference}: `worker.quantize` is not for vLLM: serve a quantised checkpoint, or give vLLM's own "
            "option in `worker.vllm_command`."
        )
    if not any(folder.glob("*.safetensors")) and not spec.trust_pickles:
        raise UnusableModelError(
            f"{spec.reference}: it has no safetensors files, and weights in other formats can run code when they are "
            "loaded: name the model in `worker.trust_pickles` if it is to be served all the same."
        )
    return folder


class VllmModel:
    """A model on a vLLM server."""

    memory_bytes = 0
    """What a server of ours takes is not this process's, and is not measured."""

    def __init__(self, served: Served, device: str, dtype: str | None = None, server: Server | None = None) -> None:
        """`server`: the one that serves it, if it is ours."""
        self._served = served
        self._server = server
        self.device = device
        self.dtype: str | None = dtype
        self.versions: dict[str, str] = {"vllm": served.version} if served.version else {}

    def run(self, jobs: Sequence[Job[TextGenerationParameters]], sink: Sink) -> None:
        """Have the server generate for all jobs."""
        asyncio.run(self._run(jobs, sink, list))

    def run_joining(self, jobs: Sequence[Job[TextGenerationParameters]], sink: Sink, intake: Intake) -> None:
        """Have the server generate for all jobs, and for those that come meanwhile."""
        asyncio.run(self._run(jobs, sink, intake.take))

    def unload(self) -> None:
        """End the server if it is ours."""
        if self._server is not None:
            self._server.stop()

    async def _run(
        self,
        jobs: Sequence[Job[TextGenerationParameters]],
        sink: Sink,
        more: Callable[[], Sequence[tuple[Sequence[Job[Any]], Sink]]],
    ) -> None:
        async with connect(self._served) as client:
            running = self._begin(client, jobs, sink)
            while running:
                await asyncio.wait(running, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
                for request in [request for request in running if request.done()]:
                    _answer(request, *running.pop(request))
                for request, (job, _) in running.items():
                    if job.cancelled.is_set() and not request.cancelling():
                        request.cancel()
                for others, their_sink in more():
                    running |= self._begin(client, others, their_sink)

    def _begin(
        self, client: httpx.AsyncClient, jobs: Sequence[Job[TextGenerationParameters]], sink: Sink
    ) -> dict[asyncio.Task[Outcome], tuple[Job[Any], Sink]]:
        return {asyncio.create_task(self._outcome(client, job, sink), name=job.task_id): (job, sink) for job in jobs}

    async def _outcome(self, client: httpx.AsyncClient, job: Job[TextGenerationParameters], sink: Sink) -> Outcome:
        try:
            return await ask(client, self._served, job, sink)
        except BadInputError as error:
            return run_failure(error)
        except ServerError as error:
            return await self._failure(str(error))
        except httpx.TransportError as error:
            return await self._failure(f"The vLLM server at {self._served.url} was lost: {described(error)}")

    async def _failure(self, message: str) -> Failure:
        """Return what a request broke off for; the end of a server of ours is the end of this process's use."""
        if self._server is None or not await _ends(self._server):
            return Failure(kind="engine_error", message=message, retryable=True)
        self._server.stop()  # for what it may have left behind
        return Failure(kind="engine_crashed", message=f"The vLLM server ended: {self._server.ending}", retryable=True)


def _answer(request: asyncio.Task[Outcome], job: Job[Any], sink: Sink) -> None:
    """Answer a job whose request is over: here alone, so that each is answered once."""
    if request.cancelled():
        sink.cancel(job.task_id)
        return
    match request.result():
        case Failure() as failure:
            sink.fail(job.task_id, failure)
        case (result, usage):
            sink.succeed(job.task_id, result, usage)


async def _ends(server: Server) -> bool:
    deadline = time.monotonic() + EXIT_S
    while not server.ended and time.monotonic() < deadline:  # noqa: ASYNC110  (a process's end tells nobody of itself)
        await asyncio.sleep(POLL_S)
    return server.ended
