"""The gateway as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import httpx
import orjson

from bitinglip.events.log import EventLog
from tests.integration.gateway.support import read_stream, submitted


async def start(folder: Path, nats_url: str, **settings: str) -> asyncio.subprocess.Process:
    own = {"BITINGLIP_DATA_DIR": str(folder), "BITINGLIP_NATS_URL": nats_url, "BITINGLIP_GATEWAY_PORT": "0"}
    command = (sys.executable, "-m", "bitinglip.gateway.main")
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(*command, env=os.environ | own | settings, stdout=pipe, stderr=pipe)


async def test_it_says_that_it_is_ready_and_ends_on_a_signal(nats_url: str, log: EventLog, tmp_path: Path) -> None:
    process = await start(tmp_path, nats_url)
    assert process.stdout is not None
    said = orjson.loads(await process.stdout.readline())
    assert (said["ready"], said["pid"]) == ("gateway", process.pid)
    async with httpx.AsyncClient(base_url=said["url"], timeout=20, trust_env=False) as client:
        task_id = await submitted(client)
        async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
            events = read_stream(response)
            assert (await anext(events)).type == "task.submitted"
            process.send_signal(signal.SIGTERM)
            assert [seen async for seen in events] == []
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, errors) == (0, b"")


async def test_it_says_why_it_does_not_start(tmp_path: Path) -> None:
    process = await start(tmp_path, "nats://127.0.0.1:1", BITINGLIP_NATS_CONNECT_TIMEOUT_S="0.5")
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 4
    assert errors.startswith(b"error: The event log cannot be reached")
    assert b"Traceback" not in errors


async def test_it_does_not_start_open_to_others(tmp_path: Path) -> None:
    process = await start(tmp_path, "nats://127.0.0.1:1", BITINGLIP_GATEWAY_HOST="0.0.0.0")
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 2
    assert b"BITINGLIP_GATEWAY_API_KEY" in errors
