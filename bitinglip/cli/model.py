"""`bitinglip model …`: find models, have nodes fetch, keep, check and drop them, and give them names."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import typer

from bitinglip.cli import modelwatch, render
from bitinglip.cli.modeldisks import REVISION, Nodes, du, prune
from bitinglip.cli.modelnames import alias
from bitinglip.cli.modelwatch import size
from bitinglip.cli.options import AsOf, Json, Url, client
from bitinglip.errors import InvalidInput

app = typer.Typer(help="Find models; have nodes fetch, keep, check and drop them.", no_args_is_help=True)
app.command()(alias)
app.command()(du)
app.command()(prune)

FITS = {
    "fits": "yes", "smaller": "in a smaller precision", "quantised": "quantised", "spread": "over two cards",
    "too_big": "no", "unknown": "?",
}  # fmt: skip

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help="`org/name`, `org/name@revision` or an alias.")]
Everywhere = Annotated[bool, typer.Option("--all-nodes", help="All nodes that are online.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Do not wait for it.")]


class Sort(StrEnum):
    """What comes first."""

    downloads = "downloads"
    likes = "likes"


# --- finding ----------------------------------------------------------------------------------------------------------


@app.command()
def search(
    text: Annotated[str, typer.Argument(help="What names have in them.")] = "",
    kind: Annotated[str | None, typer.Option(help="Only models of this kind.")] = None,
    max_gb: Annotated[float | None, typer.Option(help="Only models of no more GB.")] = None,
    licence: Annotated[str | None, typer.Option(help="Only models with this licence, as apache-2.0.")] = None,
    sort: Annotated[Sort, typer.Option(help="What comes first.")] = Sort.downloads,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100, help="How many.")] = 20,
    local: Annotated[bool, typer.Option("--local", help="Only what is known here; the hub is not asked.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Find models on the hub, and say which fit here; without the hub, among what is known."""
    asked = {"text": text or None, "kind": kind, "max_gb": max_gb, "licence": licence, "sort": sort.value}
    found = client(url).get("/v1/models:search", asked | {"limit": limit, "local": "true" if local else None})
    if found["problem"]:
        render.note(f"{found['problem']} These are the models that are known here.")
    if as_json:
        for each in found["models"]:
            render.json(each)
        return
    columns = ("model", "kind", "size", "licence", "downloads", "fits", "here")
    rows = [[each["id"], each["kind"], size(each["size_bytes"]), each["licence"], each["downloads"],
             FITS.get(each["fit"]), _on(each["nodes"])] for each in found["models"]]  # fmt: skip
    render.table(columns, rows, fold=("model", "here"), spare=("downloads", "licence"), none="No model found.")


@app.command("list")
def list_(as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """List the models that are known, and which nodes have them."""
    answer = client(url).get("/v1/models", {"as_of": as_of})
    found = answer["data"]
    if as_json:
        for each in found:
            render.json(each)
        return
    columns = ("model", "revision", "kind", "size", "nodes", "aliases", "served", "last used")
    none = "No models; `bitinglip model search` finds some, and `bitinglip model download` fetches one."
    then = render.as_of(answer)
    render.table(
        columns,
        [_row(each, then) for each in found],
        fold=("model", "nodes", "aliases"),
        spare=("last used", "revision", "served", "aliases"),
        none=none,
    )


@app.command()
def show(model: ModelName, url: Url = None, as_json: Json = False) -> None:
    """Show a model: what it is, and how it is on each node."""
    found = client(url).get(_path(model))
    if as_json:
        render.json(found)
        return
    hidden = {"object", "created", "holdings", "files", "links", "nodes", "kinds", "id"}
    pairs = {name: value for name, value in found.items() if name not in hidden}
    pairs["size_bytes"] = size(found["size_bytes"])
    pairs["need_bytes"] = {name: size(need) for name, need in (found.get("need_bytes") or {}).items()}
    render.pairs([("model", found["id"]), *pairs.items(), ("files", len(found["files"]) or None)])
    if found["holdings"]:
        render.line("")
        columns = ("node", "status", "pinned", "size", "checked", "problem", "remedy")
        rows = [_holding_row(each) for each in found["holdings"]]
        render.table(columns, rows, fold=("problem", "remedy"), spare=("checked",))


@app.command()
def fit(model: ModelName, url: Url = None, as_json: Json = False) -> None:
    """Say how a model fits on each node, and which one would fetch it."""
    found = client(url).get(f"{_path(model)}/fit")
    if as_json:
        render.json(found)
        return
    columns = ("node", "device", "fits", "as", "needs", "can hold", "disk")
    rows = [[node["node_id"], card["device"], FITS[card["verdict"]], card["precision"], size(card["need_bytes"]),
             size(card["budget_bytes"]), "room" if node["room"] else "full"]
            for node in found["nodes"] for card in node["cards"]]  # fmt: skip
    render.table(columns, rows, none="No node has told of its memory yet.")
    render.note(f"{found['chosen']} would fetch it" if found["chosen"] else f"{found['problem']}; {found['instead']}")


# --- having it --------------------------------------------------------------------------------------------------------


@app.command()
def download(
    model: ModelName,
    node: Nodes = None,
    everywhere: Everywhere = False,
    alias: Annotated[str | None, typer.Option(help="Name that is to stand for it.")] = None,
    pin_: Annotated[bool, typer.Option("--pin", help="Keep it, whatever room others need.")] = False,
    detach: Detach = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Have a node fetch a model, and follow it there; Ctrl-C ends the following alone."""
    body = {"model": model, "nodes": _nodes(node, everywhere), "alias": alias, "pin": pin_}
    _ask(url, body, detach=detach, as_json=as_json)


@app.command("import")
def import_(
    folder: Annotated[str, typer.Argument(help="Folder on the node.")],
    name: Annotated[str, typer.Option("--as", help="Name that it gets, as org/name.")],
    node: Annotated[str, typer.Option("--node", help="Node that it lies on.")],
    detach: Detach = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Have a node take in a folder of its own as a model."""
    _ask(url, {"import": folder, "as": name, "node": node}, detach=detach, as_json=as_json)


@app.command()
def cancel(model: ModelName, node: Nodes = None, url: Url = None, as_json: Json = False) -> None:
    """Have nodes stop fetching a model; what they have of it stays, for the next time."""
    _wish(url, "POST", f"{_path(model)}/cancel", {"nodes": _nodes(node)}, "stops", as_json=as_json)


@app.command()
def rm(model: ModelName, node: Nodes = None, url: Url = None, as_json: Json = False) -> None:
    """Have nodes drop a model from their disks: those that are named, or all that have it."""
    _wish(url, "DELETE", _path(model), {"nodes": _nodes(node)}, "drops it", as_json=as_json)


@app.command()
def pin(
    model: ModelName, node: Nodes = None, everywhere: Everywhere = False, url: Url = None, as_json: Json = False
) -> None:
    """Have nodes get a model and keep it, whatever room others need."""
    body = {"nodes": _nodes(node, everywhere)}
    _wish(url, "POST", f"{_path(model)}/pin", body, "keeps it", as_json=as_json)


@app.command()
def unpin(model: ModelName, node: Nodes = None, url: Url = None, as_json: Json = False) -> None:
    """Let nodes drop a model again when they need room."""
    _wish(url, "POST", f"{_path(model)}/unpin", {"nodes": _nodes(node)}, "may drop it", as_json=as_json)


@app.command()
def verify(
    model: ModelName,
    node: Nodes = None,
    repair: Annotated[bool, typer.Option("--repair", help="Fetch anew what is damaged or missing.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Have nodes compare a model's files with their digests; `model events` tells what comes of it."""
    body = {"nodes": _nodes(node), "repair": repair}
    _wish(url, "POST", f"{_path(model)}/verify", body, "checks it", as_json=as_json)


@app.command()
def events(
    model: ModelName,
    after: Annotated[int, typer.Option(min=0, help="Begin after this sequence.")] = 0,
    so_far: Annotated[bool, typer.Option("--so-far", help="End with what there is by now.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print what happened to a model and what happens, until Ctrl-C."""
    params = {"after": after} | ({"follow": "false"} if so_far else {})
    for event in client(url).events(f"{_path(model)}/events", params):
        if as_json:
            render.json(event.data)
        else:
            far = event.type == "model.fetch_progressed"
            told = modelwatch.how_far(event.data["data"]) if far else modelwatch.describe(event)
            render.line(f"{event.id:>8} {event.data['time'][:19]} {told}")


def _ask(url: str | None, body: dict[str, Any], *, detach: bool, as_json: bool) -> None:
    gateway = client(url)
    answer = gateway.request("POST", "/v1/models", body=body)
    for warning in answer.get("warnings", []):
        render.note(f"warning: {warning}")
    if not detach:
        render.note(f"{answer['model']} to {', '.join(answer['nodes'])}")
        raise typer.Exit(modelwatch.follow(gateway, answer, as_json=as_json))
    _show_answer(answer, "fetches it", as_json=as_json)


def _wish(url: str | None, method: str, path: str, body: dict[str, Any], does: str, *, as_json: bool) -> None:
    _show_answer(client(url).request(method, path, body=body), does, as_json=as_json)


def _show_answer(answer: dict[str, Any], does: str, *, as_json: bool) -> None:
    if as_json:
        render.json(answer)
    for node_id in [] if as_json else answer["asked"]:
        render.line(f"{node_id} {does}: {answer['model']}")
    if not answer["asked"]:
        render.note("Nothing new: it is so already, or on its way.")


def _row(model: dict[str, Any], moment: str | None) -> list[Any]:
    revision = model["revision"] and model["revision"].removeprefix("sha256:")[:REVISION]
    return [
        model["id"],
        revision,
        ",".join(model["kinds"]) or None,
        size(model["size_bytes"]),
        _on(model["nodes"]),
        ",".join(model["aliases"]) or None,
        "yes" if model["served"] else None,
        render.ago(model["last_used_at"], moment),
    ]


def _holding_row(holding: dict[str, Any]) -> list[Any]:
    coming = holding["status"] == "fetching"
    return [
        holding["node_id"],
        holding["status"],
        "yes" if holding["pinned"] else None,
        modelwatch.how_far(holding) if coming else size(holding["stored_bytes"] or None),
        render.ago(holding["checked_at"]),
        holding["problem"],
        holding["remedy"],
    ]


def _on(nodes: dict[str, list[str]]) -> str | None:
    """Write on which nodes a model is; the status is said where it is not simply there."""
    told = [f"{name} ({status})" if status != "stored" else name for status, names in nodes.items() for name in names]
    return ", ".join(told) or None


def _nodes(named: list[str] | None, everywhere: bool = False) -> list[str] | str | None:
    if named and everywhere:
        raise InvalidInput(field="--all-nodes", problem="nodes are named as well; give one of the two")
    return "all" if everywhere else named or None


def _path(model: str) -> str:
    return f"/v1/models/{quote(model, safe='/@')}"
