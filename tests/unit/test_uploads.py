"""What an upload is, by its manifest alone."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidInput
from bitinglip.events.model import ModelFile
from bitinglip.models.uploads import revision_of, sorted_out

CONFIG = ModelFile(path="config.json", size_bytes=2, sha256="0" * 64)
WEIGHTS = ModelFile(path="model.safetensors", size_bytes=8, sha256="1" * 64)

files = st.builds(
    ModelFile,
    path=st.text(st.characters(exclude_characters="\0\n", exclude_categories=["Cs"]), min_size=1, max_size=8),
    size_bytes=st.integers(0, 3),
    sha256=st.sampled_from(["0" * 64, "1" * 64]),
)
manifests = st.lists(files, max_size=4, unique_by=lambda file: file.path)


@given(manifests, st.randoms())
def test_the_order_of_the_files_does_not_matter(manifest: list[ModelFile], random: Random) -> None:
    assert revision_of(random.sample(manifest, len(manifest))) == revision_of(manifest)


@given(manifests, manifests)
def test_other_files_are_another_revision(one: list[ModelFile], other: list[ModelFile]) -> None:
    same = {file.path: file for file in one} == {file.path: file for file in other}
    assert (revision_of(one) == revision_of(other)) == same


def test_files_are_sorted_out() -> None:
    beside = [ModelFile(path=path, size_bytes=1) for path in ("README.md", "pytorch_model.bin", ".cache/config.json")]
    taken, left_out = sorted_out("lab/tuned", [*beside, WEIGHTS, CONFIG])
    assert taken == [CONFIG, WEIGHTS]
    assert left_out == [".cache/config.json", "README.md", "pytorch_model.bin"]


@pytest.mark.parametrize("path", ["config.json", "config.json/x.json", "config.json/x/y.json"])
def test_a_path_is_one_file(path: str) -> None:
    with pytest.raises(InvalidInput, match="twice"):
        sorted_out("lab/tuned", [WEIGHTS, CONFIG, ModelFile(path=path, size_bytes=1)])
