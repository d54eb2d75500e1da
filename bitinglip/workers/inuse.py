"""What a worker has in memory stays on the disk: from before it is loaded until it is dropped."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

from bitinglip.models.snapshots import in_use, touch
from bitinglip.workers.engine import ModelSpec

log = logging.getLogger(__name__)

SNAPSHOTS, REPO = "snapshots", "models--"


class InUse:
    """The locks on the revisions that one worker has in memory, by the keys of its models."""

    def __init__(self) -> None:
        self._held: dict[str, ExitStack] = {}
        self._places: dict[str, list[tuple[Path, str, str]]] = {}

    async def begin(self, model: ModelSpec) -> None:
        """Take a model's locks, which waits for one who is just dropping it, and note its use."""
        if model.key not in self._held:
            places = list(_places(model))
            self._held[model.key] = await asyncio.to_thread(_take, places)
            self._places[model.key] = places
        _touch(self._places[model.key])

    def keep(self, keys: Iterable[str]) -> None:
        """Let go of all models but these, and note that they were used until now."""
        kept = set(keys)
        for key in [key for key in self._held if key not in kept]:
            _touch(self._places.pop(key))
            self._held.pop(key).close()


def _take(places: list[tuple[Path, str, str]]) -> ExitStack:
    held = ExitStack()
    for place in places:
        held.enter_context(in_use(*place))
    return held


def _touch(places: list[tuple[Path, str, str]]) -> None:
    for place in places:
        touch(*place)


def _places(model: ModelSpec) -> Iterator[tuple[Path, str, str]]:
    """Yield the cache, name and revision of each snapshot of a hub's cache that a model is loaded from."""
    for folder in map(Path, filter(None, [model.path, *model.parts.values()])):
        repo = folder.parent.parent
        if folder.parent.name == SNAPSHOTS and repo.name.startswith(REPO):
            yield repo.parent, repo.name.removeprefix(REPO).replace("--", "/", 1), folder.name
