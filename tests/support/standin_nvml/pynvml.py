"""Stands in for NVIDIA's driver, where there is none: the functions of the real `pynvml` that we call.

What it tells is read from the JSON file that STANDIN_NVML names, anew at each call, so that a test can take a card
away while a worker runs: a list of cards, each with what it tells, and `error` (what every question about it raises) or
`silent` (it never answers).
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_ERROR_NOT_SUPPORTED = 3
NVML_ERROR_NO_PERMISSION = 4
NVML_ERROR_NOT_FOUND = 6
NVML_ERROR_DRIVER_NOT_LOADED = 9
NVML_ERROR_GPU_IS_LOST = 15
NVML_ERROR_RESET_REQUIRED = 16
NVML_ERROR_GPU_NOT_FOUND = 28
NVML_ERROR_UNKNOWN = 999
NVML_TEMPERATURE_GPU = 0

TEXTS = {
    NVML_ERROR_NOT_SUPPORTED: "Not Supported",
    NVML_ERROR_NO_PERMISSION: "Insufficient Permissions",
    NVML_ERROR_NOT_FOUND: "Not Found",
    NVML_ERROR_DRIVER_NOT_LOADED: "Driver Not Loaded",
    NVML_ERROR_GPU_IS_LOST: "GPU is lost",
    NVML_ERROR_UNKNOWN: "Unknown Error",
}


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return TEXTS.get(self.value, f"Error {self.value}")


def nvmlInit() -> None:
    if _cards() is None:
        raise NVMLError(NVML_ERROR_DRIVER_NOT_LOADED)


def nvmlDeviceGetCount() -> int:
    return len(_cards() or [])


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    _card(index)
    return index


def nvmlDeviceGetHandleByUUID(uuid: str) -> int:
    for index, card in enumerate(_cards() or []):
        if card["uuid"] == uuid:
            return index
    raise NVMLError(NVML_ERROR_NOT_FOUND)


def nvmlDeviceGetUUID(handle: int) -> str:
    return _told(handle, "uuid")


def nvmlDeviceGetName(handle: int) -> str:
    return _told(handle, "name")


def nvmlDeviceGetMemoryInfo(handle: int) -> SimpleNamespace:
    total, used = _told(handle, "memory")
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetUtilizationRates(handle: int) -> SimpleNamespace:
    return SimpleNamespace(gpu=_told(handle, "utilisation"), memory=0)


def nvmlDeviceGetTemperature(handle: int, sensor: int) -> int:
    return _told(handle, "temperature")


def nvmlDeviceGetPowerUsage(handle: int) -> int:
    return _told(handle, "power_mw")


def _cards() -> list[dict[str, Any]] | None:
    return json.loads(Path(os.environ["STANDIN_NVML"]).read_text("utf-8"))


def _card(index: int) -> dict[str, Any]:
    card = (_cards() or [])[index]
    if card.get("silent"):
        threading.Event().wait()
    if card.get("error"):
        raise NVMLError(card["error"])
    return card


def _told(index: int, what: str) -> Any:
    """Return what a card tells; a number below 0 is the error that this question raises."""
    told = _card(index).get(what, -NVML_ERROR_NOT_SUPPORTED)
    if isinstance(told, int) and told < 0:
        raise NVMLError(-told)
    return told
