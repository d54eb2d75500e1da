"""`bitinglip audit …`: who asked for what, and whether the log is what was signed.

`verify` and `export` speak to the NATS server, or to nobody: what they say rests on no gateway.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import render
from bitinglip.cli.auditverify import Request, check_proof, verified
from bitinglip.cli.cluster import DataDir, outside_or_private
from bitinglip.cli.options import Json, NatsUrl, Url, client
from bitinglip.cli.options import settings as settings_of
from bitinglip.errors import InvalidInput, LedgerDamaged
from bitinglip.events.auditing import Live, keys_told
from bitinglip.events.checking import NotAsSignedError
from bitinglip.events.connection import Connection
from bitinglip.events.kept import export as write_heads
from bitinglip.events.log import EventLog
from bitinglip.events.signing import SigningKey
from bitinglip.settings import Settings

app = typer.Typer(help="Who asked for what, and whether the log is what was signed.", no_args_is_help=True)

COLUMNS = ("recorded_at", "type", "about", "key_id", "address", "request_id")
Keys = Annotated[
    list[Path] | None, typer.Option("--key", help="Public key (PEM) whose signatures count; may be repeated.")
]
FAILED = 1


@app.command("log")
def log_(
    key: Annotated[str | None, typer.Option(help="Only what was asked for with this key.")] = None,
    type_: Annotated[str | None, typer.Option("--type", help="Only this type of event.")] = None,
    about: Annotated[str | None, typer.Option(help="Only about this task, model, node or schedule.")] = None,
    since: Annotated[str | None, typer.Option(help="Only from this time on, as 2026-01-31T12:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Only before this time.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most events.")] = 50,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print the events that requests led to, the newest first."""
    params = {"key": key, "type": type_, "about": about, "since": since, "until": until}
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(found) < limit:
        page = client(url).get("/v1/audit", params | {"limit": min(limit - len(found), 1000), "cursor": cursor})
        found += page["events"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    if as_json:
        for event in found:
            render.json(event)
        return
    rows = [[render.moment(event["recorded_at"]), *[event[name] for name in COLUMNS[1:]]] for event in found]
    render.table(COLUMNS, rows, spare=("address", "request_id"), none="nothing was asked for")


@app.command()
def key(data_dir: DataDir = None, as_json: Json = False) -> None:
    """Print the public key that this machine's gateway signs the log with; made if there is none yet."""
    public = SigningKey.load_or_create(settings_of(data_dir=data_dir).audit_key_path).public
    if as_json:
        render.json({"key_id": public.id, "public_key": public.base64, "pem": public.pem})
    else:
        render.text(public.pem)


@app.command()
def verify(
    archive: Annotated[Path | None, typer.Option(help="Folder of an archive; the server has what follows.")] = None,
    heads: Annotated[Path | None, typer.Option(help="Exported heads, which the log must still extend.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no server: the two above have it all.")] = False,
    proof: Annotated[Path | None, typer.Option(help="Only check this proof of a task; asks no server.")] = None,
    keys: Keys = None,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
    as_json: Json = False,
) -> None:
    """Check that the log is what was signed; names the first event that is not, and fails then."""
    request = Request(archive=archive, heads=heads, keys=tuple(keys or ()))
    if proof is not None:
        sound = check_proof(proof, request, as_json=as_json)
    elif offline:
        sound = asyncio.run(_verified_offline(request, as_json=as_json))
    else:
        settings = settings_of(data_dir=data_dir, nats__url=nats_url)
        sound = asyncio.run(_verified_live(settings, request, as_json=as_json))
    if not sound:
        raise typer.Exit(FAILED)


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="File to write, for somebody else to keep.")],
    leaves: Annotated[bool, typer.Option("--leaves", help="With all leaves: to verify without a server.")] = False,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
    as_json: Json = False,
) -> None:
    """Write the signed heads and the public keys into a file: with it, a rewritten log is found out."""
    settings = settings_of(data_dir=data_dir, nats__url=nats_url)
    count = asyncio.run(_export(settings, output, leaves=leaves))
    render.json({"file": str(output), "heads": count}) if as_json else render.note(f"{count} heads in {output}")


@app.command()
def proof(task_id: Annotated[str, typer.Argument(help="Id of a task.")], url: Url = None) -> None:
    """Print the proof that a task's events are in the signed log; `audit verify --proof` checks it."""
    document = client(url).get(f"/v1/tasks/{task_id}/proof")
    render.line(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())
    if document["uncovered"]:
        render.note(f"{len(document['uncovered'])} of its events are not signed yet")


@asynccontextmanager
async def _server(settings: Settings) -> AsyncGenerator[EventLog]:
    """Connect to the log as it is: nothing is made or changed."""
    async with AsyncExitStack() as stack:
        url = await outside_or_private(settings, stack, render.note)
        connection = await Connection.open(settings.nats.model_copy(update={"url": url}), "bitinglip audit")
        stack.push_async_callback(connection.close)
        yield EventLog(connection, "/audit")


async def _verified_live(settings: Settings, request: Request, *, as_json: bool) -> bool:
    async with _server(settings) as log:
        return await verified(request, log, as_json=as_json)


async def _verified_offline(request: Request, *, as_json: bool) -> bool:
    if request.archive is None or request.heads is None:
        raise InvalidInput(field="--offline", problem="needs --archive and --heads")
    return await verified(request, None, as_json=as_json)


async def _export(settings: Settings, output: Path, *, leaves: bool) -> int:
    async with _server(settings) as log:
        keys = await keys_told(log)
        try:
            with output.open("wb") as file:
                return await write_heads(Live(log), keys, datetime.now(UTC), file, leaves=leaves)
        except NotAsSignedError as error:
            raise LedgerDamaged(problem=str(error)) from error
