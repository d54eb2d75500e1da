"""Arrow batches on their way out: an Arrow IPC stream, or CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, Literal, Protocol

from bitinglip.projections.arrow import pa
from bitinglip.projections.values import csv_rows_of

Form = Literal["arrow", "csv"]


class Writer(Protocol):
    """Writes an answer piece by piece."""

    def begin(self, schema: Any, /) -> bytes:
        """Write what comes before the first batch."""
        ...

    def batch(self, batch: Any, /) -> bytes:
        """Write one batch."""
        ...

    def end(self) -> bytes:
        """Write what comes after the last batch."""
        ...


def writer(form: Form) -> Writer:
    """Return a writer of this form."""
    return ArrowWriter() if form == "arrow" else CsvWriter()


class ArrowWriter:
    """The Arrow IPC streaming format."""

    def __init__(self) -> None:
        self._sink = io.BytesIO()
        self._stream: Any = None

    def begin(self, schema: Any) -> bytes:
        """Write the schema."""
        self._stream = pa.ipc.new_stream(self._sink, schema)
        return self._taken()

    def batch(self, batch: Any) -> bytes:
        """Write one record batch."""
        self._stream.write_batch(batch)
        return self._taken()

    def end(self) -> bytes:
        """Write the end of the stream."""
        self._stream.close()
        return self._taken()

    def _taken(self) -> bytes:
        taken = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return taken


class CsvWriter:
    """CSV (RFC 4180) with a line of names; null is an empty cell, lists and objects are JSON."""

    def begin(self, schema: Any) -> bytes:
        """Write the names."""
        return _lines([list(schema.names)])

    def batch(self, batch: Any) -> bytes:
        """Write one line a row."""
        return _lines(csv_rows_of(batch))

    def end(self) -> bytes:
        """Write nothing."""
        return b""


def _lines(rows: Iterable[Iterable[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
