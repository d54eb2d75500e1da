"""AMD's cards, as the files of the kernel's own driver (amdgpu) tell of them: docs/decisions/0005 says why so."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from bitinglip.events.worker import DeviceReading
from bitinglip.workers.cards import CardLostError, entries, visible

SYSFS = Path("/sys")
VENDOR = "0x1002"
GONE = {errno.ENODEV, errno.ENXIO}
OFF_THE_BUS = b"\xff\xff"
"""What the bus answers for a card that is not there: a vendor's number that nobody has."""


class AmdCard:
    """A card, by the folder of its PCI device."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def id(self) -> str:
        """What ROCR_VISIBLE_DEVICES calls it, or its PCI address if it has no such name."""
        unique = self._text("unique_id")
        return f"GPU-{unique}" if unique else self._folder.name

    def read(self) -> DeviceReading:
        """Read the driver's files.

        Raises:
            CardLostError: the card is lost.
        """
        self._look()
        temperature_mc = self._number("hwmon/hwmon*/temp1_input")
        power_uw = self._number("hwmon/hwmon*/power1_average", "hwmon/hwmon*/power1_input")
        return DeviceReading(
            name=self._text("product_name") or f"AMD {self._text('device') or self._folder.name}",
            memory_total_bytes=self._number("mem_info_vram_total"),
            memory_used_bytes=self._number("mem_info_vram_used"),
            utilisation_percent=self._number("gpu_busy_percent"),
            temperature_c=None if temperature_mc is None else temperature_mc / 1000,
            power_w=None if power_uw is None else power_uw / 1_000_000,
        )

    def _look(self) -> None:
        """Tell whether the card is there: the driver may know what it had, but the bus answers now."""
        if not (self._folder / "vendor").exists():
            raise CardLostError(f"the kernel has no device {self._folder.name} any more")
        if (self._bytes("config") or b"")[: len(OFF_THE_BUS)] == OFF_THE_BUS:
            raise CardLostError(f"{self._folder.name} has fallen off the bus")

    def _number(self, *patterns: str) -> int | None:
        """Return what the first of these files says that is there and can be read."""
        for pattern in patterns:
            for path in sorted(self._folder.glob(pattern)):
                text = self._text(path.relative_to(self._folder).as_posix())
                if text and text.isdecimal():
                    return int(text)
        return None

    def _text(self, name: str) -> str | None:
        told = self._bytes(name)
        return None if told is None else told.decode(errors="replace").strip()

    def _bytes(self, name: str) -> bytes | None:
        """Return what a file says; none if there is no such file, or the card does not tell it."""
        try:
            return (self._folder / name).read_bytes()
        except OSError as error:
            if error.errno in GONE:
                raise CardLostError(f"{self._folder.name}: {error.strerror}") from error
            return None


def cards(environ: Mapping[str, str], sysfs: Path = SYSFS) -> list[AmdCard]:
    """Return the cards that torch will see, in its order: what ROCm is shown, and of that what HIP is shown."""
    found = {card.id: card for card in (AmdCard(folder) for folder in _folders(sysfs))}
    shown = visible(list(found), entries(environ.get("ROCR_VISIBLE_DEVICES")))
    chosen = environ.get("HIP_VISIBLE_DEVICES") or environ.get("CUDA_VISIBLE_DEVICES")  # HIP heeds both
    return [found[name] for name in visible(shown, entries(chosen or None)) if name in found]


def _folders(sysfs: Path) -> list[Path]:
    """Return the PCI devices that are cards of AMD's, by address."""
    links = [path for path in (sysfs / "class" / "drm").glob("card*") if re.fullmatch(r"card\d+", path.name)]
    devices = [(link / "device").resolve() for link in links]
    return sorted(device for device in devices if _is_amd(device / "vendor"))


def _is_amd(vendor: Path) -> bool:
    return vendor.is_file() and vendor.read_text("utf-8").strip() == VENDOR
