"""Model references: `name`, `org/name` or `org/name@revision`; pure."""

from __future__ import annotations

import re
from typing import NamedTuple

from bitinglip.errors import InvalidReference

_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,127}")


class Reference(NamedTuple):
    """A model's name, and the revision (branch, tag or commit) if one is given."""

    name: str
    revision: str | None = None

    def __str__(self) -> str:
        """Write the reference."""
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        InvalidReference: it is not of one of the forms.
    """
    name, at, revision = text.partition("@")
    parts = name.split("/")
    if len(parts) > 2 or not all(_PART.fullmatch(part) and ".." not in part for part in parts):
        raise InvalidReference(reference=text, problem="the name is not 'name' or 'org/name'")
    if at and (_REVISION.fullmatch(revision) is None or ".." in revision):
        raise InvalidReference(reference=text, problem="the revision is empty or has characters that none has")
    return Reference(name, revision or None)
