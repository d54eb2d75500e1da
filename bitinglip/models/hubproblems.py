"""What huggingface_hub raises while it fetches, as errors of ours that say what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import httpx2
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from bitinglip.errors import (
    BitingLipError,
    DiskFull,
    FetchFailed,
    HubOffline,
    HubTokenRefused,
    HubUnreachable,
    ModelGated,
    ModelNotOnHub,
    RevisionNotOnHub,
    StoreReadOnly,
)
from bitinglip.models.locks import READ_ONLY
from bitinglip.models.marks import free_bytes
from bitinglip.models.protocol import FetchJob

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
LONGEST_WAIT_S = 3600


def problem_of(error: BaseException, job: FetchJob) -> BitingLipError:
    """Return what a fetch failed of."""
    endpoint = job.endpoint or constants.ENDPOINT
    for cause in _causes(error):
        match cause:
            case GatedRepoError():
                return ModelGated(name=job.reference, problem=cause.server_message or "its owner must let one in")
            case RevisionNotFoundError():
                return RevisionNotOnHub(name=job.reference, revision=job.revision)
            case RepositoryNotFoundError():
                return ModelNotOnHub(name=job.reference, endpoint=endpoint)
            case HfHubHTTPError():
                return _answered(cause, job, endpoint)
            case OfflineModeIsEnabled():
                return HubOffline(variable="HF_HUB_OFFLINE")
            case httpx2.TransportError():
                return HubUnreachable(endpoint=endpoint, problem=str(cause) or type(cause).__name__)
            case OSError() if cause.errno is not None:
                return _local(cause, job)
            case _:
                pass
    return FetchFailed(reference=job.reference, problem=f"{type(error).__name__}: {error}")


def _answered(error: HfHubHTTPError, job: FetchJob, endpoint: str) -> BitingLipError:
    status = error.response.status_code
    if isinstance(error, RemoteEntryNotFoundError):
        return RevisionNotOnHub(name=job.reference, revision=f"{job.revision} with {error.response.url.path}")
    if status == 401:
        return HubTokenRefused(endpoint=endpoint)
    if status == 403:
        return ModelGated(name=job.reference, problem=error.server_message or "the hub forbids it")
    after = error.response.headers.get("retry-after", "")
    wait_s = min(int(after), LONGEST_WAIT_S) if after.isdecimal() else HubUnreachable.retry_after_s
    return HubUnreachable(endpoint=endpoint, problem=f"it answers {status}", retry_after_s=wait_s)


def _local(error: OSError, job: FetchJob) -> BitingLipError:
    if error.errno in NO_ROOM:
        needed = sum(file.size_bytes for file in job.files)
        return DiskFull(folder=str(job.cache_dir), needed_bytes=needed, free_bytes=free_bytes(job.cache_dir))
    if error.errno in READ_ONLY:
        return StoreReadOnly(folder=str(job.cache_dir))
    return FetchFailed(reference=job.reference, problem=str(error))


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it was raised from; the client hides a refusal behind a file that is not found."""
    while error is not None:
        if not isinstance(error, LocalEntryNotFoundError):
            yield error
        error = error.__cause__ or error.__context__
