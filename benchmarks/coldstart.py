"""The first task of a model whose files lie on this machine and have not been read yet.

A worker that has run another model gets a task for a Llama of 32 million parameters (128 MB), of which nobody has read
a byte since its files left the page cache; beside it a plain script loads a copy and makes one token, its imports done.
In turns, each time another copy.

    python -m benchmarks.coldstart [ROUNDS]
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import sys
from pathlib import Path

import orjson
import uvloop

from benchmarks import bare
from benchmarks.engines import plain, platform, run
from benchmarks.support import Figure, publish, scratch

ROUNDS = 6


async def measure(rounds: int = ROUNDS) -> list[Figure]:
    """Measure first tasks beside plain loads."""
    async with scratch() as folder:
        copies = await asyncio.to_thread(_copies, folder, rounds + 1)
        models = ",".join(f"bench/llama-{number}={copy}" for number, copy in enumerate(copies))
        ours, theirs = list[float](), list[float]()
        async with platform(folder / "cold", models) as url:
            await run(url, _one_token(0))
            for number, copy in enumerate(copies[1:], 1):
                # Two at once, for the first one's start is that of the script: imports, threads, allocator.
                theirs.append((await plain("cold", copies[0], copy))["ms"][1])
                await asyncio.to_thread(bare.forget, copy)
                ours.append(await run(url, _one_token(number)) * 1000)
    ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
    note = f"{_told(ours)} ms; load and first token alone: {_told(theirs)}"
    return [Figure("first task of a cold, local model, to a plain load and token", ratio, "", 1.2, False, note)]


def _copies(folder: Path, count: int) -> list[Path]:
    first = bare.make_llama(folder / "llama-0")
    return [first, *[Path(shutil.copytree(first, folder / f"llama-{number}")) for number in range(1, count)]]


def _one_token(number: int) -> bytes:
    params = {"prompt": "w1 w2 w3", "max_tokens": 1}
    return orjson.dumps({"kind": "text-generation", "model": f"bench/llama-{number}", "params": params})


def _told(times: list[float]) -> str:
    return ", ".join(f"{time_ms:.0f}" for time_ms in times)


if __name__ == "__main__":
    publish(uvloop.run(measure(*map(int, sys.argv[1:2]))))
