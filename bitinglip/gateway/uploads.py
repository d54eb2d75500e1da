"""Uploads: a model's folder comes file by file, each from where it was cut off, and goes to nodes as a whole."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request
from starlette.responses import Response

from bitinglip.events.model import ModelFile
from bitinglip.gateway import aliases, bodies, models, requests
from bitinglip.gateway.context import Gateway, gateway_of
from bitinglip.gateway.responses import json
from bitinglip.models.reference import parse_reference
from bitinglip.models.uploads import Receiving, Upload

PIECE_BYTES = 1 << 20
"""What of a file is in memory at a time."""
FILES_MOST = 10_000


class UploadFile(BaseModel):
    """A file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str = Field(min_length=1, max_length=1024, description="Its place in the folder, with `/` between the parts.")
    size_bytes: int = Field(ge=0, le=requests.SEQUENCE_MOST)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$", description="Digest of its content, in hex.")


class BeginUpload(BaseModel):
    """What is to be uploaded: the body of `POST /v1/uploads`."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    name: str = Field(alias="as", min_length=1, max_length=200, description="Name that it gets, as `org/name`.")
    files: list[UploadFile] = Field(min_length=1, max_length=FILES_MOST, description="Its files, all of them.")
    dry_run: bool = Field(default=False, description="Only say which files would be taken; digests are not needed.")

    @model_validator(mode="after")
    def _digests(self) -> Self:
        if not self.dry_run and any(file.sha256 is None for file in self.files):
            raise ValueError("each file needs its sha256")
        return self

    def listed(self) -> list[ModelFile]:
        """Return the files."""
        return [ModelFile(path=file.path, size_bytes=file.size_bytes, sha256=file.sha256) for file in self.files]


class CompleteUpload(BaseModel):
    """Who is to have it: the body of `POST /v1/uploads/{upload_id}/complete`, which may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    nodes: models.Nodes | None = Field(
        default=None, description="Nodes that are to have it, or `all` that are online; none: one that fits is chosen."
    )
    alias: str | None = Field(default=None, min_length=1, max_length=96, description="Name that is to stand for it.")
    pin: bool = Field(default=False, description="Whether these nodes are to keep it, whatever room others need.")


async def begin(request: Request) -> Response:
    """Answer `POST /v1/uploads`: the same files under the same name are the same upload, and go on."""
    gateway = gateway_of(request)
    requests.only(request)
    asked = await bodies.read(request, BeginUpload)
    reference, store = parse_reference(asked.name).name, gateway.uploaded.store
    if asked.dry_run:
        taken, left_out = await asyncio.to_thread(store.look, reference, asked.listed())
        size = sum(file.size_bytes for file in taken)
        return json({"files": [file.path for file in taken], "left_out": left_out, "size_bytes": size})
    upload = await asyncio.to_thread(store.begin, reference, asked.listed())
    shown = await asyncio.to_thread(_shown, upload)
    return json(shown, 201, {"Location": shown["links"]["self"]})


async def list_uploads(request: Request) -> Response:
    """Answer `GET /v1/uploads`: those of this gateway."""
    requests.only(request)
    store = gateway_of(request).uploaded.store
    return json({"uploads": await asyncio.to_thread(lambda: [_shown(upload) for upload in store.all()])})


async def get_upload(request: Request) -> Response:
    """Answer `GET /v1/uploads/{upload_id}`."""
    requests.only(request)
    return json(await asyncio.to_thread(_shown, await _upload(request)))


async def put_file(request: Request) -> Response:
    """Answer `PUT /v1/uploads/{upload_id}/files/{path}`: the body is the file from `offset` on, or the next part."""
    requests.only(request, ("offset",))
    offset = requests.number("offset", requests.one(request, "offset"), 0, 0, requests.SEQUENCE_MOST)
    upload, path = await _upload(request), request.path_params["path"]
    receiving = await asyncio.to_thread(Receiving, upload, path, offset)
    try:
        async for piece in requests.read_pieces(request, receiving.left_bytes, PIECE_BYTES):
            await asyncio.to_thread(receiving.write, piece)
        have = await asyncio.to_thread(receiving.finish)
    finally:
        await asyncio.to_thread(receiving.close)
    size = receiving.file.size_bytes
    return json({"path": path, "size_bytes": size, "have_bytes": have, "complete": have == size})


async def complete(request: Request) -> Response:
    """Answer `POST /v1/uploads/{upload_id}/complete`: 202 with what was asked of which nodes."""
    gateway = gateway_of(request)
    requests.only(request)
    upload = await _upload(request)
    asked = await bodies.read_if_given(request, CompleteUpload)
    nodes = await models.meant(gateway, asked.nodes)
    if asked.alias is not None:
        await aliases.check_name(gateway, asked.alias)
    revision = await gateway.uploaded.complete(upload, gateway.key_id)
    return await models.place(gateway, revision, nodes, alias=asked.alias, pin=asked.pin)


async def delete(request: Request) -> Response:
    """Answer `DELETE /v1/uploads/{upload_id}`: what has come is dropped; nodes that have it keep it."""
    gateway = gateway_of(request)
    requests.only(request)
    upload = await _upload(request)
    return json({"id": upload.id, "freed_bytes": await gateway.uploaded.drop(upload)})


async def _upload(request: Request) -> Upload:
    gateway: Gateway = gateway_of(request)
    return await asyncio.to_thread(gateway.uploaded.store.find, request.path_params["upload_id"])


def _shown(upload: Upload) -> dict[str, Any]:
    """Return an upload as it is shown; looks at the disk."""
    missing, size = upload.missing(), sum(file.size_bytes for file in upload.files)
    model = f"{upload.place.reference}@{upload.place.revision}"
    here = f"/v1/uploads/{upload.id}"
    return {
        "id": upload.id,
        "model": model,
        "reference": upload.place.reference,
        "revision": upload.place.revision,
        "complete": upload.whole,
        "size_bytes": size,
        "have_bytes": size - sum(each.size_bytes - each.have_bytes for each in missing),
        "missing": [asdict(each) for each in missing],
        "links": {
            "self": here,
            "files": f"{here}/files",
            "complete": f"{here}/complete",
            "model": f"/v1/models/{model}",
        },
    }
