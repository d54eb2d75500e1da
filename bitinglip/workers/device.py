"""What a worker's devices are, have and do; none of it asks torch.

`python -m bitinglip.workers.device` lists the cards of this machine.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TypeVar

import orjson
import psutil

from bitinglip.errors import DeviceLost
from bitinglip.events.worker import DeviceReading
from bitinglip.workers import amdgpu, nvml
from bitinglip.workers.cards import CardLostError, Source
from bitinglip.workers.identity import Identity

log = logging.getLogger(__name__)

OPEN_S = 60.0
"""How long the drivers may take to find their cards: some wake each of them."""
ANSWER_S = 10.0
"""How long a card may take to answer before it counts as lost."""

_T = TypeVar("_T")


def identify(worker: str | None, node: str | None, device: str) -> Identity:
    """Return who this worker is; names that are not given are made from the host and the process."""
    node_id = _token(node or socket.gethostname())
    worker_id = _token(worker) if worker else f"{node_id}-{os.getpid()}"
    return Identity(worker_id, node_id, device)


# --- reading ----------------------------------------------------------------------------------------------------------


class Machine:
    """The CPU, and the main memory."""

    def read(self) -> DeviceReading:
        """Ask the system; the utilisation is that since the last call."""
        memory = psutil.virtual_memory()
        return DeviceReading(
            name="cpu",
            memory_total_bytes=memory.total,
            memory_used_bytes=memory.used,
            utilisation_percent=psutil.cpu_percent(),
        )


class Unread:
    """A device that nothing but torch can ask."""

    def __init__(self, name: str) -> None:
        self._name = name

    def read(self) -> DeviceReading:
        """Return its name."""
        return DeviceReading(name=self._name)


class Devices:
    """A worker's devices by their names: all of them are watched, and the first one is told."""

    def __init__(self, sources: Mapping[str, Source], limit_s: float = ANSWER_S) -> None:
        self._sources = sources
        self._limit_s = limit_s

    async def read(self) -> DeviceReading:
        """Return what the first device has and does.

        Raises:
            DeviceLost: one of them is lost, or does not answer.
        """
        readings = [await self._ask(device, source) for device, source in self._sources.items()]
        return readings[0]

    @property
    def tell_power(self) -> bool:
        """Whether any of them may tell what it draws."""
        return any(not isinstance(source, Machine | Unread) for source in self._sources.values())

    async def power_w(self) -> float | None:
        """Return what all of them draw together, in watts; none if one does not tell.

        Raises:
            DeviceLost: one of them is lost, or does not answer.
        """
        powers = [(await self._ask(device, source)).power_w for device, source in self._sources.items()]
        told = [power for power in powers if power is not None]
        return sum(told) if len(told) == len(powers) else None

    async def _ask(self, device: str, source: Source) -> DeviceReading:
        if isinstance(source, Machine | Unread):
            return source.read()
        try:
            return await asked(source.read, self._limit_s)
        except CardLostError as error:
            raise DeviceLost(device=device, reason=str(error)) from error
        except TimeoutError as error:
            raise DeviceLost(device=device, reason=f"it does not answer within {self._limit_s:g} s") from error


async def asked(ask: Callable[[], _T], limit_s: float) -> _T:
    """Ask in a thread of its own, which a sick driver may hold for good: nobody waits for it, not even at the end.

    Raises:
        TimeoutError: there is no answer in time.
    """
    answer: Future[_T] = Future()
    answer.set_running_or_notify_cancel()  # who waits may be cancelled; the thread cannot be

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # noqa: BLE001  (raised where it is awaited)
            answer.set_exception(error)

    Thread(target=run, name="device", daemon=True).start()
    async with asyncio.timeout(limit_s):
        return await asyncio.wrap_future(answer)


# --- finding ----------------------------------------------------------------------------------------------------------


async def open_devices(device: str) -> Devices:
    """Find the devices of `worker.device` and look at each once.

    Raises:
        DeviceLost: one of them is not there, or does not answer.
    """
    try:
        devices = Devices(await asked(lambda: find(device, os.environ, torch_build()), OPEN_S))
    except TimeoutError as error:
        raise DeviceLost(device=device, reason=f"its driver does not answer within {OPEN_S:g} s") from error
    await devices.read()
    return devices


def find(device: str, environ: Mapping[str, str], build: str | None, sysfs: Path = amdgpu.SYSFS) -> dict[str, Source]:
    """Return what can be asked about each of the devices that `worker.device` names.

    `build` says whose cards torch's `cuda:N` are (see `torch_build`).

    Raises:
        DeviceLost: there are such cards, but not this one.
    """
    names = [name.strip() for name in device.split(",")]
    return {name: _find(name, build, lambda: _drivers(build, environ, sysfs)) for name in names}


def find_cards(environ: Mapping[str, str], build: str | None, sysfs: Path = amdgpu.SYSFS) -> dict[str, Source]:
    """Return the cards that torch would see, by the names that it would give them; none without such a torch."""
    if build in {None, "cpu", "xpu"}:
        return {}
    cards = next((cards for cards in _drivers(build, environ, sysfs) if cards), ())
    return {f"cuda:{number}": card for number, card in enumerate(cards)}


def torch_build() -> str | None:
    """Return what torch is built for (`cuda`, `hip`, `xpu`, `cpu`), from its own file; none if there is no torch.

    To import it would take a second and more memory than all of the worker.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    told = Path(spec.origin).with_name("version.py").read_text("utf-8")
    built_for = re.search(r"^(cuda|hip|xpu)\b.*= '", told, re.MULTILINE)
    return built_for[1] if built_for else "cpu"


def _find(name: str, build: str | None, drivers: Callable[[], Iterator[Sequence[Source]]]) -> Source:
    if name == "auto":
        return Machine() if build in {"cpu", "xpu"} else next((cards[0] for cards in drivers() if cards), Machine())
    kind, _, number = name.partition(":")
    if kind != "cuda":
        return Machine() if kind == "cpu" else Unread(name)
    known = list(drivers())
    for cards in known:
        if int(number or 0) < len(cards):
            return cards[int(number or 0)]
    if known:
        raise DeviceLost(device=name, reason=f"its driver tells of {sum(map(len, known))} cards, and not of this one")
    log.warning("no driver tells of %s: heartbeats come without readings, and nobody notices if it is lost", name)
    return Unread(name)


def _drivers(build: str | None, environ: Mapping[str, str], sysfs: Path) -> Iterator[Sequence[Source]]:
    """Yield the cards of each maker whose driver is here, and whose cards torch could see."""
    if build != "hip" and (library := nvml.library()) is not None:
        cards = nvml.cards(library, environ)
        if cards is not None:
            yield cards
    if build != "cuda" and (found := amdgpu.cards(environ, sysfs)):
        yield found


def _token(name: str) -> str:
    """Make a name one subject token."""
    cleaned = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name.lower()).strip("-_")
    return cleaned[:63] or "node"


def main() -> None:
    """Print what each card of this machine has and does, as a line of JSON."""
    for cards in _drivers(None, os.environ, amdgpu.SYSFS):
        for card in cards:
            try:
                told = card.read().model_dump()
            except CardLostError as error:
                told = {"lost": str(error)}
            sys.stdout.write(orjson.dumps(told).decode() + "\n")


if __name__ == "__main__":
    main()
