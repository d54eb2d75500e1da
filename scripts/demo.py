"""The main job, on an embedded cluster, from submission to result: `make demo`. With --keep it stays up: `make up`.

Speaks HTTP as any application would, and runs the `bitinglip` command for the parts that a person would type.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from bitinglip.cli.client import Client
from bitinglip.settings import Settings
from scripts.tiny_models import CHAT, STORY
from scripts.tiny_pictures import CAPTIONS
from scripts.tiny_speech import HEARD, RATE, SPOKEN, tones

OUTPUT = Path("demo-output")
"""Where the picture, the sounds and the texts are written."""
STORY_MODEL = "demo/story"
HUB_MODEL = "demo-hub/tales"
EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXTS = ("A cat sleeps on the sofa.", "A kitten naps on the couch.", "The stock market fell on Monday.")
QUERY = (
    "SELECT kind, model, state, count(*) AS tasks, round(avg(wait_ms), 1) AS wait_ms, round(avg(run_ms), 1) AS run_ms, "
    "sum(input_tokens) AS tokens_in, sum(output_tokens) AS tokens_out FROM tasks GROUP BY ALL ORDER BY kind"
)
STOP_S = 60.0
SIGNED_S = 60.0
"""Patience with the notary: it signs every second here, what is two seconds old."""


def main() -> int:
    """Run the demo; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", action="store_true", help="keep the cluster running until Ctrl-C")
    keep = parser.parse_args().keep
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitinglip" / "demo-models"
    say(f"making the small models (once; kept in {cache}) …")
    started = time.monotonic()
    subprocess.run([sys.executable, "-m", "scripts.tiny_models", cache], check=True, stderr=subprocess.DEVNULL)
    say(f"  {time.monotonic() - started:.1f} s")
    return run_until_stopped(cache) if keep else run(cache)


def run_until_stopped(models: Path) -> int:
    """Keep a cluster up on the default port, with the default data directory."""
    try:
        return subprocess.run([*bitinglip("up")], env=environment(models), check=False).returncode
    except KeyboardInterrupt:
        return 0


def run(models: Path) -> int:
    """Show everything once; returns 0 if every answer was right."""
    data_dir = Path(tempfile.mkdtemp(prefix="bitinglip-demo-"))
    try:
        with hub(models / STORY_MODEL) as endpoint, cluster(models, data_dir, endpoint) as up:
            say(f"the cluster is up: gateway {up['url']}, log {up['nats_url']}, models {', '.join(up['models'])}")
            right = show(Client(Settings(), up["url"]), up["url"], up["nats_url"])
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    say("everything is stopped." if right else "something was not as it should be.")
    return 0 if right else 1


def show(gateway: Client, url: str, nats_url: str) -> bool:
    """Submit tasks of all kinds, show them, and ask the log about them."""
    say("\n1. Text, streamed as it is generated (SSE):")
    story = list(STORY)[3]
    first, text = stream_text(gateway, {"prompt": story}, story)
    right = text == STORY[story]
    question = next(iter(CHAT))
    _, text = stream_text(gateway, {"messages": [{"role": "user", "content": question}]}, f"{question} → ")
    right = right and text == CHAT[question]
    say("\n2. All that the story model knows, submitted in one go:")
    right = right and batch(gateway)
    say("\n3. Embeddings (MiniLM's real weights):")
    right = right and embeddings(gateway)
    say(f"\n4. A picture, what is to be seen in it, a word, and what is heard (files in {OUTPUT}/):")
    right = show_media(gateway, url) and right
    say("\n5. A model from a hub (a small one on this machine): found, fetched, run, and its life as the log has it:")
    right = from_hub(gateway, url) and right
    say(f"\n6. What the log says of task {first}:")
    timeline(gateway, first)
    say(f'\n7. DuckDB, over all of it: bitinglip query "{QUERY}"')
    subprocess.run([*bitinglip("query", QUERY, "--url", url)], check=True)
    say("\n8. The past: that task's life as a timeline, and the cluster as it was when the task began to run:")
    status = shown("task", "timeline", first, "--url", url)
    status |= shown("cluster", "status", "--as-of", str(begun(gateway, first)), "--url", url)
    say("\n9. A report of all of it:")
    status |= shown("report", "usage", "--url", url)
    say("\n10. The audit: is the log what was signed? And a copy of the archive in which one byte was changed?")
    return audited(gateway, url, nats_url, first) and right and not status


def stream_text(gateway: Client, params: dict[str, Any], begin: str) -> tuple[str, str]:
    """Submit a text generation and print its text as it comes; returns the task's id and the text."""
    body = {"kind": "text-generation", "model": STORY_MODEL, "params": params, "lane": "interactive"}
    task_id = gateway.request("POST", "/v1/tasks", body=body)["task_id"]
    sys.stdout.write(f"   {begin}")
    text = ""
    for event in gateway.events(f"/v1/tasks/{task_id}/events", ended=lambda event: event.type == "task.succeeded"):
        piece = event.data["data"].get("text") if event.type == "task.progressed" else None
        if piece:
            text += piece
            sys.stdout.write(piece)
            sys.stdout.flush()
    sys.stdout.write("\n")
    return task_id, text


def batch(gateway: Client) -> bool:
    """Submit all sentences at once; returns whether all answers are as taught."""
    bodies = [{"kind": "text-generation", "model": STORY_MODEL, "params": {"prompt": begin}} for begin in STORY]
    ids = [gateway.request("POST", "/v1/tasks", body=body)["task_id"] for body in bodies]
    right = True
    for task_id, (begin, end) in zip(ids, STORY.items(), strict=True):
        task = finished(gateway, task_id)
        text = task["result"]["text"]
        right = right and text == end
        say(f"   {begin}{text}   ({task['output_tokens']} tokens, {task['run_ms']:.0f} ms)")
    return right


def embeddings(gateway: Client) -> bool:
    """Embed three texts; returns whether the two that mean the same are nearer to each other."""
    body = {"kind": "embedding", "model": EMBEDDING_MODEL, "params": {"input": list(TEXTS)}}
    task = gateway.request("POST", "/v1/tasks", body=body, headers={"Prefer": "wait=60"})
    vectors = task["result"]["embeddings"]
    same, other = (sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors[1:])
    say(f"   {TEXTS[0]!r} and {TEXTS[1]!r}: {same:.3f}")
    say(f"   {TEXTS[0]!r} and {TEXTS[2]!r}: {other:.3f}")
    return same > 0.5 > other


def show_media(gateway: Client, url: str) -> bool:
    """Draw, caption, speak and write down; returns whether each was right. Captions what the task before it drew."""
    OUTPUT.mkdir(exist_ok=True)
    right = True
    for colour in ("blue", "red"):
        # So small a painter draws a pale picture for some seeds (445524412 is one), which is of no colour.
        params = {"prompt": f"a {colour} picture", "steps": 12, "guidance": 2, "seed": 1}
        drawn = submit(gateway, "text-to-image", "demo/painter", **params)
        seen = submit(gateway, "image-to-text", "demo/seer", image=f"task:{drawn['task_id']}")
        caption = seen["result"]["text"]
        picture = save(url, drawn, f"{colour}.png")
        say(f"   a {colour} picture → {picture}, seed {drawn['result']['images'][0]['seed']} → {caption!r}")
        right = right and caption == CAPTIONS[colour]
    for word, steps in SPOKEN.items():
        spoken = submit(gateway, "text-to-speech", "demo/speaker", text=word)
        sound = spoken["result"]["audio"]
        say(f"   {word!r} → {save(url, spoken, f'{word}.wav')}, {sound['seconds']} s")
        right = right and abs(sound["seconds"] - steps * 0.032) < 0.1
    recording = OUTPUT / "tones.wav"
    write_tones(recording)
    heard = submit(gateway, "speech-to-text", "demo/listener", audio=f"artifact:{sent(url, recording)}")
    say(f"   {recording} → {heard['result']['text']!r}")
    right = right and heard["result"]["text"] == " ".join(text.strip() for _, text in HEARD.values())
    (OUTPUT / "texts.txt").write_text(f"{caption}\n{heard['result']['text']}\n", "utf-8")
    return right


def from_hub(gateway: Client, url: str) -> bool:
    """Have a node fetch a model while the cluster runs, as a person would; returns whether it answers right."""
    for words in (
        ("search", "tales"),
        ("fit", HUB_MODEL),
        ("download", HUB_MODEL, "--alias", "tales"),
        ("list",),
    ):
        say(f"   $ bitinglip model {' '.join(words)}")
        subprocess.run([*bitinglip("model", *words, "--url", url)], check=True)
    begin, end = next(iter(STORY.items()))
    told = submit(gateway, "text-generation", "tales", prompt=begin)["result"]["text"]
    say(f"   tales: {begin}{told}\n   $ bitinglip model events {HUB_MODEL} --so-far")
    subprocess.run([*bitinglip("model", "events", HUB_MODEL, "--so-far", "--url", url)], check=True)
    return told == end


def submit(gateway: Client, kind: str, model: str, **params: Any) -> dict[str, Any]:
    """Run a task to its end."""
    body = {"kind": kind, "model": model, "params": params}
    return finished(gateway, gateway.request("POST", "/v1/tasks", body=body)["task_id"])


def save(url: str, task: dict[str, Any], name: str) -> Path:
    """Fetch the file of a task's result, as a person would."""
    path = OUTPUT / name
    (part,) = task["result"].get("images") or [task["result"]["audio"]]
    command = [*bitinglip("artifact", "get", part["sha256"], "--out", str(path), "--url", url)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return path


def sent(url: str, path: Path) -> str:
    """Upload a file, as a person would; returns its digest."""
    command = [*bitinglip("artifact", "put", str(path), "--json", "--url", url)]
    return str(orjson.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["sha256"])


def write_tones(path: Path) -> None:
    """Write a recording of the tones that the listener knows, one in each of its windows."""
    import soundfile

    soundfile.write(path, tones(*(part for hertz in HEARD for part in ((hertz, 1.5), (0.0, 0.5)))), RATE)


def timeline(gateway: Client, task_id: str) -> None:
    """Print a task's events, with the time since the first one."""
    from datetime import datetime

    events = list(gateway.events(f"/v1/tasks/{task_id}/events"))
    begin = datetime.fromisoformat(events[0].data["time"])
    for event in events:
        after_ms = (datetime.fromisoformat(event.data["time"]) - begin).total_seconds() * 1000
        data = {name: value for name, value in event.data["data"].items() if name in SHOWN and value not in (None, {})}
        say(f"   {event.id:>5}  +{after_ms:8.1f} ms  {event.type:<16} {orjson.dumps(data).decode()}")


def begun(gateway: Client, task_id: str) -> int:
    """Return the sequence of the event with which a task began to run."""
    events = gateway.events(f"/v1/tasks/{task_id}/events")
    return next(int(event.id or 0) for event in events if event.type == "task.assigned")


def audited(gateway: Client, url: str, nats_url: str, task_id: str) -> bool:
    """Verify the log and a copy of its archive, as a person would; returns whether a changed byte was found."""
    deadline = time.monotonic() + SIGNED_S
    while gateway.get(f"/v1/tasks/{task_id}/proof")["uncovered"]:
        if time.monotonic() > deadline:
            say(f"   nothing was signed within {SIGNED_S:g} s")
            return False
        time.sleep(0.2)
    copy = OUTPUT / "archive"
    shutil.rmtree(copy, ignore_errors=True)
    right = shown("audit", "verify", "--nats-url", nats_url) == 0
    shown("events", "archive", "--now", "--url", url)
    shown("events", "archive", "--output", str(copy), "--url", url)
    right = shown("audit", "verify", "--archive", str(copy), "--nats-url", nats_url) == 0 and right
    say(f"   one byte is changed: {flip_a_byte(copy)}")
    return shown("audit", "verify", "--archive", str(copy), "--nats-url", nats_url) == 1 and right


def flip_a_byte(archive: Path) -> str:
    """Change one byte of one event in a copy of an archive; says where."""
    import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]

    path = min(archive.glob("TASKS/**/*.parquet"))
    table: Any = parquet.read_table(path)
    row, column = table.num_rows // 2, table.schema.get_field_index("payload")
    payloads: list[bytes] = table.column(column).to_pylist()
    before = payloads[row]
    payloads[row] = before[:-2] + bytes([before[-2] ^ 1]) + before[-1:]
    parquet.write_table(table.set_column(column, table.schema.field(column), [payloads]), path, compression="zstd")
    return f"TASKS:{table.column('sequence')[row].as_py()} in {path}"


def shown(*words: str) -> int:
    """Run a command as a person would, and say which; returns its exit code."""
    shorter = " ".join(word for word in words if not word.startswith(("http://", "nats://", "--url", "--nats-url")))
    say(f"   $ bitinglip {shorter}")
    return subprocess.run([*bitinglip(*words)], check=False).returncode


SHOWN = (
    "kind",
    "model",
    "lane",
    "attempt",
    "worker_id",
    "device",
    "wait_ms",
    "step",
    "text",
    "result",
    "failure",
    "load_ms",
)


def finished(gateway: Client, task_id: str) -> dict[str, Any]:
    """Wait for a task's end by its events, and return it."""
    for _ in gateway.events(f"/v1/tasks/{task_id}/events"):
        pass
    return gateway.get(f"/v1/tasks/{task_id}")


@contextmanager
def hub(folder: Path) -> Iterator[str]:
    """Run a small hub that has one model; yields its address."""
    command = [sys.executable, "-m", "tests.support.modelhub", f"{HUB_MODEL}={folder}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        yield orjson.loads(process.stdout.readline())["endpoint"]
    finally:
        process.terminate()
        process.wait(STOP_S)


@contextmanager
def cluster(models: Path, data_dir: Path, endpoint: str) -> Iterator[dict[str, Any]]:
    """Run `bitinglip up` on free ports; yields what it says when it is up."""
    command = [*bitinglip("up", "--port", "0", "--data-dir", str(data_dir), "--json")]
    # In a session of its own: a Ctrl-C is ours to hear, and then it is asked to stop.
    ours = {"BITINGLIP_AUDIT_EVERY_S": "1"}
    ours |= {"BITINGLIP_MODELS_ENDPOINT": endpoint, "BITINGLIP_MODELS_HUB_CACHE": str(data_dir / "hub")}
    env = environment(models) | ours | {"HF_TOKEN": ""}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=env, start_new_session=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait())
        yield orjson.loads(line)
    finally:
        process.terminate()
        process.wait(STOP_S)


def environment(models: Path) -> dict[str, str]:
    """Return the environment of the cluster's processes."""
    return {
        **os.environ,
        "BITINGLIP_MODELS_DIR": str(models),
        "BITINGLIP_WORKER_MAX_BATCH": "16",
        "BITINGLIP_WORKER_MAX_LOADED": "6",
    }


def bitinglip(*arguments: str) -> Iterator[str]:
    """Yield the command line of this environment's `bitinglip`."""
    yield from (sys.executable, "-m", "bitinglip.cli.main", *arguments)


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
