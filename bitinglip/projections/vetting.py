"""What a stranger's statement may name and call, judged by its parsed form; the rest DuckDB's own settings forbid.

Everything is allowed by name: tables, functions, kinds of nodes. What is not known here is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any, cast

import orjson

from bitinglip.projections.functions import CATALOG_FUNCTIONS, SCALARS, SHAPED, TABLE_FUNCTIONS
from bitinglip.projections.weighing import too_heavy

Node = dict[str, Any]

NODES = frozenset({
    "SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE",
    "BASE_TABLE", "SUBQUERY", "JOIN", "TABLE_FUNCTION", "EXPRESSION_LIST", "EMPTY", "PIVOT", "SHOW_REF",
    "LIMIT_MODIFIER", "LIMIT_PERCENT_MODIFIER", "ORDER_MODIFIER", "DISTINCT_MODIFIER",
    "ORDER_DEFAULT", "ASCENDING", "DESCENDING", "INVALID",
})  # fmt: skip
"""Parts of a statement that are no expressions."""
EXPRESSIONS = frozenset({
    "BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "DEFAULT", "FUNCTION",
    "LAMBDA", "LAMBDA_REF", "OPERATOR", "PARAMETER", "POSITIONAL_REFERENCE", "STAR", "SUBQUERY", "TYPE", "WINDOW",
})  # fmt: skip
TYPES_REFUSED = frozenset({"variant", "geometry"})
"""A cast to a variant recurses into JSON until the process has no stack left."""
SUBQUERIES_MOST = 100
"""Named subqueries of a statement."""
DEEPEST_SHAPE = 32
"""Brackets in the form that a function is to give its answer."""
SQL_MOST_BYTES = 100_000
NO_TABLE = "there is no table with name"
"""How it is said that a statement reads what is not there, or not for everybody."""
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class Rules:
    """What somebody may name."""

    tables: Set[str]
    """Tables and views that may stand in a FROM by their bare name."""
    system: Set[str]
    """Names that a subquery may not be called by: DuckDB's own views."""
    whole: bool
    """Whether everything may be seen, and so the catalog, and `main.` before a table."""


class _Refused(Exception):
    """Says what is wrong."""


def too_odd(statement: str) -> str | None:
    """Say what is wrong with a text that is not even to be parsed; none if it may be."""
    if len(statement.encode()) > SQL_MOST_BYTES:
        return f"it is longer than {SQL_MOST_BYTES} bytes"
    return "it has a character of the value 0" if "\0" in statement else None


def refusal(parsed: Node, rules: Rules, trusted: Set[bytes] = frozenset()) -> str | None:
    """Say what is wrong with a statement, in the form that `json_serialize_sql` gives; none if it may run.

    `trusted` are subqueries, written by `fingerprint`, that are passed over.
    """
    try:
        _judge(parsed, rules, trusted)
    except _Refused as problem:
        return str(problem)
    return None


def fingerprint(node: Any) -> bytes:
    """Write a part of a statement without the places at which it stood."""
    return orjson.dumps(_bare(node), option=orjson.OPT_SORT_KEYS)


def rewritten(node: Any, filters: Mapping[str, Node]) -> Any:
    """Return a statement with every table that has a filter replaced by the filter: a subquery over it."""
    if isinstance(node, list):
        return [rewritten(item, filters) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    fields = cast("Node", node)
    if _is_table(fields) and (name := table_name(fields)) in filters:
        shown = {"alias": fields.get("alias") or name, "sample": fields.get("sample")}
        return filters[name] | shown | {"column_name_alias": fields.get("column_name_alias", [])}
    return {key: rewritten(value, filters) for key, value in fields.items()}


def table_name(node: Node) -> str:
    """Return the name of a table without its schema, in lower case."""
    return _lower(str(_path(node)[-1]))


# --- the rules --------------------------------------------------------------------------------------------------------


def _judge(parsed: Node, rules: Rules, trusted: Set[bytes]) -> None:
    if parsed.get("error"):
        raise _Refused(str(parsed.get("error_message", "it is not a SELECT")))
    if len(parsed["statements"]) != 1:
        raise _Refused("it is not exactly one statement")
    nodes = list(_nodes(parsed, trusted))
    named = _subqueries(nodes, rules)
    for node, in_from in nodes:
        _judge_node(node, in_from, rules, named.keys())
    if (problem := too_heavy(parsed["statements"], named)) is not None:
        raise _Refused(problem)


def _judge_node(node: Node, in_from: bool, rules: Rules, named: Set[str]) -> None:
    kind, expression = node.get("type"), node.get("class")
    if expression is not None and expression not in EXPRESSIONS:
        raise _Refused(f"an expression of the class {expression} is not available here")
    if expression is None and isinstance(kind, str) and kind not in NODES and not kind.endswith("_TYPE_INFO"):
        raise _Refused(f"{kind} is not available here")
    if "function_name" in node:
        _judge_call(node, in_from, rules)
    elif expression == "TYPE" or "type_name" in node:
        _judge_type(node)
    elif _is_table(node):
        _judge_table(node, rules, named)
    elif kind == "SHOW_REF" and expression is None:
        _judge_show(node, rules)


def _judge_call(node: Node, in_from: bool, rules: Rules) -> None:
    name = _lower(str(node["function_name"]))
    if in_from:
        if name not in TABLE_FUNCTIONS and not (rules.whole and name in CATALOG_FUNCTIONS):
            raise _Refused(f"the table function {name} is not available here")
    elif name not in SCALARS:
        raise _Refused(f"the function {name} is not available here")
    elif name in SHAPED:
        _judge_shape(name, node)


def _judge_shape(name: str, node: Node) -> None:
    arguments = [argument.get("expression", {}) for argument in node.get("arguments", node.get("children", []))]
    literal = arguments[1].get("literal") if len(arguments) > 1 else None
    if not isinstance(literal, dict):
        raise _Refused(f"the second argument of {name} must be written out")
    shape = str(cast("Node", literal).get("text"))
    if shape.count("[") + shape.count("{") > DEEPEST_SHAPE or any(each in _lower(shape) for each in TYPES_REFUSED):
        raise _Refused(f"the second argument of {name} is not available here")


def _judge_type(node: Node) -> None:
    if _lower(str(node.get("type_name", ""))) in TYPES_REFUSED or len(_path(node)) > 1:
        raise _Refused(f"the type {node.get('type_name')} is not available here")


def _judge_table(node: Node, rules: Rules, named: Set[str]) -> None:
    path, name = [_lower(str(part)) for part in _path(node)], table_name(node)
    if node.get("at_clause"):
        raise _Refused("AT is not available here")
    if len(path) == 1 and (name in named or name in rules.tables):
        return
    if rules.whole and path[:-1] == ["main"] and name in rules.tables:
        return
    if path[:-1] == ["recurring"] and name in named:
        return
    raise _Refused(f"{NO_TABLE} {'.'.join(path)} here")


def _judge_show(node: Node, rules: Rules) -> None:
    kind, asked = node.get("show_type"), str(node.get("table_name", ""))
    if kind == "SHOW_SPECIAL" and not (rules.whole and asked.strip('"') == "tables"):
        raise _Refused("SHOW is not available here")
    if kind != "SHOW_SPECIAL" and not node.get("query"):
        raise _Refused("only a table or a SELECT can be described")


def _subqueries(nodes: list[tuple[Node, bool]], rules: Rules) -> dict[str, list[Node]]:
    """Return the named subqueries by name; one that might stand for something else elsewhere is refused."""
    found: dict[str, list[Node]] = {}
    for node, _ in nodes:
        named = cast("Node", node.get("cte_map") or {})
        for entry in cast("list[Node]", named.get("map", [])):
            name = str(entry["key"])
            if _WORD.fullmatch(name) is None or _lower(name) in rules.system or _lower(name) in rules.tables:
                raise _Refused(f"a subquery may not be named {name[:100]!r} here")
            found.setdefault(_lower(name), []).append(entry["value"])
    if len(found) > SUBQUERIES_MOST:
        raise _Refused(f"it has more than {SUBQUERIES_MOST} named subqueries")
    return found


# --- the tree ---------------------------------------------------------------------------------------------------------


def _nodes(root: Any, trusted: Set[bytes]) -> Iterator[tuple[Node, bool]]:
    """Yield every object of the tree, and whether it is the function of a FROM."""
    waiting: list[tuple[Any, bool]] = [(root, False)]
    while waiting:
        node, in_from = waiting.pop()
        if isinstance(node, list):
            waiting += [(item, False) for item in cast("list[Any]", node)]
        elif isinstance(node, dict):
            fields = cast("Node", node)
            if trusted and fields.get("type") == "SUBQUERY" and _is_trusted(fields, trusted):
                continue
            yield fields, in_from
            called = fields.get("type") == "TABLE_FUNCTION"
            waiting += [(value, called and name == "function") for name, value in fields.items()]


def _is_trusted(node: Node, trusted: Set[bytes]) -> bool:
    return "class" not in node and fingerprint(node.get("subquery")) in trusted


def _is_table(node: Node) -> bool:
    return node.get("type") == "BASE_TABLE" and "class" not in node


def _path(node: Node) -> list[Any]:
    qualified = cast("Node", node.get("qualified_name") or {})
    return cast("list[Any]", qualified.get("path")) or [node.get("table_name", "")]


def _lower(text: str) -> str:
    """Write letters small as DuckDB does where it compares names: those of ASCII."""
    return "".join(letter.lower() if letter.isascii() else letter for letter in text)


def _bare(node: Any) -> Any:
    if isinstance(node, list):
        return [_bare(item) for item in cast("list[Any]", node)]
    if not isinstance(node, dict):
        return node
    fields = cast("Node", node)
    return {key: _bare(value) for key, value in fields.items() if not key.startswith("query_location")}
