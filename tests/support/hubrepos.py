"""Repositories of a hub of the tests' own: folders on disk, told of as the hub tells of them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

LARGE_BYTES = 10 * 2**20
LARGE_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".msgpack", ".h5", ".gguf"})
"""What the hub keeps as large files: these, and all that is larger than the bound."""
DATE = "2026-11-01T10:00:00.000Z"


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of a commit."""

    path: str
    place: Path
    size: int
    git_sha1: str
    """Git's name of the content, and of its pointer if it is a large file."""
    sha256: str | None = None
    """Of large files alone, as on the hub."""

    @property
    def etag(self) -> str:
        """What names its content."""
        return self.sha256 or self.git_sha1

    def entry(self) -> dict[str, Any]:
        """Tell of it as a tree does."""
        entry: dict[str, Any] = {"type": "file", "oid": self.git_sha1, "size": self.size, "path": self.path}
        if self.sha256 is not None:
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": len(_pointer(self.sha256, self.size))}
        return entry

    def sibling(self, *, whole: bool) -> dict[str, Any]:
        """Tell of it as a model's page does."""
        if not whole:
            return {"rfilename": self.path}
        sibling: dict[str, Any] = {"rfilename": self.path, "size": self.size, "blobId": self.git_sha1}
        if self.sha256 is not None:
            pointer_size = len(_pointer(self.sha256, self.size))
            sibling["lfs"] = {"sha256": self.sha256, "size": self.size, "pointerSize": pointer_size}
        return sibling


@dataclass(slots=True)
class Repo:
    """A model on the hub."""

    name: str
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict[str, dict[str, HubFile]])
    """Commit -> its files, by path."""
    branches: dict[str, str] = field(default_factory=dict[str, str])
    """Branch or tag -> commit."""
    licence: str | None = None
    tags: list[str] = field(default_factory=list[str])
    pipeline_tag: str | None = None
    downloads: int = 0
    likes: int = 0
    gated: bool = False
    private: bool = False
    tokens: frozenset[str] = frozenset()
    """Who may read it, if it is gated or private."""
    odd_paths: list[str] = field(default_factory=list[str])
    """Paths that its listings name besides, as no honest repository would."""

    def commit_of(self, revision: str) -> str | None:
        """Resolve a branch, a tag or a commit, which may be shortened."""
        if revision in self.branches:
            return self.branches[revision]
        fits = [commit for commit in self.commits if len(revision) >= 7 and commit.startswith(revision)]
        return fits[0] if len(fits) == 1 else None

    def listing(self, commit: str) -> list[dict[str, Any]]:
        """Tell of the files and folders of a commit, recursively."""
        files = self.commits[commit]
        parents = {parent.as_posix() for path in files for parent in Path(path).parents} - {"."}
        folders = [{"type": "directory", "oid": _sha1(path.encode()), "size": 0, "path": path} for path in parents]
        odd = [{"type": "file", "oid": _sha1(path.encode()), "size": 10, "path": path} for path in self.odd_paths]
        return sorted([*folders, *[file.entry() for file in files.values()], *odd], key=lambda entry: entry["path"])

    def info(self, commit: str, *, files: bool = True, whole: bool = False) -> dict[str, Any]:
        """Tell of the model; `files`: with its files' names, `whole`: and sizes and digests."""
        safe = ["safetensors"] if any(path.endswith(".safetensors") for path in self.commits[commit]) else []
        licence = [f"license:{self.licence}"] if self.licence else []
        info: dict[str, Any] = {
            "id": self.name,
            "modelId": self.name,
            "sha": commit,
            "private": self.private,
            "gated": "manual" if self.gated else False,
            "downloads": self.downloads,
            "likes": self.likes,
            "tags": [*self.tags, *safe, *licence],
            "pipeline_tag": self.pipeline_tag,
            "cardData": {"license": self.licence} if self.licence else {},
            "createdAt": DATE,
            "lastModified": DATE,
        }
        if numbers := _numbers(self.commits[commit].get("model.safetensors")):
            info["safetensors"] = {"parameters": numbers, "total": sum(numbers.values())}
        if files:
            odd = [{"rfilename": path, "size": 10, "blobId": _sha1(path.encode())} for path in self.odd_paths]
            info["siblings"] = [*[file.sibling(whole=whole) for file in self.commits[commit].values()], *odd]
        return info


def files_of(folder: Path) -> dict[str, HubFile]:
    """Read a folder: its files with their digests."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    files = [_file(path.relative_to(folder).as_posix(), path.resolve()) for path in paths]
    return {file.path: file for file in files}


def commit_name(repo: str, branch: str, files: dict[str, HubFile]) -> str:
    """Return the commit's name: another one for other files."""
    return _sha1(json.dumps([repo, branch, [(file.path, file.etag) for file in files.values()]]).encode())


def _file(path: str, place: Path) -> HubFile:
    status = place.stat()
    sha256, sha1 = _digests(place, status.st_size, status.st_mtime_ns)
    if status.st_size > LARGE_BYTES or place.suffix in LARGE_SUFFIXES:
        return HubFile(path, place, status.st_size, _git_sha1(_pointer(sha256, status.st_size)), sha256)
    return HubFile(path, place, status.st_size, sha1)


@cache
def _digests(place: Path, size: int, _changed_ns: int) -> tuple[str, str]:
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    with place.open("rb") as stream:
        while piece := stream.read(4 * 2**20):
            sha256.update(piece)
            sha1.update(piece)
    return sha256.hexdigest(), sha1.hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def _git_sha1(content: bytes) -> str:
    return _sha1(f"blob {len(content)}\0".encode() + content)


def _sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _numbers(file: HubFile | None) -> dict[str, int]:
    """Count the numbers of a safetensors file, by their precision."""
    if file is None:
        return {}
    with file.place.open("rb") as stream:
        head = stream.read(8)
        size = struct.unpack("<Q", head)[0] if len(head) == 8 else file.size
        if size >= file.size:
            return {}
        header: dict[str, Any] = json.loads(stream.read(size))
    numbers: Counter[str] = Counter()
    for name, tensor in header.items():
        if name != "__metadata__":
            numbers[tensor["dtype"]] += prod(tensor["shape"])
    return dict(numbers)
