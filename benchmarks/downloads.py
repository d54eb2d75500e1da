"""How fast is a fetch, which checks its files, beside `snapshot_download`: `python -m benchmarks.downloads`.

Both get the same files from the same server over loopback, each in a process of its own, in turns: the first of a round
is the second of the next. The server is the tests' hub, a process beside them, so the three share the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.support import Figure, publish
from bitinglip.events.model import ModelFile
from bitinglip.models.protocol import FetchJob
from tests.support.hubrepos import commit_name, files_of

NAME = "bench/five"
ROUNDS, FILES, FILE_BYTES = 7, 5, 300_000_000
PIECE_BYTES = 10_000_000
BARE = """
import json, sys, time
from huggingface_hub import snapshot_download
began = time.monotonic()
snapshot_download(sys.argv[1], endpoint=sys.argv[2], cache_dir=sys.argv[3])
print(json.dumps({"took_s": time.monotonic() - began}))
"""


async def measure(rounds: int = ROUNDS, parent: Path | None = None) -> list[Figure]:
    """Download in turns, and compare."""
    folder = Path(tempfile.mkdtemp(prefix="bitinglip-bench-", dir=parent))
    try:
        source = make(folder / "source")
        async with hub(source) as endpoint:
            runs = [await run_round(number, endpoint, source, folder) for number in range(-1, rounds)][1:]
    finally:
        shutil.rmtree(folder)
    sys.stdout.write(json.dumps({"runs": runs}) + "\n")
    words = {"process_s": "the whole process", "took_s": "the download alone", "cpu_s": "processor time"}
    return [compared(runs, which, each) for which, each in words.items()]


def make(folder: Path) -> Path:
    """Write files that nothing can compress."""
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}')
    for number in range(FILES):
        with (folder / f"model-{number}.safetensors").open("wb") as stream:
            for _ in range(FILE_BYTES // PIECE_BYTES):
                stream.write(os.urandom(PIECE_BYTES))
    return folder


@asynccontextmanager
async def hub(source: Path) -> AsyncIterator[str]:
    """Serve the files in a process of its own."""
    command = (sys.executable, "-m", "tests.support.modelhub", f"{NAME}={source}")
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert child.stdout is not None
    try:
        yield json.loads(await child.stdout.readline())["endpoint"]
    finally:
        child.kill()
        await child.wait()


async def run_round(number: int, endpoint: str, source: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Let both download once; round -1 warms the machine up."""
    job = fetch_job(endpoint, source, folder / "cache")
    commands = {
        "bare": ((sys.executable, "-c", BARE, NAME, endpoint, str(folder / "cache")), b""),
        "ours": ((sys.executable, "-m", "bitinglip.models.fetch"), job.model_dump_json().encode() + b"\n"),
    }
    found: dict[str, dict[str, float]] = {}
    for who in sorted(commands, reverse=bool(number % 2)):
        found[who] = await timed(*commands[who])
        shutil.rmtree(folder / "cache")
    sys.stdout.write(f"{number}: {json.dumps(found)}\n")
    sys.stdout.flush()
    return found


def fetch_job(endpoint: str, source: Path, cache: Path) -> FetchJob:
    """Return the job as a description of the model gives it."""
    served = files_of(source)
    files = tuple(
        ModelFile(path=path, size_bytes=file.size, sha256=file.sha256, git_sha1=None if file.sha256 else file.git_sha1)
        for path, file in served.items()
    )
    commit = commit_name(NAME, "main", served)
    return FetchJob(reference=NAME, revision=commit, cache_dir=cache, endpoint=endpoint, files=files)


async def timed(command: tuple[str, ...], told: bytes) -> dict[str, float]:
    """Run a process; returns how long it took, and how long it says that its download did."""
    began, before = time.monotonic(), cpu_s()
    child = await asyncio.create_subprocess_exec(
        *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    output, _ = await child.communicate(told)
    whole = time.monotonic() - began
    last: dict[str, Any] = json.loads(output.splitlines()[-1])
    took = last.get("stored", last)["took_s"]
    return {"process_s": round(whole, 3), "took_s": round(took, 3), "cpu_s": round(cpu_s() - before, 3)}


def cpu_s() -> float:
    """Return the processor time of the processes that have ended; it tells the same on a machine that others use."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def compared(runs: list[dict[str, dict[str, float]]], which: str, words: str) -> Figure:
    """Return the median of the rounds' ratios."""
    ratios = [run["bare"][which] / run["ours"][which] for run in runs]
    ours = statistics.median(run["ours"][which] for run in runs)
    note = f"median of {len(runs)} rounds, {min(ratios):.2f} to {max(ratios):.2f}; ours {ours:.2f} s"
    return Figure(f"a checked fetch beside snapshot_download, {words}", statistics.median(ratios), "x", 0.9, True, note)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, help="where the files are written; none: the system's temporary folder")
    asked = parser.parse_args()
    publish(uvloop.run(measure(asked.rounds, asked.folder)))
