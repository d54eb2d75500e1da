"""AMD's cards, read from a tree of files such as the kernel lays out."""

from __future__ import annotations

from pathlib import Path

import pytest

from bitinglip.events.worker import DeviceReading
from bitinglip.workers import amdgpu
from bitinglip.workers.cards import CardLostError
from tests.support.sysfs import lay_out

GB = 2**30


def addresses(sysfs: Path, **environ: str) -> list[str | None]:
    return [card.read().name for card in amdgpu.cards(environ, sysfs)]


def test_a_card_of_amds_is_read(tmp_path: Path) -> None:
    lay_out(tmp_path, 0, "0000:03:00.0")
    [card] = amdgpu.cards({}, tmp_path)
    assert card.read() == DeviceReading(
        name="AMD 0x67df",
        memory_total_bytes=8 * GB,
        memory_used_bytes=GB // 2,
        utilisation_percent=37,
        temperature_c=54,
        power_w=87,
    )


def test_a_newer_card_tells_its_name_and_its_power_elsewhere(tmp_path: Path) -> None:
    newer: dict[str, str | None] = {
        "product_name": "Radeon PRO W7800",
        "hwmon/hwmon3/power1_average": None,
        "hwmon/hwmon3/power1_input": "21000000",
        "gpu_busy_percent": None,
    }
    lay_out(tmp_path, 0, "0000:03:00.0", **newer)
    [card] = amdgpu.cards({}, tmp_path)
    reading = card.read()
    assert (reading.name, reading.power_w, reading.utilisation_percent) == ("Radeon PRO W7800", 21, None)


def test_cards_are_counted_by_their_addresses_and_only_amds(tmp_path: Path) -> None:
    lay_out(tmp_path, 0, "0000:0a:00.0", product_name="last")
    lay_out(tmp_path, 1, "0000:03:00.0", product_name="first")
    lay_out(tmp_path, 2, "0000:01:00.0", vendor="0x10de")
    (tmp_path / "class" / "drm" / "card0-HDMI-A-1").mkdir()
    (tmp_path / "class" / "drm" / "renderD128").mkdir()
    assert addresses(tmp_path) == ["first", "last"]


def test_a_machine_without_cards_has_none(tmp_path: Path) -> None:
    assert amdgpu.cards({}, tmp_path) == []


@pytest.mark.parametrize(
    ("environ", "seen"),
    [
        ({"HIP_VISIBLE_DEVICES": "2,0"}, ["c", "a"]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, ["b"]),
        ({"HIP_VISIBLE_DEVICES": "0", "CUDA_VISIBLE_DEVICES": "1"}, ["a"]),
        ({"HIP_VISIBLE_DEVICES": ""}, ["a", "b", "c"]),
        ({"ROCR_VISIBLE_DEVICES": "1,2"}, ["b", "c"]),
        ({"ROCR_VISIBLE_DEVICES": "1,2", "HIP_VISIBLE_DEVICES": "1"}, ["c"]),
        ({"ROCR_VISIBLE_DEVICES": "GPU-02ab"}, ["b"]),
    ],
)
def test_rocms_variables_say_which(tmp_path: Path, environ: dict[str, str], seen: list[str]) -> None:
    for number, name in enumerate("abc", 1):
        lay_out(tmp_path, number, f"0000:0{number}:00.0", product_name=name, unique_id=f"0{number}abcdef01234567")
    assert addresses(tmp_path, **environ) == seen


def test_a_card_whose_folder_is_gone_is_lost(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 0, "0000:03:00.0")
    [card] = amdgpu.cards({}, tmp_path)
    (folder / "vendor").unlink()
    with pytest.raises(CardLostError, match=r"0000:03:00\.0"):
        card.read()


def test_a_card_that_has_fallen_off_the_bus_is_lost(tmp_path: Path) -> None:
    folder = lay_out(tmp_path, 0, "0000:03:00.0")
    [card] = amdgpu.cards({}, tmp_path)
    (folder / "config").write_bytes(b"\xff" * 64)
    with pytest.raises(CardLostError, match="off the bus"):
        card.read()
