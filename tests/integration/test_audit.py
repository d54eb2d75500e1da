"""A log that was tampered with: in an archive, in its heads, or on a server of its own; what was done is named."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from bitinglip.cli.auditverify import ArchiveThenLive, Files
from bitinglip.errors import ProofUnusable
from bitinglip.events import subjects
from bitinglip.events.archivefolder import ArchiveFolder
from bitinglip.events.auditing import Live, Source, audit, first_key, keys_told
from bitinglip.events.backup import back_up, restore
from bitinglip.events.checking import Finding, Keyring
from bitinglip.events.connection import Connection
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import RawMessage
from bitinglip.events.heads import Leaf, head_of, leaf_of
from bitinglip.events.kept import Kept
from bitinglip.events.log import EventLog
from bitinglip.events.merkle import Tree
from bitinglip.events.proofs import Proof, prove
from bitinglip.events.signing import PublicKey, SigningKey
from bitinglip.events.streams import LEDGER, TASKS
from bitinglip.ids import TaskId
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from tests.conftest import drop_streams
from tests.support.signedlog import edit_heads, keep_heads, messages_of, notary, signed_up_to, write_archive

ECHO = SubmitTask(kind="echo", model="echo")
Change = Callable[[list[RawMessage]], list[RawMessage]]


@dataclass(frozen=True)
class Signed:
    """A log of twelve events, signed; two more that are not; and its heads in a file."""

    log: EventLog
    key: SigningKey
    messages: list[RawMessage]
    tasks: list[TaskId]
    heads: Path
    folder: Path

    async def found(self, source: Source, *keys: PublicKey, kept: Kept | None = None) -> Finding | None:
        """Return the first thing that an audit finds wrong with TASKS."""
        ring = Keyring({key.id: key for key in keys or (self.key.public,)})
        async for outcome in audit(source, ring, kept.roots if kept else None, (TASKS,)):
            return outcome.finding
        raise AssertionError

    async def found_in_archive(self, change: Change) -> Finding | None:
        """Return what is found when the archive was changed so."""
        write_archive(self.folder, TASKS, change(self.messages))
        return await self.found(Files(ArchiveFolder(self.folder), Kept.read(self.heads)))


async def submit(log: EventLog, count: int) -> list[TaskId]:
    return [(await Inbox(log, 65_536).submit(ECHO)).task_id for _ in range(count)]


@pytest.fixture
async def signed(log: EventLog, tmp_path: Path) -> Signed:
    tasks = await submit(log, 5)
    async with notary(log) as key:
        await signed_up_to(log, TASKS, 5)
        tasks += await submit(log, 7)
        await signed_up_to(log, TASKS, 12)
    tasks += await submit(log, 2)
    heads = tmp_path / "heads.jsonl"
    await keep_heads(log, heads)
    return Signed(log, key, await messages_of(log, TASKS), tasks, heads, tmp_path / "archive")


def one_byte(messages: list[RawMessage]) -> list[RawMessage]:
    changed = messages[6]._replace(payload=messages[6].payload.replace(b"echo", b"echO", 1))
    return [*messages[:6], changed, *messages[7:]]


def another_time(messages: list[RawMessage]) -> list[RawMessage]:
    return [messages[0]._replace(time_ns=messages[0].time_ns + 1), *messages[1:]]


def another_subject(messages: list[RawMessage]) -> list[RawMessage]:
    return [messages[0]._replace(subject=messages[1].subject), *messages[1:]]


def one_less(messages: list[RawMessage]) -> list[RawMessage]:
    return messages[:4] + messages[5:]


def all_gone(_: list[RawMessage]) -> list[RawMessage]:
    return []


def cut_off(messages: list[RawMessage]) -> list[RawMessage]:
    return messages[:9]


def one_more(messages: list[RawMessage]) -> list[RawMessage]:
    rest = [message._replace(sequence=message.sequence + 1) for message in messages[5:]]
    return [*messages[:5], messages[4]._replace(sequence=6), *rest]


def swapped(messages: list[RawMessage]) -> list[RawMessage]:
    return [*messages[:2], messages[3], messages[2], *messages[4:]]


def exchanged(messages: list[RawMessage]) -> list[RawMessage]:
    third, fourth = messages[2], messages[3]
    return [*messages[:2], fourth._replace(sequence=3), third._replace(sequence=4), *messages[4:]]


async def test_an_archive_that_is_as_it_was_is_sound(signed: Signed) -> None:
    assert await signed.found_in_archive(lambda messages: messages) is None
    assert await signed.found_in_archive(lambda messages: messages[:12]) is None  # the rest is not signed


@pytest.mark.parametrize(
    ("change", "what", "sequence"),
    [
        (one_byte, "changed", 7),
        (another_time, "changed", 1),
        (another_subject, "changed", 1),
        (one_less, "dropped", 5),
        (all_gone, "dropped", 1),
        (cut_off, "dropped", 10),
        (one_more, "changed", 6),
        (swapped, "dropped", 3),
        (exchanged, "changed", 3),
    ],
)
async def test_what_was_done_to_an_archive_is_named(signed: Signed, change: Change, what: str, sequence: int) -> None:
    finding = await signed.found_in_archive(change)
    assert finding is not None
    assert (finding.what, finding.stream, finding.sequence) == (what, TASKS, sequence)
    assert f"TASKS:{sequence}" in str(finding)


async def test_an_event_between_those_that_were_signed_is_named(log: EventLog, tmp_path: Path) -> None:
    """A sequence that a tick had, and that now has an event."""
    task = (await submit(log, 1))[0]
    await log.append(log.expiry_append(task, log.clock()))  # no event: it takes a sequence
    await submit(log, 1)
    async with notary(log) as key:
        head = await signed_up_to(log, TASKS, 3)
    messages, free = await messages_of(log, TASKS), {2, 3, 4} - set(head.sequences)
    await keep_heads(log, tmp_path / "heads")
    extra = messages[0]._replace(sequence=min(free))
    write_archive(tmp_path / "archive", TASKS, sorted([*messages, extra]))
    signed = Signed(log, key, messages, [], tmp_path / "heads", tmp_path / "archive")
    finding = await signed.found(Files(ArchiveFolder(signed.folder), Kept.read(signed.heads)))
    assert finding is not None
    assert (finding.what, finding.sequence, finding.subject) == ("inserted", min(free), messages[0].subject)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"root_hash": "0" * 64}, "signature"),
        ({"tree_size": 4}, "signature"),
        ({"signature": base64.b64encode(b"x" * 64).decode()}, "signature"),
        ({"leaves": base64.b64encode(b"x" * 32 * 5).decode()}, "root"),
        ({"leaves": "AAAA"}, "as many leaves"),
        ({"peaks": []}, "peaks"),
        ({"sequences": [1, 2, 3, 5, 4]}, "signature"),
        ({"sequences": [1, 3, 2, 4, 5]}, "after 3"),
    ],
)
async def test_a_head_that_was_edited_is_named(signed: Signed, changes: dict[str, object], told: str) -> None:
    edit_heads(signed.heads, **changes)
    finding = await signed.found_in_archive(lambda messages: messages)
    assert finding is not None
    assert (finding.what, finding.stream) == ("bad_head", LEDGER)
    assert told in finding.detail


async def test_a_head_with_another_key_is_named(signed: Signed) -> None:
    edit_heads(signed.heads, key_id=SigningKey.make().public.id)
    finding = await signed.found_in_archive(lambda messages: messages)
    assert finding is not None
    assert finding.what == "unknown_key"


async def test_a_log_that_was_signed_anew_does_not_extend_kept_heads(signed: Signed, nats_url: str) -> None:
    """One byte is changed, and all is signed again, with the very key: only kept heads know."""
    await drop_streams(nats_url)
    log = await EventLog.connect(Nats(url=nats_url), "/forger")
    changed = one_byte(signed.messages)
    for message in changed:
        await log.connection.js.publish(message.subject, message.payload)
    async with notary(log, key=signed.key):
        await signed_up_to(log, TASKS, 12)
    assert await signed.found(Live(log)) is None
    finding = await signed.found(Live(log), kept=Kept.read(signed.heads))
    assert finding is not None
    assert (finding.what, finding.stream) == ("not_extended", TASKS)
    await log.close()


async def test_a_log_that_became_shorter_does_not_extend_kept_heads(signed: Signed, nats_url: str) -> None:
    await drop_streams(nats_url)
    log = await EventLog.connect(Nats(url=nats_url), "/forger")
    await submit(log, 2)
    async with notary(log, key=signed.key):
        await signed_up_to(log, TASKS, 2)
    kept = Kept.read(signed.heads)
    finding = await signed.found(Live(log), kept=kept)
    assert finding is not None
    assert finding.what == "not_extended"
    await log.close()


async def test_a_copy_on_another_server_is_not_the_log(signed: Signed, nats_url: str) -> None:
    """Messages that are published again have other times: what is signed is when the server stored them."""
    heads = await get_after(signed.log.connection, LEDGER, subjects.LEDGER, 0)
    await drop_streams(nats_url)
    log = await EventLog.connect(Nats(url=nats_url), "/copy")
    for message in [*heads, *signed.messages]:
        await log.connection.js.publish(message.subject, message.payload)
    finding = await signed.found(Live(log))
    assert finding is not None
    assert (finding.what, finding.stream, finding.sequence) == ("changed", TASKS, 1)
    await log.close()


async def test_a_backup_that_is_restored_is_the_log(signed: Signed, nats_url: str, tmp_path: Path) -> None:
    await back_up(signed.log.connection, tmp_path / "backup")
    await drop_streams(nats_url)
    connection = await Connection.open(Nats(url=nats_url), "/test")
    await restore(connection, tmp_path / "backup", replicas=1)
    await connection.close()
    log = await EventLog.connect(Nats(url=nats_url), "/restored")
    assert await signed.found(Live(log), kept=Kept.read(signed.heads)) is None
    await submit(log, 5)
    async with notary(log, key=signed.key):
        await signed_up_to(log, TASKS, 19)
    assert await signed.found(Live(log), kept=Kept.read(signed.heads)) is None
    await log.close()


async def test_an_archive_is_gone_on_with_on_the_server(signed: Signed) -> None:
    write_archive(signed.folder, TASKS, signed.messages[:5])
    both = ArchiveThenLive(ArchiveFolder(signed.folder), Live(signed.log))
    assert await signed.found(both) is None
    write_archive(signed.folder, TASKS, one_byte(signed.messages))
    finding = await signed.found(both)
    assert finding is not None
    assert finding.sequence == 7


async def test_heads_without_leaves_are_enough_for_who_has_the_log(signed: Signed, tmp_path: Path) -> None:
    await keep_heads(signed.log, tmp_path / "small", leaves=False)
    kept = Kept.read(tmp_path / "small")
    assert (tmp_path / "small").stat().st_size < signed.heads.stat().st_size
    assert await signed.found(Live(signed.log), kept=kept) is None
    with pytest.raises(ProofUnusable, match="no leaves"):
        await anext(kept.heads(TASKS))
    (tmp_path / "none").write_text("{}")
    with pytest.raises(ProofUnusable):
        Kept.read(tmp_path / "none")


async def test_only_the_first_key_is_trusted_unless_keys_are_given(signed: Signed) -> None:
    await submit(signed.log, 5)
    async with notary(signed.log) as second:
        await signed_up_to(signed.log, TASKS, 19)
    first = await first_key(signed.log)
    assert first is not None
    assert first.id == signed.key.public.id
    finding = await signed.found(Live(signed.log), first)
    assert finding is not None
    assert (finding.what, second.public.id in finding.detail) == ("unknown_key", True)
    assert await signed.found(Live(signed.log), first, second.public) is None


async def proof_of(signed: Signed, task_id: TaskId) -> Proof:
    messages = await get_after(signed.log.connection, TASKS, subjects.task_events(task_id), 0)
    keys = {key_id: key.base64 for key_id, key in (await keys_told(signed.log)).items()}
    return await prove(signed.log, TASKS, task_id, messages, keys)


async def test_a_tasks_events_are_proved_alone(signed: Signed) -> None:
    keys = {signed.key.public.id: signed.key.public}
    for at, task_id in enumerate(signed.tasks[:12]):
        proof = Proof.read((await proof_of(signed, task_id)).model_dump_json().encode())
        assert (proof.first_fault(keys), [event.sequence for event in proof.events]) == (None, [at + 1])
    last = await proof_of(signed, signed.tasks[13])
    assert (last.events, last.uncovered) == ([], [14])


async def test_a_proof_of_something_else_is_none(signed: Signed) -> None:
    keys = {signed.key.public.id: signed.key.public}
    proof = await proof_of(signed, signed.tasks[7])
    event, head = proof.events[0], proof.heads[0]
    other = base64.b64encode(base64.b64decode(event.payload).replace(b"echo", b"echO", 1)).decode()
    for changes, told in (
        ({"payload": other}, "not in the tree"),
        ({"index": event.index - 1}, "not in the tree"),
        ({"path": event.path[:-1]}, "not in the tree"),
        ({"path": ["zz"]}, "cannot be read"),
        ({"head": 3}, "cannot be read"),
        ({"payload": "?"}, "cannot be read"),
    ):
        fault = proof.model_copy(update={"events": [event.model_copy(update=changes)]}).first_fault(keys)
        assert fault is not None
        assert told in fault
    for changes, told in (
        ({"tree_size": head.tree_size + 1}, "signature"),
        ({"root_hash": "00"}, "signature"),
        ({"key_id": "none"}, "not known"),
    ):
        fault = proof.model_copy(update={"heads": [head.model_copy(update=changes)]}).first_fault(keys)
        assert fault is not None
        assert told in fault
    about = proof.model_copy(update={"about": signed.tasks[0]}).first_fault(keys)
    assert about is not None
    with pytest.raises(ProofUnusable):
        Proof.read(b"{}")


async def test_heads_go_on_from_each_other(signed: Signed) -> None:
    leaves = [leaf for message in signed.messages if (leaf := leaf_of(TASKS, message)) is not None]
    first, tree = head_of(TASKS, Tree.empty(), leaves[:5], signed.key)
    second, tree = head_of(TASKS, tree, leaves[5:], signed.key)
    assert (first.tree_size, second.tree_size, tree.size) == (5, 14, 14)
    assert isinstance(leaves[0], Leaf)
