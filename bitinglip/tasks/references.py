"""Parameters that are results of other tasks: `{"$result": TASK_ID, "path": "images.0.seed"}` in a value's place. Pure.

What stands in such a place is known when those tasks have ended; until then only the form of the references is checked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, cast

from bitinglip.errors import InvalidInput
from bitinglip.ids import TaskId

MARK = "$result"
REFERENCES_MOST = 32
DEEPEST = 64
PATH_MOST = 512


class Reference(NamedTuple):
    """A place in the parameters, and whose result belongs there."""

    field: str
    task_id: TaskId
    path: str
    """Names and numbers with dots between them; empty for the whole result."""


def names_with_references(params: dict[str, Any], depends_on: Collection[TaskId]) -> frozenset[str]:
    """Return the names of the parameters that are, or hold, results of other tasks.

    Raises:
        InvalidInput: a reference has not the right form, or is to a task that is not waited for.
    """
    found = {name: list(_references(value, f"params.{name}")) for name, value in params.items()}
    every = [reference for references in found.values() for reference in references]
    if len(every) > REFERENCES_MOST:
        raise InvalidInput(field="params", problem=f"refer to more than {REFERENCES_MOST} results")
    for reference in every:
        if reference.task_id not in depends_on:
            problem = f"task {str(reference.task_id)[:100]!r} is not in depends_on"
            raise InvalidInput(field=reference.field, problem=problem)
    return frozenset(name for name, references in found.items() if references)


def referred(params: dict[str, Any]) -> frozenset[TaskId]:
    """Return the tasks whose results these parameters need."""
    return frozenset(reference.task_id for reference in _references(params, "params"))


def filled(params: dict[str, Any], results: Mapping[TaskId, Any]) -> dict[str, Any]:
    """Return the parameters with each result in its place.

    Raises:
        InvalidInput: a result is missing, or has nothing at that path; the error names the place.
    """
    return cast("dict[str, Any]", _fill(params, "params", results))


def _references(value: Any, field: str, depth: int = 0) -> Iterator[Reference]:
    if depth > DEEPEST:
        raise InvalidInput(field=field, problem=f"is nested more than {DEEPEST} deep")
    if isinstance(value, dict) and MARK in value:
        yield _reference(cast("dict[str, Any]", value), field)
        return
    for name, part in _parts(value):
        yield from _references(part, f"{field}.{name}", depth + 1)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from cast("dict[str, Any]", value).items()
    elif isinstance(value, list):
        yield from enumerate(cast("list[Any]", value))


def _reference(value: dict[str, Any], field: str) -> Reference:
    task_id, path = value[MARK], value.get("path", "")
    if (
        not isinstance(task_id, str)
        or not isinstance(path, str)
        or len(path) > PATH_MOST
        or value.keys() - {MARK, "path"}
    ):
        raise InvalidInput(field=field, problem='not of the form {"$result": TASK_ID, "path": "names.and.0.numbers"}')
    return Reference(field, TaskId(task_id), path)


def _fill(value: Any, field: str, results: Mapping[TaskId, Any]) -> Any:
    if isinstance(value, dict):
        named = cast("dict[str, Any]", value)
        if MARK in named:
            return _found(_reference(named, field), results)
        return {name: _fill(part, f"{field}.{name}", results) for name, part in named.items()}
    if isinstance(value, list):
        parts = cast("list[Any]", value)
        return [_fill(part, f"{field}.{number}", results) for number, part in enumerate(parts)]
    return value


def _found(reference: Reference, results: Mapping[TaskId, Any]) -> Any:
    if reference.task_id not in results:
        raise InvalidInput(field=reference.field, problem=f"task {reference.task_id} has no result")
    value: Any = results[reference.task_id]
    for step in reference.path.split(".") if reference.path else ():
        try:
            value = value[int(step) if isinstance(value, list) and step.isdecimal() else step]
        except (KeyError, IndexError, ValueError, TypeError):
            problem = f"the result of task {reference.task_id} has no {reference.path!r}"
            raise InvalidInput(field=reference.field, problem=problem) from None
    return value
