"""The error tree: each leaf has a code of its own, a remedy, a branch, and a template that its fields fill."""

from __future__ import annotations

import string
from dataclasses import fields

import pytest

from bitinglip import errors
from bitinglip.errors import BitingLipError, Defect, Denied, Rejected, Unavailable

CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, BitingLipError)]
LEAVES = [cls for cls in CLASSES if not any(other is not cls and issubclass(other, cls) for other in CLASSES)]
STATUSES = {
    Rejected: {400, 404, 405, 409, 410, 413, 415, 422},
    Denied: {401, 403, 429},
    Unavailable: {503},
    Defect: {409, 500},
}


def test_codes_are_unique() -> None:
    codes = [cls.code for cls in CLASSES]
    assert sorted(set(codes)) == sorted(codes)


@pytest.mark.parametrize("cls", LEAVES)
def test_a_leaf_says_what_happened_and_what_to_do(cls: type[BitingLipError]) -> None:
    assert cls.remedy.endswith((".", ")"))
    names = {field.name for field in fields(cls)}
    wanted = {name for _, name, _, _ in string.Formatter().parse(cls.template) if name}
    assert wanted <= names
    error = cls(**{name: 1 for name in names})
    assert "{" not in str(error)


@pytest.mark.parametrize("cls", LEAVES)
def test_a_leaf_hangs_on_one_branch_with_its_statuses(cls: type[BitingLipError]) -> None:
    (branch,) = [branch for branch in STATUSES if issubclass(cls, branch)]
    assert cls.status in STATUSES[branch]
    assert cls.exit_code == branch.exit_code
