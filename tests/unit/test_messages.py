"""A golden snapshot of every message between a worker and its engine process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest
from pydantic import BaseModel

from bitinglip.events.task import Failure, Usage
from bitinglip.workers import engine
from bitinglip.workers.engine import ModelSpec, decode_from_engine, decode_to_engine, encode_frame

GOLDEN = Path(__file__).parents[1] / "golden" / "messages"
MODEL = ModelSpec(kind="text-generation", reference="demo/story", revision="sha256:0", path="/models/demo/story")
FAILURE = Failure(kind="out_of_memory", message="no room", retryable=True)
TO_ENGINE: list[BaseModel] = [
    engine.Load(model=MODEL),
    engine.Unload(model_key=MODEL.key),
    engine.Run(batch=1, model_key=MODEL.key, jobs=[engine.JobSpec(task_id="t", params={"prompt": "a"})]),
    engine.Cancel(task_id="t"),
]
FROM_ENGINE: list[BaseModel] = [
    engine.Ready(protocol=engine.PROTOCOL, pid=1),
    engine.Loading(model_key=MODEL.key, done=1, total=2),
    engine.Loaded(
        model_key=MODEL.key, load_ms=1.5, memory_bytes=2, device="cpu", dtype="float32", versions={"torch": "2"}
    ),
    engine.LoadFailed(model_key=MODEL.key, failure=FAILURE),
    engine.Unloaded(model_key=MODEL.key),
    engine.JobProgressed(task_id="t", step=1, total=9, unit="token", text="a"),
    engine.JobSucceeded(task_id="t", result={"text": "a"}, usage=Usage(input_tokens=1, output_tokens=2), run_ms=1.5),
    engine.JobFailed(task_id="t", failure=FAILURE),
    engine.JobCancelled(task_id="t"),
    engine.BatchDone(batch=1),
]


@pytest.mark.parametrize(("message", "decode"), [
    *[(message, decode_to_engine) for message in TO_ENGINE],
    *[(message, decode_from_engine) for message in FROM_ENGINE],
])  # fmt: skip
def test_a_message_is_what_it_was(message: Any, decode: Any) -> None:
    frame = encode_frame([message])
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    golden = (GOLDEN / f"{message.type}.json").read_bytes()
    assert orjson.loads(frame[4:]) == [orjson.loads(golden)]
    assert decode(b"[" + golden + b"]") == [message]


def test_every_message_has_its_snapshot() -> None:
    types = {message.type for message in [*TO_ENGINE, *FROM_ENGINE]}  # type: ignore[attr-defined]
    declared = {
        cls.model_fields["type"].default
        for cls in vars(engine).values()
        if isinstance(cls, type) and issubclass(cls, BaseModel) and "type" in cls.model_fields
    }
    assert types == declared == {path.stem for path in GOLDEN.glob("*.json")}


def test_what_is_no_message_is_refused() -> None:
    for body in (b"[]x", b"{}", b'[{"type": "explode"}]', b'[{"type": "cancel"}]'):
        with pytest.raises(ValueError, match="validation error"):
            decode_to_engine(body)
