"""Text generation on a vLLM server, by one that stands in for it and runs already."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from bitinglip.settings import Worker
from bitinglip.workers.engine import JobAnswer, JobCancelled, JobProgressed, JobSpec, JobSucceeded, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from tests.engines.support import load, run
from tests.engines.vllm_support import TEXT, WORDS, Running, failure_of, start_standin
from tests.support.standin_vllm import CONTEXT_TOKENS, ODD_WORDS, VERSION, WHOLE

pytestmark = pytest.mark.asyncio(loop_scope="module")

THOUGHT = "thought1 thought2 thought3 "


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server that runs already."""
    running = start_standin(tmp_path_factory.mktemp("standin"), "org/big", "org/other")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def joined(standin: Running) -> ModelSpec:
    """A model on the server that runs."""
    return ModelSpec(kind="text-generation", reference="org/big", vllm=f"{standin.url}/v1/")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_host() -> AsyncIterator[EngineHost]:
    """An engine process that joins the server that runs."""
    host = EngineHost(Worker(), "cpu")
    await host.start()
    yield host
    await host.stop()


# --- what it says -----------------------------------------------------------------------------------------------------


async def test_a_joined_server_answers(shared_host: EngineHost, joined: ModelSpec) -> None:
    (said,) = await run(shared_host, joined, {"prompt": "say it"})
    assert said.result == {"text": TEXT, "finish_reason": "stop", "seed": None}
    assert said.text == TEXT
    assert isinstance(said.answer, JobSucceeded)
    assert (said.answer.usage.input_tokens, said.answer.usage.output_tokens) == (2, WHOLE)
    loaded = shared_host.loaded[joined.key]
    assert loaded.device == (joined.vllm or "").removesuffix("/v1/")
    assert loaded.versions == {"vllm": VERSION}


async def test_pieces_are_told_as_they_come(shared_host: EngineHost, joined: ModelSpec) -> None:
    key = await load(shared_host, joined)
    said: list[JobProgressed | JobAnswer] = []
    async for messages in shared_host.run(key, [JobSpec(task_id="a", params={"prompt": "forever"})]):
        said += messages
        shared_host.cancel("a")  # else the server would say no more than this
    tick, answer = said
    assert isinstance(tick, JobProgressed)
    assert (tick.step, tick.total, tick.unit, tick.text) == (1, 256, "token", WORDS[0])
    assert isinstance(answer, JobCancelled)


async def test_a_chat_is_answered(shared_host: EngineHost, joined: ModelSpec, standin: Running) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "chat with me"}]
    (said,) = await run(shared_host, joined, {"messages": messages, "max_tokens": 32})
    assert said.result == {"text": TEXT, "finish_reason": "stop", "seed": None}
    assert messages in [each.get("messages") for each in standin.tell()["asked"]]


@pytest.mark.parametrize("switch", ["think", "thought"])
async def test_what_it_thinks_is_kept_apart(shared_host: EngineHost, joined: ModelSpec, switch: str) -> None:
    (said,) = await run(shared_host, joined, {"messages": [{"role": "user", "content": switch}], "max_tokens": 32})
    assert said.result == {"text": TEXT, "finish_reason": "stop", "seed": None, "reasoning": THOUGHT}
    assert "".join(tick.reasoning or "" for tick in said.ticks) == THOUGHT
    assert said.text == TEXT


async def test_a_text_may_have_ends_of_lines_of_every_sort(shared_host: EngineHost, joined: ModelSpec) -> None:
    (said,) = await run(shared_host, joined, {"prompt": "odd", "max_tokens": 32})
    assert said.result["text"] == said.text == "".join(ODD_WORDS)


async def test_parameters_decide_and_all_are_passed_on(
    shared_host: EngineHost, joined: ModelSpec, standin: Running
) -> None:
    params = {"prompt": "pass on", "max_tokens": 7, "temperature": 0.7, "top_p": 0.9, "seed": 3, "stop": ["a", "b"]}
    await run(shared_host, joined, params)
    assert standin.asked("pass on") == {
        **params,
        "model": "org/big",
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


async def test_tokens_are_bounded_and_stop_texts_end(shared_host: EngineHost, joined: ModelSpec) -> None:
    short, stopped, at_once = await run(
        shared_host,
        joined,
        {"prompt": "say", "max_tokens": 3},
        {"prompt": "say", "stop": ["rd5", "word7"]},
        {"prompt": "say", "stop": ["word1"]},
    )
    assert short.result == {"text": "".join(WORDS[:3]), "finish_reason": "length", "seed": None}
    assert isinstance(short.answer, JobSucceeded)
    assert short.answer.usage.output_tokens == 3
    assert stopped.result == {"text": TEXT[: TEXT.index("rd5")], "finish_reason": "stop", "seed": None}
    assert at_once.result == {"text": "", "finish_reason": "stop", "seed": None}


async def test_a_seed_that_was_drawn_is_told_and_repeats(shared_host: EngineHost, joined: ModelSpec) -> None:
    params = {"prompt": "say", "temperature": 0.8}
    drawn, other = await run(shared_host, joined, params, params)
    assert drawn.result["text"] != other.result["text"]
    (again,) = await run(shared_host, joined, {**params, "seed": drawn.result["seed"]})
    assert again.result == drawn.result


async def test_a_seed_that_was_given_is_told(shared_host: EngineHost, joined: ModelSpec) -> None:
    (said,) = await run(shared_host, joined, {"prompt": "say", "seed": 2**63 - 1})
    assert said.result["seed"] == 2**63 - 1


async def test_an_answer_ends_where_the_context_does(shared_host: EngineHost, joined: ModelSpec) -> None:
    prompt = "word " * (CONTEXT_TOKENS - 3)
    long, chat, too_long = await run(
        shared_host,
        joined,
        {"prompt": prompt, "max_tokens": 1000},
        {"messages": [{"role": "user", "content": prompt}], "max_tokens": 1000},
        {"prompt": "word " * CONTEXT_TOKENS},
    )
    for said in (long, chat):
        assert said.result == {"text": "".join(WORDS[:3]), "finish_reason": "length", "seed": None}
        assert {tick.total for tick in said.ticks} == {3}
    assert failure_of(too_long) == ("bad_input", False, "This model's maximum context length is 512 tokens.")


# --- many at a time ---------------------------------------------------------------------------------------------------


async def test_all_jobs_are_asked_at_once(shared_host: EngineHost, joined: ModelSpec, standin: Running) -> None:
    many = 130
    said = await run(shared_host, joined, *[{"prompt": f"meet {many}", "max_tokens": 8} for _ in range(many)])
    assert [each.result["text"] for each in said] == [TEXT] * many
    assert standin.tell()["most_running"] >= many


async def test_a_job_joins_those_that_run_and_ends_before_them(
    shared_host: EngineHost, joined: ModelSpec, standin: Running
) -> None:
    key = await load(shared_host, joined)
    ended: list[str] = []

    async def ask(prompt: str) -> None:
        async for messages in shared_host.run(key, [JobSpec(task_id=prompt, params={"prompt": prompt})]):
            ended.extend(message.task_id for message in messages if isinstance(message, JobSucceeded))
            if prompt == "hold" and not ended:
                await ask("say")
                standin.release()

    await ask("hold")
    assert ended == ["say", "hold"]


async def test_a_deterministic_job_is_asked_alone(shared_host: EngineHost, joined: ModelSpec) -> None:
    said = await run(
        shared_host, joined, {"prompt": "say", "deterministic": True}, {"prompt": "say"}, {"prompt": "say more"}
    )
    assert [each.result["text"] for each in said] == [TEXT] * 3


# --- cancel -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("switch", ["forever", "deaf"])
async def test_a_cancel_leaves_the_server_at_once(
    shared_host: EngineHost, joined: ModelSpec, standin: Running, switch: str, eventually: Callable[..., Any]
) -> None:
    key, prompt = await load(shared_host, joined), f"{switch} and a day"
    jobs = [JobSpec(task_id="a", params={"prompt": prompt}), JobSpec(task_id="b", params={"prompt": "say"})]
    answers: dict[str, Any] = {}
    cancelled_at = 0.0
    loop = asyncio.get_running_loop()
    async for messages in shared_host.run(key, jobs):
        answers |= {each.task_id: (each, loop.time()) for each in messages if not isinstance(each, JobProgressed)}
        if "b" in answers and not cancelled_at:
            await eventually(lambda: standin.asked(prompt))
            cancelled_at = loop.time()
            shared_host.cancel("a")
    assert answers["b"][0].result["text"] == TEXT
    answer, at = answers["a"]
    assert isinstance(answer, JobCancelled)
    assert at - cancelled_at < 1.0
    await eventually(lambda: prompt in standin.tell()["left"])


# --- failures ---------------------------------------------------------------------------------------------------------


async def test_what_the_server_refuses_is_bad_input(shared_host: EngineHost, joined: ModelSpec) -> None:
    refused, good = await run(shared_host, joined, {"prompt": "refuse"}, {"prompt": "say"})
    assert failure_of(refused) == ("bad_input", False, "It was asked to refuse.")
    assert good.result["text"] == TEXT


@pytest.mark.parametrize(
    ("switch", "says"),
    [
        ("fail", "HTTP 500.*asked to fail"),
        ("stumble", "HTTP 500.*asked to stumble"),
        ("cut", "was lost.*RemoteProtocolError"),
        ("abort", r"early \(abort\)"),
    ],
)
async def test_a_failure_of_the_server_is_tried_again(
    shared_host: EngineHost, joined: ModelSpec, switch: str, says: str
) -> None:
    failed, good = await run(shared_host, joined, {"prompt": switch}, {"prompt": "say"})
    kind, retryable, message = failure_of(failed)
    assert (kind, retryable) == ("engine_error", True)
    assert re.search(says, message)
    assert good.result["text"] == TEXT


async def test_a_joined_server_that_is_lost_may_come_back(shared_host: EngineHost, tmp_path: Path) -> None:
    running = start_standin(tmp_path, "org/lost")
    model = ModelSpec(kind="text-generation", reference="org/lost", vllm=running.url)
    said = await run(shared_host, model, {"prompt": "crash"}, {"prompt": "forever"})
    later = await run(shared_host, model, {"prompt": "say"})
    running.stop()
    for each in (*said, *later):
        kind, retryable, message = failure_of(each)
        assert (kind, retryable) == ("engine_error", True)
        assert running.url in message
    assert shared_host.alive


async def test_the_only_model_of_a_server_is_taken_whatever_its_name(shared_host: EngineHost, tmp_path: Path) -> None:
    running = start_standin(tmp_path, "/some/folder")
    model = ModelSpec(kind="text-generation", reference="org/mine", vllm=running.url)
    (said,) = await run(shared_host, model, {"prompt": "say"})
    running.stop()
    assert said.result["text"] == TEXT
