"""A file of a revision from the hub, through its own client.

A large file that comes over plain HTTP is written to our own part of it, which a later process goes on with: the
client's own temporary files are of one process alone. It is read from the client's connections as it comes, which takes
half of the work that the client's own loop does. All else is the client's: small files, and what xet brings.
"""

from __future__ import annotations

from urllib.parse import urlsplit

import httpx2
from huggingface_hub import constants, get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from bitinglip.events.model import ModelFile
from bitinglip.models.layout import Place
from bitinglip.models.meter import FileMeter
from bitinglip.models.partial import Partial

LARGE_BYTES = 8 << 20
"""From this size on a file is worth going on with."""
TRIES = 4
"""Times that a hub may have a fault, or be lost, without sending anything of a file."""
PAUSE_S = 1.0
FAULTS = frozenset({500, 502, 503, 504})
"""Answers of a hub that has a fault, which is often over after a moment."""


def is_large(file: ModelFile) -> bool:
    """Return whether a file is one whose parts are kept."""
    return file.sha256 is not None and file.size_bytes >= LARGE_BYTES


def go_on(place: Place, file: ModelFile, partial: Partial, endpoint: str | None, meter: FileMeter) -> bool:
    """Bring what is missing of a large file; tells whether it did, or whether the client itself has to (`download`).

    Raises:
        HfHubHTTPError, OSError: the hub refuses it, or the disk does.
        httpx2.TransportError: the hub cannot be reached, or was lost too often.
    """
    url = hf_hub_url(place.reference, file.path, revision=place.revision, endpoint=endpoint)
    left = TRIES
    while True:
        before = partial.have
        try:
            found = get_hf_file_metadata(url, endpoint=endpoint)
            if found.xet_file_data is not None or found.etag != file.sha256:
                return False
            _get(url, found.location, partial, meter)
        except (HfHubHTTPError, httpx2.TransportError) as error:
            left = TRIES if partial.have > before else left - 1
            if not left or not _passes(error):
                raise
            meter.meter.pause(PAUSE_S)
        else:
            return True


def _passes(error: HfHubHTTPError | httpx2.TransportError) -> bool:
    return isinstance(error, httpx2.TransportError) or error.response.status_code in FAULTS


def _get(url: str, location: str, partial: Partial, meter: FileMeter) -> None:
    headers = {**_headers(url, location), **partial.wanted}
    with get_session().stream("GET", location, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        hf_raise_for_status(answer)
        if answer.status_code == 200 and partial.have:  # the whole rather than the rest
            partial.restart()
            meter.is_at(0)
        partial.take(answer.iter_raw(), meter.hub)


def download(place: Place, file: ModelFile, endpoint: str | None, meter: FileMeter) -> None:
    """Have the client bring a file into the cache, with its own locks, temporary files and links.

    Raises:
        HfHubHTTPError, OSError: the hub refuses it, or sends something else than was told.
        httpx2.TransportError: the hub cannot be reached, or was lost too often.
    """
    hf_hub_download(
        place.reference,
        file.path,
        revision=place.revision,
        cache_dir=place.cache_dir,
        endpoint=endpoint,
        tqdm_class=meter.bar(),
        library_name="bitinglip",
    )


def _headers(asked: str, location: str) -> dict[str, str]:
    """Return the headers for a file's address: the token is the hub's, and not of those that it sends one to."""
    same = urlsplit(asked)[:2] == urlsplit(location)[:2]
    return build_hf_headers(token=None if same else False, library_name="bitinglip")
