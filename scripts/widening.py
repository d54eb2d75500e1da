"""Whether all that one JSON Schema allows is allowed by another one, as far as the schemas of events go. Pure.

Doubt is a break: what differs in a way that is not known here needs a new version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

Schema = dict[str, Any]
TEXTS = frozenset({"title", "description", "default", "examples", "$id", "$schema", "$defs"})
KEYWORDS = frozenset({"type", "properties", "required", "items", "anyOf", "enum", "const", "additionalProperties"})
"""What is compared by its meaning; every other keyword has to be the same, or gone."""


def breaks(before: Schema, after: Schema) -> list[str]:
    """Return where what was allowed before is not any more; empty if it is only wider."""
    return list(_breaks(_whole(before, before), _whole(after, after), "data"))


def _whole(schema: Any, root: Schema) -> Any:
    """Return a schema with its references replaced by what they lead to, and without its texts."""
    if isinstance(schema, list):
        return [_whole(each, root) for each in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    part = cast("Schema", schema)
    if "$ref" in part:
        return _whole(root["$defs"][part["$ref"].rpartition("/")[2]], root)
    named = {name: _whole(value, root) for name, value in part.get("properties", {}).items()}
    rest = {name: _whole(value, root) for name, value in part.items() if name not in {*TEXTS, "properties"}}
    return rest | ({"properties": named} if "properties" in part else {})


def _breaks(before: Schema, after: Schema, where: str) -> Iterator[str]:
    if before == after or not after:
        return
    if "anyOf" in after or "anyOf" in before:
        yield from _alternatives(before, after, where)
        return
    if before.get("type") != after.get("type"):
        yield f"{where} was {before.get('type', 'anything')}, and is {after.get('type', 'anything')}"
        return
    yield from _values(before, after, where)
    yield from _fields(before, after, where)
    for name in ("items", "additionalProperties"):
        if isinstance(after.get(name), dict) or after.get(name) is False:
            yield from _inner(before.get(name, {}), after[name], f"{where}.{name}")
    for name in after.keys() - KEYWORDS:
        if before.get(name) != after[name]:
            yield f"{where}: {name} was {before.get(name)}, and is {after[name]}"


def _alternatives(before: Schema, after: Schema, where: str) -> Iterator[str]:
    wide = after.get("anyOf", [after])
    for each in before.get("anyOf", [before]):
        if not any(not list(_breaks(each, other, where)) for other in wide):
            yield f"{where} may not be {each.get('type', each)} any more"


def _values(before: Schema, after: Schema, where: str) -> Iterator[str]:
    allowed = _listed(after)
    if allowed is None:
        return
    given = _listed(before)
    if given is None:
        yield f"{where} may only have certain values now"
    elif lost := [value for value in given if value not in allowed]:
        yield f"{where} may not be {lost} any more"


def _listed(schema: Schema) -> list[Any] | None:
    return [schema["const"]] if "const" in schema else schema.get("enum")


def _fields(before: Schema, after: Schema, where: str) -> Iterator[str]:
    had, has = before.get("properties", {}), after.get("properties", {})
    for name in had.keys() - has.keys():
        yield f"{where}.{name} is gone"
    for name in had.keys() & has.keys():
        yield from _breaks(had[name], has[name], f"{where}.{name}")
    for name in sorted(set(after.get("required", ())) - set(before.get("required", ()))):
        yield f"{where}.{name} has to be there, and had not"


def _inner(before: Any, after: Any, where: str) -> Iterator[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        yield from _breaks(cast("Schema", before), cast("Schema", after), where)
    elif before != after:
        yield f"{where} is not what it was"
