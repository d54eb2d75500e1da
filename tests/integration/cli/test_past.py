"""The past and the timelines on the command line, against a real cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.cli.test_cli import bitinglip, on_terminal
from tests.support.cluster import Cluster

LISTS = (
    ("cluster", "status"), ("queue", "list"), ("node", "list"), ("worker", "list"), ("model", "list"), ("task", "list"),
)  # fmt: skip


@pytest.fixture
async def url(cluster: Cluster, tmp_path: Path) -> str:
    """Address of a gateway with a node that serves `echo`."""
    gateway = await cluster.gateway()
    await cluster.node()
    return gateway.ready["url"]


async def test_the_past_on_the_command_line(url: str) -> None:
    submit = ("task", "submit", "echo", "-m", "echo", "--url", url, "--json")
    first = (await bitinglip(*submit, "-p", "message=1", "--wait")).json
    waiting = (await bitinglip(*submit, "--delay", "600")).json
    moment = str(waiting["sequence"])
    await bitinglip("task", "cancel", waiting["task_id"], "--url", url)

    status = await bitinglip("cluster", "status", "--as-of", moment, "--url", url, "--json")
    assert status.json["tasks"] == {"scheduled": 1, "succeeded": 1}
    assert status.json["as_of"]["sequence"] == waiting["sequence"]
    assert [node["state"] for node in status.json["nodes"]] == ["online"]
    then = await bitinglip("task", "get", waiting["task_id"], "--as-of", moment, "--url", url, "--json")
    now = await bitinglip("task", "get", waiting["task_id"], "--url", url, "--json")
    assert (then.json["state"], now.json["state"]) == ("scheduled", "cancelled")
    listed = await bitinglip("task", "list", "--as-of", moment, "--limit", "1", "--url", url, "--json")
    assert [task["state"] for task in listed.lines] == ["scheduled"]

    for command in LISTS:
        shown = await bitinglip(*command, "--as-of", moment, "--url", url)
        assert (shown.status, "\x1b" in shown.out) == (0, False), shown.err
        assert f"event {moment} of TASKS" in shown.err
        wide = await on_terminal(100, *command, "--as-of", "1 s ago", "--url", url)
        assert "Traceback" not in wide

    refused = await bitinglip("cluster", "status", "--as-of", "last week", "--url", url)
    assert refused.status == 2
    assert "'last week' is no moment" in refused.err
    assert "remedy: Write a time with its zone" in refused.err

    told = await bitinglip("task", "timeline", first["task_id"], "--url", url, "--json")
    assert (told.json["state"], told.json["spans"][-1]["outcome"]) == ("succeeded", "succeeded")
    for columns in (50, 80, 160):
        drawn = await on_terminal(columns, "task", "timeline", first["task_id"], "--url", url)
        assert drawn.splitlines()[-1] == "ended: succeeded"
        assert all(len(line) <= columns for line in drawn.splitlines()[2:]), drawn
    piped = await bitinglip("task", "timeline", waiting["task_id"], "--url", url)
    assert "\x1b" not in piped.out
    assert piped.out.splitlines()[-1] == "ended: cancelled"
    assert any(line.startswith("scheduled  ") for line in piped.out.splitlines())
