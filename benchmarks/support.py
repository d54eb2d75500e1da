"""What the benchmarks share: a private nats-server, processes of ours, figures, and their machine."""

from __future__ import annotations

import asyncio
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from bitinglip.cli.natsserver import PrivateServer, find

MODULES = {"gateway": "bitinglip.gateway.main", "worker": "bitinglip.workers.main", "node": "bitinglip.workers.node"}


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure beside what it should be."""

    question: str
    measured: float
    unit: str
    bound: float
    at_least: bool
    note: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is as it should be."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    def row(self) -> str:
        """Write the figure as a row of a Markdown table."""
        sign = "≥" if self.at_least else "≤"
        return (
            f"| {self.question} | {self.measured:,.4g} {self.unit} | {sign} {self.bound:,g} | "
            f"{'yes' if self.met else '**no**'} | {self.note} |"
        )

    def json(self) -> dict[str, Any]:
        """Return the figure as JSON values."""
        return asdict(self) | {"met": self.met}


def machine() -> dict[str, Any]:
    """Return what the figures were taken on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


@asynccontextmanager
async def scratch() -> AsyncIterator[Path]:
    """Yield a folder that is gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="bitinglip-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[PrivateServer]:
    """Run a private nats-server with its data in the folder."""
    async with PrivateServer(find(), folder / "nats") as server:
        yield server


@asynccontextmanager
async def process(
    kind: str, nats_url: str, folder: Path, **settings: Any
) -> AsyncIterator[tuple[psutil.Process, dict[str, Any]]]:
    """Run a gateway or a worker; yields the process and what it says when it is ready."""
    env = {
        **os.environ,
        "BITINGLIP_NATS_URL": nats_url,
        "BITINGLIP_DATA_DIR": str(folder / kind),
        "BITINGLIP_LOG_LEVEL": "warning",
        **{name: str(value) for name, value in settings.items()},
    }
    (folder / kind).mkdir(exist_ok=True)
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", MODULES[kind]), env=env, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        ready = json.loads(await child.stdout.readline())
        yield psutil.Process(child.pid), ready
    finally:
        with suppress(ProcessLookupError):  # a benchmark may have killed it
            child.send_signal(signal.SIGTERM)
        await child.wait()


def worker(nats_url: str, folder: Path, **settings: Any) -> Any:
    """Run a worker that serves `echo`."""
    return process(
        "worker", nats_url, folder, BITINGLIP_WORKER_MODELS="echo", BITINGLIP_WORKER_MAX_BATCH=256, **settings
    )


def gateway(nats_url: str, folder: Path, **settings: Any) -> Any:
    """Run a gateway on a free port."""
    return process("gateway", nats_url, folder, BITINGLIP_GATEWAY_PORT=0, **settings)


def quantile(values: Sequence[float], part: float) -> float:
    """Return the value below which this part of the values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def publish(figures: Sequence[Figure]) -> None:
    """Print the figures as a table, and as a JSON line for machines."""
    sys.stdout.write("\n| question | measured | wanted | met | note |\n| --- | --- | --- | --- | --- |\n")
    sys.stdout.writelines(f"{figure.row()}\n" for figure in figures)
    sys.stdout.write(json.dumps({"machine": machine(), "figures": [figure.json() for figure in figures]}) + "\n")
