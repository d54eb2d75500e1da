"""The values of a query's parameters, as JSON has them: texts, numbers, lists of them, and dates and times by name."""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from bitinglip.errors import InvalidInput

Scalar = str | int | float | bool | None
Type = Literal["text", "integer", "number", "boolean", "date", "time", "texts", "integers"]
_READERS: dict[Type, TypeAdapter[Any]] = {
    "text": TypeAdapter(str),
    "integer": TypeAdapter(int),
    "number": TypeAdapter(float),
    "boolean": TypeAdapter(bool),
    "date": TypeAdapter(date),
    "time": TypeAdapter(datetime),
    "texts": TypeAdapter(list[str]),
    "integers": TypeAdapter(list[int]),
}


class Typed(BaseModel):
    """A value with its type: a `date` (2026-01-31), a `time` (2026-01-31T12:00:00Z), or any other one."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    type: Type
    value: Scalar | list[Scalar]


Parameter = Scalar | list[Scalar] | Typed
Parameters = list[Parameter] | dict[str, Parameter]


def bound(params: Parameters) -> list[Any] | dict[str, Any]:
    """Return parameters as DuckDB takes them.

    Raises:
        InvalidInput: a value is not of its type; the error names the parameter.
    """
    if isinstance(params, list):
        return [_value(str(number), value) for number, value in enumerate(params, 1)]
    return {name: _value(name, value) for name, value in params.items()}


def read(name: str, kind: Type, value: Any) -> Any:
    """Read a value of a type: from itself, or from its text; a time without a zone is UTC.

    Raises:
        InvalidInput: it is not of that type; the error names the parameter.
    """
    if value is None:
        return None
    try:
        found = _READERS[kind].validate_python(_listed(kind, value))
    except ValidationError as error:
        raise InvalidInput(field=f"params.{name}", problem=f"is no {kind}: {error.errors()[0]['msg']}") from error
    if isinstance(found, datetime) and found.tzinfo is not None:
        return found.astimezone(UTC).replace(tzinfo=None)
    return found


def _value(name: str, value: Parameter) -> Any:
    return read(name, value.type, value.value) if isinstance(value, Typed) else value


def _listed(kind: Type, value: Any) -> Any:
    if kind in {"texts", "integers"} and not isinstance(value, list):
        return str(value).split(",")
    if kind == "text" and isinstance(value, int | float):
        return str(value)
    return cast("Any", value)
