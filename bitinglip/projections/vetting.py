"""What a stranger's statement may call, judged by its parsed form; the rest DuckDB's own settings forbid.

DuckDB's memory limit does not cover the text and lists that one function call makes, and a few of its functions take
memory addresses, switch logging or sleep. So table functions are allowed by name, and scalar ones refused by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

TABLE_FUNCTIONS = frozenset({
    "range", "generate_series", "unnest", "json_each", "json_tree", "duckdb_tables", "duckdb_columns",
})  # fmt: skip
"""All that may stand in a FROM beside tables."""

REFUSED = frozenset({
    # as much memory as a number in the call says
    "repeat", "lpad", "rpad", "range", "generate_series", "bar", "printf", "format", "list_resize", "array_resize",
    "bitstring", "to_base", "equi_width_bins",
    # what is not data, or changes something
    "current_setting", "getvariable", "write_log", "nextval", "currval", "setval", "setseed", "sleep_ms", "pg_sleep",
    # reads bytes as internal structures
    "finalize", "combine", "to_aggregate_state", "variant_bytes_to_variant", "parse_duckdb_log_message",
    "json_deserialize_sql", "json_serialize_plan", "invoke",
})  # fmt: skip
"""Scalar functions that may not be called."""


def refusal(parsed: dict[str, Any]) -> str | None:
    """Say what is wrong with a statement, in the form that `json_serialize_sql` gives; none if it may run."""
    if parsed.get("error"):
        return str(parsed.get("error_message", "it is not a SELECT"))
    if len(parsed["statements"]) != 1:
        return "it is not exactly one statement"
    for kind, name in _calls(parsed, in_from=False):
        if kind == "table" and name not in TABLE_FUNCTIONS:
            return f"the table function {name} is not available here"
        if kind == "scalar" and (name in REFUSED or name.startswith("__internal")):
            return f"the function {name} is not available here"
    return None


def _calls(node: Any, in_from: bool) -> Iterator[tuple[str, str]]:
    if isinstance(node, list):
        for item in cast("list[Any]", node):
            yield from _calls(item, in_from=False)
    if isinstance(node, dict):
        fields = cast("dict[str, Any]", node)
        if "function_name" in fields:
            yield "table" if in_from else "scalar", str(fields["function_name"]).lower()
        for name, value in fields.items():
            yield from _calls(value, in_from=name == "function" and fields.get("type") == "TABLE_FUNCTION")
