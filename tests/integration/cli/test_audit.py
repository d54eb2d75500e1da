"""`bitinglip audit …` as a person uses it, against a running gateway and against files alone."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bitinglip.events.log import EventLog
from bitinglip.events.streams import TASKS
from bitinglip.settings import Audit, Gateway, Nats, Settings
from tests.integration.gateway.support import ECHO, register, running
from tests.support.signedlog import edit_heads, messages_of, signed_up_to, write_archive

COMMAND = (sys.executable, "-m", "bitinglip.cli.main", "audit")
KEY = "k" * 20


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Place:
    """Where commands are run."""

    environment: dict[str, str]
    tasks: list[str]
    log: EventLog

    async def run(self, *arguments: str | Path) -> Ended:
        process = await asyncio.create_subprocess_exec(
            *COMMAND, *arguments, env=os.environ | self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode is not None
        return Ended(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def place(log: EventLog, nats_url: str, tmp_path: Path) -> Place:
    """A gateway with six tasks asked for, signed; it has ended."""
    await register(log, "echo", "echo")
    settings = Settings(
        data_dir=tmp_path / "data",
        nats=Nats(url=nats_url),
        gateway=Gateway.model_validate({"port": 0, "api_key": KEY}),
        audit=Audit(every_s=0.5),
    )
    headers = {"Authorization": f"Bearer {KEY}"}
    async with running(settings) as url, httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        tasks = [(await client.post("/v1/tasks", json=ECHO)).json()["task_id"] for _ in range(6)]
        await signed_up_to(log, TASKS, 6)
        proof = (await client.get(f"/v1/tasks/{tasks[2]}/proof")).content
    (tmp_path / "proof.json").write_bytes(proof)
    environment = {"BITINGLIP_DATA_DIR": str(tmp_path / "data"), "BITINGLIP_NATS_URL": nats_url}
    return Place(environment, tasks, log)


async def test_a_log_is_verified(place: Place, tmp_path: Path) -> None:
    trusting = await place.run("verify")
    assert trusting.code == 0, trusting
    assert "TASKS: 6 events are as they were signed" in trusting.out
    assert "the first that was seen, was trusted" in trusting.err
    public = await place.run("key")
    (tmp_path / "key.pem").write_text(public.out)
    known = await place.run("verify", "--key", tmp_path / "key.pem", "--json")
    outcomes = {line["stream"]: line for line in map(json.loads, known.out.splitlines())}
    assert (known.code, outcomes[TASKS]["events"], outcomes[TASKS]["finding"]) == (0, 6, None)
    (tmp_path / "none").write_text("none")
    assert (await place.run("verify", "--key", tmp_path / "none")).code == 2
    other = await place.run("key", "--data-dir", tmp_path / "elsewhere")
    (tmp_path / "other.pem").write_text(other.out)
    strange = await place.run("verify", "--key", tmp_path / "other.pem")
    assert (strange.code, "a key that is not known" in strange.out) == (1, True)


async def test_files_are_verified_without_a_server(place: Place, tmp_path: Path) -> None:
    heads = tmp_path / "heads"
    assert (await place.run("export", heads, "--leaves")).code == 0
    assert (await place.run("verify", "--heads", heads)).code == 0
    messages = await messages_of(place.log, TASKS)
    write_archive(tmp_path / "archive", TASKS, messages)
    files = ("verify", "--offline", "--archive", tmp_path / "archive", "--heads", heads)
    sound = await place.run(*files)
    assert sound.code == 0, sound
    assert "Not in the folder, and not checked: LEDGER, MODELS" in sound.err
    changed = messages[3]._replace(payload=messages[3].payload.replace(b"hello", b"hallo"))
    write_archive(tmp_path / "archive", TASKS, [*messages[:3], changed, *messages[4:]])
    found = await place.run(*files, "--json")
    finding = json.loads(found.out)["finding"]
    assert (found.code, finding["what"], finding["sequence"]) == (1, "changed", 4)
    assert finding["subject"] == changed.subject
    edit_heads(heads, root_hash="0" * 64)
    assert (await place.run("verify", "--heads", heads)).code == 1
    assert (await place.run("verify", "--offline")).code == 2


async def test_a_copy_of_the_archive_is_verified_as_far_as_it_goes(place: Place, tmp_path: Path) -> None:
    heads, folder = tmp_path / "heads", tmp_path / "archive"
    assert (await place.run("export", heads, "--leaves")).code == 0
    files = ("verify", "--offline", "--archive", folder, "--heads", heads)
    for nothing in (await place.run(*files), await place.run("verify", "--archive", folder)):
        assert (nothing.code, "is no archive, nor a copy of one" in nothing.err) == (2, True), nothing
    messages = await messages_of(place.log, TASKS)
    write_archive(folder, TASKS, messages[:4], per_file=2)
    assert (await place.run(*files)).code == 1  # nothing says that it goes no further
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.parquet"))]
    listed = [{"file": name, "stream": TASKS, "last_sequence": last} for name, last in zip(names, (2, 4), strict=True)]
    (folder / "index.json").write_text(json.dumps({"files": listed}))
    sound = await place.run(*files)
    assert sound.code == 0, sound
    assert "TASKS: 4 events are as they were signed" in sound.out
    assert "TASKS: 2 signed events are not checked: the archive ends before them" in sound.out
    write_archive(folder, TASKS, [messages[0], *messages[2:4]], per_file=2)
    dropped = await place.run(*files, "--json")
    assert (dropped.code, json.loads(dropped.out)["finding"]["sequence"]) == (1, 2)
    (folder / names[1]).unlink()
    gone = await place.run("verify", "--archive", folder)
    assert (gone.code, f"{names[1]}, which index.json lists, is not there" in gone.err) == (2, True), gone


async def test_a_proof_is_verified_alone(place: Place, tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    alone = await place.run("verify", "--proof", path)
    assert alone.code == 0, alone
    assert f"1 events about {place.tasks[2]} are in the signed log" in alone.out
    assert "the proof's own keys were taken" in alone.err
    proof = json.loads(path.read_bytes())
    proof["events"][0]["sequence"] += 1
    path.write_text(json.dumps(proof))
    false = await place.run("verify", "--proof", path)
    assert (false.code, "not proved" in false.out) == (1, True)


async def test_who_asked_is_printed(place: Place, nats_url: str, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / "other", nats=Nats(url=nats_url), gateway=Gateway(port=0))
    async with running(settings) as url:
        shown = await place.run("log", "--url", url, "--type", "task.submitted", "--limit", "4", "--json")
        rows = [json.loads(line) for line in shown.out.splitlines()]
        assert [row["about"] for row in rows] == place.tasks[:1:-1]
        assert {row["key_id"] for row in rows} == {"gateway"}
        assert place.tasks[0] in (await place.run("log", "--url", url)).out
        proved = await place.run("proof", place.tasks[0], "--url", url)
        assert json.loads(proved.out)["about"] == place.tasks[0]
