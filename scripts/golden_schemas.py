"""Write the JSON Schemas of all event types under tests/golden/schemas: one file for each type and version.

A version's schema may only be widened (an optional field more, a value more that a field may have); anything else needs
a new version, with an upcaster. What is not so is refused, and nothing of it is written.

    python -m scripts.golden_schemas
"""

from __future__ import annotations

import sys
from pathlib import Path

import orjson

from bitinglip.events.catalogue import schema_of, types
from bitinglip.events.registry import Event
from scripts.widening import breaks

FOLDER = Path(__file__).parent.parent / "tests" / "golden" / "schemas"


def path_of(cls: type[Event]) -> Path:
    """Return where the schema of a type's version lies."""
    return FOLDER / f"{cls.type}.v{cls.version}.json"


def encoded(cls: type[Event]) -> bytes:
    """Return a type's schema as it is stored."""
    return orjson.dumps(schema_of(cls), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def problems_of(cls: type[Event], stored: bytes) -> list[str]:
    """Return what of the stored schema of a type's version does not hold any more."""
    return [f"{cls.type} v{cls.version}: {problem}" for problem in breaks(orjson.loads(stored), schema_of(cls))]


def main() -> int:
    FOLDER.mkdir(parents=True, exist_ok=True)
    problems = [
        problem for cls in types() if path_of(cls).exists() for problem in problems_of(cls, path_of(cls).read_bytes())
    ]
    for problem in problems:
        print(problem)
    if problems:
        return 1
    for cls in types():
        if not path_of(cls).exists() or path_of(cls).read_bytes() != encoded(cls):
            path_of(cls).write_bytes(encoded(cls))
            print(f"wrote {path_of(cls).name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
