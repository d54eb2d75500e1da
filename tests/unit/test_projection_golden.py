"""Every event that a version ever wrote is still read, by Python and by the SQL."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from bitinglip.events.envelope import RawMessage, UnknownEvent, decode
from bitinglip.events.registry import REGISTRY
from bitinglip.projections.writer import write
from scripts.golden_events import FOLDER, ID, TIME, path_of
from tests.unit.projection_support import fresh_database

FILES = sorted(FOLDER.glob("*.json"))
STREAMS = {
    "batch": "TASKS",
    "task": "TASKS",
    "worker": "WORKERS",
    "node": "WORKERS",
    "model": "MODELS",
    "schedule": "SCHEDULES",
    "ledger": "LEDGER",
    "query": "LEDGER",
}
STREAMS |= {"queue": "MODELS"}


def test_every_type_has_a_golden_event_of_its_version() -> None:
    assert [cls.type for cls in REGISTRY.values() if not path_of(cls).exists()] == [], "run scripts/golden_events.py"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_python_and_sql_read_it(path: Path) -> None:
    message = RawMessage(1, int(TIME.timestamp() * 1e9), "bl.golden", path.read_bytes())
    stream = STREAMS[path.name.partition(".")[0]]
    recorded = decode(message, stream)
    assert not isinstance(recorded.event, UnknownEvent)
    assert (recorded.id, recorded.time) == (ID, TIME)
    with fresh_database() as database:
        write(database, stream, [message])
        [(event_id, kind, version, data)] = database.rows("select id, type, version, data from events")
    assert (event_id, kind, version) == (ID, recorded.type, type(recorded.event).version)
    assert type(recorded.event).model_validate(orjson.loads(data)) == recorded.event
