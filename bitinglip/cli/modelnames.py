"""`bitinglip model alias`: names that stand for revisions of models."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from bitinglip.cli import render
from bitinglip.cli.options import Json, Url, client
from bitinglip.errors import InvalidInput


def alias(
    name: Annotated[str | None, typer.Argument(help="The alias; none: list all.")] = None,
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help="What it is to stand for.")] = None,
    rollback: Annotated[bool, typer.Option("--rollback", help="What it stood for before.")] = False,
    remove: Annotated[bool, typer.Option("--remove", help="Take it away; tasks keep their model.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """List the aliases; have a name stand for a model, for what it stood for before, or for nothing."""
    if sum([model is not None, rollback, remove]) > 1 or (name is None and (rollback or remove)):
        raise InvalidInput(field="alias", problem="give a name with one of MODEL, --rollback and --remove")
    gateway = client(url)
    if name is None:
        _show_aliases(gateway.get("/v1/aliases")["aliases"], as_json=as_json)
        return
    path = f"/v1/aliases/{quote(name, safe='')}"
    if model is not None:
        found = gateway.request("PUT", path, body={"model": model})
    elif rollback:
        found = gateway.request("POST", f"{path}/rollback")
    else:
        found = gateway.request("DELETE" if remove else "GET", path)
    _show_aliases([found], as_json=as_json)


def _show_aliases(aliases: list[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        for each in aliases:
            render.json(each)
        return
    rows = [[each["alias"], each["model"], each["before"][-1] if each["before"] else None, render.ago(each["set_at"])]
            for each in aliases]  # fmt: skip
    none = "No aliases; `bitinglip model alias NAME MODEL` makes one."
    render.table(("alias", "model", "before", "set"), rows, fold=("model", "before"), none=none)
