"""The notary signs a real log; the audit finds what was done to it afterwards."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bitinglip.errors import KeyUnusable
from bitinglip.events.auditing import Live, Outcome, audit, first_key, keys_told
from bitinglip.events.checking import Keyring
from bitinglip.events.ledger import LedgerSnapshot
from bitinglip.events.log import EventLog
from bitinglip.events.signing import PublicKey, SigningKey
from bitinglip.events.streams import LEDGER, TASKS
from bitinglip.events.task import TaskProgressed
from bitinglip.settings import Audit, Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from tests.support.signedlog import notary, signed_up_to

ECHO = SubmitTask(kind="echo", model="echo")


async def submit(log: EventLog, count: int) -> None:
    for _ in range(count):
        await Inbox(log, 65_536).submit(ECHO)


async def audited(log: EventLog, *keys: PublicKey) -> dict[str, Outcome]:
    ring = Keyring({key.id: key for key in keys}, await first_key(log))
    return {outcome.stream: outcome async for outcome in audit(Live(log), ring)}


async def test_what_was_signed_is_found_as_it_was(log: EventLog) -> None:
    async with notary(log) as key:
        await submit(log, 12)
        await log.append(log.ledger_append(LedgerSnapshot.model_validate(LedgerSnapshot.example), "readmodel", 0))
        head = await signed_up_to(log, TASKS, 12)
        await signed_up_to(log, LEDGER, 2)
        assert (head.tree_size, head.key_id) == (12, key.public.id)
    await submit(log, 3)
    outcomes = await audited(log, key.public)
    assert [outcome.finding for outcome in outcomes.values()] == [None] * 5
    tasks, ledger = outcomes[TASKS], outcomes[LEDGER]
    assert (tasks.events, tasks.covered_sequence, tasks.uncovered) == (12, 12, 3)
    assert ledger.events == 2  # the key that was added, and the snapshot
    assert (await keys_told(log)).keys() == {key.public.id}
    assert (await audited(log))[TASKS].finding is None  # the first key that is seen is trusted


async def test_a_notary_goes_on_where_the_last_one_ended(log: EventLog) -> None:
    key = SigningKey.make()
    for count in (7, 14):
        async with notary(log, key=key):
            await submit(log, 7)
            assert (await signed_up_to(log, TASKS, count)).tree_size == count
    assert (await audited(log, key.public))[TASKS].events == 14


async def test_of_two_notaries_one_signs_at_a_time(log: EventLog, nats_url: str) -> None:
    other = await EventLog.connect(Nats(url=nats_url), "/other")
    async with notary(log) as first, notary(other) as second:
        for count in range(5, 30, 5):
            await submit(log, 5)
            await signed_up_to(log, TASKS, count)
    await other.close()
    outcome = (await audited(log, first.public, second.public))[TASKS]
    assert (outcome.finding, outcome.events) == (None, 25)


async def test_a_notary_takes_over_from_one_that_is_gone(log: EventLog, nats_url: str) -> None:
    other = await EventLog.connect(Nats(url=nats_url), "/other")
    async with notary(log) as second:
        async with notary(other) as first:
            await submit(log, 10)
            await signed_up_to(log, TASKS, 10)
        await submit(log, 5)
        await signed_up_to(log, TASKS, 15)
    await other.close()
    assert (await audited(log, first.public, second.public))[TASKS].finding is None


async def test_ticks_are_not_signed(log: EventLog) -> None:
    accepted = await Inbox(log, 65_536).submit(ECHO)
    tick = TaskProgressed.model_validate(TaskProgressed.example | {"task_id": accepted.task_id})
    await log.append(log.task_append(tick, 1, ttl_s=60))
    async with notary(log) as key:
        await submit(log, 1)
        assert (await signed_up_to(log, TASKS, 3)).sequences == [1, 3]
    assert (await audited(log, key.public))[TASKS].events == 2


async def test_a_head_of_many_events_is_no_large_event(log: EventLog) -> None:
    inbox = Inbox(log, 65_536)
    await asyncio.gather(*[inbox.submit(ECHO) for _ in range(900)])
    async with notary(log, Audit(every_s=0.3)):
        await signed_up_to(log, TASKS, 900)
    async for head in Live(log).heads(TASKS):
        assert len(head.signed.sequences) <= 800
        assert len(head.signed.model_dump_json()) < 48 * 1024 - 3_000  # with sequences of nine digits


def test_a_key_is_only_its_owners(tmp_path: Path) -> None:
    path = tmp_path / "new" / "audit.key"
    key = SigningKey.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert SigningKey.load_or_create(path).public.raw == key.public.raw
    (tmp_path / "public.pem").write_text(key.public.pem)
    assert PublicKey.read(tmp_path / "public.pem").id == key.public.id
    path.chmod(0o640)
    with pytest.raises(KeyUnusable, match="others may read it"):
        SigningKey.load_or_create(path)
    (tmp_path / "none").write_text("nothing")
    with pytest.raises(KeyUnusable):
        PublicKey.read(tmp_path / "none")
