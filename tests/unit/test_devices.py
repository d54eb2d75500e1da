"""Which devices are found, and what is read of them: NVIDIA's by a stand-in for their driver, the CPU's real."""

from __future__ import annotations

import importlib.util
import inspect
import os
import threading
from pathlib import Path
from typing import Any

import pynvml
import pytest

from bitinglip.errors import DeviceLost
from bitinglip.events.worker import DeviceReading
from bitinglip.workers import device, nvml
from bitinglip.workers.cards import CardLostError, entries, visible
from bitinglip.workers.device import Devices, Machine, Unread, find, open_devices, torch_build
from tests.support.nvml import FOLDER, Rig
from tests.support.sysfs import lay_out

GB = 2**30


# --- NVIDIA -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stand-in for the driver's library, also for who imports `pynvml`."""
    spec = importlib.util.spec_from_file_location("pynvml", FOLDER / "pynvml.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", module)
    return module


@pytest.fixture
def rig(standin: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Three cards."""
    rig = Rig(tmp_path / "nvml.json", 3)
    monkeypatch.setenv("STANDIN_NVML", rig.env["STANDIN_NVML"])
    return rig


def names(standin: Any, **environ: str) -> list[str | None]:
    found = nvml.cards(standin, environ)
    assert found is not None
    return [card.read().name for card in found]


def test_the_stand_in_is_like_the_real_library(standin: Any) -> None:
    ours = {name: value for name, value in vars(standin).items() if name.startswith(("nvml", "NVML_"))}
    for name, value in ours.items():
        real = getattr(pynvml, name)
        if isinstance(value, int):
            assert value == real, name
        else:
            real = inspect.unwrap(real)
            assert list(inspect.signature(value).parameters) == [
                parameter for parameter in inspect.signature(real).parameters if parameter != "version"
            ], name


def test_the_real_library_is_asked_without_harm() -> None:
    library = nvml.library()
    assert library is None or library is pynvml


def test_a_card_of_nvidias_is_read(standin: Any, rig: Rig) -> None:
    [card, *_] = nvml.cards(standin, {}) or []
    assert card.read() == DeviceReading(
        name="NVIDIA GeForce RTX 3070 #0",
        memory_total_bytes=8 * GB,
        memory_used_bytes=3 * GB,
        utilisation_percent=87,
        temperature_c=64,
        power_w=181.5,
    )


def test_what_a_card_does_not_tell_is_none(standin: Any, rig: Rig) -> None:
    rig.tell(0, power_mw=-pynvml.NVML_ERROR_NOT_SUPPORTED, temperature=-pynvml.NVML_ERROR_UNKNOWN)
    [card, *_] = nvml.cards(standin, {}) or []
    reading = card.read()
    assert (reading.power_w, reading.temperature_c, reading.utilisation_percent) == (None, None, 87)


@pytest.mark.parametrize(
    "told",
    [
        {"error": pynvml.NVML_ERROR_GPU_IS_LOST},
        {"error": pynvml.NVML_ERROR_UNKNOWN},
        {"error": pynvml.NVML_ERROR_NOT_FOUND},
        {"error": pynvml.NVML_ERROR_RESET_REQUIRED},
        {"power_mw": -pynvml.NVML_ERROR_GPU_IS_LOST},
    ],
)
def test_a_card_that_is_lost_says_so_and_its_neighbours_live(standin: Any, rig: Rig, told: dict[str, int]) -> None:
    first, second, _ = nvml.cards(standin, {}) or []
    rig.tell(1, **told)
    with pytest.raises(CardLostError):
        second.read()
    assert first.read().name


def test_a_card_that_is_lost_at_the_start_keeps_its_number(standin: Any, rig: Rig) -> None:
    rig.tell(1, error=pynvml.NVML_ERROR_GPU_IS_LOST)
    first, second, third = nvml.cards(standin, {}) or []
    assert (first.read().name, third.read().name) == ("NVIDIA GeForce RTX 3070 #0", "NVIDIA GeForce RTX 3070 #2")
    with pytest.raises(CardLostError, match="GPU is lost"):
        second.read()


def test_a_card_of_another_container_is_not_counted(standin: Any, rig: Rig) -> None:
    rig.tell(0, error=pynvml.NVML_ERROR_NO_PERMISSION)
    assert names(standin) == ["NVIDIA GeForce RTX 3070 #1", "NVIDIA GeForce RTX 3070 #2"]


@pytest.mark.parametrize(
    ("chosen", "seen"),
    [
        ("2,0", [2, 0]),
        ("1", [1]),
        ("", []),
        ("-1", []),
        ("0,7,1", [0]),
        ("GPU-1f3c1a2e-0000-4000-8000-000000000000", [1]),
        ("GPU-2f, GPU-0f", [2, 0]),
        ("GPU-ff", []),
    ],
)
def test_cuda_visible_devices_says_which(standin: Any, rig: Rig, chosen: str, seen: list[int]) -> None:
    assert names(standin, CUDA_VISIBLE_DEVICES=chosen) == [f"NVIDIA GeForce RTX 3070 #{n}" for n in seen]


def test_a_slice_of_a_card_is_found_by_its_id(standin: Any, rig: Rig) -> None:
    rig.tell(2, uuid="MIG-5c", memory=[GB, 0])
    assert names(standin, CUDA_VISIBLE_DEVICES="MIG-5c") == ["NVIDIA GeForce RTX 3070 #2"]
    [unknown] = nvml.cards(standin, {"CUDA_VISIBLE_DEVICES": "MIG-6d"}) or []
    with pytest.raises(CardLostError, match="Not Found"):
        unknown.read()


def test_cards_in_an_order_of_cudas_own_are_not_guessed(standin: Any, rig: Rig) -> None:
    assert nvml.cards(standin, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}) is None
    assert nvml.cards(standin, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "1"}) is None
    by_id = {"CUDA_DEVICE_ORDER": "FASTEST_FIRST", "CUDA_VISIBLE_DEVICES": "GPU-1f"}
    assert names(standin, **by_id) == ["NVIDIA GeForce RTX 3070 #1"]


# --- which device -----------------------------------------------------------------------------------------------------


def test_entries_are_told_apart_from_nothing() -> None:
    assert entries(None) is None
    assert entries("0, GPU-1") == ["0", "GPU-1"]
    assert visible(["a", "b"], None) == ["a", "b"]


def found(name: str, sysfs: Path, build: str | None = "cuda", **environ: str) -> str | None:
    [source] = find(name, environ, build, sysfs).values()
    return source.read().name


def test_a_name_finds_its_card(standin: Any, rig: Rig, tmp_path: Path) -> None:
    lay_out(tmp_path, 0, "0000:03:00.0", product_name="amd")
    assert found("auto", tmp_path) == found("cuda", tmp_path) == found("cuda:0", tmp_path)
    assert found("cuda:1", tmp_path) == "NVIDIA GeForce RTX 3070 #1"
    assert found("cuda:1", tmp_path, CUDA_VISIBLE_DEVICES="0,2") == "NVIDIA GeForce RTX 3070 #2"
    assert found("auto", tmp_path, "hip") == found("cuda:0", tmp_path, "hip") == "amd"
    assert found("auto", tmp_path, None) == "NVIDIA GeForce RTX 3070 #0"
    assert found("auto", tmp_path, "cpu") == "cpu"


def test_without_nvidias_driver_there_are_amds_cards_or_the_cpu(standin: Any, rig: Rig, tmp_path: Path) -> None:
    Path(os.environ["STANDIN_NVML"]).write_text("null", "utf-8")
    assert found("auto", tmp_path, None) == "cpu"
    lay_out(tmp_path, 0, "0000:03:00.0", product_name="amd")
    assert found("auto", tmp_path, None) == found("cuda:0", tmp_path, None) == "amd"


def test_several_devices_are_found_each(standin: Any, rig: Rig, tmp_path: Path) -> None:
    assert list(find("cuda:0, cuda:2", {}, "cuda", tmp_path)) == ["cuda:0", "cuda:2"]


def test_a_number_beyond_the_cards_is_lost(standin: Any, rig: Rig, tmp_path: Path) -> None:
    with pytest.raises(DeviceLost, match="cuda:3 is lost: its driver tells of 3 cards"):
        found("cuda:3", tmp_path)


def test_a_card_that_no_driver_tells_of_has_but_its_name(standin: Any, rig: Rig, tmp_path: Path) -> None:
    Path(os.environ["STANDIN_NVML"]).write_text("null", "utf-8")
    for name in ("cuda:0", "xpu:0", "mps"):
        assert found(name, tmp_path) == name


def test_what_torch_is_built_for_is_read_and_not_imported() -> None:
    assert torch_build() in {"cuda", "hip", "xpu", "cpu"}


# --- asking -----------------------------------------------------------------------------------------------------------


async def test_the_cpu_is_read() -> None:
    reading = await (await open_devices("cpu")).read()
    assert reading.memory_total_bytes is not None
    assert reading.memory_used_bytes is not None
    assert reading.utilisation_percent is not None
    assert 0 < reading.memory_used_bytes < reading.memory_total_bytes
    assert 0 <= reading.utilisation_percent <= 100
    assert (reading.name, reading.temperature_c, reading.power_w) == ("cpu", None, None)


async def test_the_first_device_is_told_and_each_is_watched(standin: Any, rig: Rig, tmp_path: Path) -> None:
    devices = Devices(find("cuda:0,cuda:1", {}, "cuda", tmp_path))
    assert (await devices.read()).name == "NVIDIA GeForce RTX 3070 #0"
    rig.tell(1, error=pynvml.NVML_ERROR_GPU_IS_LOST)
    with pytest.raises(DeviceLost, match=r"The device cuda:1 is lost: GPU is lost\."):
        await devices.read()


async def test_their_powers_are_added_up_if_all_of_them_tell(standin: Any, rig: Rig, tmp_path: Path) -> None:
    devices = Devices(find("cuda:0,cuda:1", {}, "cuda", tmp_path))
    assert devices.tell_power
    assert await devices.power_w() == 2 * 181.5
    rig.tell(1, power_mw=-pynvml.NVML_ERROR_NOT_SUPPORTED)
    assert await devices.power_w() is None
    assert not Devices(find("cpu", {}, "cuda")).tell_power


class Stuck:
    """A card whose driver does not come back until it is let go."""

    def __init__(self) -> None:
        self.free = threading.Event()

    def read(self) -> DeviceReading:
        self.free.wait()
        return DeviceReading()


async def test_a_card_that_does_not_answer_is_lost() -> None:
    card = Stuck()
    with pytest.raises(DeviceLost, match=r"cuda:0 is lost: it does not answer within 0.05 s"):
        await Devices({"cuda:0": card}, limit_s=0.05).read()
    card.free.set()


def test_what_needs_no_driver_is_asked_on_the_spot() -> None:
    assert isinstance(find("cpu", {}, "cuda")["cpu"], Machine)
    assert isinstance(find("xpu:0", {}, "cuda")["xpu:0"], Unread)


def test_the_cards_of_a_machine_are_listed(standin: Any, rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.tell(1, error=pynvml.NVML_ERROR_GPU_IS_LOST)
    device.main()
    lines = capsys.readouterr().out.splitlines()
    assert '"memory_total_bytes":8589934592' in lines[0]
    assert lines[1] == '{"lost":"GPU is lost"}'
