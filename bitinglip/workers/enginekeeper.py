"""The worker's engine process over time: started when it is needed, ended when it hangs, replaced when it has died."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from bitinglip.errors import EngineDied
from bitinglip.settings import Worker
from bitinglip.workers.engine import Loaded, LoadFailed, Loading, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from bitinglip.workers.inuse import InUse

log = logging.getLogger(__name__)


class EngineKeeper:
    """Keeps one engine process for its worker."""

    def __init__(self, settings: Worker, device: str, scratch: Path) -> None:
        self._settings = settings
        self._device = device
        self._scratch = scratch
        self._host: EngineHost | None = None
        self._starting = asyncio.Lock()
        self._in_use = InUse()
        self._loads: list[str] = []
        self.loading: str | None = None
        """Reference of the model that is being loaded."""
        self.on_load: Callable[[str, Loaded | None], None] = lambda _reference, _loaded: None
        """Called when a load begins, and with what it took when it has ended well."""
        self._ending: asyncio.Future[None] | None = None

    @property
    def loaded(self) -> frozenset[str]:
        """References of the models in memory."""
        return frozenset(key.split("|")[1] for key in self.keys)

    @property
    def keys(self) -> frozenset[str]:
        """The models in memory, by their keys: with their revisions."""
        return frozenset(self._host.loaded if self._host else ())

    async def get(self) -> EngineHost:
        """Return the process, a new one if there is none, or none that lives.

        Raises:
            EngineDied: it did not start.
        """
        async with self._starting:
            if self._host is None or not self._host.alive:
                self._host = None
                host = EngineHost(self._settings, self._device, self._scratch)
                await host.start()
                self._host = host
            return self._host

    async def load(
        self, host: EngineHost, model: ModelSpec, on_loading: Callable[[Loading], None]
    ) -> Loaded | LoadFailed:
        """Load a model within its time.

        Raises:
            EngineDied: the process ended meanwhile, or took too long and was ended.
        """
        limit_s = self._settings.load_timeout_s
        self._loads.append(model.key)
        await self._in_use.begin(model)
        self.loading = model.reference
        self.on_load(model.reference, None)
        try:
            async with asyncio.timeout(limit_s):
                answer = await host.load(model, on_loading)
        except TimeoutError as error:
            problem = f"{model.reference} was not loaded within {limit_s:g} s (`worker.load_timeout_s`)."
            await host.stop(grace_s=0.0, reason=problem)
            raise EngineDied(problem=problem) from error
        finally:
            self.loading = None
            self._loads.remove(model.key)
            self.settle()
        if isinstance(answer, Loaded):
            self.on_load(model.reference, answer)
        return answer

    async def drop(self, references: Iterable[str]) -> None:
        """Drop models from memory, if they are there."""
        named = set(references)
        await self.drop_keys(key for key in self.keys if key.split("|")[1] in named)

    async def drop_keys(self, keys: Iterable[str]) -> None:
        """Drop models from memory by their keys, if they are there."""
        for key in keys:
            with suppress(EngineDied):
                if self._host is not None:
                    await self._host.unload(key)
        self.settle()

    def settle(self) -> None:
        """Let go of what is in memory no more: its files may be dropped from the disk."""
        self._in_use.keep(self.keys.union(self._loads))

    @asynccontextmanager
    async def watched(self, host: EngineHost) -> AsyncGenerator[None]:
        """End the process if, inside, it says nothing for too long: it hangs, and would never hear of a cancel."""
        watch = asyncio.create_task(self._end_if_silent(host), name="engine-steps")
        try:
            yield
        finally:
            watch.cancel()

    def forget(self, host: EngineHost | None) -> bool:
        """Make way for a new process; tells whether this one was still the worker's: several batches may ask."""
        ours = self._host is host
        if ours:
            self._host = None
        return ours

    def cancel(self, task_id: str) -> None:
        """Ask a job to stop at its next step; a job that is not there is fine."""
        if self._host is not None and self._host.alive:
            self._host.cancel(task_id)

    def kill(self) -> None:
        """End the process by force, in the background."""
        if self._host is not None:
            self._ending = asyncio.ensure_future(self._host.stop(grace_s=0.0))

    async def close(self) -> None:
        """End the process."""
        if self._host is not None:
            await self._host.stop()

    async def _end_if_silent(self, host: EngineHost) -> None:
        limit_s = self._settings.step_timeout_s
        while (left_s := limit_s - host.silent_s) > 0:  # noqa: ASYNC110  (silence tells nobody of itself)
            await asyncio.sleep(left_s)
        log.error("the engine process hangs: no step within %g s", limit_s)
        await host.stop(grace_s=0.0, reason=f"It hung: no step within {limit_s:g} s (`worker.step_timeout_s`).")
