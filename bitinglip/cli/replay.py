"""`bitinglip task replay ID`: run a task again, and say whether the same came out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from bitinglip.cli import render
from bitinglip.cli.client import Client
from bitinglip.cli.recorded import conditions
from bitinglip.cli.watch import EXIT_CODES, FAILED, end_of
from bitinglip.errors import InvalidInput

SAME, OTHER = 0, 1
CIRCUMSTANCES = ("revision", "device", "dtype", "versions", "batch_size")
"""What may make a difference, as the events of both runs tell it."""


@dataclass(frozen=True)
class Run:
    """One run of a task, as its events tell it."""

    task_id: str
    submitted: dict[str, Any]
    result: Any
    circumstances: dict[str, Any]


def replay(gateway: Client, task_id: str, *, as_json: bool) -> int:
    """Submit a task again with the seed that it had, wait for it, and compare the results; returns 0 if they are equal.

    Raises:
        InvalidInput: the task has not succeeded, or what it was asked is no longer known.
    """
    before = _run(gateway, task_id)
    again = gateway.request("POST", "/v1/tasks", body=_body(before))["task_id"]
    state = "unknown"
    for event in gateway.events(f"/v1/tasks/{again}/events", ended=lambda event: end_of(event) is not None):
        state = end_of(event) or state
    if state != "succeeded":
        render.note(f"{again} {state}: see `bitinglip task get {again}`")
        return EXIT_CODES.get(state, FAILED)
    after = _run(gateway, again)
    differences = list(_differences(before.result, after.result))
    changed = {
        name: [before.circumstances[name], after.circumstances[name]]
        for name in CIRCUMSTANCES
        if before.circumstances[name] != after.circumstances[name]
    }
    if as_json:
        told = {"task_id": task_id, "replay": again, "same": not differences}
        render.json(told | {"differences": differences, "changed": changed})
    else:
        _print(before, after, differences, changed)
    return OTHER if differences else SAME


def _print(before: Run, after: Run, differences: list[str], changed: dict[str, Any]) -> None:
    if not differences:
        render.line(f"{after.task_id}: the same result as {before.task_id}, byte for byte")
    else:
        render.line(f"{after.task_id}: another result than {before.task_id}, in {', '.join(differences)}")
    for name, (was, is_) in changed.items():
        render.line(f"  {name}: {was} -> {is_}")
    if differences and not changed:
        render.line("  revision, device, precision, versions and batch size were the same")


def _run(gateway: Client, task_id: str) -> Run:
    events = [
        event.data for event in gateway.events(f"/v1/tasks/{task_id}/events", ended=lambda e: end_of(e) is not None)
    ]
    latest = {event["type"]: event["data"] for event in events}
    if "task.succeeded" not in latest:
        raise InvalidInput(field=task_id, problem="only a task that has succeeded can be replayed")
    ended, assigned = latest["task.succeeded"], latest["task.assigned"]
    around = assigned | {name: ended.get(name) for name in ("device", "dtype", "versions")}
    submitted = latest["task.submitted"]
    released = next((event["data"] for event in events if _brings_params(event)), submitted)
    params = _inline(gateway, released.get("params"), released.get("params_ref"))
    if params is None:
        raise InvalidInput(field=task_id, problem="its parameters are gone: it was forgotten, or they have expired")
    return Run(
        task_id,
        submitted | {"params": params},
        _inline(gateway, ended.get("result"), ended.get("result_ref")),
        {name: around.get(name) for name in CIRCUMSTANCES},
    )


def _brings_params(event: dict[str, Any]) -> bool:
    """Tell whether an event brings parameters in place of the submitted ones."""
    told = event["data"]
    return event["type"] == "task.queued" and bool(told.get("params") or told.get("params_ref"))


def _body(before: Run) -> dict[str, Any]:
    submitted = before.submitted
    params = dict(submitted["params"])
    seed = _seed(before.result)
    if seed is not None and params.get("seed") is None:
        params["seed"] = seed
    kept = {name: submitted[name] for name in ("kind", "model", "lane")} | conditions(submitted)
    private = {"private": True} if submitted.get("private") else {}
    return kept | private | {"params": params, "metadata": {"replay_of": before.task_id}}


def _seed(result: Any) -> int | None:
    """Return the seed that a result tells, of its first picture if it has several."""
    if not isinstance(result, dict):
        return None
    told = cast("dict[str, Any]", result)
    pictures = told.get("images")
    return pictures[0].get("seed") if pictures else told.get("seed")


def _differences(before: Any, after: Any, path: str = "result") -> Iterator[str]:
    """Yield where two results differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        ours, theirs = cast("dict[str, Any]", before), cast("dict[str, Any]", after)
        for name in {**ours, **theirs}:
            yield from _differences(ours.get(name), theirs.get(name), f"{path}.{name}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(cast("list[Any]", after)):
        for index, pair in enumerate(zip(cast("list[Any]", before), cast("list[Any]", after), strict=True)):
            yield from _differences(*pair, f"{path}[{index}]")
    elif before != after:
        yield path


def _inline(gateway: Client, value: Any, reference: dict[str, Any] | None) -> Any:
    if value is not None or reference is None:
        return value
    return gateway.get(f"/v1/artifacts/{reference['sha256']}")
