"""NVIDIA's cards, as their driver's library (NVML) tells of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from bitinglip.events.worker import DeviceReading
from bitinglip.workers.cards import CardLostError, entries, visible

log = logging.getLogger(__name__)

ORDER = "PCI_BUS_ID"
"""The order of cards in which CUDA's numbers are those of NVML and nvidia-smi; an engine process asks for it."""


class NvidiaCard:
    """A card, or a slice of one, by its handle; a handle stays valid when other cards are lost."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        """`handle`: what NVML gave for the card, or the error that it raised instead."""
        self._nvml = nvml
        self._handle = handle
        lost = ("NOT_FOUND", "GPU_IS_LOST", "GPU_NOT_FOUND", "RESET_REQUIRED")
        self._lost = frozenset(getattr(nvml, f"NVML_ERROR_{name}") for name in lost)

    def read(self) -> DeviceReading:
        """Ask the driver.

        Raises:
            CardLostError: the card is lost.
        """
        nvml = self._nvml
        if isinstance(self._handle, nvml.NVMLError):
            raise CardLostError(str(self._handle))
        # Every card tells its memory, so an "unknown error" there is no quirk of one sensor.
        memory = self._told(nvml.nvmlDeviceGetMemoryInfo, lost=self._lost | {nvml.NVML_ERROR_UNKNOWN})
        use = self._told(nvml.nvmlDeviceGetUtilizationRates)
        power_mw = self._told(nvml.nvmlDeviceGetPowerUsage)
        return DeviceReading(
            name=self._told(nvml.nvmlDeviceGetName),
            memory_total_bytes=None if memory is None else memory.total,
            memory_used_bytes=None if memory is None else memory.used,
            utilisation_percent=None if use is None else use.gpu,
            temperature_c=self._told(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power_mw is None else power_mw / 1000,
        )

    def _told(self, ask: Callable[..., Any], *more: Any, lost: frozenset[int] | None = None) -> Any:
        """Return NVML's answer; none if this card or driver does not tell it."""
        try:
            return ask(self._handle, *more)
        except self._nvml.NVMLError as error:
            if error.value in (lost or self._lost):
                raise CardLostError(str(error)) from error
            log.debug("%s: %s", ask.__name__, error)
            return None


def library() -> Any | None:
    """Return NVML, ready to be asked; none where there is no driver of NVIDIA's, or no Python part of its library."""
    try:
        import pynvml
    except ModuleNotFoundError as error:
        log.debug("no NVML: %s", error)
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("no NVML: %s", error)
        return None
    return pynvml


def cards(nvml: Any, environ: Mapping[str, str]) -> list[NvidiaCard] | None:
    """Return the cards that torch will see, in its order; none if nobody can say which they are."""
    chosen = entries(environ.get("CUDA_VISIBLE_DEVICES"))
    order = environ.get("CUDA_DEVICE_ORDER", ORDER)
    if order != ORDER and not (chosen and all(entry.startswith(("GPU-", "MIG-")) for entry in chosen)):
        log.warning("no readings of the devices: CUDA_DEVICE_ORDER=%s numbers them in an order of its own", order)
        return None
    handles = _handles(nvml)
    seen = visible(list(handles), chosen)
    return [NvidiaCard(nvml, handles[uuid] if uuid in handles else _slice(nvml, uuid)) for uuid in seen]


def _handles(nvml: Any) -> dict[str, Any]:
    """Return each card's handle by its UUID, in the order of nvidia-smi; of a card that is lost, NVML's error."""
    found: dict[str, Any] = {}
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found[nvml.nvmlDeviceGetUUID(handle)] = handle
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_NO_PERMISSION:  # a card of another container: CUDA does not count it
                found[f"lost-{index}"] = error
    return found


def _slice(nvml: Any, uuid: str) -> Any:
    try:
        return nvml.nvmlDeviceGetHandleByUUID(uuid)
    except nvml.NVMLError as error:
        return error
