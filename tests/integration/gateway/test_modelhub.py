"""Models of a hub over HTTP: described before anything is fetched, found, and fetched for the task that names them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.settings import Gateway, Models, Nats, Settings
from tests.integration.gateway import modelfacts
from tests.integration.gateway.support import check_problem, collect, running, submitted
from tests.support.cluster import Cluster
from tests.support.modelhub import ModelHub
from tests.support.models import model_folder
from tests.support.weights import make_gpt2

SMALL = "org/small"


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub() as hub:
        yield hub


@pytest.fixture
def settings(nats_url: str, tmp_path: Path, hub: ModelHub) -> Settings:
    """Settings of a gateway that asks the test's own hub."""
    return Settings(
        data_dir=tmp_path,
        nats=Nats(url=nats_url),
        models=Models(endpoint=hub.endpoint),
        gateway=Gateway(port=0, sse_heartbeat_s=0.1),
    )


@pytest.fixture
async def client(settings: Settings, log: EventLog, eventually: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that knows of a node."""
    await modelfacts.node(log, "n1")
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:

        async def known() -> bool:
            rows = (await client.get("/v1/nodes")).json()["nodes"]
            return any(row["disk_free_bytes"] for row in rows)

        await eventually(known)
        yield client


async def download(client: httpx.AsyncClient, model: str, **more: Any) -> dict[str, Any]:
    response = await client.post("/v1/models", json={"model": model} | more)
    assert response.status_code == 202, response.text
    return response.json()


async def test_a_name_becomes_a_commit_that_is_described(
    client: httpx.AsyncClient, hub: ModelHub, tmp_path: Path
) -> None:
    commit = hub.add(SMALL, make_gpt2(tmp_path / "a", numbers=1_000_000), licence="mit")
    asked = await download(client, SMALL, alias="best", pin=True)
    assert (asked["model"], asked["nodes"], asked["alias"]) == (f"{SMALL}@{commit}", ["n1"], "best")
    shown = (await client.get("/v1/models/best")).json()
    assert (shown["kind"], shown["licence"], shown["dtype"]) == ("text-generation", "mit", "F32")
    assert (shown["nodes"], shown["pinned"], shown["need_bytes"]["float32"] > 0) == ({"wanted": ["n1"]}, ["n1"], True)
    assert {file["path"] for file in shown["files"]} >= {"config.json", "model.safetensors"}
    assert hub.sent[f"{SMALL}/model.safetensors"] < 500_000  # of 4 MB: no more than its head


async def test_a_branch_that_moves_leads_to_another_commit_and_a_hub_that_is_away_to_the_last_one(
    client: httpx.AsyncClient, hub: ModelHub, tmp_path: Path
) -> None:
    first = hub.add(SMALL, make_gpt2(tmp_path / "a", seed=1))
    assert (await download(client, SMALL))["revision"] == first
    second = hub.add(SMALL, make_gpt2(tmp_path / "b", seed=2))
    assert (await client.get(f"/v1/models/{SMALL}/fit")).json()["revision"] == first
    assert (await download(client, SMALL))["revision"] == second
    shown = (await client.get(f"/v1/models/{SMALL}")).json()
    assert (shown["revision"], shown["other_revisions"]) == (second, [first])
    assert (await client.get(f"/v1/models/{SMALL}@{first}")).json()["id"] == f"{SMALL}@{first}"
    hub.stop()
    assert (await download(client, SMALL))["revision"] == second
    assert (await download(client, f"{SMALL}@{first}"))["revision"] == first
    problem = check_problem(await client.post("/v1/models", json={"model": "org/other"}), 503, "hub_unreachable")
    assert hub.endpoint in problem["detail"]
    hub.start()


async def test_what_the_hub_refuses_is_said(client: httpx.AsyncClient, hub: ModelHub, tmp_path: Path) -> None:
    folder = make_gpt2(tmp_path / "a")
    hub.add("org/gated", folder, gated="manual")
    hub.add(SMALL, folder)
    for model, status, code in (
        ("no/body", 404, "model_not_on_hub"),
        (f"{SMALL}@nobranch", 404, "revision_not_on_hub"),
        ("org/gated", 403, "model_gated"),
        ("a b", 422, "invalid_reference"),
    ):
        check_problem(await client.post("/v1/models", json={"model": model}), status, code)


async def test_many_who_ask_at_once_ask_the_hub_once(client: httpx.AsyncClient, hub: ModelHub, tmp_path: Path) -> None:
    commit = hub.add(SMALL, make_gpt2(tmp_path / "a"))
    body = {"kind": "text-generation", "model": SMALL, "params": {"prompt": "x"}}
    answers = await asyncio.gather(*[client.post("/v1/tasks", json=body) for _ in range(20)])
    assert {answer.status_code for answer in answers} == {202}
    assert hub.sent[f"{SMALL}/config.json"] == (tmp_path / "a" / "config.json").stat().st_size
    shown = (await client.get(f"/v1/models/{SMALL}")).json()
    assert (shown["revision"], shown["nodes"]) == (commit, {"wanted": ["n1"]})


async def test_the_hub_is_searched_with_a_mark_of_what_fits(
    client: httpx.AsyncClient, hub: ModelHub, tmp_path: Path
) -> None:
    folder = make_gpt2(tmp_path / "a")
    hub.add(SMALL, folder, pipeline_tag="text-generation", downloads=5, licence="mit")
    hub.add("org/large", folder, pipeline_tag="text-generation", downloads=9)
    await download(client, SMALL)
    found = (await client.get("/v1/models:search", params={"text": "org/", "kind": "text-generation"})).json()
    assert (found["source"], found["problem"]) == ("hub", None)
    assert [(each["id"], each["fit"], each["nodes"]) for each in found["models"]] == [
        ("org/large", "fits", {}), (SMALL, "fits", {"wanted": ["n1"]}),
    ]  # fmt: skip
    hub.stop()
    local = (await client.get("/v1/models:search", params={"text": "small"})).json()
    assert ([each["id"] for each in local["models"]], local["source"]) == ([SMALL], "local")
    assert "cannot be reached" in local["problem"]
    hub.start()
    local = (await client.get("/v1/models:search", params={"local": "true", "licence": "none"})).json()
    assert (local["models"], local["problem"]) == ([], None)
    for name, value in (("kind", "x"), ("sort", "x"), ("max_gb", "x"), ("limit", 0), ("local", "x"), ("nonsense", 1)):
        problem = check_problem(await client.get("/v1/models:search", params={name: value}), 422, "invalid_input")
        assert problem["field"] == name


async def test_a_task_brings_its_model(
    settings: Settings, log: EventLog, cluster: Cluster, hub: ModelHub, tmp_path: Path, eventually: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    """From a name to a result, with a real node and worker."""
    hub.add("org/gpt2", model_folder(tmp_path_factory, "published-gpt2"))
    mine = {
        "HF_ENDPOINT": hub.endpoint,
        "BITINGLIP_MODELS_HUB_CACHE": str(tmp_path / "hub"),
        "BITINGLIP_MODELS_MIN_FREE_GB": "0",
        "BITINGLIP_WORKER_MODELS": "",
        "BITINGLIP_NODE_HEARTBEAT_S": "0.5",
    }
    node = await cluster.node(1, **mine)
    node_id = node.ready["node_id"]
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:

        async def known() -> bool:
            rows = (await client.get("/v1/nodes")).json()["nodes"]
            return any(row["disk_free_bytes"] for row in rows)

        await eventually(known)
        await client.get("/v1/models:search", params={"text": "gpt2"})
        body = {"kind": "text-generation", "model": "org/gpt2", "params": {"prompt": "The first", "max_tokens": 4}}
        task_id = await submitted(client, body)
        seen = [line async for line in _names(client, task_id)]
        assert seen[-1] == "task.succeeded"
        assert "model.waiting" in seen
        shown = (await client.get("/v1/models/org/gpt2")).json()
        assert (shown["nodes"], shown["served"]) == ({"stored": [node_id]}, True)
        use = (await client.get(f"/v1/nodes/{node_id}/models")).json()
        assert [each["reference"] for each in use["models"]] == ["org/gpt2"]
        pruned = await client.post(f"/v1/nodes/{node_id}/models:prune", json={"dry_run": True, "idle_days": 0})
        assert (pruned.status_code, pruned.json()["dry_run"]) == (200, True)
        second = await submitted(client, body)
        assert (await collect(client, f"/v1/tasks/{second}/events"))[-1].type == "task.succeeded"


async def _names(client: httpx.AsyncClient, task_id: str) -> AsyncIterator[str]:
    async with client.stream("GET", f"/v1/tasks/{task_id}/events") as response:
        async for line in response.aiter_lines():
            if line.startswith("event: "):
                yield line.removeprefix("event: ")
