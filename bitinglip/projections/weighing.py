"""How much a statement comes to once DuckDB has put its parts into each other.

What is too much is planned for ever, and does not heed that it is to stop. The planner puts a named subquery where it
is used, and the expression behind a column where the column is used: a chain of them that each use the one before
twice doubles with each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

Node = dict[str, Any]
Named = Mapping[str, list[Node]]

TABLES_MOST = 120
"""Tables that a statement may read once all of its named subqueries stand where they are used: the order in which they
are joined is looked for."""
USES_MOST = 10_000
"""Times that one expression may come to use columns, with the expressions behind columns in the places of these."""
NAME_PARTS_MOST = 16
_CLAUSES = ("where_clause", "having", "qualify", "group_expressions", "modifiers")


def too_heavy(statements: list[Node], named: Named) -> str | None:
    """Say what a statement has too much of; none if it may run. `named` are its named subqueries by name."""
    weigher = _Weigher(named)
    if any(weigher.tables(statement["node"]) > TABLES_MOST for statement in statements):
        return f"its named subqueries come to more than {TABLES_MOST} tables"
    for node in nodes(statements):
        if "column_names" in node and len(node["column_names"]) > NAME_PARTS_MOST:
            return f"it has a name of more than {NAME_PARTS_MOST} parts"
        if node.get("type") == "SELECT_NODE" and weigher.uses(node) > USES_MOST:
            return f"its expressions come to use columns more than {USES_MOST} times"
    return None


def nodes(root: Any) -> Iterator[Node]:
    """Yield every object of a tree."""
    waiting: list[Any] = [root]
    while waiting:
        node = waiting.pop()
        if isinstance(node, list):
            waiting += cast("list[Any]", node)
        elif isinstance(node, dict):
            yield (fields := cast("Node", node))
            waiting += fields.values()


class _Weigher:
    def __init__(self, named: Named) -> None:
        self._named = named
        self._tables: dict[str, int] = {}
        self._uses: dict[int, int] = {}

    def tables(self, node: Any) -> int:
        """Return how many tables a query reads."""
        names = [_name(each) for each in nodes(node) if each.get("type") == "BASE_TABLE"]
        return min(TABLES_MOST + 1, sum(self._tables_of(name) for name in names))

    def _tables_of(self, name: str) -> int:
        if name in self._named and name not in self._tables:
            self._tables[name] = 1  # while it is counted: a recursive one names itself
            self._tables[name] = max(1, sum(self.tables(each) for each in self._named[name]))
        return self._tables.get(name, 1)

    def uses(self, node: Node) -> int:
        """Return how often an expression of a query comes to use a column of the tables below, at most."""
        if id(node) not in self._uses:
            self._uses[id(node)] = 1  # likewise
            self._uses[id(node)] = self._select(node) if node.get("type") == "SELECT_NODE" else self._below(node)
        return self._uses[id(node)]

    def _select(self, node: Node) -> int:
        own = _own_uses(node)
        return min(USES_MOST + 1, own * self._below(node.get("from_table")))

    def _below(self, table: Any) -> int:
        """Return that of the queries in a FROM, or in a union; what is grouped is made before it is used."""
        found = 1
        waiting: list[Any] = [table]
        while waiting:
            part = waiting.pop()
            if isinstance(part, list):
                waiting += cast("list[Any]", part)
            elif isinstance(part, dict):
                fields = cast("Node", part)
                if fields.get("type") == "SELECT_NODE":
                    found = max(found, 1 if _is_grouped(fields) else self.uses(fields))
                    continue
                if fields.get("type") == "BASE_TABLE":
                    waiting += [each["query_node"] for each in self._named.get(_name(fields), []) if self._is_new(each)]
                waiting += fields.values()
        return found

    def _is_new(self, named: Node) -> bool:
        """Tell whether a named subquery is met for the first time, or has been weighed: not in the middle of itself."""
        query = named["query_node"]
        if query.get("type") == "SELECT_NODE":
            return True
        first = id(query) not in self._uses
        self._uses.setdefault(id(query), 1)
        return first


def _is_grouped(node: Node) -> bool:
    return bool(node.get("group_expressions")) or node.get("aggregate_handling") == "FORCE_AGGREGATES"


def _own_uses(node: Node) -> int:
    """Return how often an expression of one SELECT uses a column, the names given in its list put in."""
    named: dict[str, int] = {}
    most = 1
    for expression in node.get("select_list", []):
        uses = _count(expression, named)
        most = max(most, uses)
        if expression.get("alias"):
            named[str(expression["alias"]).lower()] = uses
    return max(most, *(_count(node.get(clause), named) for clause in _CLAUSES))


def _count(expression: Any, named: Mapping[str, int]) -> int:
    found = 0
    for each in nodes(expression):
        if each.get("class") == "COLUMN_REF":
            names = each["column_names"]
            found += named.get(str(names[-1]).lower(), 1) if len(names) == 1 else 1
    return min(USES_MOST + 1, max(1, found))


def _name(table: Node) -> str:
    qualified = cast("Node", table.get("qualified_name") or {})
    path = cast("list[Any]", qualified.get("path")) or [table.get("table_name", "")]
    return str(path[-1]).lower()
