"""Uploads of models: over real HTTP, into a real store."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from bitinglip.events import subjects
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import decode
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelDropped, ModelFetchAsked, ModelStored
from bitinglip.events.streams import MODELS
from bitinglip.models.layout import place_of
from bitinglip.models.locks import is_held
from bitinglip.models.snapshots import marks
from bitinglip.models.uploads import Uploads
from bitinglip.settings import Settings
from tests.integration.gateway.modelfacts import node, store
from tests.integration.gateway.support import check_problem, running
from tests.support.server import eventually as wait_until
from tests.support.uploading import NAME, begin, make_folder, manifest, pieces, send, send_all, upload

WEIGHTS = "model.safetensors"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings of a gateway that takes models of up to a MiB, whatever the disk has left."""
    models = settings.models.model_copy(update={"min_free_gb": 0})
    gateway = settings.gateway.model_copy(update={"max_model_gb": 2**-10})
    return settings.model_copy(update={"models": models, "gateway": gateway})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder."""
    return make_folder(tmp_path / "tuned", numbers=100_000)


def blobs(settings: Settings) -> list[Path]:
    """Return the contents that have come, whole or not."""
    return sorted(settings.uploads_dir.glob("models--*/blobs/*"))


async def two_nodes(client: httpx.AsyncClient, log: EventLog) -> None:
    """Say that two nodes are up, and wait until the gateway knows."""
    for name in ("rig-1", "rig-2"):
        await node(log, name)

    async def known() -> bool:
        return len((await client.get("/v1/nodes")).json()["nodes"]) == 2

    await wait_until(known)


async def told(log: EventLog, kind: type[Any]) -> list[Any]:
    """Return the facts of a kind about the model."""
    found = [decode(message, MODELS).event for message in await get_after(log.connection, MODELS, subjects.MODELS, 0)]
    return [event for event in found if isinstance(event, kind)]


class TestSending:
    async def test_a_folder_comes_file_by_file(
        self, client: httpx.AsyncClient, folder: Path, settings: Settings
    ) -> None:
        begun = await begin(client, folder)
        lines = sorted(
            f"{each['path']}\0{each['size_bytes']}\0{each['sha256']}\n" for each in manifest(folder)["files"]
        )
        assert begun["revision"] == hashlib.sha256("".join(lines).encode()).hexdigest()[:40]
        assert [each["path"] for each in begun["missing"]] == ["config.json", WEIGHTS, "tokenizer.json"]
        sent = await send_all(client, begun, folder)
        seen = (await client.get(begun["links"]["self"])).json()
        assert (seen["missing"], seen["have_bytes"], seen["size_bytes"]) == ([], sent, sent)
        snapshot = settings.uploads_dir / "models--lab--tuned" / "snapshots" / begun["revision"]
        assert (snapshot / WEIGHTS).read_bytes() == (folder / WEIGHTS).read_bytes()

    async def test_the_same_manifest_is_the_same_upload(self, client: httpx.AsyncClient, folder: Path) -> None:
        begun = await begin(client, folder)
        await send(client, begun, "config.json", (folder / "config.json").read_bytes())
        asked = manifest(folder)
        asked["files"].reverse()
        again = (await client.post("/v1/uploads", json=asked)).json()
        assert again["id"] == begun["id"]
        assert [each["path"] for each in again["missing"]] == [WEIGHTS, "tokenizer.json"]
        other = await begin(client, folder, "lab/other")
        assert (other["revision"], other["id"] == begun["id"]) == (begun["revision"], False)

    async def test_a_file_goes_on_where_it_was_cut_off(
        self, client: httpx.AsyncClient, url: str, folder: Path, settings: Settings, eventually: Any
    ) -> None:
        body, begun = (folder / WEIGHTS).read_bytes(), await begin(client, folder)
        cut = 150_000
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        head = f"PUT {begun['links']['files']}/{WEIGHTS} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:cut])
        await writer.drain()
        writer.close()
        await writer.wait_closed()

        async def have() -> int:
            missing = (await client.get(begun["links"]["self"])).json()["missing"]
            return next(each["have_bytes"] for each in missing if each["path"] == WEIGHTS)

        await eventually(have)
        assert await have() == cut
        problem = check_problem(await send(client, begun, WEIGHTS, body), 409, "upload_offset")
        assert problem["have_bytes"] == cut
        answer = (await send(client, begun, WEIGHTS, pieces(body[cut:], 1000), cut)).json()
        assert (answer["have_bytes"], answer["complete"]) == (len(body), True)
        assert [blob.read_bytes() == body for blob in blobs(settings)] == [True]
        problem = check_problem(await send(client, begun, WEIGHTS, body), 409, "upload_offset")
        assert problem["have_bytes"] == len(body)

    async def test_a_file_may_come_in_parts(self, client: httpx.AsyncClient, folder: Path) -> None:
        body, begun = (folder / WEIGHTS).read_bytes(), await begin(client, folder)
        whole: list[bool] = []
        for start in range(0, len(body), 90_000):
            answer = (await send(client, begun, WEIGHTS, body[start : start + 90_000], start)).json()
            assert answer["have_bytes"] == min(start + 90_000, len(body))
            whole.append(answer["complete"])
        assert whole == [False, False, False, False, True]

    async def test_a_wrong_content_is_not_kept(
        self, client: httpx.AsyncClient, folder: Path, settings: Settings
    ) -> None:
        body, begun = (folder / WEIGHTS).read_bytes(), await begin(client, folder)
        check_problem(await send(client, begun, WEIGHTS, body[:-1] + b"!"), 422, "wrong_content")
        assert blobs(settings) == []
        assert (await send(client, begun, WEIGHTS, body)).json()["complete"]

    async def test_uploads_are_listed(self, client: httpx.AsyncClient, folder: Path) -> None:
        assert (await client.get("/v1/uploads")).json() == {"uploads": []}
        begun = [await begin(client, folder, name) for name in ("lab/one", "lab/two")]
        assert (await client.get("/v1/uploads")).json() == {"uploads": begun}

    async def test_more_than_the_file_has_is_refused(self, client: httpx.AsyncClient, folder: Path) -> None:
        body, begun = (folder / WEIGHTS).read_bytes(), await begin(client, folder)
        check_problem(await send(client, begun, WEIGHTS, body + b"!"), 413, "payload_too_large")
        check_problem(await send(client, begun, WEIGHTS, pieces(body + b"!", 5000)), 413, "payload_too_large")

    async def test_of_two_senders_one_is_refused(
        self, client: httpx.AsyncClient, folder: Path, settings: Settings, eventually: Any
    ) -> None:
        body, begun = (folder / WEIGHTS).read_bytes(), await begin(client, folder)
        go_on = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield body[:100_000]
            await go_on.wait()
            yield body[100_000:]

        first = asyncio.create_task(send(client, begun, WEIGHTS, slowly()))
        place = place_of(settings.uploads_dir, NAME, begun["revision"])
        await eventually(lambda: is_held(place.blob_lock(hashlib.sha256(body).hexdigest())))
        check_problem(await send(client, begun, WEIGHTS, body), 409, "upload_taken")
        check_problem(await client.delete(begun["links"]["self"]), 409, "model_in_use")
        go_on.set()
        assert (await first).json()["complete"]

    async def test_what_is_dropped_is_gone(self, client: httpx.AsyncClient, folder: Path, settings: Settings) -> None:
        body, begun = (folder / WEIGHTS).read_bytes(), await begin(client, folder)
        await send(client, begun, WEIGHTS, body[:1000])
        dropped = await client.delete(begun["links"]["self"])
        assert dropped.json() == {"id": begun["id"], "freed_bytes": 1000}
        assert blobs(settings) == []
        check_problem(await client.get(begun["links"]["self"]), 404, "upload_not_found")
        check_problem(await send(client, begun, WEIGHTS, body), 404, "upload_not_found")

    async def test_what_was_not_begun_is_not_known(self, client: httpx.AsyncClient, folder: Path) -> None:
        begun = await begin(client, folder)
        check_problem(await send(client, begun, "vocab.json", b"{}"), 404, "upload_file_unknown")
        check_problem(await send(client, begun, "..%2f..%2fetc%2fpasswd", b"{}"), 404, "upload_file_unknown")
        check_problem(await client.get("/v1/uploads/0"), 404, "upload_not_found")


class TestRefusedBeforeBytesTravel:
    @pytest.mark.parametrize(
        ("extra", "code"),
        [
            ("pytorch_model.bin", "files_not_taken"),
            ("modeling_tuned.py", "files_not_taken"),
            ("optimizer.pt", "files_not_taken"),
            ("../config.json", "unsafe_repository"),
            ("/etc/passwd", "unsafe_repository"),
            ("a\\b.json", "unsafe_repository"),
            ("config.json/config.json", "invalid_input"),
        ],
    )
    async def test_a_file_that_is_not_taken(
        self, client: httpx.AsyncClient, folder: Path, settings: Settings, extra: str, code: str
    ) -> None:
        asked = manifest(folder)
        asked["files"].append({"path": extra, "size_bytes": 1, "sha256": "0" * 64})
        problem = check_problem(await client.post("/v1/uploads", json=asked), 422, code)
        assert extra in problem["detail"].replace("\\\\", "\\")
        assert not list(settings.uploads_dir.glob("models--*"))

    async def test_pickles_alone(self, client: httpx.AsyncClient, folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "pytorch_model.bin")
        check_problem(await client.post("/v1/uploads", json=manifest(folder)), 422, "only_pickles")

    async def test_a_folder_without_a_model(self, client: httpx.AsyncClient, folder: Path) -> None:
        (folder / WEIGHTS).unlink()
        check_problem(await client.post("/v1/uploads", json=manifest(folder)), 422, "nothing_to_load")

    async def test_what_is_too_large(self, client: httpx.AsyncClient, folder: Path) -> None:
        asked = manifest(folder)
        asked["files"][1]["size_bytes"] = 2**20 + 1
        check_problem(await client.post("/v1/uploads", json=asked), 413, "payload_too_large")

    async def test_what_finds_no_room(self, settings: Settings, folder: Path, log: EventLog) -> None:
        models = settings.models.model_copy(update={"min_free_gb": 2**30})
        async with (
            running(settings.model_copy(update={"models": models})) as url,
            httpx.AsyncClient(base_url=url, trust_env=False) as client,
        ):
            check_problem(await client.post("/v1/uploads", json=manifest(folder)), 503, "disk_full")

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"sha256": None}, "sha256"),
            ({"sha256": "A" * 64}, "files.0.sha256"),
            ({"size_bytes": -1}, "files.0.size_bytes"),
            ({"path": ""}, "files.0.path"),
            ({"size_bytes": 2**64}, "files.0.size_bytes"),
        ],
    )
    async def test_a_manifest_that_is_none(
        self, client: httpx.AsyncClient, folder: Path, change: dict[str, Any], field: str
    ) -> None:
        asked = manifest(folder)
        asked["files"][0] |= change
        assert field in check_problem(await client.post("/v1/uploads", json=asked), 422, "invalid_input")["detail"]

    async def test_a_path_that_is_no_text(self, client: httpx.AsyncClient, folder: Path) -> None:
        body = json.dumps(manifest(folder)).replace("config.json", "\\ud800.json")
        answer = await client.post("/v1/uploads", content=body, headers={"Content-Type": "application/json"})
        check_problem(answer, 400, "malformed_body")

    async def test_a_name_that_is_none(self, client: httpx.AsyncClient, folder: Path) -> None:
        check_problem(await client.post("/v1/uploads", json=manifest(folder, "a/b/c")), 422, "invalid_reference")

    async def test_a_dry_run_says_what_would_be_taken(
        self, client: httpx.AsyncClient, folder: Path, settings: Settings
    ) -> None:
        (folder / "README.md").write_text("# Tuned\n")
        asked = manifest(folder, dry_run=True)
        for file in asked["files"]:
            del file["sha256"]
        answer = await client.post("/v1/uploads", json=asked)
        assert answer.status_code == 200
        assert answer.json()["files"] == ["config.json", WEIGHTS, "tokenizer.json"]
        assert answer.json()["left_out"] == ["README.md"]
        assert not list(settings.uploads_dir.glob("models--*"))


class TestCompleting:
    async def test_a_file_is_missing(self, client: httpx.AsyncClient, folder: Path, settings: Settings) -> None:
        begun = await begin(client, folder)
        await send(client, begun, "config.json", (folder / "config.json").read_bytes())
        problem = check_problem(await client.post(begun["links"]["complete"]), 409, "upload_incomplete")
        assert problem["missing"] == 2
        assert marks(settings.uploads_dir) == []

    async def test_weights_that_are_none(self, client: httpx.AsyncClient, folder: Path) -> None:
        (folder / WEIGHTS).write_bytes(b"this is no safetensors file")
        begun = await begin(client, folder)
        await send_all(client, begun, folder)
        check_problem(await client.post(begun["links"]["complete"]), 422, "broken_model")

    async def test_it_is_described_held_here_and_wished_for(
        self, client: httpx.AsyncClient, log: EventLog, folder: Path
    ) -> None:
        await two_nodes(client, log)
        answer = await upload(client, folder, nodes=["rig-1"], alias="best")
        seen = (await client.get("/v1/models/best")).json()
        assert (seen["reference"], seen["source"], seen["kind"]) == (NAME, "upload", "text-generation")
        assert (seen["revision"], seen["parameters"]) == (answer["revision"], 100_000)
        ours = next(each["node_id"] for each in seen["holdings"] if each["status"] == "stored")
        assert ours.startswith("gateway-")
        assert {each["node_id"]: each["status"] for each in seen["holdings"]} == {ours: "stored", "rig-1": "wanted"}
        assert (await client.get(f"/v1/models/{NAME}")).json()["id"] == NAME
        assert [each["node_id"] for each in (await client.get("/v1/nodes")).json()["nodes"]] == ["rig-1", "rig-2"]

    async def test_the_gateway_is_no_node(self, client: httpx.AsyncClient, log: EventLog, folder: Path) -> None:
        check_problem(await _completed(client, folder), 409, "model_does_not_fit")
        ours = (await client.get(f"/v1/models/{NAME}")).json()["holdings"][0]["node_id"]
        await two_nodes(client, log)
        answer = await upload(client, folder, nodes="all", pin=True)
        assert answer["asked"] == ["rig-1", "rig-2"]
        check_problem(await client.post(f"/v1/models/{NAME}/pin", json={"nodes": [ours]}), 404, "node_not_found")
        assert (await client.post(f"/v1/models/{NAME}/pin")).json()["nodes"] == ["rig-1", "rig-2"]
        assert ours not in (await client.post(f"/v1/models/{NAME}/verify")).json()["nodes"]

    async def test_it_is_kept_until_all_nodes_have_it(
        self, client: httpx.AsyncClient, log: EventLog, folder: Path, settings: Settings, eventually: Any
    ) -> None:
        await two_nodes(client, log)
        answer = await upload(client, folder, nodes="all")
        about = {"reference": NAME, "revision": answer["revision"]}
        await store(log, "rig-1", **about)
        assert await _holders(client) == 2
        assert len(marks(settings.uploads_dir)) == 1
        await store(log, "rig-2", **about)
        await eventually(lambda: told(log, ModelDropped))
        (dropped,) = await told(log, ModelDropped)
        assert (dropped.node_id[:8], dropped.reason) == ("gateway-", "evicted")
        assert dropped.freed_bytes == sum(file.stat().st_size for file in folder.iterdir())
        assert blobs(settings) == []
        statuses = {each["node_id"]: each["status"] for each in (await _model(client))["holdings"]}
        assert statuses == {"rig-1": "stored", "rig-2": "stored", dropped.node_id: "absent"}

    async def test_it_may_be_repeated(self, client: httpx.AsyncClient, log: EventLog, folder: Path) -> None:
        await two_nodes(client, log)
        await upload(client, folder, nodes=["rig-1"])
        again = await upload(client, folder, nodes=["rig-1", "rig-2"])
        assert again["asked"] == ["rig-2"]
        assert len(await told(log, ModelStored)) == 1

    async def test_what_was_marked_before_a_crash_is_told_when_it_is_repeated(
        self, client: httpx.AsyncClient, log: EventLog, folder: Path, settings: Settings
    ) -> None:
        await two_nodes(client, log)
        begun = await begin(client, folder)
        await send_all(client, begun, folder)
        store = Uploads(settings.uploads_dir, 2**20, 0)
        await asyncio.to_thread(lambda: store.complete(store.find(begun["id"])))
        assert (await client.post(begun["links"]["complete"], json={"nodes": ["rig-1"]})).status_code == 202
        assert [each.source for each in await told(log, ModelStored)] == ["upload"]

    async def test_it_is_removed_here_too(
        self, client: httpx.AsyncClient, log: EventLog, folder: Path, settings: Settings, eventually: Any
    ) -> None:
        await two_nodes(client, log)
        await upload(client, folder, nodes=["rig-1"])
        await client.delete(f"/v1/models/{NAME}")
        await eventually(lambda: told(log, ModelDropped))
        assert (await told(log, ModelDropped))[0].reason == "removed"
        assert blobs(settings) == []

    async def test_a_copy_that_is_dropped_by_hand_is_told(
        self, client: httpx.AsyncClient, log: EventLog, folder: Path
    ) -> None:
        await two_nodes(client, log)
        await upload(client, folder, nodes=["rig-1"])
        begun = await begin(client, folder)
        assert begun["complete"]
        await client.delete(begun["links"]["self"])
        assert await _holders(client) == 0


async def test_a_gateway_goes_on_with_what_it_finds(
    settings: Settings, log: EventLog, folder: Path, eventually: Any
) -> None:
    half = make_folder(folder.parent / "half", numbers=50_000)
    async with running(settings) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await two_nodes(client, log)
        answer = await upload(client, folder, nodes=["rig-1"])
        begun = await begin(client, half, "lab/half")
        await send(client, begun, WEIGHTS, (half / WEIGHTS).read_bytes()[:70_000])
        before = await _model(client)
    await store(log, "rig-1", reference=NAME, revision=answer["revision"])
    async with running(settings) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await eventually(lambda: told(log, ModelDropped))
        (dropped,) = await told(log, ModelDropped)
        assert dropped.node_id in {each["node_id"] for each in before["holdings"]}
        again = await begin(client, half, "lab/half")
        assert {each["path"]: each["have_bytes"] for each in again["missing"]}[WEIGHTS] == 70_000
        await send_all(client, again, half)
        assert (await client.post(again["links"]["complete"], json={"nodes": ["rig-1"]})).status_code == 202
    assert [each.reference for each in await told(log, ModelFetchAsked)] == [NAME, "lab/half"]


async def test_a_copy_that_was_taken_away_is_told(settings: Settings, log: EventLog, folder: Path) -> None:
    async with running(settings) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        await two_nodes(client, log)
        await upload(client, folder, nodes=["rig-1"])
    for blob in blobs(settings):
        blob.unlink()
    async with running(settings) as url, httpx.AsyncClient(base_url=url, trust_env=False) as client:
        begun = await begin(client, folder)
        assert len(begun["missing"]) == 3
        assert await _holders(client) == 0
        await send_all(client, begun, folder)
        assert (await client.post(begun["links"]["complete"], json={"nodes": ["rig-1"]})).status_code == 202
        assert await _holders(client) == 1


async def _completed(client: httpx.AsyncClient, folder: Path) -> httpx.Response:
    begun = await begin(client, folder)
    await send_all(client, begun, folder)
    return await client.post(begun["links"]["complete"])


async def _model(client: httpx.AsyncClient) -> dict[str, Any]:
    return (await client.get(f"/v1/models/{NAME}")).json()


async def _holders(client: httpx.AsyncClient) -> int:
    return sum(each["status"] == "stored" for each in (await _model(client))["holdings"])
