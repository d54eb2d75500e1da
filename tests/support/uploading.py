"""Uploading a folder by hand, request by request."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.weights import save_json, save_tensors

NAME = "lab/tuned"


def make_folder(folder: Path, numbers: int = 1000, seed: int = 0) -> Path:
    """Make a model's folder with nothing beside what is loaded."""
    save_json(folder / "config.json", {"architectures": ["GPT2LMHeadModel"], "n_positions": 128, "n_ctx": 128})
    save_json(folder / "tokenizer.json", {"model": {"vocab": {}}})
    save_tensors(folder / "model.safetensors", {"wte.weight": ("F32", [numbers])}, seed)
    return folder


def manifest(folder: Path, name: str = NAME, **fields: Any) -> dict[str, Any]:
    """Return what an upload of a folder is begun with."""
    files = [
        {
            "path": path.relative_to(folder).as_posix(),
            "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return {"as": name, "files": files} | fields


async def begin(client: httpx.AsyncClient, folder: Path, name: str = NAME) -> dict[str, Any]:
    """Begin the upload of a folder."""
    answer = await client.post("/v1/uploads", json=manifest(folder, name))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def send(
    client: httpx.AsyncClient, upload: dict[str, Any], path: str, body: Any, offset: int = 0
) -> httpx.Response:
    """Send a file, from an offset on."""
    return await client.put(f"{upload['links']['files']}/{path}", content=body, params={"offset": offset})


async def send_all(client: httpx.AsyncClient, upload: dict[str, Any], folder: Path) -> int:
    """Send what is missing of a folder; returns how many bytes that were."""
    sent = 0
    for each in upload["missing"]:
        body = (folder / each["path"]).read_bytes()[each["have_bytes"] :]
        answer = await send(client, upload, each["path"], body, each["have_bytes"])
        assert answer.status_code == 200, answer.text
        sent += len(body)
    return sent


async def upload(client: httpx.AsyncClient, folder: Path, name: str = NAME, **asked: Any) -> dict[str, Any]:
    """Upload a folder as a whole, and have nodes fetch it."""
    begun = await begin(client, folder, name)
    await send_all(client, begun, folder)
    answer = await client.post(begun["links"]["complete"], json=asked)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def pieces(body: bytes, size: int) -> AsyncIterator[bytes]:
    """Yield a body in pieces."""
    for start in range(0, len(body), size):
        yield body[start : start + size]
