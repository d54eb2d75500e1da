"""What a gateway does not load when it starts, and what it can do without."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from pyarrow import parquet  # pyright: ignore[reportMissingTypeStubs]

from bitinglip.projections.archivefile import SCHEMA
from bitinglip.projections.coldevents import NONE
from bitinglip.projections.opening import open_database
from bitinglip.settings import Projections

LATE = ("httpx", "huggingface_hub", "numpy", "pandas", "pyarrow.compute", "pyarrow.parquet", "pygal", "rich", "torch")
"""Loaded by whoever needs it first, or never. pyarrow takes numpy in where it is installed."""

OPEN_AND_WRITE = """
import sys
sys.modules["numpy"] = None  # as where it is not installed
from pathlib import Path
import bitinglip.gateway.main
from bitinglip.events.envelope import RawMessage
from bitinglip.projections.opening import open_database
from bitinglip.projections.writer import write
from bitinglip.settings import Projections

folder = Path(sys.argv[1])
database = open_database(folder / "p.duckdb", Projections(archive_path=folder / "archive"))
database.add_checkpoint("TASKS", None)
write(database, "TASKS", [RawMessage(1, 1, "bl.task.01A.x", b"{}"), RawMessage(2, 2, "bl.task.01A.x", b"\\xff")])
print(database.rows("select count(*) from events")[0][0], *sorted(name for name in sys.modules if sys.modules[name]))
"""

READ_ARCHIVE = """
import sys
sys.modules["numpy"] = None
from pathlib import Path
from bitinglip.projections.archivefile import ArchiveWriter, messages_of, task_messages_of

path = Path(sys.argv[1]) / "a.parquet"
writer = ArchiveWriter(path, "TASKS")
for sequence in (1, 2**63 + 1):
    writer.add(sequence, -sequence % 1000, b"bl.task.01A.x", b"{}")
writer.close()
print([(m.sequence, m.time_ns) for batch in messages_of(path, 0, 2**64) for m in batch], task_messages_of(path, "01B"))
"""


def run(code: str, folder: Path) -> str:
    return subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True).stdout


def test_a_gateway_starts_and_writes_without_what_it_may_never_need(tmp_path: Path) -> None:
    rows, *loaded = run(OPEN_AND_WRITE, tmp_path).split()
    assert rows == "2"
    assert "pyarrow" in loaded
    assert [name for name in LATE if name in loaded] == []


def test_an_archive_is_written_and_read_without_numpy(tmp_path: Path) -> None:
    assert run(READ_ARCHIVE, tmp_path).strip() == f"[(1, 999), ({2**63 + 1}, {-(2**63 + 1) % 1000})] []"


def test_the_file_without_rows_has_the_columns_of_an_archive(tmp_path: Path) -> None:
    open_database(tmp_path / "p.duckdb", Projections(archive_path=tmp_path / "archive")).close()
    none = tmp_path / "archive" / NONE
    found: Any = parquet.read_schema(none)
    assert [(field.name, field.type) for field in found] == [(field.name, field.type) for field in SCHEMA]
    assert [path.name for path in none.parent.iterdir()] == [none.name]
