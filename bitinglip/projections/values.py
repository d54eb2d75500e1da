"""DuckDB's values as JSON has them, and as a CSV file does."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any, cast

import orjson

from bitinglip.projections.arrow import pa

PLAIN = frozenset({"string", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32"})
"""Arrow's types whose values are written as they are."""
_EXACT = 2**63


def rows_of(batch: Any) -> Iterator[list[Any]]:
    """Yield the rows of an Arrow batch, every value as JSON has it."""
    columns = [_written(column, jsonable) for column in batch.columns]
    return (list(row) for row in zip(*columns, strict=True))


def csv_rows_of(batch: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of an Arrow batch as a CSV file has them."""
    return zip(*[_written(column, lambda value: csv_value(jsonable(value))) for column in batch.columns], strict=True)


def _written(column: Any, write: Callable[[Any], Any]) -> list[Any]:
    values: list[Any] = column.to_pylist()
    return values if str(column.type) in PLAIN else [write(value) for value in values]


def csv_value(value: Any) -> Any:
    """Write a value of `jsonable` into one cell: nothing for null, lists and objects as JSON."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return orjson.dumps(value).decode() if isinstance(value, list | dict) else value


def jsonable(value: Any) -> Any:
    """Return a value of DuckDB's as one that JSON has: numbers that are not exact in it, times and bytes as text."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return value if -_EXACT <= value < _EXACT else str(value)
        case float():
            return value if math.isfinite(value) else str(value)
        case Decimal():
            return jsonable(int(value)) if value.as_tuple().exponent == 0 else str(value)
        case datetime():
            aware = value if value.tzinfo else value.replace(tzinfo=UTC)
            return aware.astimezone(UTC).isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode()
        case dict():
            return {str(key): jsonable(item) for key, item in cast("dict[Any, Any]", value).items()}
        case list():
            return [jsonable(item) for item in cast("list[Any]", value)]
        case tuple() if isinstance(value, pa.MonthDayNano):
            months, days, nanoseconds = cast("tuple[int, int, int]", value)
            return {"months": months, "days": days, "seconds": nanoseconds / 1e9}
        case tuple():
            return [jsonable(item) for item in cast("tuple[Any, ...]", value)]
        case _:
            return str(value)
