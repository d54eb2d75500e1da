"""What has left the server is still audited, and still proved: from the archive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from bitinglip.cli.auditverify import Files
from bitinglip.events.archivefolder import ArchiveFolder
from bitinglip.events.auditing import Live, Outcome, Source, audit, first_key
from bitinglip.events.checking import Keyring
from bitinglip.events.kept import Kept
from bitinglip.events.log import EventLog
from bitinglip.events.proofs import Proof
from bitinglip.events.streams import TASKS
from bitinglip.settings import Audit, Gateway, Nats, Settings
from tests.integration.gateway.support import Player, running
from tests.integration.gateway.test_archive import SMALL, archived, ended
from tests.support.server import eventually
from tests.support.signedlog import keep_heads, signed_up_to

SOON = Audit(every_s=0.5)


@asynccontextmanager
async def gateway(nats_url: str, folder: Path, audit: Audit) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(data_dir=folder, nats=Nats(url=nats_url), gateway=Gateway(port=0), archive=SMALL, audit=audit)
    async with running(settings) as url, httpx.AsyncClient(base_url=url, timeout=30.0, trust_env=False) as client:
        yield client


async def outcome(log: EventLog, source: Source) -> Outcome:
    key = await first_key(log)
    assert key is not None
    async for one in audit(source, Keyring({key.id: key}), None, (TASKS,)):
        return one
    raise AssertionError


async def let_leave(client: httpx.AsyncClient, log: EventLog) -> None:
    """Archive all there is, and wait until it has left the server."""

    async def left() -> bool:
        await archived(client)
        return await log.first_sequence(TASKS) > 1

    await eventually(left)


@pytest.mark.parametrize("late", [False, True], ids=["signed before it left", "signed after it left"])
async def test_what_left_the_server_is_audited_from_the_archive(
    log: EventLog, player: Player, nats_url: str, tmp_path: Path, late: bool
) -> None:
    off = Audit(enabled=False)
    async with gateway(nats_url, tmp_path / "data", off if late else SOON) as client:
        tasks = await ended(client, player, 6)
        if not late:
            await signed_up_to(log, TASKS, 18)
        await let_leave(client, log)
    async with gateway(nats_url, tmp_path / "data", SOON) as client:
        await signed_up_to(log, TASKS, 18)
        proof = Proof.read((await client.get(f"/v1/tasks/{tasks[0]}/proof")).content)
    live = await outcome(log, Live(log))
    assert (live.finding, live.events) == (None, 18)
    key = await first_key(log)
    assert key is not None
    assert (proof.first_fault({key.id: key}), len(proof.events)) == (None, 3)
    await keep_heads(log, tmp_path / "heads")
    files = await outcome(log, Files(ArchiveFolder(tmp_path / "data" / "archive"), Kept.read(tmp_path / "heads")))
    assert (files.finding, files.events) == (None, 18)
