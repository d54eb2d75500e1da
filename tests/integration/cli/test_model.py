"""`bitinglip model`: a subprocess against a real gateway, a real node and a hub of the test's own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.cli.test_cli import COMMAND, Ended, bitinglip, on_terminal
from tests.support.cluster import Cluster
from tests.support.modelhub import ModelHub
from tests.support.server import eventually
from tests.support.weights import make_gpt2

NAME = "org/small"
BIG = 4_000_000
"""Numbers of a model of 16 MB, which a slow hub takes long to send."""


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub() as hub:
        yield hub


@dataclass
class Site:
    """A gateway with one node, called n."""

    url: str
    hub: ModelHub
    folder: Path

    async def run(self, *arguments: str) -> Ended:
        """Run `bitinglip model …`."""
        return await bitinglip("model", *arguments, "--url", self.url)

    async def model(self, ref: str) -> dict[str, Any]:
        """Return a model as the gateway shows it."""
        async with httpx.AsyncClient(base_url=self.url, trust_env=False) as client:
            return (await client.get(f"/v1/models/{ref}")).json()

    def add(self, name: str = NAME, numbers: int = 1000, seed: int = 0, **card: Any) -> str:
        """Put a model on the hub; returns its commit."""
        return self.hub.add(name, make_gpt2(self.folder / f"{name}-{seed}", numbers, seed), **card)


@pytest.fixture
async def site(cluster: Cluster, hub: ModelHub, tmp_path: Path) -> Site:
    """A gateway, and a node that fetches from the hub."""
    gateway = await cluster.gateway(BITINGLIP_MODELS_ENDPOINT=hub.endpoint)
    mine = {"HF_ENDPOINT": hub.endpoint, "BITINGLIP_MODELS_HUB_CACHE": tmp_path / "hub", "BITINGLIP_WORKER_NODE": "n"}
    await cluster.node(0, BITINGLIP_MODELS_MIN_FREE_GB="0", BITINGLIP_NODE_HEARTBEAT_S="0.3", **mine)
    url: str = gateway.ready["url"]
    async with httpx.AsyncClient(base_url=url, trust_env=False) as client:

        async def known() -> bool:
            return any(row["disk_free_bytes"] for row in (await client.get("/v1/nodes")).json()["nodes"])

        await eventually(known)
    return Site(url, hub, tmp_path / "models")


async def test_a_model_from_its_search_to_its_end(site: Site) -> None:
    commit = site.add(licence="mit", pipeline_tag="text-generation", downloads=7)
    at = f"{NAME}@{commit}"
    [found] = (await site.run("search", "small", "--json")).lines
    assert (found["id"], found["fit"], found["nodes"]) == (NAME, "fits", {})
    assert "would fetch it" in (await site.run("fit", NAME)).err
    fetched = await site.run("download", NAME, "--alias", "best")
    assert (fetched.status, fetched.out) == (0, f"{at} is on n\n"), fetched.err
    assert f"{at} to n" in fetched.err
    assert (await site.run("download", NAME)).out == f"{at} is on n\n"
    assert NAME in (await site.run("search", "small", "--local")).out
    [listed] = [each for each in (await site.run("list", "--json")).lines if each["id"] == NAME]
    assert (listed["nodes"], listed["aliases"]) == ({"stored": ["n"]}, ["best"])
    assert "stored" in (await site.run("show", "best")).out
    assert (await site.run("pin", NAME)).out == f"n keeps it: {at}\n"
    assert "so already" in (await site.run("pin", NAME)).err
    assert (await site.run("unpin", NAME, "--json")).json["asked"] == ["n"]
    assert (await site.run("verify", at)).out == f"n checks it: {at}\n"
    assert "marked" in (await site.run("du")).out
    assert NAME in (await site.run("prune", "--dry-run", "--idle-days", "0")).out
    assert (await site.run("rm", NAME)).out == f"n drops it: {at}\n"

    async def gone() -> bool:
        return (await site.model(NAME))["nodes"] == {}

    await eventually(gone)


async def test_aliases(site: Site) -> None:
    first = site.add(seed=1)
    await site.run("download", NAME, "--detach")
    second = site.add(seed=2)
    await site.run("download", NAME, "--detach")
    await site.run("alias", "best", f"{NAME}@{first}")
    moved = await site.run("alias", "best", NAME, "--json")
    assert (moved.json["revision"], moved.json["before"]) == (second, [f"{NAME}@{first}"])
    assert (await site.run("alias", "best", "--rollback", "--json")).json["revision"] == first
    assert [each["alias"] for each in (await site.run("alias", "--json")).lines] == ["best"]
    assert (await site.run("alias", "best", "--remove")).status == 0
    assert (await site.run("alias", "best")).status == 2
    assert (await site.run("alias", "--rollback")).status == 2


async def test_what_fails_is_said_with_its_remedy(site: Site) -> None:
    missing = await site.run("download", "no/body")
    assert missing.status == 2
    assert "has no model 'no/body'" in missing.err
    assert "remedy:" in missing.err
    commit = site.add()
    site.hub.fault(path=f"{NAME}/model.safetensors", status=404)
    failed = await site.run("download", f"{NAME}@{commit}")
    assert failed.status in {1, 2, 4}
    assert "error:" in failed.err
    both = await site.run("download", NAME, "--node", "n", "--all-nodes")
    assert both.status == 2


async def following(site: Site, line_with: bytes) -> asyncio.subprocess.Process:
    """Return a command that downloads, once it has told something."""
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "model", "download", NAME, "--url", site.url, env={**os.environ, "COLUMNS": "200"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    while line_with not in (line := await asyncio.wait_for(process.stderr.readline(), 60)):
        assert line
    return process


async def test_ctrl_c_leaves_the_download_going_which_can_be_cancelled(site: Site) -> None:
    commit = site.add(numbers=BIG)
    site.hub.fault(path=f"{NAME}/model.safetensors", bytes_per_s=2e5)
    process = await following(site, b" of ")
    process.send_signal(signal.SIGINT)
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode == 130
    assert f"bitinglip model cancel {NAME}@{commit}" in err.decode()
    assert (await site.model(NAME))["nodes"] == {"fetching": ["n"]}
    other = await following(site, b" of ")
    assert (await site.run("cancel", NAME)).out == f"n stops: {NAME}@{commit}\n"
    _, err = await asyncio.wait_for(other.communicate(), 30)
    assert (other.returncode, "stopped on n" in err.decode()) == (5, True)
    assert (await site.model(NAME))["nodes"] == {"stopped": ["n"]}


async def test_a_folder_is_imported(site: Site) -> None:
    folder = make_gpt2(site.folder / "tuned")
    taken = await site.run("import", str(folder), "--as", "lab/tuned", "--node", "n")
    assert (taken.status, taken.out) == (0, "lab/tuned is on n\n"), taken.err
    assert (await site.model("lab/tuned"))["source"] in {"import", None}
    failed = await site.run("import", str(site.folder / "nowhere"), "--as", "lab/none", "--node", "n")
    assert failed.status == 1
    assert "error: n:" in failed.err


async def test_the_life_of_a_model_is_printed(site: Site) -> None:
    site.add()
    await site.run("download", NAME)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "model", "events", NAME, "--json", "--url", site.url, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    types: list[str] = []
    while not types or types[-1] != "model.stored":
        types.append(json.loads(await asyncio.wait_for(process.stdout.readline(), 60))["type"])
    process.terminate()
    await process.wait()
    assert types[:3] == ["model.described", "model.fetch_asked", "model.fetch_started"]


@pytest.mark.parametrize("columns", [60, 120])
async def test_tables_fit_the_terminal(site: Site, columns: int) -> None:
    site.add("organisation/a-model-with-a-rather-long-name-1b-instruct")
    await site.run("download", "organisation/a-model-with-a-rather-long-name-1b-instruct", "--alias", "best")
    for command in (("list",), ("alias",), ("search", "--local"), ("show", "best"), ("fit", "best")):
        shown = await on_terminal(columns, "model", *command, "--url", site.url)
        if command != ("show", "best"):
            assert max(map(len, shown.splitlines())) <= columns, shown


async def test_who_watches_a_task_sees_its_model_come(site: Site) -> None:
    commit = site.add(numbers=BIG)
    site.hub.fault(path=f"{NAME}/model.safetensors", bytes_per_s=2e5)
    process = await asyncio.create_subprocess_exec(
        *COMMAND, "task", "submit", "text-generation", "-m", NAME, "--prompt", "x", "--watch", "--url", site.url,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or " of 16 MB" not in lines[-1]:
        lines.append((await asyncio.wait_for(process.stderr.readline(), 60)).decode())
        assert lines[-1], lines
    process.terminate()
    await process.wait()
    assert any(line.startswith(f"waits for {NAME}@{commit}: ") for line in lines)
    assert lines[-1].startswith("n: ")
