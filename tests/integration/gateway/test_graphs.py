"""Tasks that wait for others, over HTTP and with a worker."""

from __future__ import annotations

from typing import Any

import httpx

from bitinglip.events.log import EventLog
from tests.integration.gateway.support import Player, check_problem, submitted
from tests.integration.test_times import on
from tests.support.cluster import Cluster
from tests.support.server import eventually

UNKNOWN = "01JZ0000000000000000000000"


def echo(message: Any = None, **fields: Any) -> dict[str, Any]:
    return {"kind": "echo", "model": "echo", "params": {"message": message}} | fields


def result(task_id: str) -> dict[str, str]:
    return {"$result": task_id, "path": "message"}


async def test_a_task_that_waits_is_scheduled_and_says_for_what(client: httpx.AsyncClient, player: Player) -> None:
    first = await submitted(client)
    answer = await client.post("/v1/tasks", json=echo(result(first), depends_on=[first, first], on_failure="run"))
    assert (answer.status_code, answer.json()["state"]) == (202, "scheduled")
    url = answer.headers["location"]
    task = (await client.get(url)).json()
    assert (task["state"], task["depends_on"], task["on_failure"]) == ("scheduled", [first], "run")
    assert (await client.get(f"/v1/tasks/{first}")).json()["depends_on"] is None
    await player.run(first, message=5)

    async def queued() -> bool:
        return (await client.get(url)).json()["state"] == "queued"

    await eventually(queued)
    events = (await client.get(f"{url}/events?format=json")).json()
    assert (events[-1]["data"]["reason"], events[-1]["data"]["params"]) == ("released", {"message": 5})


async def test_what_cannot_be_waited_for_is_refused(client: httpx.AsyncClient) -> None:
    unknown = await client.post("/v1/tasks", json=echo(depends_on=[UNKNOWN]))
    assert check_problem(unknown, 422, "invalid_input")["problem"] == f"there is no task {UNKNOWN}"
    first = await submitted(client)
    other = await client.post("/v1/tasks", json=echo(result(UNKNOWN), depends_on=[first]))
    assert check_problem(other, 422, "invalid_input")["field"] == "params.message"


async def test_a_chain_goes_on_after_its_gateway_was_killed(cluster: Cluster, log: EventLog) -> None:
    await cluster.worker()
    gateway = await cluster.gateway()
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=30, trust_env=False) as client:
        first = echo({"said": "hello"})
        first["params"] |= {"steps": 1_000, "step_ms": 5}
        ids = [await submitted(client, first)]
        for _ in range(2):
            ids.append(await submitted(client, echo([result(ids[-1])], depends_on=ids[-1:])))
            await eventually(lambda: on(log, f"bl.timer.{ids[-1]}.after"))
        await gateway.kill()
    await gateway.start()
    async with httpx.AsyncClient(base_url=gateway.ready["url"], timeout=30, trust_env=False) as client:

        async def done() -> bool:
            return (await client.get(f"/v1/tasks/{ids[-1]}")).json()["state"] == "succeeded"

        await eventually(done, 30)
        assert (await client.get(f"/v1/tasks/{ids[-1]}")).json()["result"] == {"message": [[{"said": "hello"}]]}
