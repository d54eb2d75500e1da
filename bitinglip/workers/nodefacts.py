"""What a node is, has and does: its devices, its memory, its disk; which workers it is to run."""

from __future__ import annotations

import asyncio
import itertools
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from bitinglip.events.node import NodeDevice
from bitinglip.settings import Settings
from bitinglip.workers.cards import CardLostError, Source
from bitinglip.workers.device import ANSWER_S, OPEN_S, asked, find_cards, torch_build

SILENT_ROUNDS = 6
"""Rounds for which a device is not asked again that did not answer: each time costs a thread."""


async def open_node_devices() -> NodeDevices:
    """Find the cards of this machine; none if the drivers do not answer."""
    try:
        cards = await asked(lambda: find_cards(os.environ, torch_build()), OPEN_S)
    except TimeoutError:
        cards = {}
    return NodeDevices(cards)


class NodeDevices:
    """The cards of this machine by their names."""

    def __init__(self, cards: Mapping[str, Source], limit_s: float = ANSWER_S) -> None:
        self._cards = cards
        self._limit_s = limit_s
        self._silent: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """What workers call them."""
        return list(self._cards)

    async def read(self) -> list[NodeDevice]:
        """Ask each of them."""
        return list(await asyncio.gather(*[self._ask(name, card) for name, card in self._cards.items()]))

    async def _ask(self, name: str, card: Source) -> NodeDevice:
        silent = f"it does not answer within {self._limit_s:g} s"
        if self._silent.get(name, 0) > 0:
            self._silent[name] -= 1
            return NodeDevice(device=name, lost=silent)
        try:
            reading = await asked(card.read, self._limit_s)
        except CardLostError as error:
            return NodeDevice(device=name, lost=str(error))
        except TimeoutError:
            self._silent[name] = SILENT_ROUNDS
            return NodeDevice(device=name, lost=silent)
        return NodeDevice(device=name, **reading.model_dump())


def plan(settings: Settings, cards: Sequence[str]) -> list[str]:
    """Return the device of each worker that the node is to run."""
    node, device = settings.node, settings.worker.device
    devices = list(node.devices) or ([device] if device != "auto" else list(cards)) or ["auto"]
    if node.workers is None:
        return [device for device in devices for _ in range(node.workers_per_device)]
    return list(itertools.islice(itertools.cycle(devices), node.workers))


def labels_of(entries: Sequence[str]) -> dict[str, str]:
    """Read labels as they are written in settings: `NAME=VALUE` or `NAME`."""
    return {name: value for name, _, value in (entry.partition("=") for entry in entries)}


def system() -> str:
    """Return what the machine runs."""
    return f"{platform.system()} {platform.release()}"


def disk_of(path: Path) -> tuple[int, int]:
    """Return the free and all bytes of the disk that has this path, or will have."""
    there = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    usage = psutil.disk_usage(str(there))
    return usage.free, usage.total
