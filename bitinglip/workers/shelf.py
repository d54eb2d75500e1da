"""What a worker finds on its disk that it is to serve: looked at when it starts, and whenever models come or go."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any, cast

from bitinglip.errors import InvalidConfig, InvalidReference, ModelNotFound
from bitinglip.events.worker import DeviceReading
from bitinglip.models.store import StoredModel, find_models
from bitinglip.settings import Settings, Worker
from bitinglip.workers.engine import START_SERVER, ModelSpec
from bitinglip.workers.room import too_large

log = logging.getLogger("bitinglip.worker")


class Shelf:
    """The models of one worker: those that are named, or all that are there, as far as its device can hold them."""

    def __init__(self, settings: Settings, device: DeviceReading, *, later: bool) -> None:
        """`later`: a named model that is not there may still come; else it is an error."""
        self._settings = settings
        self._device = device
        self._later = later
        self._servers = settings_of(settings.worker.vllm)
        self._told: dict[str, str] = {}

    def first_look(self) -> list[StoredModel]:
        """Return what is to be served from the start.

        Raises:
            ModelNotFound: a named model is not there, and nobody can bring it.
            InvalidReference: a name cannot be read, or no engine takes the model.
            InvalidConfig: `worker.vllm` names a model that `worker.models` does not.
        """
        named = {name.partition("=")[0] for name in self._settings.worker.models}
        served = named or ({model.reference for model in self._find(())} if self._servers else set[str]())
        if strangers := self._servers.keys() - served:
            raise InvalidConfig(
                problem=f"worker.vllm names {min(strangers)}, which this worker does not serve; see worker.models"
            )
        return self._look(strict=True)

    def look(self) -> list[StoredModel]:
        """Return what is to be served now; what cannot be read is left out, and the log says why."""
        return self._look(strict=False)

    def spec(self, model: StoredModel) -> ModelSpec:
        """Return a model as the engine must load it."""
        return _spec(model, self._settings.worker)

    def _look(self, *, strict: bool) -> list[StoredModel]:
        named = self._settings.worker.models
        found = [model for name in named for model in self._named(name, strict=strict)] if named else self._find(())
        return [model for model in found if self._may_hold(model)]

    def _named(self, name: str, *, strict: bool) -> list[StoredModel]:
        may_come = self._later and "=" not in name
        try:
            return self._find([name])
        except ModelNotFound as error:
            if strict and not may_come:
                raise
            self._tell(name, f"it is not here yet ({error})")
        except InvalidReference as error:
            if strict:
                raise
            self._tell(name, str(error))
        return []

    def _find(self, names: Sequence[str]) -> list[StoredModel]:
        elsewhere = {reference for reference, address in self._servers.items() if address}
        return find_models(names, self._settings.models_dir, self._settings.models.hub_cache, elsewhere)

    def _may_hold(self, model: StoredModel) -> bool:
        against = too_large(self.spec(model), self._settings.worker, self._device)
        if against is not None:
            self._tell(model.reference, against)
        return against is None

    def _tell(self, name: str, why: str) -> None:
        """Log why a model is not served, once as long as the reason is the same."""
        if self._told.get(name) != why:
            self._told[name] = why
            log.warning("%s is not served: %s", name, why)


def settings_of(entries: Iterable[str], default: str = "") -> dict[str, str]:
    """Read what is set for single models, as `REFERENCE=VALUE` or, for the default, `REFERENCE`."""
    pairs = [entry.partition("=") for entry in entries]
    return {reference: value or default for reference, _, value in pairs}


def _spec(model: StoredModel, settings: Worker) -> ModelSpec:
    """What is set for a model's name holds for each of its revisions that has no setting of its own."""
    names = (model.reference, model.reference.partition("@")[0])
    return ModelSpec(
        kind=model.kind,
        reference=model.reference,
        revision=model.revision,
        path=str(model.path) if model.path else None,
        written_ns=model.written_ns,
        parts={part: str(folder) for part, folder in model.parts.items()},
        trust_pickles=any(name in settings.trust_pickles for name in names),
        trust_code=any(name in settings.trust_code for name in names),
        quantize=cast("Any", _first(settings_of(settings.quantize), names)),
        vllm=_first(settings_of(settings.vllm, START_SERVER), names),
    )


def _first(values: dict[str, str], names: Iterable[str]) -> str | None:
    return next((values[name] for name in names if name in values), None)
