"""`bitinglip model du` and `prune`: what models take on the disks of nodes, and dropping what nobody uses."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.cli.modelwatch import size
from bitinglip.cli.options import Json, Url, client

REVISION = 12
"""Characters of a revision that a table shows."""
Nodes = Annotated[list[str] | None, typer.Option("--node", help="Node that is meant; may be repeated.")]


def du(node: Nodes = None, url: Url = None, as_json: Json = False) -> None:
    """Show what models take on the disks of nodes."""
    gateway = client(url)
    for node_id in node or _online(gateway):
        found = gateway.get(f"/v1/nodes/{quote(node_id, safe='')}/models")
        if as_json:
            render.json({"node_id": node_id} | found)
            continue
        told = [f"{name.removesuffix('_bytes')} {size(found[name])}" for name in
                ("marked_bytes", "partial_bytes", "other_bytes", "free_bytes")]  # fmt: skip
        render.line(f"{node_id}: {', '.join(told)}")
        _show_stored(found["models"])


def prune(
    node: Nodes = None,
    idle_days: Annotated[float | None, typer.Option(min=0, help="Not used for so many days.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be dropped.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Have nodes drop the models that were not used for long, but for pinned ones and those in memory."""
    gateway = client(url)
    body = {"dry_run": dry_run} | ({} if idle_days is None else {"idle_days": idle_days})
    for node_id in node or _online(gateway):
        found = gateway.request("POST", f"/v1/nodes/{quote(node_id, safe='')}/models:prune", body=body)
        if as_json:
            render.json({"node_id": node_id} | found)
            continue
        freed = size(sum(each["size_bytes"] for each in found["dropped"]))
        render.line(f"{node_id}: {freed} {'would be freed' if dry_run else 'freed'}")
        _show_stored(found["dropped"])


def _show_stored(models: list[dict[str, Any]]) -> None:
    if not models:
        return
    columns = ("model", "revision", "size", "last used", "pinned", "in use")
    rows = [[each["reference"], each["revision"][:REVISION], size(each["size_bytes"]), render.ago(each["last_used"]),
             each["pinned"], each["in_use"]] for each in models]  # fmt: skip
    render.table(columns, rows, fold=("model",))


def _online(gateway: Client) -> list[str]:
    return [node["node_id"] for node in gateway.get("/v1/nodes")["nodes"] if node["state"] != "offline"]
