"""Write the golden events that are missing: one file for each type and version, from the type's example.

A golden file is never written over: what an old version wrote must stay readable for good.

    python -m scripts.golden_events
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import orjson

from bitinglip.events.catalogue import types
from bitinglip.events.envelope import encode
from bitinglip.events.registry import Event

FOLDER = Path(__file__).parent.parent / "tests" / "golden" / "events"
ID = "01JZZZZZZZZZZZZZZZZZZZZZZZ"
SUBJECTS = {
    "task": "task_id",
    "batch": "batch_id",
    "worker": "worker_id",
    "node": "node_id",
    "model": "reference",
    "queue": "model",
    "schedule": "schedule_id",
    "ledger": "stream",
    "query": "name",
}
TIME = datetime(2026, 1, 2, 3, 4, 5, 678_000, UTC)


def path_of(cls: type[Event]) -> Path:
    """Return where the golden event of a type's version lies."""
    return FOLDER / f"{cls.type}.v{cls.version}.json"


def golden(cls: type[Event]) -> bytes:
    """Return the event of a type's example, with a fixed id and time."""
    about = cls.example.get(SUBJECTS[cls.type.partition(".")[0]], "readmodel")
    payload = encode(cls.model_validate(cls.example), id=ID, source="/golden", time=TIME, about=about)
    return orjson.dumps(orjson.loads(payload), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for cls in types():
        if not path_of(cls).exists():
            path_of(cls).write_bytes(golden(cls))
            print(f"wrote {path_of(cls).name}")


if __name__ == "__main__":
    main()
