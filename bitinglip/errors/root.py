"""The root of the error tree."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(eq=False, kw_only=True)
class BitingLipError(Exception):
    """Root of every error that BitingLip raises on purpose."""

    code: ClassVar[str] = "error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 70
    template: ClassVar[str] = "Something went wrong."
    remedy: ClassVar[str] = "Look at the log for the cause."

    def __str__(self) -> str:
        """Say what happened: the template, filled with this error's fields."""
        return self.template.format(**self.details())

    def details(self) -> dict[str, Any]:
        """Return the typed fields by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}
