"""What goes wrong with models that are uploaded to a gateway; each hangs on the branch of who can act."""

from __future__ import annotations

from dataclasses import dataclass

from bitinglip.errors.rejected import Rejected
from bitinglip.errors.unavailable import Unavailable


@dataclass(eq=False, kw_only=True)
class UploadNotFound(Rejected):
    """A gateway has no upload of this id: it was never begun there, or is over."""

    code, status = "upload_not_found", 404
    template = "There is no upload {upload_id} at this gateway."
    remedy = "Begin it with `POST /v1/uploads`; what is begun at one gateway goes on at that one."
    upload_id: str


@dataclass(eq=False, kw_only=True)
class UploadFileUnknown(Rejected):
    """A file is sent that was not among those that the upload was begun with."""

    code, status = "upload_file_unknown", 404
    template = "The upload {upload_id} has no file {path!r}."
    remedy = "Send the files that `GET /v1/uploads/{upload_id}` names, or begin an upload with this one among them."
    upload_id: str
    path: str


@dataclass(eq=False, kw_only=True)
class FilesNotTaken(Rejected):
    """An upload has files that no engine loads, code and pickles among them."""

    code, status = "files_not_taken", 422
    template = "{reference}: no engine loads {paths}; nothing was begun."
    remedy = "Leave them out: safetensors, configurations and what tokenizers are made of are taken, and nothing else."
    reference: str
    paths: str


@dataclass(eq=False, kw_only=True)
class UploadTaken(Rejected):
    """Two send the same file at once."""

    code, status = "upload_taken", 409
    template = "{path} is just being sent by somebody else."
    remedy = "Wait until that has ended: what has come stays, and is gone on with."
    path: str


@dataclass(eq=False, kw_only=True)
class UploadOffset(Rejected):
    """What is sent of a file does not begin where what is there ends."""

    code, status = "upload_offset", 409
    template = "{path}: {have_bytes} bytes of it are here, so that the next one is not that at {offset}."
    remedy = "Send the file from `have_bytes` on (`?offset=`); if that is its size, it is here as a whole."
    path: str
    offset: int
    have_bytes: int


@dataclass(eq=False, kw_only=True)
class WrongContent(Rejected):
    """A file that was sent is not the one that its digest tells."""

    code, status = "wrong_content", 422
    template = "{path} came with other bytes than its digest tells ({expected}): it was not kept."
    remedy = (
        "If the file was changed meanwhile, begin anew with its new digest; else send it again, from its beginning."
    )
    path: str
    expected: str


@dataclass(eq=False, kw_only=True)
class UploadIncomplete(Rejected):
    """An upload is to be completed, and files of it are missing."""

    code, status = "upload_incomplete", 409
    template = "{missing} of the upload's files are not here as a whole, {path} among them."
    remedy = "Send what `GET /v1/uploads/ID` names as missing, then complete it."
    missing: int
    path: str


@dataclass(eq=False, kw_only=True)
class NoHolder(Unavailable):
    """A revision that is on no hub is to be fetched, and no node or gateway that has it hands it out."""

    code = "no_holder"
    template = "{reference} at {revision} is on no hub, and nobody who has it answers: {path} is missing."
    remedy = (
        "Start a node that has it (`bitinglip model show NAME` names them), or upload or import the folder once more; "
        "it is tried again by itself."
    )
    reference: str
    revision: str
    path: str
    retry_after_s: int = 2
