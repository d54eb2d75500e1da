"""`bitinglip events backup`, `restore`: the whole log as files. They speak to the NATS server: no gateway need run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Annotated

import typer

from bitinglip.cli import render
from bitinglip.cli.cluster import DataDir, outside_or_private
from bitinglip.cli.options import Json, NatsUrl
from bitinglip.cli.options import settings as settings_of
from bitinglip.events.backup import Manifest, back_up
from bitinglip.events.backup import restore as bring_in
from bitinglip.events.connection import Connection
from bitinglip.settings import Settings

Folder = Annotated[Path, typer.Argument(help="Folder of the backup.")]


def backup(
    folder: Folder,
    keys: Annotated[bool, typer.Option("--keys", help="With the keys of private tasks.")] = False,
    data_dir: DataDir = None,
    nats_url: NatsUrl = None,
    as_json: Json = False,
) -> None:
    """Write the whole log, artifacts and queues included, into a new folder.

    Without --keys, private tasks cannot be read from it; with it, also those that are forgotten later can be. It is the
    log of the server that the settings name, or else of the store of `bitinglip up`, which must not run then.
    """
    settings = settings_of(data_dir=data_dir, nats__url=nats_url)

    def work(connection: Connection) -> Awaitable[Manifest]:
        return back_up(connection, folder, keys=keys)

    _tell(asyncio.run(_with_server(settings, work)), folder, as_json=as_json)


def restore(folder: Folder, data_dir: DataDir = None, nats_url: NatsUrl = None, as_json: Json = False) -> None:
    """Bring a backup into a server that has no log yet, with `nats.replicas` copies of it."""
    settings = settings_of(data_dir=data_dir, nats__url=nats_url)

    def work(connection: Connection) -> Awaitable[Manifest]:
        return bring_in(connection, folder, settings.nats.replicas)

    _tell(asyncio.run(_with_server(settings, work)), folder, as_json=as_json)
    if settings.nats.replicas > 1 and not as_json:
        render.note("Now stop all servers of the cluster and start them again; then start gateways and workers.")


async def _with_server(settings: Settings, work: Callable[[Connection], Awaitable[Manifest]]) -> Manifest:
    async with AsyncExitStack() as stack:
        url = await outside_or_private(settings, stack, render.note)
        nats = settings.nats.model_copy(update={"url": url})
        connection = await Connection.open(nats, "bitinglip backup")
        stack.push_async_callback(connection.close)
        return await work(connection)


def _tell(manifest: Manifest, folder: Path, *, as_json: bool) -> None:
    found = {stream.name: stream.messages for stream in manifest.streams}
    if as_json:
        render.json({"folder": str(folder), "messages": found})
        return
    render.pairs([(name, f"{messages} messages") for name, messages in found.items()])
