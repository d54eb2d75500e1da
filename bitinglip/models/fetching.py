"""Bringing a revision into the store: intent first, then the files, then what points at it, and the mark last."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path

from bitinglip.errors import DiskFull, FetchTaken, StoreReadOnly, UnsafeRepository
from bitinglip.events.model import ModelFile
from bitinglip.models import snapshots
from bitinglip.models.filling import Filler, is_there
from bitinglip.models.layout import Place, digest_of, place_of
from bitinglip.models.locks import exclusively
from bitinglip.models.meter import Halted, Meter
from bitinglip.models.peerfiles import Peers
from bitinglip.models.protocol import FetchJob, Stored

GRACE_S = 1.0
"""For files that still travel when one has failed."""


def fetch(job: FetchJob, meter: Meter) -> Stored:
    """Bring what is missing of a revision, check all of it, and mark it as stored.

    Raises:
        BitingLipError: as declared: no room, no right to write, a wrong content, a path that leaves the folder.
        HfHubHTTPError, OSError, httpx2.TransportError: the hub refuses it, or cannot be reached.
        Halted: it was told to stop.
    """
    began = time.monotonic()
    place = place_of(job.cache_dir, job.reference, job.revision)
    for file in job.files:
        place.file(file.path)
    ref = _ref(place, job.asked_revision or job.revision)
    if snapshots.read_only(place.repo):
        raise StoreReadOnly(folder=str(job.cache_dir))
    with ExitStack() as held:
        if not held.enter_context(exclusively(place.fetch_lock)):
            raise FetchTaken(reference=job.reference, revision=job.revision)
        held.enter_context(snapshots.in_use(job.cache_dir, job.reference, job.revision))
        files = _bring(job, place, meter)
        if ref.name != job.revision:
            _point(ref, job.revision)
        snapshots.mark(job.cache_dir, job.reference, job.revision, files, "hub")
    return Stored(files=files, hub_bytes=meter.hub_bytes, peer_bytes=meter.peer_bytes, took_s=time.monotonic() - began)


def _bring(job: FetchJob, place: Place, meter: Meter) -> tuple[ModelFile, ...]:
    snapshots.intend(place, job.files, job.asked_revision)
    snapshots.sweep(place.repo)
    _room(job, place)
    filler = Filler(place, job.endpoint, Peers(job.peers), meter, snapshots.mark_of(place))
    threads = ThreadPoolExecutor(job.parallel, "fetch")
    largest_first = sorted(job.files, key=lambda file: -file.size_bytes)
    work = {file.path: threads.submit(filler.fill, file) for file in largest_first}
    done, _ = wait(work.values(), return_when=FIRST_EXCEPTION)
    if failed := [error for each in done if (error := each.exception()) is not None]:
        meter.stop.set()
        threads.shutdown(wait=False, cancel_futures=True)
        wait(work.values(), GRACE_S)  # one that hears nothing from the hub ends with this process
        raise next((error for error in failed if not isinstance(error, Halted)), failed[0])
    meter.tell()
    return tuple(work[file.path].result() for file in job.files)


def _room(job: FetchJob, place: Place) -> None:
    """Refuse what does not fit on the disk, before anything travels."""
    missing = {digest_of(file) or file.path: _missing(place, file) for file in job.files}
    needed, free = sum(missing.values()) + job.min_free_bytes, snapshots.free_bytes(job.cache_dir)
    if sum(missing.values()) and needed > free:
        raise DiskFull(folder=str(job.cache_dir), needed_bytes=needed, free_bytes=free)


def _missing(place: Place, file: ModelFile) -> int:
    if is_there(place, file):
        return 0
    digest = digest_of(file)
    part = place.partial(digest) if digest else None
    return max(0, file.size_bytes - (part.stat().st_size if part and part.exists() else 0))


def _ref(place: Place, asked: str) -> Path:
    parts = asked.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise UnsafeRepository(reference=place.reference, path=f"refs/{asked}")
    return (place.repo / "refs").joinpath(*parts)


def _point(ref: Path, commit: str) -> None:
    """Have a branch or tag point at a commit."""
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(f"{ref}.{secrets.token_hex(4)}.tmp")
    temporary.write_text(commit, "utf-8")
    temporary.replace(ref)
