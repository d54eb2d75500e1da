"""The part of a file: whatever pieces it comes in and wherever it is cut, it ends as the file, with its digests."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.model import ModelFile
from bitinglip.models.partial import Partial

CONTENTS = st.binary(max_size=300)


class Cut(Exception):
    """The connection is lost."""


def pieces(content: bytes, size: int, *, cut: bool) -> Iterator[bytes]:
    yield from (content[start : start + size] for start in range(0, len(content), size))
    if cut:
        raise Cut


@given(CONTENTS, st.lists(st.integers(0, 300), max_size=4), st.integers(1, 64))
def test_a_file_that_comes_in_many_goes_is_whole(content: bytes, cuts: list[int], size: int) -> None:
    file = ModelFile(path="f", size_bytes=len(content), git_sha1="0" * 40)
    counted: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for cut in cuts:
            with Partial(Path(folder) / "f", file) as partial:
                with suppress(Cut):
                    partial.take(pieces(content[partial.have :][:cut], size, cut=True), counted.append)
                assert partial.path.read_bytes() == content[: partial.have]
        with Partial(Path(folder) / "f", file) as partial:
            partial.take(pieces(content[partial.have :], size, cut=False), counted.append)
            found = partial.digests()
        assert partial.whole
        assert partial.path.read_bytes() == content
    assert sum(counted) == len(content)
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert found.git_sha1 == hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


@given(CONTENTS, CONTENTS)
def test_what_was_there_is_forgotten_if_it_begins_anew(before: bytes, content: bytes) -> None:
    file = ModelFile(path="f", size_bytes=len(content), sha256="0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(before)
        with Partial(path, file) as partial:
            assert partial.have == (len(before) if len(before) <= len(content) else 0)
            partial.restart()
            partial.take([content], lambda _: None)
            assert partial.digests().sha256 == hashlib.sha256(content).hexdigest()
        assert path.read_bytes() == content


def test_one_who_sends_without_end_is_not_listened_to() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x" * 64

    file = ModelFile(path="f", size_bytes=1000, sha256="0" * 64)
    with tempfile.TemporaryDirectory() as folder, Partial(Path(folder) / "f", file) as partial:
        partial.take(endless(), lambda _: None)
        assert partial.have < 1100
        assert partial.whole
        assert partial.wanted["Range"].startswith("bytes=")
