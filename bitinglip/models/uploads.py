"""What callers upload: models that come file by file into a store of a gateway's own.

The store is as the nodes' own: an intent while files are missing, a mark when all are there, parts that are gone on
with. All of it blocks: it is for threads.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bitinglip.errors import (
    BrokenModel,
    DiskFull,
    FilesNotTaken,
    InvalidInput,
    PayloadTooLarge,
    UploadFileUnknown,
    UploadIncomplete,
    UploadNotFound,
    UploadOffset,
    UploadTaken,
    WrongContent,
)
from bitinglip.events.model import ModelDescribed, ModelFile
from bitinglip.models import snapshots
from bitinglip.models.describe import described
from bitinglip.models.layout import MAIN, Place, place_of
from bitinglip.models.linking import is_there, put
from bitinglip.models.locks import exclusively
from bitinglip.models.memory import known
from bitinglip.models.partial import Partial
from bitinglip.models.removal import unlink
from bitinglip.models.repofiles import wanted

REVISION_CHARACTERS = 40
NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, slots=True)
class Missing:
    """A file that has not come as a whole."""

    path: str
    size_bytes: int
    have_bytes: int
    """What has come: the rest is to be sent."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A revision of which files come, or have come."""

    place: Place
    files: tuple[ModelFile, ...]

    @property
    def id(self) -> str:
        """The same for the same files under the same name."""
        text = f"{self.place.reference}@{self.place.revision}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def whole(self) -> bool:
        """Whether it has been completed."""
        return self.place.mark.exists()

    def missing(self) -> list[Missing]:
        """Return the files that are not here as a whole."""
        return [self._missing(file) for file in self.files if not is_there(self.place, file)]

    def file(self, path: str) -> ModelFile:
        """Return one of its files.

        Raises:
            UploadFileUnknown: it has none of this path.
        """
        found = next((file for file in self.files if file.path == path), None)
        if found is None:
            raise UploadFileUnknown(upload_id=self.id, path=path[:200])
        return found

    def _missing(self, file: ModelFile) -> Missing:
        return Missing(file.path, file.size_bytes, have_bytes(self.place.partial(file.sha256 or "")))


def have_bytes(part: Path) -> int:
    """Return how much has come of a content."""
    return part.stat().st_size if part.exists() else 0


def revision_of(files: Iterable[ModelFile]) -> str:
    """Return the revision that a folder's files make: the same files make the same one, whoever lists them."""
    lines = sorted(f"{file.path}\0{file.size_bytes}\0{file.sha256}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:REVISION_CHARACTERS]


def sorted_out(reference: str, files: Iterable[ModelFile]) -> tuple[list[ModelFile], list[str]]:
    """Return the files of a folder that are taken, and the paths of those that are not, each by path.

    Raises:
        InvalidInput: a path is there twice, or leads through a file.
        UnsafeRepository, OnlyPickles, NothingToLoad: as `repofiles.wanted` says.
    """
    given = list(files)
    paths = Counter(file.path for file in given)
    for path, count in paths.items():
        if count > 1 or any(str(folder) in paths for folder in PurePosixPath(path).parents):
            raise InvalidInput(field="files", problem=f"{path[:200]!r} is there twice, or lies in a file")
    taken = wanted(given, reference=reference)
    return taken, sorted(paths.keys() - {file.path for file in taken})


class Uploads:
    """The uploads of one gateway."""

    def __init__(self, folder: Path, most_bytes: int, min_free_bytes: int) -> None:
        """`most_bytes`: size of the largest model, all of its files together; `min_free_bytes`: left on the disk."""
        self.folder = folder
        self._most_bytes = most_bytes
        self._min_free_bytes = min_free_bytes

    def look(self, reference: str, files: Iterable[ModelFile]) -> tuple[list[ModelFile], list[str]]:
        """Return which files of a folder would be taken, and the paths of those that would not; nothing is begun.

        Raises:
            InvalidInput, UnsafeRepository, OnlyPickles, NothingToLoad: as `sorted_out` says.
            PayloadTooLarge: they are larger than a model may be.
        """
        taken, left_out = sorted_out(reference, files)
        size = sum(file.size_bytes for file in taken)
        if size > self._most_bytes:
            raise PayloadTooLarge(what="The model", limit_bytes=self._most_bytes)
        return taken, left_out

    def begin(self, reference: str, files: Iterable[ModelFile]) -> Upload:
        """Begin an upload, or go on with that of the same files under the same name.

        Raises:
            FilesNotTaken: some of the files are not to be loaded.
            InvalidReference: the name is none for a model.
            InvalidInput, UnsafeRepository, OnlyPickles, NothingToLoad, PayloadTooLarge: as for `look`.
            DiskFull: there is no room for what is missing.
        """
        taken, left_out = self.look(reference, files)
        if left_out:
            raise FilesNotTaken(reference=reference, paths=", ".join(left_out))
        upload = Upload(place_of(self.folder, reference, revision_of(taken)), tuple(taken))
        lacking = upload.missing()
        self._room(sum(each.size_bytes - each.have_bytes for each in lacking))
        if not upload.whole:
            snapshots.intend(upload.place, upload.files, MAIN)
        return upload

    def all(self) -> list[Upload]:
        """Return the uploads, those that are not complete first."""
        notes = (*snapshots.intents(self.folder), *snapshots.marks(self.folder))
        return [Upload(place_of(self.folder, note.reference, note.revision), note.files) for note in notes]

    def find(self, upload_id: str) -> Upload:
        """Return an upload.

        Raises:
            UploadNotFound: there is none of this id.
        """
        found = next((upload for upload in self.all() if upload.id == upload_id), None)
        if found is None:
            raise UploadNotFound(upload_id=upload_id[:200])
        return found

    def complete(self, upload: Upload) -> ModelDescribed:
        """Mark an upload of which every file is here, and return what it is.

        Raises:
            UploadIncomplete: files are missing.
            BrokenModel: what tells what it is cannot be read.
        """
        place = upload.place
        with snapshots.in_use(self.folder, place.reference, place.revision):
            if lacking := upload.missing():
                raise UploadIncomplete(missing=len(lacking), path=lacking[0].path)
            found = _described(upload)
            if not upload.whole:
                snapshots.mark(self.folder, place.reference, place.revision, upload.files, "upload")
        return found

    def drop(self, upload: Upload) -> int:
        """Forget an upload, whole or not; returns the bytes that this freed.

        Raises:
            ModelInUse: files of it are just being sent, or handed out.
        """
        return snapshots.drop(self.folder, upload.place.reference, upload.place.revision)

    def _room(self, needed: int) -> None:
        free = snapshots.free_bytes(self.folder)
        needed_bytes = needed + self._min_free_bytes
        if needed and needed_bytes > free:
            raise DiskFull(folder=str(self.folder), needed_bytes=needed_bytes, free_bytes=free)


class Receiving:
    """A file that is being sent; to be closed, whatever becomes of it."""

    def __init__(self, upload: Upload, path: str, offset: int) -> None:
        """Begin to receive.

        Raises:
            UploadFileUnknown: the upload has no such file.
            UploadNotFound: it was just dropped.
            UploadTaken: somebody else sends it.
            UploadOffset: it is not to be gone on with from there.
        """
        self.file = upload.file(path)
        self._place = upload.place
        self._digest = self.file.sha256 or ""
        self._held = ExitStack()
        try:
            self._partial = self._begin(upload, offset)
        except BaseException:
            self._held.close()
            raise

    @property
    def left_bytes(self) -> int:
        """What has yet to come."""
        return self.file.size_bytes - self._partial.have

    def write(self, piece: bytes) -> None:
        """Add what came next.

        Raises:
            DiskFull: it has no room.
        """
        try:
            self._partial.take([piece], lambda _: None)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            free = snapshots.free_bytes(self._place.cache_dir)
            raise DiskFull(folder=str(self._place.cache_dir), needed_bytes=len(piece), free_bytes=free) from error

    def finish(self) -> int:
        """Put the file in its place if it has come as a whole; returns how much of it is here.

        Raises:
            WrongContent: it is not what it should be; what came is gone.
        """
        if not self._partial.whole:
            return self._partial.have
        if not self._partial.digests().fit(self.file):
            unlink(self._partial.path)
            raise WrongContent(path=self.file.path, expected=self._digest)
        with self._partial.path.open("rb") as stream:
            os.fsync(stream.fileno())  # it may be the only one of its kind
        put(self._place, self.file, self._partial.path, self._digest)
        return self.file.size_bytes

    def close(self) -> None:
        """Let others send it; what has come stays."""
        self._held.close()

    def _begin(self, upload: Upload, offset: int) -> Partial:
        place, path = self._place, self.file.path
        self._held.enter_context(snapshots.in_use(place.cache_dir, place.reference, place.revision))
        if not (place.intent.exists() or upload.whole):
            raise UploadNotFound(upload_id=upload.id)
        if not self._held.enter_context(exclusively(place.blob_lock(self._digest))):
            raise UploadTaken(path=path)
        part = place.partial(self._digest)
        have = self.file.size_bytes if is_there(place, self.file) else have_bytes(part)
        if have != offset or is_there(place, self.file):
            raise UploadOffset(path=path, offset=offset, have_bytes=have)
        return self._held.enter_context(Partial(part, self.file))


def _described(upload: Upload) -> ModelDescribed:
    place = upload.place
    try:
        told = known(place.snapshot)
    except ValueError as error:
        raise BrokenModel(reference=place.reference, path="of weights", problem=str(error)) from error
    return described(place.reference, place.revision, upload.files, told, source="upload", asked_revision=MAIN)
