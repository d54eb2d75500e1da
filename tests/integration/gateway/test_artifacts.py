"""Uploads and downloads, and media parameters in each of their forms."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bitinglip.errors import ArtifactExpired
from bitinglip.events import artifacts
from bitinglip.events.log import EventLog
from bitinglip.events.task import TaskSubmitted
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from tests.integration.gateway.support import UNKNOWN_ID, Player, check_problem, register, submitted

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
DATA_URL = "data:image/png;base64," + base64.b64encode(PNG).decode()
DIGEST = hashlib.sha256(PNG).hexdigest()


def caption(image: Any) -> dict[str, Any]:
    return {"kind": "image-to-text", "model": "org/eyes", "params": {"image": image}}


@pytest.fixture(autouse=True)
async def eyes(log: EventLog) -> None:
    await register(log, "image-to-text", "org/eyes")


async def kept(log: EventLog, task_id: str) -> dict[str, Any]:
    """Return the parameters as the log has them."""
    event = (await log.read_task(TaskId(task_id)))[0].event
    assert isinstance(event, TaskSubmitted)
    assert event.params is not None
    return event.params


# --- up and down ------------------------------------------------------------------------------------------------------


async def test_what_is_uploaded_comes_back(client: httpx.AsyncClient) -> None:
    body = bytes(range(256)) * 2000

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    answer = await client.post("/v1/artifacts", content=pieces(), headers={"Content-Type": "audio/wav"})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    digest = hashlib.sha256(body).hexdigest()
    assert (told["sha256"], told["size_bytes"], told["media_type"]) == (digest, len(body), "audio/wav")
    assert answer.headers["location"] == told["links"]["self"] == f"/v1/artifacts/{digest}"
    back = await client.get(answer.headers["location"])
    assert (back.content, back.headers["content-type"]) == (body, "audio/wav")


async def test_a_range_can_be_asked_for(client: httpx.AsyncClient) -> None:
    body = b"0123456789" * 100
    path = (await client.post("/v1/artifacts", content=body)).headers["location"]
    part = await client.get(path, headers={"Range": "bytes=5-14"})
    assert (part.status_code, part.content) == (206, b"5678901234")
    assert part.headers["content-range"] == "bytes 5-14/1000"
    last = await client.get(path, headers={"Range": "bytes=-3"})
    assert (last.status_code, last.content) == (206, b"789")
    beyond = await client.get(path, headers={"Range": "bytes=2000-"})
    assert beyond.status_code == 416


async def test_an_upload_has_bounds(client: httpx.AsyncClient) -> None:
    check_problem(await client.post("/v1/artifacts", content=b""), 422, "invalid_input")
    strange = await client.post("/v1/artifacts", content=b"x", headers={"Content-Type": "no type"})
    check_problem(strange, 422, "invalid_input")


@pytest.fixture
async def short(log: EventLog, nats_url: str) -> AsyncIterator[EventLog]:
    """A log whose artifacts live for a second."""
    await artifacts.put(log.connection, b"before", "text/plain")
    short = await EventLog.connect(Nats(url=nats_url, artifact_lifetime_days=1 / 86_400), "/short")
    yield short
    await short.close()


async def test_an_expired_artifact_says_so(client: httpx.AsyncClient, short: EventLog, eventually: Any) -> None:
    digest = (await artifacts.put(short.connection, b"mayfly", "text/plain")).sha256

    async def gone() -> bool:
        try:
            await artifacts.find(short.connection, digest)
        except ArtifactExpired:
            return True
        return False

    await eventually(gone)
    check_problem(await client.get(f"/v1/artifacts/{digest}"), 410, "artifact_expired")
    check_problem(await client.post("/v1/tasks", json=caption(f"artifact:{digest}")), 422, "invalid_input")
    again = await artifacts.put(short.connection, b"mayfly", "text/plain")
    assert (await artifacts.get(short.connection, again.sha256))[0] == b"mayfly"


# --- media parameters -------------------------------------------------------------------------------------------------


async def test_a_data_url_becomes_an_artifact(client: httpx.AsyncClient, log: EventLog) -> None:
    task_id = await submitted(client, caption(DATA_URL))
    assert await kept(log, task_id) == {"image": f"artifact:{DIGEST}"}
    assert await artifacts.get(log.connection, DIGEST) == (PNG, "image/png")


async def test_an_upload_is_named_by_its_digest(client: httpx.AsyncClient, log: EventLog) -> None:
    await client.post("/v1/artifacts", content=PNG, headers={"Content-Type": "image/png"})
    task_id = await submitted(client, caption(f"artifact:{DIGEST}"))
    assert await kept(log, task_id) == {"image": f"artifact:{DIGEST}"}


async def test_a_task_takes_what_another_has_made(client: httpx.AsyncClient, player: Player, log: EventLog) -> None:
    first = await artifacts.put(log.connection, b"other", "image/png")
    second = await artifacts.put(log.connection, PNG, "image/png")
    maker = await submitted(client, {"kind": "echo", "model": "echo", "params": {}})
    early = await client.post("/v1/tasks", json=caption(f"task:{maker}"))
    assert "has not succeeded" in check_problem(early, 422, "invalid_input")["detail"]
    await player.assign(maker)
    sound = {"sha256": "0" * 64, "size_bytes": 1, "media_type": "audio/wav"}
    await player.succeed(maker, sound=sound, images=[first.model_dump(), second.model_dump()])
    assert await kept(log, await submitted(client, caption(f"task:{maker}"))) == {"image": f"artifact:{first.sha256}"}
    assert await kept(log, await submitted(client, caption(f"task:{maker}/1"))) == {"image": f"artifact:{DIGEST}"}
    third = await client.post("/v1/tasks", json=caption(f"task:{maker}/2"))
    assert "has made 2" in check_problem(third, 422, "invalid_input")["detail"]


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        ("http://example.com/cat.png", "pattern"),
        (f"artifact:{'0' * 64}", "There is no artifact"),
        ("artifact:../../etc/passwd", "There is no artifact"),
        (f"task:{UNKNOWN_ID}", "there is no task"),
        ("task:none", "not of the form"),
        ("data:image/png;base64,@@@", "not base64"),
        ("data:image/png;base64,", "empty"),
        ("data:nothing", "not a data URL"),
        ("data:text/plain,hello", "is no image"),
        (7, "string"),
    ],
)
async def test_what_names_no_picture_is_refused(client: httpx.AsyncClient, image: Any, problem: str) -> None:
    answer = check_problem(await client.post("/v1/tasks", json=caption(image)), 422, "invalid_input")
    assert answer["field"] == "params.image"
    assert problem in answer["detail"]


async def test_the_same_request_is_the_same_task(client: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": "once"}
    first = await client.post("/v1/tasks", json=caption(DATA_URL), headers=headers)
    again = await client.post("/v1/tasks", json=caption(f"artifact:{DIGEST}"), headers=headers)
    assert first.json()["task_id"] == again.json()["task_id"]
