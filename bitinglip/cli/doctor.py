"""`bitinglip doctor`: looks at what is needed, and says what to do about what is missing."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import orjson
import typer

from bitinglip.cli import natsserver, render
from bitinglip.cli.client import Client, ProblemAnswer
from bitinglip.cli.options import Json, Url
from bitinglip.errors import BitingLipError
from bitinglip.settings import Settings, load

LOW_DISK_BYTES = 5 * 2**30
DEVICES_MODULE = "bitinglip.workers.device"
"""Run as a process of its own, as a worker is: it asks the drivers, and a sick one may keep it waiting."""
DRIVERS_S = 60.0
MARKS = {"ok": "ok  ", "warn": "warn", "fail": "FAIL"}


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    remedy: str = ""


def doctor(url: Url = None, as_json: Json = False) -> None:
    """Check this machine and its gateway. Ends with 1 if something that is needed is missing."""
    settings, _ = load()
    checks: list[Callable[[Settings], Finding]] = [_python, _nats_server, _data_dir, _disk, _engines, _devices, _models]
    findings = [check(settings) for check in checks] + [_gateway(Client(settings, url))]
    for finding in findings:
        if as_json:
            render.json(asdict(finding))
            continue
        remedy = f"\n      → {finding.remedy}" if finding.remedy else ""
        render.line(f"{MARKS[finding.verdict]}  {finding.check}: {finding.found}{remedy}")
    if any(finding.verdict == "fail" for finding in findings):
        raise typer.Exit(1)


def _python(_: Settings) -> Finding:
    return Finding("python", "ok", ".".join(map(str, sys.version_info[:3])))


def _nats_server(settings: Settings) -> Finding:
    if settings.nats.url:
        return Finding("nats-server", "ok", f"an outside one is set: {settings.nats.url}")
    try:
        binary = natsserver.find(settings.nats.server)
    except BitingLipError as error:
        return Finding("nats-server", "fail", str(error), error.remedy)
    version = natsserver.version_of(binary) or ()
    return Finding("nats-server", "ok", f"{binary}, version {'.'.join(map(str, version))}")


def _data_dir(settings: Settings) -> Finding:
    folder = settings.data_dir
    nearest = next(parent for parent in [folder, *folder.parents] if parent.exists())
    if not os.access(nearest, os.W_OK):
        return Finding(
            "data directory", "fail", f"{folder} cannot be written", "Set BITINGLIP_DATA_DIR to another one."
        )
    return Finding("data directory", "ok", f"{folder}" + ("" if folder.exists() else " (will be made)"))


def _disk(settings: Settings) -> Finding:
    nearest = next(parent for parent in [settings.data_dir, *settings.data_dir.parents] if parent.exists())
    free = shutil.disk_usage(nearest).free
    told = f"{free / 2**30:.1f} GiB free"
    if free < LOW_DISK_BYTES:
        return Finding("disk", "warn", told, "The log and the models need room: free some, or move BITINGLIP_DATA_DIR.")
    return Finding("disk", "ok", told)


def _engines(_: Settings) -> Finding:
    missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        remedy = "pip install 'bitinglip[worker]' on the machines that run models (a gateway needs none)."
        return Finding("engines", "warn", f"{' and '.join(missing)} not installed: only `echo` runs here", remedy)
    return Finding("engines", "ok", "torch and transformers are installed")


def _devices(_: Settings) -> Finding:
    remedy = "Look at `nvidia-smi` or `rocm-smi`, `dmesg`, the card's riser and power cables."
    try:
        answer = subprocess.run(
            [sys.executable, "-m", DEVICES_MODULE], capture_output=True, timeout=DRIVERS_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("devices", "fail", f"the drivers do not answer within {DRIVERS_S:g} s", remedy)
    if answer.returncode:
        return Finding("devices", "fail", answer.stderr.decode(errors="replace").strip().rpartition("\n")[2], remedy)
    cards = [orjson.loads(line) for line in answer.stdout.splitlines()]
    verdict = "fail" if any("lost" in card for card in cards) else "ok"
    found = ", ".join(map(_card, cards)) or "no accelerator: CPU"
    return Finding("devices", verdict, found, remedy if verdict == "fail" else "")


def _card(card: dict[str, Any]) -> str:
    if "lost" in card:
        return f"a lost card ({card['lost']})"
    memory = card["memory_total_bytes"]
    return card["name"] + (f" ({memory / 2**30:.1f} GiB)" if memory else "")


def _models(settings: Settings) -> Finding:
    folder = settings.models_dir
    found = sorted({*folder.glob("*/config.json"), *folder.glob("*/*/config.json")})
    names = ", ".join(path.parent.relative_to(folder).as_posix() for path in found)
    if not found:
        return Finding(
            "models", "warn", f"none in {folder}", "Put model folders there (ORG/NAME), or name them by --model."
        )
    return Finding("models", "ok", names)


def _gateway(gateway: Client) -> Finding:
    try:
        ready = gateway.get("/readyz")
    except ProblemAnswer as problem:
        return Finding("gateway", "fail", f"{gateway.url} is not ready: {problem}", problem.remedy)
    except BitingLipError as error:
        return Finding("gateway", "warn", str(error), error.remedy)
    if ready["status"] == "degraded":
        told = "; ".join(ready[part] for part in ("log", "clock") if ready.get(part, "connected") != "connected")
        return Finding("gateway", "warn", f"{gateway.url} is ready, but {told}", "See docs/operations.md.")
    return Finding("gateway", "ok", f"{gateway.url} is ready")
