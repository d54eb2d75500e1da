"""Models over HTTP: listed, looked at, asked for, pinned, checked, dropped, watched; nodes say what agents would."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from bitinglip.events import subjects
from bitinglip.events.direct import get_after
from bitinglip.events.log import EventLog
from bitinglip.events.streams import MODELS
from tests.integration.gateway import modelfacts
from tests.integration.gateway.modelfacts import AT, COMMIT, GPT2, OTHER
from tests.integration.gateway.support import Player, check_problem, read_stream, register, submitted

WRITE: dict[str, Any] = {"kind": "text-generation", "model": GPT2, "params": {"prompt": "x"}}


@pytest.fixture
async def nodes(client: httpx.AsyncClient, log: EventLog, eventually: Any) -> list[str]:
    """Two nodes, of which the second one has more room, and a model that is described."""
    await modelfacts.node(log, "n1", disk_gib=100)
    await modelfacts.node(log, "n2", disk_gib=200)
    await modelfacts.describe(log)

    async def known() -> bool:
        rows = (await client.get("/v1/nodes")).json()["nodes"]
        return [row["node_id"] for row in rows if row["disk_free_bytes"]] == ["n1", "n2"]

    await eventually(known)
    return ["n1", "n2"]


async def told(log: EventLog, reference: str = GPT2) -> list[str]:
    """Return the types of what the log has about a model."""
    return [message.subject.rpartition(".")[2] for message in
            await get_after(log.connection, MODELS, subjects.model_events(reference), 0)]  # fmt: skip


async def model(client: httpx.AsyncClient, ref: str = GPT2) -> dict[str, Any]:
    response = await client.get(f"/v1/models/{ref}")
    assert response.status_code == 200, response.text
    return response.json()


async def ask(client: httpx.AsyncClient, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    response = await client.post(path, json=body)
    assert response.status_code == 202, response.text
    return response.json()


# --- what there is ----------------------------------------------------------------------------------------------------


async def test_the_list_has_a_shape_that_others_read(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    await modelfacts.store(log, "n1")
    await modelfacts.start_fetch(log, "n2")
    answer = (await client.get("/v1/models")).json()
    found = {each["id"]: each for each in answer["data"]}
    assert answer["object"] == "list"
    assert set(found) == {"echo", "org/writer", "org/vectors@main", GPT2}
    assert all(each["object"] == "model" and each["created"] > 0 and each["owned_by"] for each in answer["data"])
    shown = found[GPT2]
    assert (shown["revision"], shown["kind"], shown["size_bytes"]) == (COMMIT, "text-generation", 551_000_000)
    assert (shown["nodes"], shown["pinned"], shown["served"]) == ({"stored": ["n1"], "fetching": ["n2"]}, [], False)
    assert (shown["licence"], shown["context_tokens"], shown["owned_by"]) == ("mit", 1024, "openai-community")
    assert (found["echo"]["served"], found["echo"]["nodes"], found["echo"]["owned_by"]) == (True, {}, "local")


async def test_a_model_is_shown_by_name_revision_and_alias(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    await modelfacts.describe(log, revision=OTHER, asked_revision="dev", licence="other")
    await modelfacts.store(log, "n1")
    await client.put("/v1/aliases/mine", json={"model": f"{GPT2}@dev"})
    shown = await model(client)
    assert (shown["revision"], shown["other_revisions"]) == (COMMIT, [OTHER])
    assert [(each["node_id"], each["status"]) for each in shown["holdings"]] == [("n1", "stored")]
    assert [file["path"] for file in shown["files"]] == ["config.json"]
    for ref in (f"{GPT2}@dev", f"{GPT2}@{OTHER}", "mine", f"{GPT2}@{OTHER}".replace("/", "%2F")):
        other = await model(client, ref)
        assert (other["revision"], other["licence"], other["aliases"]) == (OTHER, "other", ["mine"])
    assert (await model(client, "echo"))["kind"] == "echo"
    for ref in ("no/body", f"{GPT2}@nobranch"):
        check_problem(await client.get(f"/v1/models/{ref}"), 404, "model_missing")


async def test_usage_comes_from_the_tasks(
    client: httpx.AsyncClient, log: EventLog, player: Player, nodes: list[str], eventually: Any
) -> None:
    await register(log, "echo", GPT2)
    task_id = await submitted(client, {"kind": "echo", "model": GPT2, "params": {"message": "x"}})
    await player.assign(task_id, COMMIT)
    await player.succeed(task_id)

    async def used() -> dict[str, Any] | None:
        shown = await model(client)
        return shown if shown["run_s"] else None

    shown = await eventually(used)
    assert (shown["runs"], shown["run_s"]) == (1, 0.002)
    assert shown["last_used_at"]


# --- wishes -----------------------------------------------------------------------------------------------------------


async def test_a_fetch_goes_to_the_node_that_fits_and_is_asked_for_once(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    first = await ask(client, "/v1/models", {"model": AT})
    assert (first["model"], first["nodes"], first["asked"]) == (AT, ["n2"], ["n2"])
    assert first["links"] == {"self": f"/v1/models/{AT}", "events": f"/v1/models/{AT}/events"}
    again = await ask(client, "/v1/models", {"model": AT})
    assert (again["nodes"], again["asked"]) == (["n2"], [])
    assert await told(log) == ["described", "fetch_asked"]
    every = await ask(client, "/v1/models", {"model": AT, "nodes": "all"})
    assert (every["nodes"], every["asked"]) == (["n1", "n2"], ["n1"])
    await modelfacts.fail(log, "n1")
    assert (await ask(client, "/v1/models", {"model": AT, "nodes": ["n1"]}))["asked"] == ["n1"]


async def test_pins_and_unpins(client: httpx.AsyncClient, log: EventLog, nodes: list[str]) -> None:
    await modelfacts.store(log, "n1")
    assert (await ask(client, f"/v1/models/{GPT2}/pin"))["asked"] == ["n1"]
    assert (await ask(client, f"/v1/models/{GPT2}/pin"))["asked"] == []
    assert (await ask(client, f"/v1/models/{AT}/pin", {"nodes": ["n2"]}))["asked"] == ["n2"]
    shown = await model(client)
    assert (shown["pinned"], shown["nodes"]) == (["n1", "n2"], {"stored": ["n1"], "wanted": ["n2"]})
    assert (await ask(client, f"/v1/models/{GPT2}/unpin"))["asked"] == ["n1", "n2"]
    assert (await ask(client, f"/v1/models/{GPT2}/unpin"))["asked"] == []
    assert await told(log) == ["described", "stored", "pinned", "pinned", "unpinned"]


async def test_cancelling_and_removing(client: httpx.AsyncClient, log: EventLog, nodes: list[str]) -> None:
    await ask(client, "/v1/models", {"model": AT, "nodes": "all"})
    await modelfacts.start_fetch(log, "n1")
    await modelfacts.store(log, "n2")
    assert (await ask(client, f"/v1/models/{GPT2}/cancel"))["asked"] == ["n1"]
    assert (await ask(client, f"/v1/models/{GPT2}/cancel"))["asked"] == []
    assert (await model(client))["nodes"] == {"stopped": ["n1"], "stored": ["n2"]}
    removed = await client.request("DELETE", f"/v1/models/{GPT2}", json={"nodes": ["n2"]})
    assert (removed.status_code, removed.json()["asked"]) == (202, ["n2"])
    assert (await model(client))["nodes"] == {"stopped": ["n1"], "removing": ["n2"]}
    everywhere = (await client.delete(f"/v1/models/{GPT2}")).json()
    assert (everywhere["nodes"], everywhere["asked"]) == (["n1", "n2"], ["n1"])
    for node_id in ("n1", "n2"):
        await modelfacts.drop(log, node_id, reason="removed")
    assert (await model(client))["nodes"] == {}


async def test_checks_are_asked_for_once_until_they_are_over(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    await modelfacts.store(log, "n1")
    path = f"/v1/models/{AT}/verify"
    assert (await ask(client, path))["asked"] == ["n1"]
    assert (await ask(client, path))["asked"] == []
    assert (await ask(client, path, {"repair": True}))["asked"] == ["n1"]
    await modelfacts.tell(log, modelfacts.checked("n1"))
    assert (await ask(client, path, {"nodes": ["n1", "n2"]}))["asked"] == ["n1"]


async def test_an_import_names_a_node_and_a_folder(client: httpx.AsyncClient, log: EventLog, nodes: list[str]) -> None:
    answer = await ask(client, "/v1/models", {"import": "/srv/tuned", "node": "n1", "as": "lab/tuned"})
    assert (answer["model"], answer["nodes"], answer["links"]["events"]) == (
        "lab/tuned", ["n1"], "/v1/models/lab/tuned/events",
    )  # fmt: skip
    assert await told(log, "lab/tuned") == ["import_asked"]


async def test_what_cannot_be_asked_is_refused_and_says_what_to_do(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    check_problem(await client.post("/v1/models", json={"model": AT, "nodes": ["n9"]}), 404, "node_not_found")
    for body in (
        {},
        {"model": AT, "import": "/x"},
        {"import": "/x", "node": "n1"},
        {"model": AT, "nodes": "some"},
        {"model": AT, "nodes": []},
    ):
        check_problem(await client.post("/v1/models", json=body), 422, "invalid_input")
    check_problem(await client.post("/v1/models/no/body/unpin"), 404, "model_missing")
    need = {"float32": 60 * modelfacts.GIB, "int8": 6 * modelfacts.GIB}
    await modelfacts.describe(log, revision=OTHER, asked_revision=OTHER, need_bytes=need)
    problem = check_problem(
        await client.post("/v1/models", json={"model": f"{GPT2}@{OTHER}"}), 409, "model_does_not_fit"
    )
    assert "as int8 on n1 (`worker.quantize`)" in problem["instead"]
    named = await ask(client, "/v1/models", {"model": f"{GPT2}@{OTHER}", "nodes": ["n1"]})
    assert (named["asked"], named["warnings"]) == (["n1"], ["It does not fit on n1 as it is (quantised it would)."])


async def test_all_nodes_are_none_without_one(client: httpx.AsyncClient, log: EventLog) -> None:
    await modelfacts.describe(log)
    check_problem(await client.post("/v1/models", json={"model": AT, "nodes": "all"}), 409, "no_node_online")
    problem = check_problem(await client.post("/v1/models", json={"model": AT}), 409, "model_does_not_fit")
    assert "no node is online" in problem["detail"]


async def test_the_fit_is_told_for_each_card(client: httpx.AsyncClient, nodes: list[str]) -> None:
    fit = (await client.get(f"/v1/models/{AT}/fit")).json()
    assert (fit["verdict"], fit["chosen"], fit["problem"]) == ("fits", "n2", None)
    assert [(node["node_id"], node["room"], node["cards"][0]["precision"]) for node in fit["nodes"]] == [
        ("n1", True, "float32"), ("n2", True, "float32"),
    ]  # fmt: skip


# --- watching ---------------------------------------------------------------------------------------------------------


async def test_a_models_life_is_streamed_and_taken_up_again(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    await modelfacts.describe(log, revision=OTHER, asked_revision="dev")
    await ask(client, "/v1/models", {"model": AT, "nodes": ["n1"]})
    seen: list[str] = []
    last = 0
    async with client.stream("GET", f"/v1/models/{AT}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        async for each in read_stream(response):
            seen.append(each.type)
            last = each.id
            if each.type == "model.fetch_asked":
                await modelfacts.start_fetch(log, "n1")
                await modelfacts.tick(log, "n1", 5)
            if each.type == "model.fetch_progressed":
                break
    assert seen == ["model.described", "model.fetch_asked", "model.fetch_started", "model.fetch_progressed"]
    await modelfacts.store(log, "n1")
    async with client.stream("GET", f"/v1/models/{AT}/events", headers={"Last-Event-ID": str(last)}) as response:
        async for each in read_stream(response):
            assert each.type == "model.stored"
            break
    check_problem(await client.get("/v1/models/no/body/events"), 404, "model_missing")


# --- aliases ----------------------------------------------------------------------------------------------------------


async def test_an_alias_is_set_moved_rolled_back_and_taken_away(
    client: httpx.AsyncClient, log: EventLog, nodes: list[str]
) -> None:
    await modelfacts.describe(log, revision=OTHER, asked_revision="dev")
    first = (await client.put("/v1/aliases/best", json={"model": GPT2})).json()
    assert (first["model"], first["before"]) == (AT, [])
    await client.put("/v1/aliases/best", json={"model": AT})
    assert await told(log, "best") == ["alias_set"]
    moved = (await client.put("/v1/aliases/best", json={"model": f"{GPT2}@dev"})).json()
    assert (moved["revision"], moved["before"]) == (OTHER, [AT])
    assert (await client.post("/v1/aliases/best/rollback")).json()["revision"] == COMMIT
    assert [each["alias"] for each in (await client.get("/v1/aliases")).json()["aliases"]] == ["best"]
    assert (await client.delete("/v1/aliases/best")).status_code == 200
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/rollback")):
        check_problem(await client.request(method, f"/v1/aliases/best{path}"), 404, "alias_not_found")


async def test_an_alias_needs_a_name_of_its_own_and_a_known_model(client: httpx.AsyncClient, nodes: list[str]) -> None:
    check_problem(await client.put("/v1/aliases/echo", json={"model": AT}), 409, "alias_taken")
    check_problem(await client.put("/v1/aliases/a@b", json={"model": AT}), 422, "invalid_reference")
    check_problem(await client.put("/v1/aliases/best", json={"model": "no/body"}), 404, "model_missing")
    await client.put("/v1/aliases/best", json={"model": AT})
    check_problem(await client.post("/v1/aliases/best/rollback"), 409, "nothing_before")


async def test_a_task_by_an_alias_keeps_the_revision_that_it_stood_for(
    client: httpx.AsyncClient, log: EventLog, player: Player, nodes: list[str]
) -> None:
    await modelfacts.describe(log, revision=OTHER, asked_revision="dev")
    for revision in (COMMIT, OTHER):
        await register(log, "text-generation", f"{GPT2}@{revision}")
    await client.put("/v1/aliases/best", json={"model": AT})
    key = {"Idempotency-Key": "one"}
    first = await submitted(client, WRITE | {"model": "best"}, key)
    await client.put("/v1/aliases/best", json={"model": f"{GPT2}@dev"})
    assert await submitted(client, WRITE | {"model": "best"}, key) == first
    second = await submitted(client, WRITE | {"model": "best"})
    third = await submitted(client, WRITE | {"model": f"{GPT2}@dev"})
    for task_id, expected, named in (
        (first, AT, "best"), (second, f"{GPT2}@{OTHER}", "best"), (third, f"{GPT2}@{OTHER}", f"{GPT2}@dev"),
    ):  # fmt: skip
        task = await player.task(task_id)
        assert (task.submitted.model, task.submitted.alias) == (expected, named)
        assert (await client.get(f"/v1/tasks/{task_id}")).json()["model"] == expected


async def test_a_schedule_follows_its_alias(
    client: httpx.AsyncClient, log: EventLog, player: Player, nodes: list[str], eventually: Any
) -> None:
    await register(log, "echo", AT)
    await client.put("/v1/aliases/best", json={"model": AT})
    body = {"every_s": 1, "overlap": "allow", "task": {"kind": "echo", "model": "best", "params": {"message": "x"}}}
    made = await client.post("/v1/schedules", json=body)
    assert made.status_code == 201, made.text
    assert made.json()["task"]["model"] == "best"

    async def fired() -> str | None:
        last = (await client.get(f"/v1/schedules/{made.json()['schedule_id']}")).json()["last"]
        return last and last["task_id"]

    task = await player.task(await eventually(fired))
    assert (task.submitted.model, task.submitted.alias) == (AT, "best")
