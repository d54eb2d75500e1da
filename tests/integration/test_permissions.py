"""The users of `nats.conf`, on a real server: each part can do all that it has to, and nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import pytest

from bitinglip.cli.natsserver import find_or_fetch
from bitinglip.errors import NotPermitted
from bitinglip.events.consumers import ask
from bitinglip.events.log import EventLog
from bitinglip.events.model import ModelFetchAsked, ModelStored
from bitinglip.events.queue import WorkQueue
from bitinglip.events.stranded import hand_out_again
from bitinglip.events.streams import LEDGER, QUEUE, TASKS, WORKERS, Route
from bitinglip.events.subjects import encode_queue, worker_subject
from bitinglip.events.together import append_together
from bitinglip.events.worker import WorkerHeartbeat
from bitinglip.ids import TaskId
from bitinglip.projections.readmodel import ReadModel
from bitinglip.settings import Nats, Projections
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.inbox import Inbox
from bitinglip.workers.modelwishes import Wishes
from tests.integration.gateway import modelfacts
from tests.integration.gateway.modelfacts import AT
from tests.integration.gateway.support import ECHO, collect, submitted
from tests.integration.test_modelkeeper import World
from tests.support.cluster import Cluster
from tests.support.modelhub import ModelHub
from tests.support.server import eventually, port_of
from tests.support.uploading import NAME, make_folder, upload

CONFIG = Path(__file__).parents[2] / "nats.conf"
ALIEN = "01JZ0000000000000000000000"


def with_users(folder: Path) -> str:
    """Return `nats.conf` with its users brought in, on free ports."""
    text = CONFIG.read_text("utf-8")
    begin = text.index("# authorization {")
    users = "\n".join(line.removeprefix("#").removeprefix(" ") for line in text[begin:].splitlines())
    text = re.sub(r"^port: .*$", "port: -1", text[:begin], flags=re.MULTILINE)
    text = re.sub(r"^http: .*$", "", text, flags=re.MULTILINE)
    return f"{text}\nports_file_dir: {json.dumps(str(folder))}\n{users}\n"


class GuardedServer:
    """A server with the users of `nats.conf`."""

    def __init__(self, port: int, log_file: Path) -> None:
        self.port = port
        self._log_file = log_file

    def url(self, user: str) -> str:
        """Address for this user."""
        return f"nats://{user}:CHANGE-ME@127.0.0.1:{self.port}"

    def violations(self) -> list[str]:
        """Return what it has refused to anybody, as far as its log tells."""
        return [line for line in self._log_file.read_text("utf-8").splitlines() if "Violation" in line]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[GuardedServer]:
    folder = tmp_path / "nats"
    folder.mkdir()
    (folder / "nats.conf").write_text(with_users(folder), "utf-8")
    binary = find_or_fetch()
    with (folder / "nats.log").open("wb") as log:
        process = subprocess.Popen([binary, "-c", folder / "nats.conf"], stdout=log, stderr=log, cwd=folder)
    try:
        yield GuardedServer(port_of(binary, process, folder), folder / "nats.log")
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
async def cluster(server: GuardedServer, tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(server.url("gateway"), tmp_path)
    yield cluster
    await cluster.close()


async def tell_what_a_model_is(server: GuardedServer) -> None:
    """Put into the log what a gateway learns from a hub."""
    log = await EventLog.connect(Nats(url=server.url("gateway")), "/test")
    await modelfacts.describe(log)
    await log.close()


@pytest.fixture
async def client(cluster: Cluster, server: GuardedServer, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway, beside a node agent with a worker; each is its own user."""
    models: dict[str, Any] = {"BITINGLIP_MODELS_HUB_CACHE": str(tmp_path / "hub"), "BITINGLIP_MODELS_MIN_FREE_GB": "0"}
    archive = {"BITINGLIP_ARCHIVE_EVERY_S": 0, "BITINGLIP_ARCHIVE_SETTLED_S": 0, "BITINGLIP_ARCHIVE_HOT_TASKS": 0}
    gateway = await cluster.gateway(**models, **archive)
    await cluster.node(BITINGLIP_NATS_URL=server.url("worker"), BITINGLIP_MODELS_OFFLINE="true", **models)
    await tell_what_a_model_is(server)
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=20, trust_env=False) as client:

        async def served() -> bool:
            nodes = (await client.get("/v1/nodes")).json()["nodes"]
            workers = (await client.get("/v1/workers")).json()["workers"]
            return bool(nodes and workers and (await client.get("/v1/models")).json()["data"])

        await eventually(served)
        yield client


async def end_of(client: httpx.AsyncClient, task_id: str) -> str:
    return (await collect(client, f"/v1/tasks/{task_id}/events"))[-1].type


async def run_tasks(client: httpx.AsyncClient, _: GuardedServer) -> None:
    """Tasks of all kinds of ways and ends."""
    quick: dict[str, Any] = {"max_attempts": 2, "base_ms": 10, "max_ms": 20}
    first, soon = await submitted(client), datetime.now(UTC) + timedelta(seconds=2)
    ways = {
        "task.succeeded": [
            {"params": {"message": "x" * 200_000}},
            {"params": {"steps": 3, "step_ms": 5}},
            {"delay_s": 0.2},
            {"depends_on": [first]},
            {"lane": "batch", "expires_at": "2100-01-01T00:00:00Z", "requires": {"vram_gb": 0.001}},
        ],
        "task.dead_lettered": [{"params": {"fail": "crash"}, "retry": quick}],
        "task.failed": [{"params": {"fail": "bad_input"}}],
        "task.expired": [{"requires": {"label": "nowhere"}, "expires_at": soon.isoformat()}],
    }
    for end, wishes in ways.items():
        for wish in wishes:
            assert await end_of(client, await submitted(client, ECHO | wish)) == end
    long = await submitted(client, ECHO | {"params": {"steps": 1000, "step_ms": 20}})
    await client.delete(f"/v1/tasks/{long}")
    assert await end_of(client, long) == "task.cancelled"


async def keep_secrets(client: httpx.AsyncClient, _: GuardedServer) -> None:
    """A private task runs, and is forgotten."""
    task_id = await submitted(client, ECHO | {"private": True})
    assert await end_of(client, task_id) == "task.succeeded"
    assert (await client.get(f"/v1/tasks/{task_id}")).json()["result"] == {"message": "hello"}
    assert (await client.post(f"/v1/tasks/{task_id}/forget")).status_code == 200
    assert (await client.get(f"/v1/tasks/{task_id}/result")).status_code == 410


async def use_queues(client: httpx.AsyncClient, _: GuardedServer) -> None:
    """Pauses, purges, batches, schedules."""
    assert (await client.post("/v1/queues:pause", json={"model": "echo"})).status_code == 200
    waiting = await submitted(client)
    assert (await client.post("/v1/queues:purge", json={"model": "echo"})).status_code == 200
    assert await end_of(client, waiting) == "task.cancelled"
    assert (await client.post("/v1/queues:resume", json={"model": "echo"})).status_code == 200
    assert (await client.get("/v1/queues")).json()["queues"]
    batch = await client.post("/v1/batches", json={"tasks": [ECHO, ECHO]})

    async def completed() -> bool:
        return (await client.get(f"/v1/batches/{batch.json()['batch_id']}")).json()["state"] == "completed"

    await eventually(completed)
    schedule = (await client.post("/v1/schedules", json={"every_s": 60, "task": ECHO})).json()
    assert (await client.delete(f"/v1/schedules/{schedule['schedule_id']}")).status_code < 300


async def hand_out_work_again(_: httpx.AsyncClient, server: GuardedServer) -> None:
    """A gateway hands out again what somebody was given who says nothing of it."""
    worker, gateway = [await EventLog.connect(Nats(url=server.url(user)), "/test") for user in ("worker", "gateway")]
    await Inbox(gateway, 65_536).submit(SubmitTask(kind="echo", model="nobodys"))
    work, route = WorkQueue(worker.connection, 60), Route("normal", encode_queue("nobodys"))
    await work.ensure([route])
    (given,) = await eventually(lambda: work.pull(route, 1))
    (state,) = [state for state in await gateway.queue_states() if state.route == route]
    await hand_out_again(gateway.connection, state, state.handed_out)
    (again,) = await eventually(lambda: work.pull(route, 1))
    assert (again.event.id, again.delivered) == (given.event.id, 2)
    await work.close()
    await worker.close()
    await gateway.close()


async def outgrow(client: httpx.AsyncClient, server: GuardedServer) -> None:
    """A worker whose card is too small for a task opens the queue of a bigger one, which its model's pause holds."""
    log = await EventLog.connect(Nats(url=server.url("worker")), "/test")
    reading = {"name": "big", "memory_total_bytes": 2**50}
    beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example | {"worker_id": "big", "device": reading})
    await log.append(log.fact_append(beat, worker_subject("big", "heartbeat"), "big"))
    full = {"params": {"steps": 50, "step_ms": 20, "fail": "out_of_memory"}, "retry": {"base_ms": 10}}
    task_id = await submitted(client, ECHO | full)

    async def is_now(name: str, value: Any) -> bool:
        return (await client.get(f"/v1/tasks/{task_id}")).json()[name] == value

    await eventually(lambda: is_now("state", "running"))
    assert (await client.post("/v1/queues:pause", json={"model": "echo"})).status_code == 200
    await eventually(lambda: is_now("queued_reason", "bigger_card"))
    queues = (await client.get("/v1/queues")).json()["queues"]
    assert [queue["paused"] for queue in queues if queue["requires"]] == [True]
    assert (await client.delete(f"/v1/tasks/{task_id}")).status_code == 200
    await log.close()


async def wish_for_models(client: httpx.AsyncClient, _: GuardedServer) -> None:
    """All that is asked of nodes about models, and names for them."""
    (node,) = (await client.get("/v1/nodes")).json()["nodes"]
    folder = {"import": "/nowhere", "node": node["node_id"], "as": "lab/tuned"}
    assert (await client.post("/v1/models", json=folder)).status_code == 202
    about = {"nodes": [node["node_id"]]}
    assert (await client.post("/v1/models", json={"model": AT} | about)).status_code == 202
    for name in ("cancel", "pin", "unpin", "verify"):
        assert (await client.post(f"/v1/models/{AT}/{name}", json=about)).status_code == 202
    assert (await client.put("/v1/aliases/best", json={"model": AT})).status_code == 200
    assert (await client.delete("/v1/aliases/best")).status_code == 200
    assert (await client.delete(f"/v1/models/{AT}")).status_code == 202


async def command_nodes(client: httpx.AsyncClient, _: GuardedServer) -> None:
    """Everything that a node is told to do."""
    (node,) = (await client.get("/v1/nodes")).json()["nodes"]
    (worker,) = (await client.get("/v1/workers")).json()["workers"]
    for path in (f"nodes/{node['node_id']}/status", f"workers/{worker['worker_id']}/logs"):
        assert (await client.get(f"/v1/{path}")).status_code == 200
    for name in ("drain", "undrain"):
        assert (await client.post(f"/v1/nodes/{node['node_id']}/{name}")).status_code == 202
    labels = await client.post(f"/v1/nodes/{node['node_id']}/labels", json={"labels": {"eu": ""}})
    assert labels.status_code == 200
    assert (await client.post(f"/v1/workers/{worker['worker_id']}/restart")).status_code == 202
    assert await end_of(client, await submitted(client)) == "task.succeeded"


async def upload_a_model(client: httpx.AsyncClient, _server: GuardedServer) -> None:
    """A model that goes through the gateway to a node, and away again."""
    (node,) = (await client.get("/v1/nodes")).json()["nodes"]
    with TemporaryDirectory() as folder:
        asked = await upload(client, make_folder(Path(folder)), nodes=[node["node_id"]])

    async def holders() -> list[str]:
        holdings = (await client.get(f"/v1/models/{NAME}")).json()["holdings"]
        return [each["node_id"] for each in holdings if each["status"] == "stored"]

    await eventually(lambda: _are(holders, [node["node_id"]]))
    await client.delete(f"/v1/models/{asked['model']}")
    await eventually(lambda: _are(holders, []))


async def _are(found: Callable[[], Awaitable[list[str]]], wanted: list[str]) -> bool:
    return await found() == wanted


async def trim(client: httpx.AsyncClient, _: GuardedServer) -> None:
    """What is over is archived, leaves, and is read from there."""
    task_id = await submitted(client)
    assert await end_of(client, task_id) == "task.succeeded"
    await client.get(f"/v1/tasks/{task_id}")
    done = await client.post("/v1/log/archive", params={"now": "true"})
    assert done.json()["trimmed"]["removed"] == 3, done.text
    assert await end_of(client, task_id) == "task.succeeded"


async def copy_the_read_model(client: httpx.AsyncClient, server: GuardedServer) -> None:
    """Copies of the read model, more than are kept, and a gateway that begins with one."""
    await end_of(client, await submitted(client))
    for _ in range(3):
        assert (await client.post("/v1/projections/snapshot")).status_code == 201
    log = await EventLog.connect(Nats(url=server.url("gateway")), "/test")
    with TemporaryDirectory() as folder:
        readmodel = await ReadModel.open(Projections(), Path(folder) / "p.duckdb", log)
        assert readmodel.applied(TASKS) > 0
        await readmodel.close()
    await log.close()


USES = [
    run_tasks, trim, use_queues, keep_secrets, hand_out_work_again, outgrow, command_nodes, wish_for_models,
    upload_a_model, copy_the_read_model,
]  # fmt: skip


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
async def test_nobody_is_refused_anything_that_belongs_to_the_work(
    client: httpx.AsyncClient, server: GuardedServer, use: Callable[[httpx.AsyncClient, GuardedServer], Awaitable[None]]
) -> None:
    await use(client, server)
    assert (await client.get("/readyz")).json()["status"] == "ready"
    assert (await client.get("/metrics")).status_code == 200
    assert server.violations() == []


async def test_models_come_from_the_hub_and_from_node_to_node_and_nobody_is_refused(
    server: GuardedServer, cluster: Cluster, tmp_path: Path
) -> None:
    log = await EventLog.connect(Nats(url=server.url("worker")), "/test")
    wishes = Wishes(log, lambda: None)
    await wishes.open()
    with ModelHub() as hub:
        world = World(log, cluster, hub, wishes, tmp_path)
        nodes = [await world.node(name=name, BITINGLIP_NATS_URL=server.url("worker")) for name in ("a", "b")]
        key = await world.described("org/some")
        for node in nodes:
            await world.ask(ModelFetchAsked, key, node)
            await eventually(lambda node=node: world.on(key, node).status == "stored")
        assert [each.peer_bytes > 0 for each in await world.told(key, ModelStored)] == [False, True]
    await wishes.close()
    await log.close()
    assert server.violations() == []


# --- and nothing else -------------------------------------------------------------------------------------------------

NOBODYS = [
    *[f"$JS.API.STREAM.{what}.{stream}" for what in ("DELETE", "SNAPSHOT", "RESTORE") for stream in (TASKS, QUEUE)],
    f"$JS.API.STREAM.PURGE.{WORKERS}",
    f"$JS.API.STREAM.PURGE.{LEDGER}",
    *[f"$JS.API.STREAM.MSG.DELETE.{stream}" for stream in (TASKS, WORKERS)],
    f"$JS.API.CONSUMER.DELETE.{QUEUE}.normal-echo",
    f"$JS.API.CONSUMER.DELETE.{TASKS}.reactor",
    "bl.access.k.granted",
    "$SYS.REQ.SERVER.PING",
]
WRITES = {
    "worker": [
        f"bl.task.{ALIEN}.submitted.normal.echo",
        f"bl.task.{ALIEN}.queued.normal.echo",
        f"bl.task.{ALIEN}.cancel_requested",
        f"bl.queue.normal.echo.{ALIEN}",
        "bl.batch.b.opened",
        "bl.schedule.s.created",
        "bl.ledger.readmodel.snapshot",
        "$O.snapshots.M.c25hcHNob3Q=",
        "bl.control.node.n.drain",
        f"$JS.API.STREAM.PURGE.{QUEUE}",
        f"$JS.API.STREAM.PURGE.{TASKS}",
        f"$JS.API.CONSUMER.CREATE.{TASKS}.reactor.bl.task.>",
    ],
    "gateway": [
        f"bl.task.{ALIEN}.assigned",
        f"bl.task.{ALIEN}.succeeded",
        "bl.worker.w.heartbeat",
        "bl.node.n.heartbeat",
        "bl.model.echo.registered",
        f"$JS.API.CONSUMER.MSG.NEXT.{QUEUE}.normal-echo",
    ],
    "auditor": [
        f"bl.task.{ALIEN}.submitted.normal.echo",
        f"bl.task.{ALIEN}.succeeded",
        "bl.worker.w.heartbeat",
        "bl.control.node.n.drain",
        f"$JS.API.STREAM.PURGE.{QUEUE}",
        f"$JS.API.STREAM.PURGE.{TASKS}",
        f"$JS.API.STREAM.UPDATE.{TASKS}",
        "$O.snapshots.M.c25hcHNob3Q=",
        f"$JS.API.CONSUMER.CREATE.{QUEUE}.other.bl.queue.>",
        f"$JS.API.CONSUMER.CREATE.{TASKS}.reactor.bl.task.>",
        f"$JS.API.CONSUMER.MSG.NEXT.{QUEUE}.normal-echo",
        "$JS.API.STREAM.MSG.GET.KV_task_keys",
        "$JS.API.DIRECT.GET.KV_task_keys",
        "$JS.API.DIRECT.GET.KV_task_keys.$KV.task_keys.x",
        "$JS.API.CONSUMER.CREATE.KV_task_keys",
        "$JS.API.CONSUMER.CREATE.KV_task_keys.x.$KV.task_keys.>",
        f"$KV.task_keys.{ALIEN}",
    ],
}
READS = {
    "worker": ["bl.live.task.*.succeeded", "bl.task.>", ">", "$JS.API.>"],
    "gateway": ["bl.control.node.>", ">", "$JS.API.>"],
    "auditor": ["bl.control.node.>", ">"],
}


async def told(server: GuardedServer, user: str | None, line: str) -> str:
    """Return what the server says to a line of the protocol that a user writes; only what it refuses has an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    who = {"verbose": False} | ({"user": user, "pass": "CHANGE-ME"} if user else {})
    try:
        assert (await reader.readline()).startswith(b"INFO")
        writer.write(f"CONNECT {json.dumps(who)}\r\n{line}\r\nPING\r\n".encode())
        heard = ""
        while "PONG" not in heard and (more := await reader.readline()):
            heard += more.decode()
        return heard
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("user", sorted(WRITES))
async def test_what_is_not_a_parts_own_it_cannot_write(server: GuardedServer, user: str) -> None:
    log = await EventLog.connect(Nats(url=server.url("gateway")), "/test")
    for subject in [*NOBODYS, *WRITES[user]]:
        heard = await told(server, user, f"PUB {subject} 2\r\n{{}}")
        assert "Permissions Violation for Publish" in heard, subject
    assert [await log.last_sequence(stream) for stream in (TASKS, QUEUE, WORKERS)] == [0, 0, 0]
    await log.close()


async def test_who_may_not_do_what_it_has_to_is_told_so(server: GuardedServer) -> None:
    with pytest.raises(NotPermitted, match=r"publish to \$JS\.API\.STREAM\.CREATE\.TASKS$"):
        await EventLog.connect(Nats(url=server.url("backup")), "/test")
    log = await EventLog.connect(Nats(url=server.url("gateway")), "/test")
    await log.close()
    log = await EventLog.connect(Nats(url=server.url("worker")), "/test")
    try:
        beat = WorkerHeartbeat.model_validate(WorkerHeartbeat.example)
        asked = log.fact_append(beat, f"bl.task.{ALIEN}.submitted", ALIEN)
        wanted = re.escape(f"publish to {asked.subject}") + "$"
        with pytest.raises(NotPermitted, match=wanted):
            await log.append(asked)
        with pytest.raises(NotPermitted, match=wanted):
            await append_together(log, [asked, asked])
        assert await log.read_task(TaskId(ALIEN)) == []
        with pytest.raises(NotPermitted, match=rf"publish to \$JS\.API\.STREAM\.PURGE\.{TASKS}$"):
            await ask(log.connection, f"STREAM.PURGE.{TASKS}", {}, 0.5)
        assert await log.append(log.fact_append(beat, worker_subject("rig-1-0", "heartbeat"), "rig-1-0")) > 0
    finally:
        await log.close()


async def test_a_node_may_ask_another_one_for_a_model_and_for_nothing_else(server: GuardedServer) -> None:
    assert await told(server, "worker", "PUB bl.control.node.n.share 2\r\n{}") == "PONG\r\n"
    assert "Permissions Violation" in await told(server, "worker", "PUB bl.control.node.n.prune 2\r\n{}")


@pytest.mark.parametrize("user", sorted(READS))
async def test_what_is_not_a_parts_business_it_cannot_hear(server: GuardedServer, user: str) -> None:
    for subject in READS[user]:
        assert "Permissions Violation for Subscription" in await told(server, user, f"SUB {subject} 1"), subject


async def test_nobody_comes_in_without_a_user(server: GuardedServer) -> None:
    assert "Authorization Violation" in await told(server, None, "SUB bl.live.> 1")
    assert await told(server, "auditor", "SUB bl.live.> 1") == "PONG\r\n"


def test_the_users_of_a_cluster_may_do_the_same() -> None:
    """`deploy/nats-cluster` has its own list of them, in another layout."""
    single, three = CONFIG.read_text("utf-8"), (CONFIG.parent / "deploy/nats-cluster/users.conf").read_text("utf-8")
    blocks = zip(
        re.split(r"(?:GATEWAY|WORKER|AUDITOR): \{", single.partition("#   users: [")[0])[1:],
        re.split(r"user: (?:gateway|worker|auditor),", three.partition("SYSTEM: {")[0])[1:],
        strict=True,
    )
    for one, other in blocks:
        for part in ("allow", "deny", "subscribe"):
            assert listed(one, part) == listed(other, part)
            assert listed(one, part)


def listed(block: str, part: str) -> set[str]:
    """Return the subjects of a list; none where there is no such list."""
    found = re.search(rf"\b{part}: \[([^]]*)\]", block)
    return set(re.findall(r'"([^"]+)"', found[1])) if found else set()
