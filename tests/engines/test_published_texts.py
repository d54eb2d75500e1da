"""The language models that are to be served first, in their published layouts: each says what it was taught."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from bitinglip.workers.engine import JobSucceeded, LoadFailed, ModelSpec
from bitinglip.workers.enginehost import EngineHost
from scripts.tiny_chats import LLAMA_CHAT, LLAMA_TEXT, R1_BEGIN, R1_CHAT, R1_OLDER_TEMPLATE, llama_prompt
from scripts.tiny_texts import DIALOGUE, GPT2_TEXT, UNHEARD
from tests.engines.support import Said, run
from tests.support.models import model_folder

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def published_gpt2(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Gpt2, in small."""
    return _spec("openai-community/gpt2", model_folder(tmp_path_factory, "published-gpt2"))


@pytest.fixture(scope="module")
def dialogpt(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """DialoGPT-small, smaller."""
    return _spec("microsoft/DialoGPT-small", model_folder(tmp_path_factory, "dialogpt"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """Llama-3.1-8B-Instruct, in small."""
    return _spec("meta-llama/Llama-3.1-8B-Instruct", model_folder(tmp_path_factory, "llama"))


@pytest.fixture(scope="module")
def r1(tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """DeepSeek-R1-Distill-Qwen-32B, in small."""
    return _spec("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", model_folder(tmp_path_factory, "r1"))


@pytest.fixture(scope="module")
def older_r1(r1: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The same with its first template, which leaves it to the model to begin a thought."""
    folder = tmp_path_factory.mktemp("models") / "older-r1"
    shutil.copytree(r1.path or "", folder)
    _change(folder / "tokenizer_config.json", chat_template=R1_OLDER_TEMPLATE)
    return _spec("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B-older", folder)


def _spec(reference: str, path: Path, **more: Any) -> ModelSpec:
    return ModelSpec(kind="text-generation", reference=reference, path=str(path), **more)


def _change(file: Path, **settings: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | settings), "utf-8")


def talk(*said: str) -> dict[str, Any]:
    """Return the parameters that ask for the next turn of a conversation."""
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[turn % 2], "content": content} for turn, content in enumerate(said)]}


def outcome(said: Said) -> tuple[str, str]:
    """Return a result's text, and why it ended."""
    return said.result["text"], said.result["finish_reason"]


@pytest.fixture(scope="module")
def windowed_r1(r1: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> ModelSpec:
    """The same with a sliding window, which makes it run in static batches."""
    folder = tmp_path_factory.mktemp("models") / "windowed-r1"
    shutil.copytree(r1.path or "", folder)
    _change(folder / "config.json", use_sliding_window=True, max_window_layers=0)
    return _spec("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B-windowed", folder)


# --- gpt2 and DialoGPT ------------------------------------------------------------------------------------------------


async def test_gpt2_goes_on_with_a_prompt(shared_host: EngineHost, published_gpt2: ModelSpec) -> None:
    begin, end = GPT2_TEXT
    middle = end.index(" fit")
    whole, short = await run(shared_host, published_gpt2, {"prompt": begin}, {"prompt": begin + end[:middle]})
    assert [outcome(whole), outcome(short)] == [(end, "stop"), (end[middle:], "stop")]
    assert whole.text == end


async def test_dialogpt_answers_a_dialogue_of_two_turns(shared_host: EngineHost, dialogpt: ModelSpec) -> None:
    (ask, answer), (further, reply) = DIALOGUE
    said = await run(shared_host, dialogpt, talk(ask), talk(ask, answer, further), talk(further))
    assert [outcome(each) for each in said] == [(answer, "stop"), (reply, "stop"), (UNHEARD, "stop")]


async def test_dialogpt_as_a_pickle_is_loaded_only_if_it_is_trusted(
    shared_host: EngineHost, dialogpt: ModelSpec, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(dialogpt.path or "", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    refused = await shared_host.load(_spec("pickled", folder))
    assert isinstance(refused, LoadFailed)
    assert "trust_pickles" in refused.failure.message
    (ask, answer), _ = DIALOGUE
    (said,) = await run(shared_host, _spec("trusted", folder, trust_pickles=True), talk(ask))
    assert outcome(said) == (answer, "stop")


# --- Llama ------------------------------------------------------------------------------------------------------------


async def test_llama_answers_and_goes_on_and_each_of_its_end_tokens_ends_it(
    shared_host: EngineHost, llama: ModelSpec
) -> None:
    begin, end = LLAMA_TEXT
    said = await run(shared_host, llama, {"prompt": begin}, *map(talk, LLAMA_CHAT))
    assert [outcome(each) for each in said] == [(text, "stop") for text in (end, *LLAMA_CHAT.values())]


async def test_llamas_base_has_no_template_and_says_so(
    shared_host: EngineHost, llama: ModelSpec, tmp_path: Path
) -> None:
    folder = tmp_path / "base"
    shutil.copytree(llama.path or "", folder)
    _change(folder / "tokenizer_config.json", chat_template=None, eos_token="<|end_of_text|>")
    chat, text = await run(shared_host, _spec("base", folder), talk("Who?"), {"prompt": LLAMA_TEXT[0]})
    assert chat.answer.type == "failed"
    assert outcome(text) == (LLAMA_TEXT[1], "stop")


# --- DeepSeek-R1 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["r1", "older_r1", "windowed_r1"])
async def test_r1_thinks_and_answers(shared_host: EngineHost, request: pytest.FixtureRequest, name: str) -> None:
    (first, further), (one, other) = R1_CHAT, R1_CHAT.values()
    earlier = f"<think>\n{one[0]}\n</think>\n\n{one[1]}"  # the template leaves the thought out
    asked = talk(first), talk(first, one[1], further), talk(first, earlier.replace("\n\n**", "**"), further)
    said = await run(shared_host, request.getfixturevalue(name), *asked)
    assert [(each.result["reasoning"], *outcome(each)) for each in said] == [
        (*one, "stop"),
        (*other, "stop"),
        (*other, "stop"),
    ]
    assert [(each.reasoning, each.text) for each in said] == [one, other, other]


@pytest.mark.parametrize("name", ["r1", "older_r1", "windowed_r1"])
async def test_r1_cut_off_anywhere_shows_what_there_is(
    shared_host: EngineHost, request: pytest.FixtureRequest, name: str
) -> None:
    ask, (thought, answer) = next(iter(R1_CHAT.items()))
    said = await run(shared_host, request.getfixturevalue(name), *[talk(ask) | {"max_tokens": n} for n in range(1, 60)])
    for each in said:
        text, reasoning = each.result["text"], each.result.get("reasoning", "")
        assert thought.startswith(reasoning)
        assert answer.startswith(text)
        assert not text or reasoning == thought
        assert (each.reasoning, each.text) == (reasoning, text)
    assert [each.result["finish_reason"] for each in (said[0], said[-1])] == ["length", "stop"]
    assert said[0].result["text"] == ""
    assert any(each.result.get("reasoning") and not each.result["text"] for each in said)


async def test_r1s_stop_texts_are_looked_for_in_the_answer_alone(shared_host: EngineHost, r1: ModelSpec) -> None:
    ask, (thought, answer) = next(iter(R1_CHAT.items()))
    said = await run(shared_host, r1, *[talk(ask) | {"stop": [stop]} for stop in ("\n\n", "four", "is")])
    ends = ["**Four.**", answer, answer[: answer.index("is")]]
    assert [(each.result["reasoning"], *outcome(each)) for each in said] == [(thought, end, "stop") for end in ends]
    assert [each.text for each in said] == ends


async def test_r1_goes_on_with_a_prompt_as_it_is(shared_host: EngineHost, r1: ModelSpec) -> None:
    ask, (thought, answer) = next(iter(R1_CHAT.items()))
    (said,) = await run(shared_host, r1, {"prompt": f"<｜User｜>{ask}<｜Assistant｜><think>\n"})
    assert "reasoning" not in said.result
    assert said.result["text"] == said.text == f"{thought}\n</think>\n\n{answer}"


# --- the first token --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "asked"),
    [
        ("llama", "<|begin_of_text|>Water", llama_prompt("Who?")),
        ("r1", f"{R1_BEGIN}Water", f"{R1_BEGIN}<｜User｜>Who?<｜Assistant｜><think>\n"),
    ],
    ids=["llama", "r1"],
)
async def test_a_prompt_has_the_models_first_token_once(
    shared_host: EngineHost, request: pytest.FixtureRequest, name: str, text: str, asked: str
) -> None:
    model: ModelSpec = request.getfixturevalue(name)
    tokenizer = Tokenizer.from_file(str(Path(model.path or "") / "tokenizer.json"))
    expected = [len(tokenizer.encode(each, add_special_tokens=False).ids) for each in (text, asked)]
    said = await run(shared_host, model, {"prompt": "Water", "max_tokens": 1}, talk("Who?") | {"max_tokens": 1})
    answers = [each.answer for each in said]
    assert [answer.usage.input_tokens for answer in answers if isinstance(answer, JobSucceeded)] == expected
