"""`bitinglip task kinds`: what can be asked, as the gateway's own OpenAPI document has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.errors import InvalidInput

COLUMNS = ("parameter", "type", "default", "meaning")
BOUNDS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
    "maxLength": "up to {} characters",
    "maxItems": "up to {}",
}
"""How a bound of JSON schema is said."""


def show(gateway: Client, kind: str | None, *, as_json: bool) -> None:
    """Print the kinds, or one kind's parameters.

    Raises:
        InvalidInput: there is no such kind.
    """
    schemas = gateway.get("/openapi.json")["components"]["schemas"]
    kinds = dict(_kinds(schemas))
    if kind is None:
        rows = [(name, params.get("description", "")) for name, params in kinds.items()]
        render.json(dict(rows)) if as_json else render.table(("kind", "does"), rows)
        return
    if kind not in kinds:
        raise InvalidInput(field="kind", problem=f"unknown kind {kind!r}; the kinds are {', '.join(kinds)}")
    params = kinds[kind]
    if as_json:
        render.json(params)
        return
    required = set(params.get("required", ()))
    render.table(COLUMNS, [_row(name, schema, name in required) for name, schema in params["properties"].items()])


def _kinds(schemas: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each kind with its parameters' schema: a submission names the one by a constant, the other by reference."""
    for schema in schemas.values():
        properties = schema.get("properties", {})
        kind = properties.get("kind", {}).get("const")
        if kind is not None and "params" in properties:
            yield kind, _resolved(properties["params"], schemas)


def _resolved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    found = schema.get("$ref") or next((part["$ref"] for part in schema.get("allOf", ())), None)
    return schemas[found.rpartition("/")[2]] if found else schema


def _row(name: str, schema: dict[str, Any], required: bool) -> tuple[Any, ...]:
    default = "(required)" if required else schema.get("default")
    return name, _type(schema), default, schema.get("description", "")


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_type(part) for part in schema["anyOf"] if part.get("type") != "null")
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    name = schema["$ref"].rpartition("/")[2] if "$ref" in schema else schema.get("type", "any")
    if name == "array":
        name = f"list of {_type(schema.get('items', {}))}"
    bounds = [text.format(schema[bound]) for bound, text in BOUNDS.items() if bound in schema]
    return ", ".join([name, *bounds])
