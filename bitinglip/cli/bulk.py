"""Many tasks at once: `task cancel --where …`, `task retry --all-dead --where …`."""

from __future__ import annotations

from typing import Any

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.errors import InvalidInput

METADATA = "metadata."
CONDITIONS = ("state", "kind", "model", "lane", "batch", "failure", "before", "after")


def conditions(where: list[str]) -> dict[str, Any]:
    """Return the body of a filter from repeated NAME=VALUE; several states have commas between them.

    Raises:
        InvalidInput: one is not of that form, or its name is not known.
    """
    found: dict[str, Any] = {}
    for pair in where:
        name, equals, value = pair.partition("=")
        if not equals or not (name in CONDITIONS or name.startswith(METADATA)):
            known = ", ".join([*CONDITIONS, f"{METADATA}KEY"])
            raise InvalidInput(field="--where", problem=f"{pair!r} is not NAME=VALUE with one of the names {known}")
        if name.startswith(METADATA):
            found.setdefault("metadata", {})[name.removeprefix(METADATA)] = value
        else:
            found[name] = value.split(",") if name == "state" else value
    return found


def run(gateway: Client, path: str, body: dict[str, Any], *, as_json: bool) -> int:
    """Send the request for all pages of what it finds, and print what became of them; returns the exit code.

    It ends with 1 if a task stayed as it was.
    """
    totals: dict[str, int] = {}
    refused: list[dict[str, str]] = []
    cursor: str | None = None
    while True:
        page = gateway.request("POST", path, body=body | ({"cursor": cursor} if cursor else {}))
        for name, value in page.items():
            if isinstance(value, int) and not isinstance(value, bool):
                totals[name] = totals.get(name, 0) + value
        refused += page["refused"]
        if body.get("dry_run"):
            _show_ids(page["task_ids"], as_json)
        cursor = page["next_cursor"]
        if cursor is None:
            break
    _show(totals, refused, as_json=as_json)
    return 1 if refused else 0


def _show_ids(task_ids: list[str], as_json: bool) -> None:
    for task_id in task_ids if not as_json else []:
        render.line(task_id)


def _show(totals: dict[str, int], refused: list[dict[str, str]], *, as_json: bool) -> None:
    if as_json:
        render.json(totals | {"refused": refused})
        return
    for each in refused:
        render.note(f"{each['task_id']}: {each['problem']}")
    render.note(", ".join(f"{name.replace('_', ' ')} {count}" for name, count in totals.items()))
