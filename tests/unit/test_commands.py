"""What a caller may ask for: each refusal names its field."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import InvalidInput, MalformedBody, Rejected
from bitinglip.tasks.commands import SubmitTask
from bitinglip.tasks.parameters import KINDS, PARAMETERS, RESULTS

ECHO = {"kind": "echo", "model": "echo"}
TEXT = {"kind": "text-generation", "model": "m", "params": {"prompt": "p"}}


def read(**changes: Any) -> SubmitTask:
    return SubmitTask.from_json(orjson.dumps(ECHO | changes))


def text(**params: Any) -> SubmitTask:
    return SubmitTask.from_json(orjson.dumps(TEXT | {"params": params}))


def test_a_short_request_is_enough() -> None:
    command = read()
    assert (command.lane, command.retry.max_attempts, command.params) == ("normal", 3, {})


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"kind": "telepathy"}, "kind"),
        ({"kind": 3}, "kind"),
        ({"model": ""}, "model"),
        ({"model": "a b"}, "model"),
        ({"model": "x" * 201}, "model"),
        ({"model": "a\nb"}, "model"),
        ({"lane": "fast"}, "lane"),
        ({"params": [1]}, "params"),
        ({"params": {"steps": -1}}, "params.steps"),
        ({"params": {"massage": 1}}, "params.massage"),
        ({"retry": {"max_attempts": 0}}, "retry.max_attempts"),
        ({"retry": {"attempts": 2}}, "retry.attempts"),
        ({"metadata": {"a b": "c"}}, "metadata"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"expires_at": "2026-01-01T00:00:00"}, "expires_at"),
        ({"priority": 3}, "priority"),
    ],
)
def test_a_refusal_names_its_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        read(**changes)
    assert refused.value.field == field


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"prompt": "a", "messages": [{"role": "user", "content": "b"}]},
        {"prompt": ""},
        {"prompt": 3},
        {"prompt": "a", "max_tokens": 0},
        {"prompt": "a", "max_tokens": -5},
        {"prompt": "a", "temperature": 3},
        {"prompt": "a", "top_p": 0},
        {"prompt": "a", "seed": -1},
        {"prompt": "a", "stop": [""]},
        {"prompt": "a", "stop": ["x"] * 17},
        {"messages": []},
        {"messages": [{"role": "robot", "content": "b"}]},
        {"messages": [{"role": "user", "content": "b", "mood": "good"}]},
        {"prompt": "x" * 1_000_001},
    ],
)
def test_bad_parameters_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match="params"):
        text(**params)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"kind": "echo\xe9"}', b"NaN"])
def test_what_is_not_json_in_utf8_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedBody):
        SubmitTask.from_json(body)


@pytest.mark.parametrize("body", [b"null", b"[]", b'"x"', b"3"])
def test_json_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidInput):
        SubmitTask.from_json(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.dictionaries(st.sampled_from([*SubmitTask.model_fields, "x"]), json_values))
def test_whatever_comes_it_is_taken_or_refused_by_name(document: dict[str, Any]) -> None:
    try:
        command = SubmitTask.from_json(orjson.dumps(document))
    except Rejected:
        return
    assert command.kind in KINDS


def test_the_digest_tells_requests_apart_and_not_their_spelling() -> None:
    same = SubmitTask.from_json(b'{ "model":"echo", "kind":"echo" , "params": {}}')
    assert same.sha256() == read().sha256()
    assert read(lane="batch").sha256() != read().sha256()


def test_every_kind_has_parameters_and_a_result_that_are_described() -> None:
    assert set(PARAMETERS) == set(RESULTS) == set(KINDS)
    for parameters in PARAMETERS.values():
        for name, field in parameters.model_fields.items():
            assert field.description, name
