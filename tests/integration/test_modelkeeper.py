"""A real node agent that keeps its models as the log wishes, from a real hub and from other nodes."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from bitinglip.errors import CommandRefused
from bitinglip.events import subjects
from bitinglip.events.direct import get_after
from bitinglip.events.envelope import decode
from bitinglip.events.log import EventLog
from bitinglip.events.model import (
    ModelCheckAsked,
    ModelChecked,
    ModelDescribed,
    ModelDropped,
    ModelEvent,
    ModelFetchAsked,
    ModelFetchCancelled,
    ModelFetchFailed,
    ModelFetchStopped,
    ModelImportAsked,
    ModelKept,
    ModelPinned,
    ModelRemovalAsked,
    ModelStored,
)
from bitinglip.events.service import command
from bitinglip.events.streams import MODELS
from bitinglip.events.task import TaskAssigned, TaskSucceeded
from bitinglip.models import snapshots
from bitinglip.models.layout import place_of
from bitinglip.models.state import Holding, Key
from bitinglip.settings import Nats
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.workers.modelwishes import Wishes
from tests.integration.test_worker import outcome, submit
from tests.support.cluster import Cluster, Process, children_of
from tests.support.fetching import files_in
from tests.support.modelhub import ModelHub
from tests.support.models import model_folder
from tests.support.server import RestartableServer
from tests.support.weights import make_gpt2

Eventually = Callable[..., Awaitable[None]]
BIG = 4_000_000
"""Numbers of a model of 16 MB, which a slow hub takes seconds to send."""
SLOW = 2e6


@pytest.fixture
def hub() -> Iterator[ModelHub]:
    with ModelHub() as hub:
        yield hub


@pytest.fixture
async def wishes(log: EventLog) -> AsyncIterator[Wishes]:
    wishes = Wishes(log, lambda: None)
    await wishes.open()
    yield wishes
    await wishes.close()


class World:
    """The hub, the nodes, and what the log says of both."""

    def __init__(self, log: EventLog, cluster: Cluster, hub: ModelHub, wishes: Wishes, folder: Path) -> None:
        self.log = log
        self.hub = hub
        self._cluster = cluster
        self._wishes = wishes
        self._folder = folder

    def cache(self, node: Process) -> Path:
        """Return a node's store."""
        return self._folder / f"hub-{node.ready['node_id']}"

    async def node(self, workers: int = 0, name: str = "a", **settings: Any) -> Process:
        """Start a node that fetches from the hub."""
        mine = {
            "HF_ENDPOINT": self.hub.endpoint,
            "BITINGLIP_MODELS_HUB_CACHE": str(self._folder / f"hub-{name}"),
            "BITINGLIP_MODELS_MIN_FREE_GB": "0",
            "BITINGLIP_WORKER_MODELS": "",
            "BITINGLIP_WORKER_NODE": name,
        }
        return await self._cluster.node(workers, **mine, **settings)

    async def described(
        self, name: str, numbers: int = 1000, seed: int = 0, folder: Path | None = None, **more: Any
    ) -> Key:
        """Put a model on the hub and into the log; returns its key."""
        folder = folder or make_gpt2(self._folder / "models" / f"{name}-{seed}", numbers, seed)
        commit, files = self.hub.add(name, folder), files_in(folder)
        about = {"reference": name, "revision": commit, "files": list(files), "asked_revision": "main"}
        size = sum(file.size_bytes for file in files)
        await self.tell(ModelDescribed.model_validate(ModelDescribed.example | about | more | {"size_bytes": size}))
        return name, commit

    async def tell(self, event: ModelEvent) -> None:
        """Put a fact into the log."""
        subject = subjects.model_subject(event.reference, event.type.removeprefix("model."))
        await self.log.append(self.log.fact_append(event, subject, event.reference))

    async def ask(self, kind: type[ModelEvent], key: Key, *nodes: Process | str, **more: Any) -> None:
        """Wish something of some nodes."""
        names = [node if isinstance(node, str) else node.ready["node_id"] for node in nodes]
        reason = {"reason": "command"} if kind is ModelFetchAsked else {}
        about = {"reference": key[0], "revision": key[1], "nodes": names, "by": None}
        await self.tell(kind.model_validate(about | reason | more))

    def on(self, key: Key, node: Process | str) -> Holding:
        """Return what the log says of a revision on a node."""
        return self._wishes.models.get(*key).on(node if isinstance(node, str) else node.ready["node_id"])

    async def told(self, key: Key, kind: type[ModelEvent]) -> list[Any]:
        """Return what was said of a revision, of one type."""
        messages = await get_after(self.log.connection, MODELS, subjects.model_events(key[0]), 0)
        events = [decode(message, MODELS).event for message in messages]
        return [event for event in events if isinstance(event, kind) and getattr(event, "revision", "") == key[1]]

    async def command(self, node: Process, name: str, **body: Any) -> dict[str, Any]:
        """Have a node answer a command."""
        node_id = node.ready["node_id"]
        return await command(self.log.connection, node_id, subjects.node_command(node_id, name), body, 10)

    async def unloads(self, node: Process, name: str) -> bool:
        """Have a worker drop a model from memory; it refuses while a task runs on it."""
        try:
            await self.command(node, "worker-unload", worker_id="a-0", model=name)
        except CommandRefused:
            return False
        return True


@pytest.fixture
def world(log: EventLog, cluster: Cluster, hub: ModelHub, wishes: Wishes, tmp_path: Path) -> World:
    return World(log, cluster, hub, wishes, tmp_path)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory, "published-gpt2")


def text(model: str) -> SubmitTask:
    params = {"prompt": "The first", "max_tokens": 4}
    return SubmitTask.model_validate({"kind": "text-generation", "model": model, "params": params})


async def test_what_is_asked_for_is_fetched_served_and_run_without_a_restart(
    world: World, log: EventLog, gpt2: Path, eventually: Eventually
) -> None:
    inbox = Inbox(log, inline_max_bytes=65_536)
    node = await world.node(1)
    key = await world.described("org/gpt2", folder=gpt2)
    tasks = [await submit(inbox, text(name)) for name in ("org/gpt2", f"org/gpt2@{key[1]}")]
    await world.ask(ModelFetchAsked, key, node)
    for task_id in tasks:
        history = await outcome(log, task_id)
        assert isinstance(history[-1].event, TaskSucceeded), history[-1].event
        assert next(each.event.revision for each in history if isinstance(each.event, TaskAssigned)) == key[1]
    [stored] = await world.told(key, ModelStored)
    assert (stored.node_id, stored.source, stored.peer_bytes) == ("a", "hub", 0)
    assert stored.size_bytes == stored.hub_bytes == world.hub.total_sent
    used = snapshots.mark_of(place_of(world.cache(node), *key))
    assert used is not None
    assert used.last_used > used.stored_at
    # In memory it stays, and what is asked of it later is answered as before.
    await world.ask(ModelRemovalAsked, key, node)
    await eventually(lambda: world.on(key, node).problem is not None)
    [kept] = await world.told(key, ModelKept)
    assert "in use" in kept.problem
    assert world.on(key, node).status == "stored"
    assert isinstance((await outcome(log, await submit(inbox, text("org/gpt2"))))[-1].event, TaskSucceeded)
    # Once it is unloaded it goes.
    for name in ("org/gpt2", f"org/gpt2@{key[1]}"):
        await eventually(lambda name=name: world.unloads(node, name))  # the task's end is told before it is let go
    await world.ask(ModelRemovalAsked, key, node)
    await eventually(lambda: world.on(key, node).status == "absent")
    [dropped] = await world.told(key, ModelDropped)
    assert (dropped.reason, dropped.freed_bytes > 0) == ("removed", True)
    assert snapshots.marks(world.cache(node)) == []


async def test_an_agent_that_is_killed_goes_on_where_it_was(world: World, eventually: Eventually) -> None:
    node = await world.node()
    key = await world.described("org/big", BIG)
    world.hub.fault(path="*.safetensors", bytes_per_s=SLOW)
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.on(key, node).done_bytes > SLOW / 2)
    await node.kill()
    assert world.on(key, node).status == "fetching"
    world.hub.mend()
    sent = world.hub.total_sent
    await node.start()
    await eventually(lambda: world.on(key, node).status == "stored")
    assert len(await world.told(key, ModelStored)) == 1
    assert world.hub.total_sent - sent < world.on(key, node).stored_bytes


async def test_a_fetch_whose_process_is_killed_is_tried_again(world: World, eventually: Eventually) -> None:
    node = await world.node()
    key = await world.described("org/big", BIG)
    stall = world.hub.fault(path="*.safetensors", stall_after=1000)
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.hub.stalled.total() > 0)
    world.hub.mend(stall)
    [fetch] = [pid for pid in children_of(node.pid) if "bitinglip.models.fetch" in psutil.Process(pid).cmdline()]
    os.kill(fetch, signal.SIGKILL)
    await eventually(lambda: world.on(key, node).status == "stored")
    [failed] = await world.told(key, ModelFetchFailed)
    assert (failed.message, failed.retry_in_s) == ("The process that did it was killed by signal 9.", 2.0)


async def test_a_fetch_that_is_cancelled_stops_and_goes_on_when_asked_again(
    world: World, eventually: Eventually
) -> None:
    node = await world.node()
    key = await world.described("org/big", BIG)
    slow = world.hub.fault(path="*.safetensors", bytes_per_s=SLOW)
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.on(key, node).done_bytes > SLOW / 2)
    await world.ask(ModelFetchCancelled, key, node)
    await eventually(lambda: _told(world, key, ModelFetchStopped))
    assert world.on(key, node).status == "stopped"
    world.hub.mend(slow)
    sent = world.hub.total_sent
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.on(key, node).status == "stored")
    assert world.hub.total_sent - sent < world.on(key, node).stored_bytes


async def test_what_is_wished_while_a_node_is_away_is_done_when_it_is_back(
    world: World, eventually: Eventually
) -> None:
    node = await world.node()
    gone, lost = await world.described("org/gone"), await world.described("org/lost")
    for key in (gone, lost):
        await world.ask(ModelFetchAsked, key, node)
        await eventually(lambda key=key: world.on(key, node).status == "stored")
    assert await node.stop() == 0
    new = await world.described("org/new")
    await world.ask(ModelFetchAsked, new, node)
    await world.ask(ModelRemovalAsked, gone, node)
    shutil.rmtree(place_of(world.cache(node), *lost).repo)
    await node.start()
    await eventually(
        lambda: [world.on(key, node).status for key in (new, gone, lost)] == ["stored", "absent", "absent"]
    )
    assert [each.reason for each in await world.told(lost, ModelDropped)] == ["missing"]
    assert [mark.reference for mark in snapshots.marks(world.cache(node))] == ["org/new"]


async def test_a_hub_that_is_away_may_come_back_but_a_model_that_is_not_there_does_not(
    world: World, eventually: Eventually
) -> None:
    node = await world.node()
    key, none = await world.described("org/some"), ("org/none", "c" * 40)
    described = (await world.told(key, ModelDescribed))[0]
    await world.tell(described.model_copy(update={"reference": none[0], "revision": none[1]}))
    world.hub.stop()
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.on(key, node).status == "failed", 60.0)
    world.hub.start()
    await world.ask(ModelFetchAsked, key, node)  # it would be tried again by itself, later
    await eventually(lambda: world.on(key, node).status == "stored")
    failed = await world.told(key, ModelFetchFailed)
    assert (failed[0].code, failed[0].retry_in_s > 0) == ("hub_unreachable", True)
    await world.ask(ModelFetchAsked, none, node)
    await eventually(lambda: world.on(none, node).status == "failed")
    [failed] = await world.told(none, ModelFetchFailed)
    assert (failed.code, failed.retry_in_s) == ("model_not_on_hub", None)


async def test_what_was_not_used_for_the_longest_makes_room_but_not_what_is_pinned(
    world: World, eventually: Eventually
) -> None:
    room = 3.5 * BIG * 4 / 2**30
    node = await world.node(BITINGLIP_MODELS_DISK_GB=f"{room:.9f}")
    keys = [await world.described(f"org/m{number}", BIG, number) for number in range(4)]
    await world.ask(ModelPinned, keys[0], node)
    for key in keys[1:3]:
        await eventually(lambda: world.on(keys[0], node).status == "stored")
        await world.ask(ModelFetchAsked, key, node)
        await eventually(lambda key=key: world.on(key, node).status == "stored")
    with snapshots.in_use(world.cache(node), *keys[1]):  # as a worker that has it in memory does
        await world.ask(ModelFetchAsked, keys[3], node)
        await eventually(lambda: world.on(keys[3], node).status == "stored")
        assert [world.on(key, node).status for key in keys[:3]] == ["stored", "stored", "absent"]
        [dropped] = await world.told(keys[2], ModelDropped)
        assert dropped.reason == "evicted"
        await world.ask(ModelPinned, keys[3], node)
        await world.ask(ModelFetchAsked, keys[2], node)
        await eventually(lambda: world.on(keys[2], node).status == "failed")
    [failed] = await world.told(keys[2], ModelFetchFailed)
    assert failed.code == "no_room"
    usage = await world.command(node, "du")
    told = {model["reference"]: (model["pinned"], model["in_use"]) for model in usage["models"]}
    assert told == {"org/m0": (True, False), "org/m1": (False, False), "org/m3": (True, False)}
    assert await _dropped(world, node, idle_days=0) == ["org/m1"]
    assert world.on(keys[1], node).status == "stored"
    assert await _dropped(world, node, idle_days=1, dry_run=False) == []
    assert await _dropped(world, node, idle_days=0, dry_run=False) == ["org/m1"]
    await eventually(lambda: world.on(keys[1], node).status == "absent")


async def _dropped(world: World, node: Process, **body: Any) -> list[str]:
    return [model["reference"] for model in (await world.command(node, "prune", **body))["dropped"]]


async def _told(world: World, key: Key, kind: type[ModelEvent]) -> bool:
    return bool(await world.told(key, kind))


async def test_a_folder_of_the_node_is_taken_in(
    world: World, log: EventLog, gpt2: Path, tmp_path: Path, eventually: Eventually
) -> None:
    node = await world.node(1)
    await world.tell(ModelImportAsked(reference="lab/tuned", node_id="a", path=str(gpt2), by=None))
    await eventually(lambda: bool(_named(world, "lab/tuned")))
    [revision] = _named(world, "lab/tuned")
    key = ("lab/tuned", revision)
    await eventually(lambda: world.on(key, node).status == "stored")
    inbox = Inbox(log, inline_max_bytes=65_536)
    for name in ("lab/tuned", f"lab/tuned@{revision}"):
        history = await outcome(log, await submit(inbox, text(name)))
        assert isinstance(history[-1].event, TaskSucceeded), history[-1].event
        assert next(each.event.revision for each in history if isinstance(each.event, TaskAssigned)) == revision
    [described] = await world.told(key, ModelDescribed)
    assert (described.kind, described.architecture) == ("text-generation", "GPT2LMHeadModel")
    pickles = tmp_path / "pickles"
    shutil.copytree(gpt2, pickles)
    (pickles / "model.safetensors").rename(pickles / "pytorch_model.bin")
    refused = {"lab/pickles": (str(pickles), "only_pickles"), "lab/none": ("/no/such/folder", "import_refused")}
    for name, (path, code) in refused.items():
        await world.tell(ModelImportAsked(reference=name, node_id="a", path=path, by=None))
        await eventually(lambda name=name: _told(world, (name, "import"), ModelFetchFailed))
        assert (await world.told((name, "import"), ModelFetchFailed))[0].code == code
    assert list((tmp_path / "node-0").rglob("*.safetensors"))
    await world.ask(ModelRemovalAsked, key, node)
    await eventually(lambda: world.on(key, node).status == "absent")
    assert not list((tmp_path / "node-0").rglob("*.safetensors"))


async def test_a_folder_that_one_node_took_in_is_had_from_it_by_others(
    world: World, log: EventLog, gpt2: Path, tmp_path: Path, eventually: Eventually
) -> None:
    first, second = await world.node(name="a"), await world.node(1, name="b")
    await world.tell(ModelImportAsked(reference="lab/tuned", node_id="a", path=str(gpt2), by=None))
    await eventually(lambda: bool(_named(world, "lab/tuned")))
    [revision] = _named(world, "lab/tuned")
    key = ("lab/tuned", revision)
    await eventually(lambda: world.on(key, first).status == "stored")
    await world.ask(ModelFetchAsked, key, second)
    await eventually(lambda: world.on(key, second).status == "stored")
    stored = next(each for each in await world.told(key, ModelStored) if each.node_id == "b")
    assert (stored.source, stored.hub_bytes, stored.peer_bytes) == ("import", 0, stored.size_bytes)
    assert world.hub.total_sent == 0
    inbox = Inbox(log, inline_max_bytes=65_536)
    for name in ("lab/tuned", f"lab/tuned@{revision}"):
        history = await outcome(log, await submit(inbox, text(name)))
        assert isinstance(history[-1].event, TaskSucceeded), history[-1].event
        told = next(each.event for each in history if isinstance(each.event, TaskAssigned))
        assert (told.node_id, told.revision) == ("b", revision)
    weights = place_of(world.cache(second), *key).file("model.safetensors").resolve()
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    await world.ask(ModelCheckAsked, key, second, repair=True)
    await eventually(lambda: _told(world, key, ModelChecked))
    [checked] = await world.told(key, ModelChecked)
    assert (checked.damaged, checked.repaired, weights.read_bytes()) == (["model.safetensors"], True, good)
    await world.ask(ModelRemovalAsked, key, first)
    await eventually(lambda: world.on(key, first).status == "absent")
    await world.ask(ModelFetchAsked, key, first)  # and back again, from who has had it from there
    await eventually(lambda: world.on(key, first).status == "stored")
    assert place_of(world.cache(first), *key).file("model.safetensors").read_bytes() == good


async def test_a_folder_that_was_taken_in_and_is_damaged_is_replaced_by_what_another_node_has_of_it(
    world: World, log: EventLog, gpt2: Path, tmp_path: Path, eventually: Eventually
) -> None:
    first, second = await world.node(1, name="a"), await world.node(name="b")
    await world.tell(ModelImportAsked(reference="lab/tuned", node_id="a", path=str(gpt2), by=None))
    await eventually(lambda: bool(_named(world, "lab/tuned")))
    key = ("lab/tuned", _named(world, "lab/tuned")[0])
    await eventually(lambda: world.on(key, first).status == "stored")
    await world.ask(ModelFetchAsked, key, second)
    await eventually(lambda: world.on(key, second).status == "stored")
    [weights] = (tmp_path / "node-0").rglob("*.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    await world.ask(ModelCheckAsked, key, first, repair=True)
    await eventually(lambda: _told(world, key, ModelChecked))
    [checked] = await world.told(key, ModelChecked)
    assert (checked.damaged, checked.repaired) == (["model.safetensors"], True)
    assert world.on(key, first).status == "stored"
    assert place_of(world.cache(first), *key).file("model.safetensors").read_bytes() == good
    assert not list((tmp_path / "node-0").rglob("*.safetensors"))
    inbox = Inbox(log, inline_max_bytes=65_536)
    for name in ("lab/tuned", "@".join(key)):
        history = await outcome(log, await submit(inbox, text(name)))
        assert isinstance(history[-1].event, TaskSucceeded), history[-1].event
        assert next(each.event.node_id for each in history if isinstance(each.event, TaskAssigned)) == "a"


async def test_a_folder_that_was_taken_in_and_is_damaged_is_told_and_left_if_nobody_else_has_it(
    world: World, gpt2: Path, tmp_path: Path, eventually: Eventually
) -> None:
    first, second = await world.node(name="a"), await world.node(name="b")
    await world.tell(ModelImportAsked(reference="lab/tuned", node_id="a", path=str(gpt2), by=None))
    await eventually(lambda: bool(_named(world, "lab/tuned")))
    key = ("lab/tuned", _named(world, "lab/tuned")[0])
    await eventually(lambda: world.on(key, first).status == "stored")
    [weights] = (tmp_path / "node-0").rglob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    await world.ask(ModelCheckAsked, key, first, repair=True)
    await eventually(lambda: _told(world, key, ModelChecked))
    [checked] = await world.told(key, ModelChecked)
    assert (checked.damaged, checked.repaired) == (["model.safetensors"], False)
    await world.ask(ModelFetchAsked, key, second)  # nobody takes the damaged file
    await eventually(lambda: world.on(key, second).status == "failed")
    assert world.on(key, second).code == "no_holder"
    assert snapshots.marks(world.cache(second)) == []


async def test_a_folder_that_was_taken_in_and_is_damaged_is_left_where_there_is_no_room_for_another_copy(
    world: World, gpt2: Path, tmp_path: Path, eventually: Eventually
) -> None:
    first, second = await world.node(name="a", BITINGLIP_MODELS_DISK_GB="0.00001"), await world.node(name="b")
    await world.tell(ModelImportAsked(reference="lab/tuned", node_id="a", path=str(gpt2), by=None))
    await eventually(lambda: bool(_named(world, "lab/tuned")))
    key = ("lab/tuned", _named(world, "lab/tuned")[0])
    await world.ask(ModelFetchAsked, key, second)
    await eventually(lambda: world.on(key, second).status == "stored")
    [weights] = (tmp_path / "node-0").rglob("*.safetensors")
    weights.unlink()
    await world.ask(ModelCheckAsked, key, first, repair=True)
    await eventually(lambda: _told(world, key, ModelChecked))
    [checked] = await world.told(key, ModelChecked)
    assert (checked.missing, checked.repaired) == (["model.safetensors"], False)
    assert (weights.parent / "config.json").is_file()
    assert snapshots.marks(world.cache(first)) == []


def _named(world: World, name: str) -> list[str]:
    return [revision.revision for revision in world._wishes.models.of(name) if revision.described]


async def test_a_damaged_file_is_found_and_brought_again(world: World, eventually: Eventually) -> None:
    node = await world.node()
    key = await world.described("org/some")
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.on(key, node).status == "stored")
    weights = place_of(world.cache(node), *key).file("model.safetensors").resolve()
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    await world.ask(ModelCheckAsked, key, node, repair=False)
    await eventually(lambda: _told(world, key, ModelChecked))
    await world.ask(ModelCheckAsked, key, node, repair=True)

    async def twice() -> bool:
        return len(await world.told(key, ModelChecked)) == 2

    await eventually(twice)
    checks = [(each.damaged, each.repaired) for each in await world.told(key, ModelChecked)]
    assert checks == [(["model.safetensors"], False), (["model.safetensors"], True)]
    assert place_of(world.cache(node), *key).file("model.safetensors").read_bytes() == good
    assert world.on(key, node).status == "stored"


async def test_of_two_nodes_that_want_the_same_one_asks_the_hub_and_gives_it_to_the_other(
    world: World, eventually: Eventually
) -> None:
    first, second = await world.node(name="a"), await world.node(name="b")
    key = await world.described("org/big", BIG)
    world.hub.fault(path="*.safetensors", bytes_per_s=SLOW * 4)
    await world.ask(ModelFetchAsked, key, first, second)
    await eventually(lambda: [world.on(key, node).status for node in (first, second)] == ["stored", "stored"])
    hub, peer = sorted(await world.told(key, ModelStored), key=lambda each: each.peer_bytes)
    assert (hub.hub_bytes, hub.peer_bytes) == (hub.size_bytes, 0)
    assert (peer.hub_bytes, peer.peer_bytes) == (0, peer.size_bytes)
    assert world.hub.total_sent == hub.size_bytes


async def test_a_node_goes_on_by_itself_if_the_one_before_it_is_gone(world: World, eventually: Eventually) -> None:
    node = await world.node(name="b")
    key = await world.described("org/some")
    await world.ask(ModelFetchAsked, key, node, *[f"gone{number}" for number in range(20)])
    await eventually(lambda: world.on(key, node).status == "stored")


async def test_a_node_that_hands_nothing_out_leaves_others_to_the_hub(world: World, eventually: Eventually) -> None:
    first, second = await world.node(name="a", BITINGLIP_MODELS_SHARE="false"), await world.node(name="b")
    key = await world.described("org/some")
    for node in (first, second):
        await world.ask(ModelFetchAsked, key, node)
        await eventually(lambda node=node: world.on(key, node).status == "stored")
    assert [each.peer_bytes for each in await world.told(key, ModelStored)] == [0, 0]


async def test_what_is_fetched_while_the_log_is_away_is_told_when_it_is_back(
    restartable_nats: RestartableServer, hub: ModelHub, tmp_path: Path, eventually: Eventually
) -> None:
    cluster = Cluster(restartable_nats.url, tmp_path)
    log = await EventLog.connect(Nats(url=restartable_nats.url), "/test")
    wishes = Wishes(log, lambda: None)
    await wishes.open()
    world = World(log, cluster, hub, wishes, tmp_path)
    node = await world.node()
    key = await world.described("org/big", BIG)
    stall = hub.fault(path="*.safetensors", stall_after=1000)
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: hub.stalled.total() > 0)
    await restartable_nats.kill()
    hub.mend(stall)
    await eventually(lambda: bool(snapshots.marks(world.cache(node))))
    await restartable_nats.start()
    await eventually(lambda: world.on(key, node).status == "stored")
    assert len(await world.told(key, ModelStored)) == 1
    await wishes.close()
    await log.close()
    await cluster.close()


async def test_what_a_model_needs_beside_it_is_fetched_as_well(world: World, eventually: Eventually) -> None:
    node = await world.node()
    vocoder = await world.described("org/vocoder")
    speaker = await world.described("org/speaker", parts={"vocoder": "org/vocoder"})
    await world.ask(ModelFetchAsked, speaker, node)
    await eventually(lambda: [world.on(key, node).status for key in (speaker, vocoder)] == ["stored", "stored"])


async def test_no_more_are_fetched_at_a_time_than_is_set(world: World, eventually: Eventually) -> None:
    node = await world.node(BITINGLIP_MODELS_PARALLEL=1)
    first, second = await world.described("org/first", BIG), await world.described("org/second")
    stall = world.hub.fault(path="org/first/*.safetensors", stall_after=1000)
    await world.ask(ModelFetchAsked, first, node)
    await world.ask(ModelFetchAsked, second, node)
    await eventually(lambda: world.hub.stalled.total() > 0)
    # A folder that cannot be taken in is told of at once: by then it has heard of both.
    await world.tell(ModelImportAsked(reference="lab/none", node_id="a", path="/no/such/folder", by=None))
    await eventually(lambda: _told(world, ("lab/none", "import"), ModelFetchFailed))
    assert [world.on(key, node).status for key in (first, second)] == ["fetching", "wanted"]
    world.hub.mend(stall)
    await eventually(lambda: [world.on(key, node).status for key in (first, second)] == ["stored", "stored"])


async def test_a_node_that_is_stopped_leaves_no_fetch_behind(world: World, eventually: Eventually) -> None:
    node = await world.node()
    key = await world.described("org/big", BIG)
    stall = world.hub.fault(path="*.safetensors", stall_after=1000)
    await world.ask(ModelFetchAsked, key, node)
    await eventually(lambda: world.hub.stalled.total() > 0)
    node.signal(signal.SIGTERM)
    assert await node.wait() == 0
    world.hub.mend(stall)
    assert await world.told(key, ModelFetchStopped) == []
    await node.start()
    await eventually(lambda: world.on(key, node).status == "stored")
