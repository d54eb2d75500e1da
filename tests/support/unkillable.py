"""Makes an engine process that even SIGKILL does not end, as one that waits inside a driver: a tracer holds it.

The tracer is the grandparent (a system may forbid others to trace), and does not let the dead process go; its parent,
the `EngineHost`, then hears of no end. Prints what became of it as one line of JSON.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import subprocess
import sys
import time

from bitinglip.errors import EngineDied
from bitinglip.settings import Worker
from bitinglip.workers import enginehost
from bitinglip.workers.engine import JobSpec, ModelSpec
from bitinglip.workers.enginehost import EngineHost

PTRACE_SEIZE = 0x4206


async def parent(kill_s: float) -> None:
    """Start an engine process, have it held, and end it while it runs something."""
    enginehost.KILL_S = kill_s
    host = EngineHost(Worker(), "cpu")
    await host.start()
    model = ModelSpec(kind="echo", reference="echo")
    await host.load(model)
    print(host.pid, flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    messages = host.run(model.key, [JobSpec(task_id="t", params={"steps": 10_000, "step_ms": 20})])
    await anext(messages)
    started = time.monotonic()
    await host.stop(grace_s=0)
    took_s, problem = time.monotonic() - started, None
    try:
        async for _ in messages:
            pass
    except EngineDied as died:
        problem = died.problem
    print(json.dumps({"took_s": took_s, "alive": host.alive, "problem": problem}), flush=True)


def tracer() -> None:
    """Run the parent, and hold its engine process until the parent has ended."""
    command = [sys.executable, "-m", "tests.support.unkillable", "parent"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    libc = ctypes.CDLL(None, use_errno=True)
    for thread in os.listdir(f"/proc/{pid}/task"):
        assert libc.ptrace(PTRACE_SEIZE, int(thread), None, None) == 0, os.strerror(ctypes.get_errno())
    process.stdin.write("held\n")
    process.stdin.flush()
    print(process.stdout.readline(), end="", flush=True)
    sys.exit(process.wait())


if __name__ == "__main__":
    asyncio.run(parent(1.0)) if "parent" in sys.argv else tracer()
