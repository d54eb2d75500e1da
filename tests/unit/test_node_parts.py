"""The parts of a node agent: which workers it runs, its labels, its workers' logs, and what they tell it."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import CommandRefused
from bitinglip.settings import Node, Settings, Worker
from bitinglip.workers.logfile import LogFile
from bitinglip.workers.nodecontrol import changed
from bitinglip.workers.nodefacts import disk_of, labels_of, plan
from bitinglip.workers.tether import BEHIND_BYTES, Tether

CARDS = ["cuda:0", "cuda:1"]


@pytest.mark.parametrize(
    ("node", "device", "cards", "planned"),
    [
        (Node(), "auto", CARDS, CARDS),
        (Node(), "auto", [], ["auto"]),
        (Node(), "cpu", CARDS, ["cpu"]),
        (Node(workers_per_device=2), "auto", CARDS, ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]),
        (Node(workers=3), "auto", CARDS, ["cuda:0", "cuda:1", "cuda:0"]),
        (Node(workers=0), "auto", CARDS, []),
        (Node(devices=("cuda:1",)), "auto", CARDS, ["cuda:1"]),
        (Node(devices=("cuda:1",), workers=2), "cpu", [], ["cuda:1", "cuda:1"]),
    ],
)
def test_each_device_gets_its_workers(node: Node, device: str, cards: list[str], planned: list[str]) -> None:
    assert plan(Settings(node=node, worker=Worker(device=device)), cards) == planned


@given(st.integers(0, 20), st.lists(st.sampled_from(["cuda:0", "cuda:1", "cuda:2"]), min_size=1, unique=True))
def test_workers_are_shared_out_evenly(workers: int, cards: list[str]) -> None:
    planned = plan(Settings(node=Node(workers=workers)), cards)
    counts = [planned.count(card) for card in cards]
    assert sum(counts) == workers
    assert max(counts) - min(counts) <= 1


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,9}", fullmatch=True)
VALUES = st.from_regex(r"[a-z0-9]{0,5}", fullmatch=True)


@given(st.dictionaries(NAMES, VALUES, max_size=9), st.dictionaries(NAMES, st.none() | VALUES, max_size=9))
def test_a_change_of_labels_sets_takes_away_and_leaves_the_rest(before: Any, change: Any) -> None:
    after = changed(before, change)
    assert after == {name: value for name, value in (before | change).items() if value is not None}
    assert changed(after, change) == after
    assert labels_of([f"{name}={value}" for name, value in after.items()]) == after


@pytest.mark.parametrize(
    "change", [{"a b": ""}, {"": "x"}, {"a": "b c"}, {"a": "x" * 64}, {str(n): "" for n in range(65)}]
)
def test_labels_that_are_none_are_refused(change: dict[str, str]) -> None:
    with pytest.raises(CommandRefused):
        changed({}, change)


def test_a_log_is_bounded_and_read_from_its_end(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "logs" / "w.log", 1000)
    assert log.last_lines(3) == []
    with log.open() as file:
        for number in range(100):
            file.write(f"line {number}\n".encode())
            file.flush()
        assert log.last_lines(2) == ["line 98", "line 99"]
        log.bound()
        assert log.last_lines(2) == ["line 98", "line 99"]
        for number in range(100, 200):
            file.write(f"line {number}\n".encode())
            file.flush()
        log.bound()
        file.write(b"after\n")
        file.flush()
    assert log.last_lines(9) == ["after"]
    kept = (tmp_path / "logs" / "w.log.1").read_text().splitlines()
    assert kept[-1] == "line 199"


def test_the_disk_of_a_folder_that_is_not_there_yet_is_that_of_its_parent(tmp_path: Path) -> None:
    free, total = disk_of(tmp_path / "a" / "b")
    assert 0 < free <= total == disk_of(tmp_path)[1]


async def _tether() -> tuple[Tether, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return await Tether.open(theirs.detach()), ours


async def test_what_changes_together_is_told_together() -> None:
    tether, agent = await _tether()
    for reply in ("a", "b", "c"):
        tether.hold(reply)
    tether.hold("a")
    tether.release("c")
    tether.release("never held")
    loop = asyncio.get_running_loop()
    told = (await loop.sock_recv(agent, 4096)).decode()
    assert told in {'{"held":["a","b"],"released":[]}\n', '{"held":["b","a"],"released":[]}\n'}
    tether.release("a")
    assert await loop.sock_recv(agent, 4096) == b'{"held":[],"released":["a"]}\n'
    tether.close()
    agent.close()


async def test_an_agent_that_did_not_read_gets_the_whole_list_afterwards() -> None:
    tether, agent = await _tether()
    loop = asyncio.get_running_loop()
    tether.say(answer=1, problem="x" * 4 * BEHIND_BYTES)
    tether.hold("missed")
    tether.hold("kept")
    await asyncio.sleep(0)  # sleep-ok: one turn of the loop, in which it finds the socket full
    tether.release("missed")
    text = b""
    while not text.endswith(b"}\n"):
        text += await loop.sock_recv(agent, 1 << 20)
    tether.hold("new")
    told = (await loop.sock_recv(agent, 4096)).decode()
    assert told in {'{"all":["kept","new"]}\n', '{"all":["new","kept"]}\n'}
    tether.close()
    agent.close()
