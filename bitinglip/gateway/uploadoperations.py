"""The routes about uploads, as the OpenAPI document tells them."""

from __future__ import annotations

from bitinglip import errors
from bitinglip.gateway.modeloperations import HUB, KNOWN
from bitinglip.gateway.schemas import (
    BODY,
    FLAG,
    TEXT,
    WHOLE,
    Operation,
    array_of,
    in_path,
    in_query,
    object_of,
    ref,
)

UPLOAD_ID = in_path("upload_id", "The upload's id.", "[0-9a-f]{32}")
FILE_PATH = in_path("path", "The file's place in the folder; its slashes may stand as they are.", ".+")
OFFSET = in_query("offset", "Where the body begins in the file: at what is here of it. 0 if not given.", WHOLE)
FOUND = (errors.UploadNotFound,)
REFUSED = (
    *BODY, errors.InvalidReference, errors.FilesNotTaken, errors.OnlyPickles, errors.NothingToLoad,
    errors.UnsafeRepository, errors.DiskFull, errors.StoreReadOnly,
)  # fmt: skip
UPLOAD = object_of(
    id=TEXT, model=TEXT, reference=TEXT, revision=TEXT, complete=FLAG, size_bytes=WHOLE, have_bytes=WHOLE,
    missing=array_of(object_of(path=TEXT, size_bytes=WHOLE, have_bytes=WHOLE)),
    links=object_of(self=TEXT, files=TEXT, complete=TEXT, model=TEXT),
)  # fmt: skip

UPLOAD_OPERATIONS = (
    Operation(
        "post", "/v1/uploads", "Begin to upload a model's folder, or go on with it.",
        {201: ref("Upload"), 200: object_of(files=array_of(TEXT), left_out=array_of(TEXT), size_bytes=WHOLE)},
        REFUSED, body="BeginUpload",
        notes="The same files under the same name are the same upload, whoever begins it. With `dry_run` it is only "
        "said which files would be taken (200).",
    ),
    Operation(
        "get", "/v1/uploads", "List the uploads of this gateway.", {200: object_of(uploads=array_of(ref("Upload")))},
    ),
    Operation(
        "get", "/v1/uploads/{upload_id}", "Look at an upload, and what is missing of it.", {200: ref("Upload")},
        FOUND, (UPLOAD_ID,),
    ),
    Operation(
        "put", "/v1/uploads/{upload_id}/files/{path}", "Send a file, or what is missing of it.",
        {200: object_of(path=TEXT, size_bytes=WHOLE, have_bytes=WHOLE, complete=FLAG)},
        (*FOUND, errors.UploadFileUnknown, errors.UploadTaken, errors.UploadOffset, errors.WrongContent,
         errors.MalformedBody, errors.PayloadTooLarge, errors.InvalidInput, errors.DiskFull),
        (UPLOAD_ID, FILE_PATH, OFFSET), upload=True,
        notes="What has come before a connection breaks stays; the whole is checked by its digest.",
    ),
    Operation(
        "post", "/v1/uploads/{upload_id}/complete", "Have nodes fetch what was uploaded.", {202: ref("ModelAsked")},
        (*BODY, *FOUND, errors.UploadIncomplete, errors.NodeNotFound, errors.ModelDoesNotFit, errors.AliasTaken,
         errors.StreamFull, *KNOWN, *HUB),
        (UPLOAD_ID,), body="CompleteUpload",
        notes="The body may be left out: then a node that it fits on is chosen. May be repeated, for other nodes too. "
        "The gateway drops its copy once all nodes that were asked have theirs.",
    ),
    Operation(
        "delete", "/v1/uploads/{upload_id}", "Drop an upload, or the gateway's copy of it.",
        {200: object_of(id=TEXT, freed_bytes=WHOLE)},
        (*FOUND, errors.ModelInUse, errors.StreamFull, *KNOWN), (UPLOAD_ID,),
    ),
)  # fmt: skip
