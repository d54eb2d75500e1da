"""`bitinglip task …`: submit, look at, watch, cancel and retry tasks."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from bitinglip.cli import bulk, render
from bitinglip.cli.artifact import data_url, upload
from bitinglip.cli.client import Client
from bitinglip.cli.kinds import show as show_kinds
from bitinglip.cli.options import AsOf, Json, Url, client
from bitinglip.cli.replay import replay
from bitinglip.cli.watch import watch
from bitinglip.errors import InvalidInput

app = typer.Typer(help="Submit, look at, watch, cancel and retry tasks.", no_args_is_help=True)

Metadata = Annotated[list[str] | None, typer.Option("--metadata", help="KEY=VALUE; may be repeated.")]


TaskIds = Annotated[list[str] | None, typer.Argument(metavar="TASK_ID…")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where",
        help="NAME=VALUE: state, kind, model, lane, failure, before, after or metadata.KEY; may be repeated.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print which tasks are meant.")]


class Lane(StrEnum):
    """How urgent a task is."""

    interactive = "interactive"
    normal = "normal"
    batch = "batch"


@app.command()
def submit(
    kind: Annotated[str, typer.Argument(help="Kind of task; `task kinds` lists them with what they take.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Model reference: org/name or org/name@revision.")],
    prompt: Annotated[str | None, typer.Option(help="Prompt; @FILE reads a file, - standard input.")] = None,
    input_: Annotated[list[str] | None, typer.Option("--input", help="Text to embed; may be repeated.")] = None,
    text: Annotated[str | None, typer.Option(help="Text to speak; @FILE reads a file, - standard input.")] = None,
    image: Annotated[str | None, typer.Option(help="Picture: a file, or artifact:SHA256, or task:ID.")] = None,
    audio: Annotated[str | None, typer.Option(help="Recording: a file, or artifact:SHA256, or task:ID.")] = None,
    param: Annotated[list[str] | None, typer.Option("--param", "-p", help="NAME=VALUE, VALUE as JSON or text.")] = None,
    params_json: Annotated[str | None, typer.Option(help="All parameters as a JSON object, or @FILE, or -.")] = None,
    lane: Annotated[Lane, typer.Option(help="How urgent it is.")] = Lane.normal,
    requires: Annotated[
        list[str] | None, typer.Option(help="What the worker must have: vram_gb=GIB, label=WORD; may be repeated.")
    ] = None,
    metadata: Metadata = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Sent again with this key, it is the same task.")] = None,
    timeout_s: Annotated[float | None, typer.Option(help="Longest that one attempt may run, in seconds.")] = None,
    at: Annotated[str | None, typer.Option(help="Not to start before this time, as 2026-01-31T12:00:00Z.")] = None,
    delay: Annotated[float | None, typer.Option(help="Not to start before so many seconds from now.")] = None,
    expires_at: Annotated[str | None, typer.Option(help="Not started by this time, the task expires.")] = None,
    after: Annotated[list[str] | None, typer.Option(help="Wait for this task to succeed; may be repeated.")] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Attempts in all.")] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--not-private", help="Keep what is asked and answered out of the log.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the files of the result.")] = None,
    watch_: Annotated[bool, typer.Option("--watch", help="Show the task while it runs, then its result.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Submit a task, and print its id (or, with --wait or --watch, its result)."""
    gateway = client(url)
    params = object_of(params_json) | parameters_of(param) | _inputs(prompt, input_, text)
    media = {"image": image, "audio": audio}
    private_ = private is True
    params |= {name: _media(gateway, given, private_) for name, given in media.items() if given is not None}
    body: dict[str, Any] = {"kind": kind, "model": model, "params": params, "lane": lane.value}
    body |= {"metadata": metadata_of(metadata)} if metadata else {}
    body |= {"requires": _requires(requires)} if requires else {}
    body |= {"timeout_s": timeout_s} if timeout_s is not None else {}
    times = {"run_at": at, "delay_s": delay, "expires_at": expires_at}
    body |= {name: given for name, given in times.items() if given is not None}
    body |= {"depends_on": after} if after else {}
    body |= {"retry": {"max_attempts": max_attempts}} if max_attempts is not None else {}
    body |= {"private": private} if private is not None else {}
    headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
    accepted = gateway.request("POST", "/v1/tasks", body=body, headers=headers)
    if wait or watch_ or out is not None:
        raise typer.Exit(watch(gateway, accepted["task_id"], quiet=not watch_, as_json=as_json, out=out))
    render.json(accepted) if as_json else render.line(accepted["task_id"])


@app.command()
def kinds(
    kind: Annotated[str | None, typer.Argument(help="Kind whose parameters are shown.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print the kinds of tasks, or what one kind takes: each parameter with its bounds, default and meaning."""
    show_kinds(client(url), kind, as_json=as_json)


@app.command()
def get(task_id: str, as_of: AsOf = None, url: Url = None, as_json: Json = False) -> None:
    """Print what is known of a task."""
    task = client(url).get(f"/v1/tasks/{quoted(task_id)}", {"as_of": as_of})
    if as_json:
        render.json(task)
        return
    render.as_of(task)
    render.pairs([(name, value) for name, value in task.items() if name != "as_of"])


@app.command("list")
def list_(
    state: Annotated[list[str] | None, typer.Option(help="Only these states; may be repeated.")] = None,
    kind: Annotated[str | None, typer.Option(help="Only this kind.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    lane: Annotated[Lane | None, typer.Option(help="Only this lane.")] = None,
    metadata: Metadata = None,
    limit: Annotated[int, typer.Option(min=1, help="Most tasks to print.")] = 50,
    as_of: AsOf = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Print tasks, the newest first."""
    params: dict[str, Any] = {"state": ",".join(state) if state else None, "kind": kind, "model": model}
    params |= {"lane": lane.value if lane else None}
    params |= {f"metadata.{name}": value for name, value in metadata_of(metadata).items()}
    tasks = _pages(client(url), params | {"as_of": as_of}, limit, say=not as_json)
    if as_json:
        for task in tasks:
            render.json(task)
        return
    columns = ("task_id", "state", "kind", "model", "lane", "attempt", "submitted_at", "wait_ms", "run_ms")
    rows = [task | {"submitted_at": render.moment(task["submitted_at"])} for task in tasks]
    values = [[row.get(column) for column in columns] for row in rows]
    none = "No such tasks." if any(params.values()) else "No tasks yet; `bitinglip task submit` makes one."
    spare = ("attempt", "lane", "kind", "wait_ms", "run_ms")
    render.table(columns, values, fold=("model",), spare=spare, none=none)


@app.command("watch")
def watch_command(
    task_id: str,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the files of the result.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Show a task while it runs, then its result. Ends with 0 (succeeded), 1 (failed) or 5 (cancelled)."""
    raise typer.Exit(watch(client(url), quoted(task_id), quiet=False, as_json=as_json, out=out))


@app.command("replay")
def replay_command(task_id: str, url: Url = None, as_json: Json = False) -> None:
    """Run a task again with its seed, and say whether the result is the same. Ends with 0 (the same) or 1."""
    raise typer.Exit(replay(client(url), quoted(task_id), as_json=as_json))


@app.command()
def cancel(
    task_ids: TaskIds = None,
    where: Where = None,
    dry_run: DryRun = False,
    reason: Annotated[str | None, typer.Option(help="Why; it is kept in the log.")] = None,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Cancel tasks, by id or all that --where finds: one that waits ends at once, one that runs is asked to stop."""
    gateway = client(url)
    if where:
        body = bulk.conditions(where) | {"dry_run": dry_run, "reason": reason}
        raise typer.Exit(bulk.run(gateway, "/v1/tasks:cancel", body, as_json=as_json))
    for task_id in _named(task_ids, "--where"):
        answer = gateway.request("DELETE", f"/v1/tasks/{quoted(task_id)}", params={"reason": reason})
        if as_json:
            render.json(answer)
        else:
            told = "cancelled" if answer.get("state") == "cancelled" else "asked to stop"
            render.line(f"{task_id} {told}")


@app.command()
def forget(
    task_ids: TaskIds = None,
    before: Annotated[str | None, typer.Option(help="All that ended before this time.")] = None,
    key: Annotated[str | None, typer.Option(help="All that this API key asked for.")] = None,
    dry_run: DryRun = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Destroy the keys of private tasks that have ended: nobody reads what they were asked and answered any more."""
    gateway = client(url)
    if before or key:
        chosen = {name: given for name, given in {"before": before, "key": key}.items() if given is not None}
        raise typer.Exit(bulk.run(gateway, "/v1/tasks:forget", chosen | {"dry_run": dry_run}, as_json=as_json))
    for task_id in _named(task_ids, "--before or --key"):
        answer = gateway.request("POST", f"/v1/tasks/{quoted(task_id)}/forget")
        render.json(answer) if as_json else render.line(f"{task_id} forgotten")


@app.command()
def retry(
    task_ids: TaskIds = None,
    all_dead: Annotated[
        bool, typer.Option("--all-dead", help="All dead letters, or those that --where finds.")
    ] = False,
    where: Where = None,
    dry_run: DryRun = False,
    force: Annotated[bool, typer.Option("--force", help="Once more, though it was retried before.")] = False,
    url: Url = None,
    as_json: Json = False,
) -> None:
    """Ask again for tasks that ended without a result, and print the ids of the new tasks."""
    gateway = client(url)
    if all_dead or where:
        body = {"state": ["dead_lettered"]} | bulk.conditions(where or []) | {"dry_run": dry_run}
        raise typer.Exit(bulk.run(gateway, "/v1/tasks:retry", body, as_json=as_json))
    for task_id in _named(task_ids, "--all-dead"):
        params = {"force": "true"} if force else None
        answer = gateway.request("POST", f"/v1/tasks/{quoted(task_id)}/retry", params=params)
        render.json(answer) if as_json else render.line(answer["task_id"])


def _named(task_ids: list[str] | None, option: str) -> list[str]:
    if not task_ids:
        raise InvalidInput(field="TASK_ID", problem=f"name tasks, or use {option}")
    return task_ids


def _pages(gateway: Client, params: dict[str, Any], limit: int, *, say: bool) -> list[dict[str, Any]]:
    tasks: list[dict[str, Any]] = []
    cursor: str | None = None
    while len(tasks) < limit:
        page = gateway.get("/v1/tasks", params | {"limit": min(limit - len(tasks), 1000), "cursor": cursor})
        if say and cursor is None:
            render.as_of(page)
        if "as_of" in page:
            params["as_of"] = page["as_of"]["sequence"]  # the pages after it are of the same moment
        tasks += page["tasks"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    return tasks


def quoted(task_id: str) -> str:
    """Keep an id one part of the path, whatever it holds."""
    from urllib.parse import quote

    return quote(task_id, safe="")


def _media(gateway: Client, given: str, private: bool) -> str:
    """Return a media parameter: a file is uploaded (but that of a private task is sent along with it)."""
    if given.startswith(("artifact:", "task:", "data:")):
        return given
    if private:
        return data_url(Path(given.removeprefix("@")))
    return f"artifact:{upload(gateway, Path(given.removeprefix('@')))['sha256']}"


def _inputs(prompt: str | None, inputs: list[str] | None, text: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"prompt": _read(prompt)} if prompt is not None else {}
    found |= {"text": _read(text)} if text is not None else {}
    if inputs:
        texts = [_read(text) for text in inputs]
        found["input"] = texts[0] if len(texts) == 1 else texts
    return found


def parameters_of(given: list[str] | None) -> dict[str, Any]:
    """Return the parameters of a repeated NAME=VALUE."""
    return {name: _value(text) for name, text in (_split(pair, "--param") for pair in given or [])}


def metadata_of(given: list[str] | None) -> dict[str, str]:
    """Return the labels of a repeated KEY=VALUE."""
    return dict(_split(pair, "--metadata") for pair in given or [])


def _requires(given: list[str]) -> dict[str, Any]:
    pairs = [_split(pair, "--requires") for pair in given]
    labels = [value for name, value in pairs if name == "label"]
    return {name: _value(value) for name, value in pairs if name != "label"} | ({"label": labels} if labels else {})


def _split(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name:
        raise InvalidInput(field=option, problem=f"{pair!r} is not NAME=VALUE")
    return name, value


def _value(text: str) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return _read(text)


def object_of(text: str | None) -> dict[str, Any]:
    """Return a JSON object; an empty one if none is given."""
    if text is None:
        return {}
    try:
        found = orjson.loads(_read(text))
    except orjson.JSONDecodeError as error:
        raise InvalidInput(field="--params-json", problem=f"not JSON: {error}") from error
    if not isinstance(found, dict):
        raise InvalidInput(field="--params-json", problem="not a JSON object")
    return found


def _read(text: str) -> str:
    """Return a text, or what the file `@NAME` or standard input (`-`) holds."""
    if text == "-":
        return sys.stdin.read()
    if not text.startswith("@"):
        return text
    try:
        return Path(text[1:]).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(field=text, problem=str(error)) from error
