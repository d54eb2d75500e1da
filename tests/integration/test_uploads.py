"""A model's folder from the one who made it to a node that serves it: real gateway, real node agents, no hub."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.models import snapshots
from bitinglip.models.layout import place_of
from tests.support.cluster import Cluster, Process
from tests.support.models import model_folder
from tests.support.uploading import NAME, begin, make_folder, send, send_all, upload

Eventually = Callable[[Callable[[], Awaitable[Any] | Any]], Awaitable[Any]]
NO_HUB = {"HF_ENDPOINT": "http://127.0.0.1:9", "BITINGLIP_MODELS_MIN_FREE_GB": "0"}


class World:
    """A gateway and nodes."""

    def __init__(self, cluster: Cluster, folder: Path, gateway: Process, client: httpx.AsyncClient) -> None:
        self.cluster = cluster
        self.folder = folder
        self.gateway = gateway
        self.client = client

    async def node(self, name: str, workers: int = 0, **settings: Any) -> Process:
        """Start a node, and wait until the gateway knows of it."""
        mine = {
            "BITINGLIP_MODELS_HUB_CACHE": str(self.cache(name)),
            "BITINGLIP_WORKER_MODELS": "",
            "BITINGLIP_WORKER_NODE": name,
        }
        return await self.cluster.node(workers, **NO_HUB, **mine, **settings)

    def cache(self, name: str) -> Path:
        """Return a node's store."""
        return self.folder / f"hub-{name}"

    async def knows(self, *names: str) -> bool:
        """Tell whether the gateway knows of these nodes."""
        rows = (await self.client.get("/v1/nodes")).json()["nodes"]
        return {row["node_id"] for row in rows} >= set(names)

    async def statuses(self, name: str = NAME) -> dict[str, str]:
        """Return how the model is on the nodes; the gateway's name is shortened."""
        holdings = (await self.client.get(f"/v1/models/{name}")).json()["holdings"]
        return {each["node_id"].partition("-")[0]: each["status"] for each in holdings}

    async def told(self, name: str = NAME) -> dict[str, Any]:
        """Return what is known of the holdings, by node."""
        holdings = (await self.client.get(f"/v1/models/{name}")).json()["holdings"]
        return {each["node_id"].partition("-")[0]: each for each in holdings}


@pytest.fixture
async def world(cluster: Cluster, tmp_path: Path) -> AsyncIterator[World]:
    gateway = await cluster.gateway(**NO_HUB)
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=30, trust_env=False) as client:
        yield World(cluster, tmp_path, gateway, client)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory, "published-gpt2")


async def test_what_is_uploaded_is_served_by_a_node(world: World, gpt2: Path, eventually: Eventually) -> None:
    await world.node("a", 1)
    await eventually(lambda: world.knows("a"))
    answer = await upload(world.client, gpt2, nodes=["a"], alias="best")
    task = {"kind": "text-generation", "params": {"prompt": "The first", "max_tokens": 4, "seed": 1}}

    async def served() -> bool:
        return (await world.client.get("/v1/models/best")).json()["served"]

    await eventually(served)
    for model in (NAME, "best"):
        ended = await world.client.post("/v1/tasks", json=task | {"model": model}, headers={"Prefer": "wait=30"})
        assert ended.json()["state"] == "succeeded", ended.text
    assert ended.json()["model"] == f"{NAME}@{answer['revision']}"
    await eventually(lambda: _is(world, {"a": "stored", "gateway": "absent"}))
    assert not list(Path(world.folder).glob("gateway-0/uploads/models--*"))
    (mark,) = snapshots.marks(world.cache("a"))
    assert (mark.reference, mark.source) == (NAME, "upload")


async def test_nodes_get_it_from_the_gateway_and_then_from_each_other(world: World, eventually: Eventually) -> None:
    folder = make_folder(world.folder / "tuned", numbers=4_000_000)
    for name in ("a", "b"):
        await world.node(name)
    await eventually(lambda: world.knows("a", "b"))
    await upload(world.client, folder, nodes=["a"])
    await eventually(lambda: _is(world, {"a": "stored", "gateway": "absent"}))
    answer = await world.client.post("/v1/models", json={"model": NAME, "nodes": ["b"]})
    assert answer.status_code == 202, answer.text
    await eventually(lambda: _is(world, {"a": "stored", "b": "stored", "gateway": "absent"}))
    (mark,) = snapshots.marks(world.cache("b"))
    snapshot = place_of(world.cache("b"), mark.reference, mark.revision).snapshot
    assert (snapshot / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


async def test_what_one_node_took_in_another_gets_from_it(world: World, eventually: Eventually) -> None:
    folder = make_folder(world.folder / "tuned")
    first = await world.node("a")
    await world.node("b")
    await eventually(lambda: world.knows("a", "b"))
    taken = await world.client.post("/v1/models", json={"import": str(folder), "as": NAME, "node": "a"})
    assert taken.status_code == 202, taken.text

    async def is_there() -> bool:
        return (await world.client.get(f"/v1/models/{NAME}")).status_code == 200 and await _is(world, {"a": "stored"})

    await eventually(is_there)
    answer = await world.client.post("/v1/models", json={"model": NAME, "nodes": ["b"]})
    assert answer.status_code == 202, answer.text
    await eventually(lambda: _is(world, {"a": "stored", "b": "stored"}))
    await first.stop()
    dropped = await world.client.request("DELETE", f"/v1/models/{NAME}", json={"nodes": ["b"]})
    assert dropped.status_code == 202, dropped.text
    await eventually(lambda: _is(world, {"a": "stored", "b": "absent"}))
    await world.client.post("/v1/models", json={"model": NAME, "nodes": ["b"]})

    async def failed() -> bool:
        return (await world.told()).get("b", {}).get("code") == "no_holder"

    await eventually(failed)
    await first.start()
    await eventually(lambda: _is(world, {"a": "stored", "b": "stored"}))  # by itself


async def test_a_gateway_that_is_killed_goes_on_with_the_upload(world: World, eventually: Eventually) -> None:
    folder = make_folder(world.folder / "tuned", numbers=400_000)
    body, weights = (folder / "model.safetensors").read_bytes(), "model.safetensors"
    await world.node("a")
    await eventually(lambda: world.knows("a"))
    begun = await begin(world.client, folder)
    await send(world.client, begun, weights, body[:1_000_000])
    await world.gateway.kill()
    await world.gateway.start()
    async with httpx.AsyncClient(base_url=world.gateway.ready["url"], timeout=30, trust_env=False) as client:
        again = World(world.cluster, world.folder, world.gateway, client)
        begun = await begin(client, folder)
        have = {each["path"]: each["have_bytes"] for each in begun["missing"]}
        assert have[weights] == 1_000_000
        assert await send_all(client, begun, folder) < sum(file.stat().st_size for file in folder.iterdir())
        await client.post(begun["links"]["complete"], json={"nodes": ["a"]})
        await eventually(lambda: _is(again, {"a": "stored", "gateway": "absent"}))


async def test_what_nobody_hands_out_says_so_and_comes_when_somebody_does(world: World, eventually: Eventually) -> None:
    folder = make_folder(world.folder / "tuned")
    a = await world.node("a")
    await eventually(lambda: world.knows("a"))
    await upload(world.client, folder, nodes=["a"])
    await eventually(lambda: _is(world, {"a": "stored", "gateway": "absent"}))
    await world.node("b")
    await eventually(lambda: world.knows("b"))
    await a.stop()
    await world.client.post("/v1/models", json={"model": NAME, "nodes": ["b"]})

    async def failed() -> bool:
        return (await world.told()).get("b", {}).get("code") == "no_holder"

    await eventually(failed)
    await upload(world.client, folder, nodes=["b"])
    await world.client.post("/v1/models", json={"model": NAME, "nodes": ["b"]})
    await eventually(lambda: _is(world, {"a": "stored", "b": "stored", "gateway": "absent"}))


async def test_a_node_waits_for_the_gateway_that_has_it(world: World, eventually: Eventually) -> None:
    folder = make_folder(world.folder / "tuned")
    node = await world.node("a")
    await eventually(lambda: world.knows("a"))
    await node.stop()
    await upload(world.client, folder, nodes=["a"])
    await world.gateway.kill()
    await node.start()
    assert snapshots.marks(world.cache("a")) == []
    await world.gateway.start()
    await eventually(lambda: snapshots.marks(world.cache("a")))


async def test_the_last_one_of_an_upload_makes_no_room(world: World, eventually: Eventually) -> None:
    first, second = (make_folder(world.folder / name, numbers=1_000_000, seed=at) for at, name in enumerate("xy"))
    await world.node("b", BITINGLIP_MODELS_DISK_GB=f"{6_000_000 / 2**30:.9f}")
    await eventually(lambda: world.knows("b"))
    await upload(world.client, first, "lab/first", nodes=["b"])
    await eventually(lambda: _is(world, {"b": "stored", "gateway": "absent"}, "lab/first"))
    await upload(world.client, second, "lab/second", nodes=["b"])

    async def code() -> bool:
        return (await world.told("lab/second"))["b"]["code"] == "no_room"

    await eventually(code)
    await world.node("a")
    await eventually(lambda: world.knows("a", "b"))
    await world.client.post("/v1/models", json={"model": "lab/first", "nodes": ["a"]})
    await eventually(lambda: _is(world, {"a": "stored", "b": "stored", "gateway": "absent"}, "lab/first"))
    await world.client.post("/v1/models", json={"model": "lab/second", "nodes": ["b"]})
    await eventually(lambda: _is(world, {"b": "stored", "gateway": "absent"}, "lab/second"))
    await eventually(lambda: _is(world, {"a": "stored", "b": "absent", "gateway": "absent"}, "lab/first"))


async def _is(world: World, statuses: dict[str, str], name: str = NAME) -> bool:
    return await world.statuses(name) == statuses
