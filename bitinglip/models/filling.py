"""One file of a revision: taken if it is there, else brought by a peer or the hub; checked, and put in its place."""

from __future__ import annotations

from huggingface_hub.utils import WeakFileLock

from bitinglip.errors import ChecksumMismatch, NoHolder
from bitinglip.events.model import ModelFile
from bitinglip.models import hubfiles
from bitinglip.models.digests import Digests, digests_of
from bitinglip.models.layout import Place, digest_of
from bitinglip.models.linking import is_there, put
from bitinglip.models.marks import mark_of
from bitinglip.models.meter import FileMeter, Meter
from bitinglip.models.partial import Partial
from bitinglip.models.peerfiles import Peers
from bitinglip.models.protocol import FetchJob
from bitinglip.models.removal import discard, unlink

TRIES = 2
"""A file that came with a wrong content is fetched once more."""


class Filler:
    """Brings the files of one revision; used by many threads, a file each."""

    def __init__(self, job: FetchJob, place: Place, meter: Meter) -> None:
        self._place, self._endpoint, self._peers, self._meter = place, job.endpoint, Peers(job.peers), meter
        self._on_hub = job.source == "hub"
        known = mark_of(place)
        self._known = {file.path: file for file in known.files} if known else {}

    def fill(self, file: ModelFile) -> ModelFile:
        """Have a file in its place, checked; returns it with its SHA-256.

        Raises:
            ChecksumMismatch: it came twice with a content that it is not to have.
            NoHolder: it is on no hub, and no peer brings it.
            HfHubHTTPError, OSError, httpx2.TransportError: the hub refuses it, or cannot be reached.
            Halted: the fetch is to stop.
        """
        meter = FileMeter(self._meter)
        sha256 = self._vouched(file) or self._found(file, meter) or self._fetched(file, meter)
        meter.is_at(file.size_bytes)
        return file.model_copy(update={"sha256": sha256})

    def _vouched(self, file: ModelFile) -> str | None:
        """Return the SHA-256 of a file that our mark says to be checked already."""
        known = self._known.get(file.path)
        same = known is not None and known.size_bytes == file.size_bytes and file.sha256 in {None, known.sha256}
        return known.sha256 if known and same and is_there(self._place, file) else None

    def _found(self, file: ModelFile, meter: FileMeter) -> str | None:
        """Return the SHA-256 of a file that is there, once it is checked; what is not as it should be is removed."""
        if is_there(self._place, file):
            meter.is_at(file.size_bytes)
            found = self._digests(file)
            if found.fit(file):
                return found.sha256
        discard(self._place, file.path)
        return None

    def _fetched(self, file: ModelFile, meter: FileMeter) -> str:
        """Bring a file, and return its SHA-256."""
        left = TRIES
        while left:
            meter.is_at(0)
            with meter:
                found, by_peer = self._by_part(file, meter) or (None, False)
                if found is None:
                    hubfiles.download(self._place, file, self._endpoint, meter)
            found = found or self._digests(file)
            if found.fit(file):
                return found.sha256
            discard(self._place, file.path)
            left -= not by_peer  # a peer that lied is not asked again
        meter.is_at(0)
        raise ChecksumMismatch(path=file.path, expected=str(digest_of(file)))

    def _digests(self, file: ModelFile) -> Digests:
        return digests_of(self._place.file(file.path), file, lambda _: self._meter.halt())

    def _by_part(self, file: ModelFile, meter: FileMeter) -> tuple[Digests, bool] | None:
        """Bring a file as a part that grows, and tell whether a peer sent the last of it; none: it is not had so."""
        digest = digest_of(file)
        if digest is None or not (self._peers or hubfiles.is_large(file)):
            self._need_hub(file)
            return None
        lock = self._place.blob_lock(digest)
        lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            if is_there(self._place, file):  # by another process, while we waited
                return self._digests(file), False
            return self._grown(file, digest, meter)

    def _grown(self, file: ModelFile, digest: str, meter: FileMeter) -> tuple[Digests, bool] | None:
        path = self._place.partial(digest)
        meter.is_at(path.stat().st_size if path.exists() else 0)  # it is hashed first, which may take a while
        with Partial(path, file) as partial:
            meter.is_at(partial.have)
            sender = self._peers.bring(self._place, file, partial, meter)
            if not partial.whole:
                self._need_hub(file)
            if not (partial.whole or self._from_hub(file, partial, meter)):
                unlink(partial.path)
                return None
            found = partial.digests()
            if found.fit(file):
                put(self._place, file, partial.path, digest)
            else:
                unlink(partial.path)
                if sender is not None:
                    self._peers.give_up(sender, f"its {file.path} has another content than was told")
        return found, sender is not None

    def _need_hub(self, file: ModelFile) -> None:
        if not self._on_hub:
            raise NoHolder(reference=self._place.reference, revision=self._place.revision, path=file.path)

    def _from_hub(self, file: ModelFile, partial: Partial, meter: FileMeter) -> bool:
        return hubfiles.is_large(file) and hubfiles.go_on(self._place, file, partial, self._endpoint, meter)
