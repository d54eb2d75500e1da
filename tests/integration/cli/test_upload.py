"""`bitinglip model upload`: real files, a real gateway, connections that break."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.models import snapshots
from bitinglip.models.layout import place_of
from tests.integration.cli.test_cli import bitinglip
from tests.integration.gateway.modelfacts import node, store
from tests.support.cluster import Cluster, Process
from tests.support.proxy import Proxy
from tests.support.uploading import NAME, begin, make_folder, send

WEIGHTS = "model.safetensors"


@pytest.fixture
async def gateway(cluster: Cluster, log: EventLog) -> Process:
    """A gateway that knows a node."""
    await node(log, "rig-1")
    return await cluster.gateway(BITINGLIP_MODELS_MIN_FREE_GB=0)


@pytest.fixture
async def client(gateway: Process, eventually: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:

        async def known() -> bool:
            return bool((await client.get("/v1/nodes")).json()["nodes"])

        await eventually(known)
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as training leaves it."""
    folder = make_folder(tmp_path / "tuned", numbers=4_000_000)
    (folder / "README.md").write_text("# Tuned\n")
    (folder / "optimizer.pt").write_bytes(b"\x80\x02.")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "config.json").write_text("{}")
    return folder


def came(tmp_path: Path) -> bytes:
    """Return the weights as the gateway has them."""
    (mark,) = snapshots.marks(tmp_path / "gateway-0" / "uploads")
    place = place_of(tmp_path / "gateway-0" / "uploads", mark.reference, mark.revision)
    return place.file(WEIGHTS).read_bytes()


async def test_a_folder_is_uploaded(client: httpx.AsyncClient, folder: Path, tmp_path: Path) -> None:
    asked = ("model", "upload", str(folder), "--as", NAME, "--url", str(client.base_url))
    done = await bitinglip(*asked, "--node", "rig-1", "--alias", "best", "--pin", "--detach", "--json")
    assert done.status == 0, done.err
    assert "README.md, optimizer.pt" in done.err
    assert (done.json["reference"], done.json["asked"], done.json["alias"]) == (NAME, ["rig-1"], "best")
    taken = [folder / "config.json", folder / "tokenizer.json", folder / WEIGHTS]
    assert done.json["sent_bytes"] == sum(file.stat().st_size for file in taken)
    assert came(tmp_path) == (folder / WEIGHTS).read_bytes()
    seen = (await client.get("/v1/models/best")).json()
    assert (seen["pinned"], seen["nodes"]["wanted"]) == (["rig-1"], ["rig-1"])
    again = await bitinglip(*asked, "--all-nodes", "--detach")
    assert (again.status, again.out) == (0, f"{done.json['model']}: rig-1\n")


async def test_it_is_followed_to_its_node(
    client: httpx.AsyncClient, log: EventLog, folder: Path, eventually: Any
) -> None:
    asked = ("model", "upload", str(folder), "--as", NAME, "--url", str(client.base_url))
    following = asyncio.create_task(bitinglip(*asked))

    async def wanted() -> str | None:
        answer = await client.get(f"/v1/models/{NAME}")
        return answer.json()["revision"] if answer.status_code == 200 and answer.json()["nodes"].get("wanted") else None

    await store(log, "rig-1", reference=NAME, revision=await eventually(wanted))
    done = await following
    assert (done.status, "is on rig-1" in done.out) == (0, True), done.err


async def test_what_is_there_is_not_sent_again(client: httpx.AsyncClient, folder: Path) -> None:
    for extra in ("README.md", "optimizer.pt", ".cache/config.json"):
        (folder / extra).unlink()
    begun = await begin(client, folder)
    body = (folder / WEIGHTS).read_bytes()
    await send(client, begun, WEIGHTS, body[:10_000_000])
    asked = ("model", "upload", str(folder), "--as", NAME, "--url", str(client.base_url))
    done = await bitinglip(*asked, "--detach", "--json")
    assert done.status == 0, done.err
    assert done.json["sent_bytes"] == begun["size_bytes"] - 10_000_000


async def test_a_connection_that_breaks_is_gone_on_with(
    client: httpx.AsyncClient, folder: Path, tmp_path: Path, eventually: Any
) -> None:
    blobs = tmp_path / "gateway-0" / "uploads" / "models--lab--tuned" / "blobs"

    def on_its_way() -> bool:
        return any(part.stat().st_size > 2_000_000 for part in blobs.glob("*.incomplete"))

    assert client.base_url.port is not None
    async with Proxy(client.base_url.port) as proxy:
        proxy.delay_s = 0.01
        url = f"http://127.0.0.1:{proxy.port}"
        running = asyncio.create_task(bitinglip("model", "upload", str(folder), "--as", NAME, "--url", url, "--detach"))
        await eventually(on_its_way)
        await proxy.cut()
        proxy.delay_s = 0.0
        proxy.heal()
        done = await running
    assert done.status == 0, done.err
    assert came(tmp_path) == (folder / WEIGHTS).read_bytes()


@pytest.mark.parametrize(
    ("change", "said"),
    [("pickle", "pickles alone"), ("empty", "neither a config.json"), ("none", "is no folder")],
)
async def test_a_folder_that_is_none_is_refused(
    client: httpx.AsyncClient, folder: Path, change: str, said: str
) -> None:
    match change:
        case "pickle":
            (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
        case "empty":
            (folder / "config.json").unlink()
        case _:
            folder = folder / "none"
    done = await bitinglip("model", "upload", str(folder), "--as", NAME, "--url", str(client.base_url))
    assert (done.status, said in done.err) == (2, True), done.err
