"""The subject grammar, by property, against NATS's own rules."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events import subjects
from bitinglip.events.subjects import (
    TaskSubject,
    WorkClass,
    decode_queue,
    decode_token,
    encode_queue,
    encode_token,
    parse_task_subject,
)
from bitinglip.ids import TaskId, Ulids

NATS_TOKEN = re.compile(r"[^\s.*>\x00-\x1f]+")
"""What NATS takes as one literal token of a subject."""
CONSUMER_NAME = re.compile(r"[^\s.*>/\\]+")
"""What NATS takes as a consumer's name."""

texts = st.text(min_size=1, max_size=60).filter(lambda text: _encodable(text))
ids = st.builds(
    lambda t, r: TaskId(Ulids(lambda: t, lambda: r)()), st.floats(0, 2**47 / 1000), st.integers(0, 2**80 - 1)
)
events = st.from_regex(r"[a-z_]{1,20}", fullmatch=True)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@given(texts)
def test_any_text_becomes_one_token_and_comes_back(text: str) -> None:
    token = encode_token(text)
    assert NATS_TOKEN.fullmatch(token)
    assert CONSUMER_NAME.fullmatch(token)
    assert decode_token(token) == text


@given(texts, texts)
def test_different_texts_have_different_tokens(one: str, other: str) -> None:
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(st.text(max_size=40))
def test_only_what_encode_writes_is_decoded(token: str) -> None:
    try:
        text = decode_token(token)
    except (ValueError, UnicodeDecodeError):
        return
    assert encode_token(text) == token


def test_a_model_reference_stays_readable() -> None:
    assert encode_token("openai-community/gpt2@rev") == "openai-community=2Fgpt2=40rev"


def test_an_empty_text_has_no_token() -> None:
    with pytest.raises(ValueError, match="empty"):
        encode_token("")


@given(ids, events)
def test_a_plain_task_subject_comes_back(task_id: TaskId, event: str) -> None:
    subject = TaskSubject(task_id, event)
    assert parse_task_subject(str(subject)) == subject


@given(ids, st.sampled_from(["submitted", "queued"]), st.sampled_from(["interactive", "batch"]), texts)
def test_a_routed_task_subject_comes_back(task_id: TaskId, event: str, lane: str, model: str) -> None:
    subject = TaskSubject(task_id, event, lane, encode_token(model))
    assert parse_task_subject(str(subject)) == subject
    assert len(str(subject).split(".")) == 6


@pytest.mark.parametrize(
    "subject",
    [
        "bl.task",
        "bl.task.x.submitted",
        "bl.queue.normal.m.01JZ0000000000000000000000",
        "bl.task.01JZ0000000000000000000000.assigned.normal.m",
        "bl.task.01JZ0000000000000000000000.submitted.normal",
        "bl.task.01JZ0000000000000000000000.submitted.normal.a*",
        "bl.task.01jz0000000000000000000000.submitted",
    ],
)
def test_other_subjects_are_refused(subject: str) -> None:
    with pytest.raises(ValueError, match="task subject"):
        parse_task_subject(subject)


def test_a_live_subject_names_its_stored_one() -> None:
    stored = "bl.task.01JZ0000000000000000000000.progressed"
    assert subjects.stored_of(subjects.live_of(stored)) == stored


classes = st.builds(
    WorkClass,
    st.just("") | texts,
    st.just(0.0) | st.floats(0.5, 1000).map(lambda size: round(size, 3)),
    st.sets(texts, max_size=4).map(lambda labels: tuple(sorted(labels))),
)


@given(ids, texts, classes)
def test_a_queue_bears_its_model_and_class(task_id: TaskId, model: str, work: WorkClass) -> None:
    queue = encode_queue(model, work)
    assert decode_queue(queue) == (model, work)
    assert NATS_TOKEN.fullmatch(queue)
    assert CONSUMER_NAME.fullmatch(queue)
    assert subjects.is_consumer_name(subjects.consumer_name("batch", queue))
    subject = TaskSubject(task_id, "queued", "batch", queue)
    assert parse_task_subject(str(subject)) == subject


@given(texts, classes, texts, classes)
def test_different_work_has_different_queues(one: str, its: WorkClass, other: str, others: WorkClass) -> None:
    assert (encode_queue(one, its) == encode_queue(other, others)) == ((one, its) == (other, others))


@pytest.mark.parametrize("name", ["normal-a~b", "normal-", "urgent-a", "normal", "normal-a b", "reactor"])
def test_other_names_are_no_queues(name: str) -> None:
    assert not subjects.is_consumer_name(name)


def test_work_for_anybody_has_the_queue_of_its_model() -> None:
    assert encode_queue("demo/a") == encode_token("demo/a")


@pytest.mark.parametrize("queue", ["a~", "~a", "a~b~c", "a~share", "a~vram=3D016", "a~label=3Db=2Clabel=3Da", "a~b"])
def test_other_queues_are_refused(queue: str) -> None:
    with pytest.raises(ValueError, match=r"not (a queue|an encoded token|the canonical)"):
        decode_queue(queue)


@given(ids, texts)
def test_a_queue_subject_matches_its_filter(task_id: TaskId, model: str) -> None:
    queue = encode_token(model)
    prefix = subjects.queue_filter("normal", queue).removesuffix("*")
    assert subjects.queue_subject("normal", queue, task_id) == prefix + task_id
