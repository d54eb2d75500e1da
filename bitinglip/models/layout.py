"""Where a revision of a model lies in the hub's cache, and what is ours beside it: paths alone, nothing is touched."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from bitinglip.errors import InvalidReference, UnsafeRepository
from bitinglip.events.model import ModelFile
from bitinglip.models.reference import parse_reference

OURS = ".bitinglip"
"""Folder in a model's folder that holds what we know of it."""
REPO = "models--"
"""How the names of models' folders begin."""
MAIN = "main"
"""What a name without a revision leads to; so does what an upload or an import is on the nodes that get it."""
REPO_LOCK = "store.lock"
MARK, INTENT, DROPPING = ".json", ".part.json", ".drop.json"
PARTIAL = ".bitinglip.incomplete"
"""How the name of a file ends that we have a part of; before it stands its digest."""
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(frozen=True, slots=True)
class Place:
    """A revision's place in a cache, as huggingface_hub lays it out."""

    cache_dir: Path
    reference: str
    revision: str

    @property
    def repo(self) -> Path:
        """Folder of the model, for all its revisions."""
        return self.cache_dir / f"{REPO}{self.reference.replace('/', '--')}"

    @property
    def snapshot(self) -> Path:
        """Folder that is loaded: links to blobs, by the names that the files have."""
        return self.repo / "snapshots" / self.revision

    @property
    def blobs(self) -> Path:
        """Folder of the contents, by their digests; the model's revisions share them."""
        return self.repo / "blobs"

    @property
    def ours(self) -> Path:
        """Folder of our marks and locks."""
        return self.repo / OURS

    @property
    def mark(self) -> Path:
        """There when every file is, and was checked; its modification time is the last use."""
        return self.ours / f"{self.revision}{MARK}"

    @property
    def intent(self) -> Path:
        """There while the revision is fetched, and after a fetch that did not end."""
        return self.ours / f"{self.revision}{INTENT}"

    @property
    def dropping(self) -> Path:
        """There while the revision is removed."""
        return self.ours / f"{self.revision}{DROPPING}"

    @property
    def gone(self) -> Path:
        """Where the snapshot lies while it is removed."""
        return self.ours / f"{self.revision}.gone"

    @property
    def lock(self) -> Path:
        """Held shared while somebody uses the revision, exclusively to remove it."""
        return self.ours / f"{self.revision}.lock"

    @property
    def fetch_lock(self) -> Path:
        """Held by the one process that fetches the revision."""
        return self.ours / f"{self.revision}.part.lock"

    @property
    def repo_lock(self) -> Path:
        """Held for the moment in which marks and intents are written, or blobs removed."""
        return self.ours / REPO_LOCK

    def file(self, path: str) -> Path:
        """Return where a file of the revision lies.

        Raises:
            UnsafeRepository: the path would leave the snapshot.
        """
        parts = path.split("/")
        if any(part in {"", ".", ".."} or "\\" in part or "\0" in part for part in parts):
            raise UnsafeRepository(reference=self.reference, path=path)
        return self.snapshot.joinpath(*parts)

    def partial(self, digest: str) -> Path:
        """Return where the part of a content lies that has come so far."""
        return self.blobs / f"{digest}{PARTIAL}"

    def blob_lock(self, digest: str) -> Path:
        """Return huggingface_hub's own lock of a content, which it holds while it downloads it."""
        return blob_lock(self.repo, digest)


def digest_of(file: ModelFile) -> str | None:
    """Return the digest that names a file's content, among blobs too: as the hub has it, SHA-256, or else git's."""
    return file.sha256 or file.git_sha1


def blob_lock(repo: Path, digest: str) -> Path:
    """Return huggingface_hub's own lock of a content of a model's folder."""
    return repo.parent / ".locks" / repo.name / f"{digest}.lock"


def place_of(cache_dir: Path, reference: str, revision: str) -> Place:
    """Return where a revision lies.

    Raises:
        InvalidReference: the name or the revision cannot be a folder's.
    """
    if parse_reference(reference).revision is not None:
        raise InvalidReference(reference=reference, problem="the revision is told beside it")
    if _REVISION.fullmatch(revision) is None or ".." in revision:
        raise InvalidReference(reference=f"{reference}@{revision}", problem="the revision cannot be a folder's name")
    return Place(cache_dir, reference, revision)


def place_in(repo: Path, revision: str) -> Place:
    """Return where a revision lies in a model's folder.

    Raises:
        InvalidReference: the folder's name is no model's, or the revision cannot be a folder's.
    """
    reference = repo.name.removeprefix(REPO).replace("--", "/", 1)  # leads to the same folder, whatever had the dashes
    if not repo.name.startswith(REPO):
        raise InvalidReference(reference=repo.name, problem="a model's folder has another name")
    return place_of(repo.parent, reference, revision)
