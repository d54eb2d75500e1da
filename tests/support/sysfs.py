"""AMD's cards for tests, as the kernel lays them out in files."""

from __future__ import annotations

from pathlib import Path

RX_580 = {
    "vendor": "0x1002",
    "device": "0x67df",
    "gpu_busy_percent": "37",
    "mem_info_vram_total": "8589934592",
    "mem_info_vram_used": "536870912",
    "config": "\x02\x10\xdf\x67",
    "hwmon/hwmon3/temp1_input": "54000",
    "hwmon/hwmon3/power1_average": "87000000",
}


def lay_out(sysfs: Path, number: int, address: str, **changes: str | None) -> Path:
    """Lay out a card as the kernel does: a PCI device, and a link to it."""
    folder = sysfs / "devices" / "pci0000:00" / address
    for name, text in (RX_580 | changes).items():
        if text is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"{text}\n".encode("latin-1"))
    link = sysfs / "class" / "drm" / f"card{number}"
    link.mkdir(parents=True)
    (link / "device").symlink_to(folder)
    return folder
