"""`bitinglip node …`, `worker …`, `cluster status`: the machines and their workers."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from bitinglip.cli import queue, render
from bitinglip.cli.client import Client
from bitinglip.cli.cluster import DataDir, become_node, become_worker
from bitinglip.cli.options import AsOf, Json, Model, NatsUrl, Url, client
from bitinglip.errors import InvalidInput

node_app = typer.Typer(help="Run this machine's agent; look at nodes, drain, label and restart them.")
worker_app = typer.Typer(help="Run one worker in this process; look at workers, drain, restart and read them.")
cluster_app = typer.Typer(help="The cluster as a whole.", no_args_is_help=True)

NodeId = Annotated[str, typer.Argument(help="Name of the node.", metavar="NODE")]
WorkerId = Annotated[str, typer.Argument(help="Name of the worker.", metavar="WORKER")]
GIB = 2**30
POLL_S = 0.25


# --- nodes ------------------------------------------------------------------------------------------------------------


@node_app.callback(invoke_without_command=True)
def run_node(
    context: typer.Context,
    model: Model = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Workers in all.", show_default=False)] = None,
    device: Annotated[list[str] | None, typer.Option(help="Device for workers; may be repeated.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; may be repeated.")] = None,
    node_id: Annotated[str | None, typer.Option("--id", help="Name of this machine.", show_default=False)] = None,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
) -> None:
    """Run the agent of this machine: a worker for each device, kept running (without a command)."""
    if context.invoked_subcommand is None:
        become_node(model, workers, device, label, node_id, data_dir, nats_url)


@node_app.command("list")
def list_nodes(as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """List the nodes."""
    answer = client(url).get("/v1/nodes", {"as_of": as_of})
    _show_nodes(answer["nodes"], _moment(answer, as_json), as_json=as_json)


@node_app.command("show")
def show_node(node_id: NodeId, url: Url = None, as_json: Json = False) -> None:
    """Show a node, its devices and its workers."""
    node = client(url).get(f"/v1/nodes/{node_id}")
    if as_json:
        render.json(node)
        return
    render.pairs([(name, value) for name, value in node.items() if name not in {"devices", "workers"}])
    if node["devices"]:
        columns = ("device", "name", "memory_used_bytes", "utilisation_percent", "temperature_c", "power_w", "lost")
        render.line("")
        render.table(columns, [[device.get(column) for column in columns] for device in node["devices"]])
    if node["workers"]:
        render.line("")
        columns = ("worker_id", "device", "state", "pid", "held", "exits")
        render.table(columns, [[worker.get(column) for column in columns] for worker in node["workers"]])


@node_app.command("drain")
def drain_node(node_id: NodeId, url: Url = None, as_json: Json = False) -> None:
    """Have a node's workers end what they run and take nothing new, also after a restart of the node."""
    _show_status(client(url).request("POST", f"/v1/nodes/{node_id}/drain"), as_json=as_json)


@node_app.command("undrain")
def undrain_node(node_id: NodeId, url: Url = None, as_json: Json = False) -> None:
    """Have a node's workers take work again."""
    _show_status(client(url).request("POST", f"/v1/nodes/{node_id}/undrain"), as_json=as_json)


@node_app.command("label")
def label_node(
    node_id: NodeId,
    labels: Annotated[list[str], typer.Argument(help="NAME=VALUE or NAME sets a label, NAME- takes one away.")],
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Set labels of a node, or take them away."""
    body = {"labels": dict(_label(label) for label in labels)}
    _show_status(client(url).request("POST", f"/v1/nodes/{node_id}/labels", body=body), as_json=as_json)


@node_app.command("restart-workers")
def restart_workers(
    node_id: NodeId,
    wait: Annotated[bool, typer.Option(help="Wait until all are back.")] = True,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Restart a node's workers one after the other, each drained before: no attempt fails."""
    gateway = client(url)
    status = gateway.request("POST", f"/v1/nodes/{node_id}/restart-workers")
    while wait and status["restarting"]:
        render.note(f"to be restarted: {', '.join(status['restarting'])}")
        status = _until_another(gateway, node_id, status["restarting"])
    _show_status(status, as_json=as_json)


# --- workers ----------------------------------------------------------------------------------------------------------


@worker_app.callback(invoke_without_command=True)
def run_worker(
    context: typer.Context,
    model: Model = None,
    device: Annotated[str | None, typer.Option(help="Device: auto, cpu, cuda:0 …", show_default=False)] = None,
    worker_id: Annotated[str | None, typer.Option("--id", help="Stable name of it.", show_default=False)] = None,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
) -> None:
    """Run a worker in this process (without a command)."""
    if context.invoked_subcommand is None:
        become_worker(model, device, worker_id, data_dir, nats_url)


@worker_app.command("list")
def list_workers(as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """List the workers."""
    answer = client(url).get("/v1/workers", {"as_of": as_of})
    _show_workers(answer["workers"], _moment(answer, as_json), as_json=as_json)


@worker_app.command("restart")
def restart_worker(worker_id: WorkerId, url: Url = None, as_json: Json = False) -> None:
    """Stop a worker (what runs may end within its grace period), and start it anew."""
    _show_worker(client(url).request("POST", f"/v1/workers/{worker_id}/restart"), as_json=as_json)


@worker_app.command("stop")
def stop_worker(worker_id: WorkerId, url: Url = None, as_json: Json = False) -> None:
    """Stop a worker, and leave it so."""
    _show_worker(client(url).request("POST", f"/v1/workers/{worker_id}/stop"), as_json=as_json)


@worker_app.command("start")
def start_worker(worker_id: WorkerId, url: Url = None, as_json: Json = False) -> None:
    """Start a worker that was stopped."""
    _show_worker(client(url).request("POST", f"/v1/workers/{worker_id}/start"), as_json=as_json)


@worker_app.command("drain")
def drain_worker(worker_id: WorkerId, url: Url = None, as_json: Json = False) -> None:
    """Have a worker end what it runs and take nothing new."""
    _show_worker(client(url).request("POST", f"/v1/workers/{worker_id}/drain"), as_json=as_json)


@worker_app.command("undrain")
def undrain_worker(worker_id: WorkerId, url: Url = None, as_json: Json = False) -> None:
    """Have a worker take work again."""
    _show_worker(client(url).request("POST", f"/v1/workers/{worker_id}/undrain"), as_json=as_json)


@worker_app.command("logs")
def worker_logs(
    worker_id: WorkerId,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=2000, help="How many lines.")] = 100,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print the last lines of a worker's log."""
    answer = client(url).get(f"/v1/workers/{worker_id}/logs", {"lines": lines})
    render.json(answer) if as_json else render.line("\n".join(answer["lines"]))


# --- the cluster ------------------------------------------------------------------------------------------------------


@cluster_app.command()
def status(as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """Show the nodes, the workers, and the queues that have work or are paused."""
    gateway = client(url)
    if as_of is None:
        parts = {name: gateway.get(f"/v1/{name}")[name] for name in ("nodes", "workers", "queues")}
    else:
        parts = gateway.get("/v1/cluster", {"as_of": as_of})
    if as_json:
        render.json(parts)
        return
    moment = render.as_of(parts)
    _show_nodes(parts["nodes"], moment, as_json=False)
    render.line("")
    _show_workers(parts["workers"], moment, as_json=False)
    render.line("")
    busy = [each for each in parts["queues"] if each["depth"] or each["paused"]]
    queue.show(busy, none="Nothing waits or runs." if moment is None else "Nothing waited or ran.")
    if moment is not None:
        counts = ", ".join(f"{count} {state}" for state, count in sorted(parts["tasks"].items()))
        render.line(f"\nTasks by then: {counts or 'none'}.")


def _moment(answer: dict[str, Any], as_json: bool) -> str | None:
    return None if as_json else render.as_of(answer)


def _show_nodes(nodes: list[dict[str, Any]], moment: str | None, *, as_json: bool) -> None:
    if as_json:
        for node in nodes:
            render.json(node)
        return
    columns = ("node_id", "state", "workers", "devices", "cpu %", "memory GiB", "disk free GiB", "labels", "seen")
    none = "No nodes; `bitinglip node` on a machine makes it one."
    render.table(
        columns,
        [_node_cells(node, moment) for node in nodes],
        fold=("devices", "labels"),
        spare=("disk free GiB", "cpu %"),
        none=none,
    )


def _node_cells(node: dict[str, Any], moment: str | None) -> list[Any]:
    workers = node["workers"]  # null at a moment whose heartbeats are gone
    ready = None if workers is None else sum(worker["state"] == "ready" for worker in workers)
    labels = ",".join(f"{name}={value}" if value else name for name, value in node["labels"].items())
    return [
        node["node_id"],
        node["state"],
        None if workers is None else f"{ready}/{len(workers)}",
        ",".join(device["device"] for device in node["devices"]) or "cpu",
        node["cpu_percent"],
        f"{_gib(node['memory_used_bytes'])}/{_gib(node['memory_total_bytes'])}",
        _gib(node["disk_free_bytes"]),
        labels or None,
        render.ago(node["seen_at"], moment),
    ]


def _show_workers(workers: list[dict[str, Any]], moment: str | None, *, as_json: bool) -> None:
    if as_json:
        for worker in workers:
            render.json(worker)
        return
    columns = ("worker_id", "node_id", "state", "device", "running", "done", "failed", "loaded", "seen")
    rows = [worker | _worker_cells(worker, moment) for worker in workers]
    none = "No workers; `bitinglip node` starts one for each device of a machine."
    render.table(
        columns,
        [[row[column] for column in columns] for row in rows],
        fold=("loaded",),
        spare=("failed", "done"),
        none=none,
    )


def _worker_cells(worker: dict[str, Any], moment: str | None) -> dict[str, Any]:
    drained = worker["drained"] and worker["state"] == "started"
    return {
        "state": "drained" if drained else worker["state"],
        "loaded": ",".join(worker["loaded"] or ()) or None,
        "seen": render.ago(worker["seen_at"], moment),
    }


def _show_status(status: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        render.json(status)
        return
    render.pairs([("node_id", status["node_id"]), ("draining", status["draining"]), ("labels", status["labels"])])
    for worker in status["workers"]:
        _show_worker(worker, as_json=False)


def _show_worker(worker: dict[str, Any], *, as_json: bool) -> None:
    render.json(worker) if as_json else render.line(f"{worker['worker_id']}  {worker['state']}")


def _until_another(gateway: Client, node_id: str, before: list[str]) -> dict[str, Any]:
    """Wait until the list of those to be restarted is another one."""
    while True:
        status = gateway.get(f"/v1/nodes/{node_id}/status")
        if status["restarting"] != before:
            return status
        time.sleep(POLL_S)


def _label(text: str) -> tuple[str, str | None]:
    if text.endswith("-") and "=" not in text:
        return text.removesuffix("-"), None
    name, _, value = text.partition("=")
    if not name:
        raise InvalidInput(field="labels", problem=f"{text!r} is no label; write NAME=VALUE, NAME or NAME-")
    return name, value


def _gib(size: int | None) -> str:
    return "-" if size is None else f"{size / GIB:.1f}"
