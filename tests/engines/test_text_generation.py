"""Text generation on a model that knows its sentences by heart: right answers, not just answers."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path

import pytest

from bitinglip.workers.engine import (
    JobCancelled,
    JobFailed,
    JobProgressed,
    JobSpec,
    JobSucceeded,
    LoadFailed,
    ModelSpec,
)
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_models import CHAT, STORY
from tests.engines.support import load, run

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEGIN = "Once upon a time"
END = STORY[BEGIN]


async def test_it_says_what_it_was_taught_all_in_one_batch(shared_host: EngineHost, story: ModelSpec) -> None:
    said = await run(shared_host, story, *[{"prompt": begin} for begin in STORY])
    assert [each.result["text"] for each in said] == list(STORY.values())
    assert {each.result["finish_reason"] for each in said} == {"stop"}


async def test_the_streamed_pieces_are_the_text(shared_host: EngineHost, story: ModelSpec) -> None:
    said = await run(shared_host, story, *[{"prompt": begin, "stop": ["z", "🦉 un"]} for begin in STORY])
    assert [each.text for each in said] == [each.result["text"] for each in said]
    assert any(len(each.ticks) > 1 for each in said)


async def test_no_character_is_ever_shown_in_pieces(shared_host: EngineHost, story: ModelSpec) -> None:
    begin = next(begin for begin, end in STORY.items() if "🦉" in end)
    whole = len((await run(shared_host, story, {"prompt": begin}))[0].ticks)
    said = await run(shared_host, story, *[{"prompt": begin, "max_tokens": most} for most in range(1, 20)])
    assert whole
    for each in said:
        assert "\ufffd" not in each.text
        assert STORY[begin].startswith(each.result["text"])


async def test_a_chat_goes_through_the_models_template(shared_host: EngineHost, story: ModelSpec) -> None:
    said = await run(shared_host, story, *[{"messages": [{"role": "user", "content": ask}]} for ask in CHAT])
    assert [each.result["text"] for each in said] == list(CHAT.values())


async def test_a_model_without_a_template_says_what_to_do(shared_host: EngineHost, gpt2: ModelSpec) -> None:
    (said,) = await run(shared_host, gpt2, {"messages": [{"role": "user", "content": "hi"}]})
    assert isinstance(said.answer, JobFailed)
    assert (said.answer.failure.kind, said.answer.failure.retryable) == ("bad_input", False)
    assert "prompt" in said.answer.failure.message


@pytest.mark.parametrize("stop", ["card", "graphics card", " dreamed of", "c", "work."])
async def test_a_stop_text_ends_the_answer_before_it(shared_host: EngineHost, story: ModelSpec, stop: str) -> None:
    (said,) = await run(shared_host, story, {"prompt": BEGIN, "stop": [stop]})
    assert said.result == {"text": END[: END.index(stop)], "finish_reason": "stop", "seed": None}
    assert said.text == said.result["text"], "a piece of the stop text was shown"


async def test_tokens_are_bounded_and_counted(shared_host: EngineHost, story: ModelSpec) -> None:
    short, whole = await run(shared_host, story, {"prompt": BEGIN, "max_tokens": 3}, {"prompt": BEGIN})
    assert short.result["finish_reason"] == "length"
    assert END.startswith(short.result["text"])
    assert isinstance(short.answer, JobSucceeded)
    assert isinstance(whole.answer, JobSucceeded)
    assert short.answer.usage.output_tokens == 3
    assert whole.answer.usage.input_tokens == short.answer.usage.input_tokens > 0


async def test_a_seed_gives_the_same_text_alone_and_in_company(shared_host: EngineHost, gpt2: ModelSpec) -> None:
    sampled = {"prompt": "The log", "temperature": 1.3, "top_p": 0.9, "seed": 42, "max_tokens": 24}
    (alone,) = await run(shared_host, gpt2, sampled)
    company = await run(
        shared_host,
        gpt2,
        {"prompt": "Something quite different and longer", "max_tokens": 40, "temperature": 0.7, "seed": 1},
        sampled,
        {"prompt": "x", "max_tokens": 2},
    )
    (other,) = await run(shared_host, gpt2, {**sampled, "seed": 43})
    assert company[1].result == alone.result
    assert other.result["text"] != alone.result["text"]


async def test_a_seed_that_was_drawn_is_told_and_repeats(shared_host: EngineHost, gpt2: ModelSpec) -> None:
    params = {"prompt": "The log", "temperature": 1.0, "max_tokens": 16}
    (drawn,) = await run(shared_host, gpt2, params)
    (again,) = await run(shared_host, gpt2, {**params, "seed": drawn.result["seed"]})
    assert again.result == drawn.result


async def test_too_long_a_prompt_fails_alone(shared_host: EngineHost, story: ModelSpec) -> None:
    long, good = await run(shared_host, story, {"prompt": "word " * 2000}, {"prompt": BEGIN})
    assert isinstance(long.answer, JobFailed)
    assert long.answer.failure.kind == "bad_input"
    assert "256" in long.answer.failure.message
    assert good.result["text"] == END


async def test_more_rows_than_fit_one_batch_are_all_answered(shared_host: EngineHost, story: ModelSpec) -> None:
    begins = list(STORY) * 12
    said = await run(shared_host, story, *[{"prompt": begin} for begin in begins])
    assert [each.result["text"] for each in said] == [STORY[begin] for begin in begins]


async def test_a_cancel_stops_a_row_and_not_its_neighbour(shared_host: EngineHost, gpt2: ModelSpec) -> None:
    key = await load(shared_host, gpt2)
    endless = {"prompt": "The log", "max_tokens": 100, "temperature": 1.0, "seed": 3}
    jobs = [JobSpec(task_id="a", params=endless), JobSpec(task_id="b", params=endless)]
    answers: dict[str, object] = {}
    async for messages in shared_host.run(key, jobs):
        shared_host.cancel("a")
        answers |= {each.task_id: each for each in messages if not isinstance(each, JobProgressed)}
    assert isinstance(answers["a"], JobCancelled | JobSucceeded)
    assert isinstance(answers["b"], JobSucceeded)


async def test_a_new_job_joins_a_running_batch_and_is_answered_before_it_ends(
    shared_host: EngineHost, gpt2: ModelSpec
) -> None:
    key = await load(shared_host, gpt2)
    long = {"prompt": "The log", "max_tokens": 120, "temperature": 1.5, "stop": ["never said"]}
    order: list[str] = []

    async def hear(jobs: list[JobSpec]) -> None:
        async for messages in shared_host.run(key, jobs):
            order.extend(message.task_id for message in messages if isinstance(message, JobSucceeded))
            begun.set()

    begun = asyncio.Event()
    batch = asyncio.create_task(hear([JobSpec(task_id=f"long-{n}", params=long | {"seed": n}) for n in range(24)]))
    await begun.wait()
    await hear([JobSpec(task_id="short", params={"prompt": "The log", "max_tokens": 2})])
    assert not batch.done(), "its run was done only with the batch"
    await batch
    assert order.index("short") < len(order) - 1
    assert len(order) == len(set(order)) == 25


async def test_what_joins_and_what_leaves_changes_nobodys_text(shared_host: EngineHost, gpt2: ModelSpec) -> None:
    key = await load(shared_host, gpt2)
    asked = [
        {"prompt": "The log " * (n % 5 + 1), "max_tokens": 10 + 17 * n % 90, "temperature": 0.5 * (n % 3), "seed": n}
        for n in range(18)
    ]
    alone = [(await run(shared_host, gpt2, params))[0].result for params in asked]
    results: dict[int, object] = {}

    async def hear(first: int) -> None:
        jobs = [JobSpec(task_id=str(n), params=asked[n]) for n in range(first, first + 6)]
        async for messages in shared_host.run(key, jobs):
            begun.set()
            results.update({int(each.task_id): each.result for each in messages if isinstance(each, JobSucceeded)})

    begun = asyncio.Event()
    lots = [asyncio.create_task(hear(0))]
    await begun.wait()
    lots += [asyncio.create_task(hear(first)) for first in (6, 12)]
    await asyncio.gather(*lots)
    assert [results[n] for n in range(18)] == alone


async def test_deterministic_jobs_run_alone_and_in_turn(shared_host: EngineHost, story: ModelSpec) -> None:
    said = await run(shared_host, story, *[{"prompt": begin, "deterministic": True} for begin in STORY])
    assert [each.result["text"] for each in said] == list(STORY.values())


async def test_without_the_memory_for_all_fewer_go_on_and_nothing_is_lost(story: ModelSpec) -> None:
    """In a process whose model has room for three rows, and for no row with a long prompt."""
    code = f"""
import json, torch
from bitinglip.tasks.parameters import TextGenerationParameters
from bitinglip.workers.engine import Job, ModelSpec, Placement
from bitinglip.workers.engines import text_generation as engine
said = {{}}
class Sink:
    def progress(self, *_): pass
    def succeed(self, task_id, result, usage): said[task_id] = result["text"]
    def fail(self, task_id, failure): said[task_id] = failure.kind
model = engine.load(ModelSpec(kind="text-generation", reference="s", path={story.path!r}), Placement("cpu"), print)
forward = model._weights.model.forward
def small(**inputs):
    if inputs["input_ids"].shape[0] > 3 or inputs["input_ids"].shape[1] > 60:
        raise torch.OutOfMemoryError("no room")
    return forward(**inputs)
class Small:
    device = torch.device("cpu")
    def __call__(self, **inputs): return small(**inputs)
model._stepper._model = Small()
begins = {list(STORY)!r}
jobs = [Job(str(n), TextGenerationParameters(prompt=begin)) for n, begin in enumerate([*begins, "word " * 80, *begins])]
model.run(jobs, Sink())
print(json.dumps([said[str(n)] for n in range(len(jobs))]))
"""
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert json.loads(out.splitlines()[-1]) == [*STORY.values(), "out_of_memory", *STORY.values()]


async def test_what_cannot_be_loaded_says_why(shared_host: EngineHost, story: ModelSpec, tmp_path: Path) -> None:
    pickled, cut = tmp_path / "pickled", tmp_path / "cut"
    for folder in (pickled, cut):
        shutil.copytree(story.path or "", folder)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    weights = cut / "model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:1000])
    for path, told in ((pickled, "safetensors"), (cut, ""), (tmp_path / "nothing", "")):
        answer = await shared_host.load(ModelSpec(kind="text-generation", reference=path.name, path=str(path)))
        assert isinstance(answer, LoadFailed)
        assert answer.failure.kind == "load_failed"
        assert told in answer.failure.message
    (said,) = await run(shared_host, story, {"prompt": BEGIN})
    assert said.result["text"] == END
