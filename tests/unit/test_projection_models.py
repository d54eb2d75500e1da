"""The projections of models, of what nodes have of them, and of aliases: as the Python fold has it."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.events import model as facts
from bitinglip.events.envelope import RawMessage, decode
from bitinglip.events.model import ModelDescribed, ModelEvent, ModelRegistered
from bitinglip.events.task import TaskAssigned, TaskSubmitted, TaskSucceeded
from bitinglip.models.state import Holding, Models, evolve
from bitinglip.projections import queries
from bitinglip.projections.rows import ModelAliasRow, ModelNodeRow, ModelRow, ModelUsageRow, reader
from bitinglip.projections.writer import write
from tests.unit.projection_support import cut, fresh_database, message

ASKED: tuple[type[ModelEvent], ...] = (
    facts.ModelFetchAsked,
    facts.ModelFetchCancelled,
    facts.ModelRemovalAsked,
    facts.ModelCheckAsked,
    facts.ModelPinned,
    facts.ModelUnpinned,
)
TOLD: tuple[type[ModelEvent], ...] = (
    facts.ModelFetchStarted,
    facts.ModelFetchProgressed,
    facts.ModelFetchFailed,
    facts.ModelFetchStopped,
    facts.ModelStored,
    facts.ModelDropped,
    facts.ModelKept,
    facts.ModelChecked,
)
SHARED = {field.name: field.name for field in fields(Holding)} | {"check": "check_asked", "sequence": "last_sequence"}
"""Fields of a holding, and the columns that are the same."""
NODES = ("n1", "n2")
ALIASES = ("llama", "best")


def _told(draw: Any, cls: type[ModelEvent]) -> ModelEvent:
    changes: dict[str, Any] = {"node_id": draw(st.sampled_from(NODES)), "revision": draw(st.sampled_from(["r1", "r2"]))}
    if cls is facts.ModelDropped:
        changes["reason"] = draw(st.sampled_from(["removed", "evicted", "missing", "damaged"]))
    if cls in {facts.ModelFetchProgressed, facts.ModelFetchStopped}:
        changes["done_bytes"] = draw(st.integers(0, 9))
    if cls is facts.ModelFetchFailed:
        changes["retry_in_s"] = draw(st.sampled_from([None, 1.5, 60]))
    return cls.model_validate(cls.example | changes)


def _asked(draw: Any, cls: type[ModelEvent]) -> ModelEvent:
    changes: dict[str, Any] = {"nodes": sorted(draw(st.sets(st.sampled_from(NODES))))}
    changes |= {"repair": draw(st.booleans())} if cls is facts.ModelCheckAsked else {}
    return cls.model_validate(cls.example | changes | {"revision": draw(st.sampled_from(["r1", "r2"]))})


def _named(draw: Any, cls: type[ModelEvent]) -> ModelEvent:
    changes = {"reference": draw(st.sampled_from(ALIASES))}
    if cls is facts.ModelAliasSet:
        changes |= {"model": draw(st.sampled_from(["org/a", "org/b"])), "revision": draw(st.sampled_from(["1", "2"]))}
    return cls.model_validate(cls.example | changes)


@st.composite
def histories(draw: Any) -> list[RawMessage]:
    """Draw what was asked for and told of a model on two nodes, and what became of two aliases."""
    makers = [(_asked, ASKED), (_told, TOLD), (_told, TOLD), (_named, (facts.ModelAliasSet, facts.ModelAliasRemoved))]
    events: list[ModelEvent] = []
    for _ in range(draw(st.integers(1, 25))):
        maker, classes = draw(st.sampled_from(makers))
        events.append(maker(draw, draw(st.sampled_from(classes))))
    return [message(event, 2 * number + 1, about=event.reference) for number, event in enumerate(events)]


def _folded(messages: list[RawMessage]) -> Models:
    models = Models()
    for one in messages:
        recorded = decode(one, "MODELS")
        assert isinstance(recorded.event, ModelEvent)
        models = evolve(models, recorded.event, recorded.time, recorded.sequence)
    return models


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_sql_and_python_have_the_same_of_nodes_and_aliases(data: st.DataObject) -> None:
    messages: list[RawMessage] = data.draw(histories())
    models = _folded(messages)
    with fresh_database() as database:
        for batch in data.draw(cut(messages)):
            write(database, "MODELS", batch)
        rows = [reader(ModelNodeRow)(row) for row in database.rows("from model_nodes")]
        aliases = [reader(ModelAliasRow)(row) for row in database.rows("from model_aliases")]
    expected = {
        (revision.reference, revision.revision, holding.node_id): holding
        for revision in models.revisions.values()
        for holding in revision.holdings.values()
        if holding.changed_at is not None
    }
    assert {(row.reference, row.revision, row.node_id) for row in rows} == expected.keys()
    for row in rows:
        holding = expected[row.reference, row.revision, row.node_id]
        assert {name: getattr(row, column) for name, column in SHARED.items()} == asdict(holding)
    told = {row.alias: (row.model, row.revision, row.previous_model, row.previous_revision) for row in aliases}
    assert told == {
        name: (alias.model, alias.revision, *(alias.before[-1] if alias.before else (None, None)))
        for name, alias in models.aliases.items()
    }


HISTORY: list[tuple[type[ModelEvent], dict[str, Any]]] = [
    (ModelDescribed, {}),
    (ModelRegistered, {}),
    (ModelRegistered, {"size_bytes": 5, "architecture": None}),
    (ModelDescribed, {"licence": "apache-2.0", "tags": ["a"]}),
    (ModelDescribed, {"kind": None, "revision": "other"}),
    (ModelRegistered, {"revision": None}),
]


@pytest.mark.parametrize("size", [1, 2, len(HISTORY)])
def test_a_row_has_what_was_described_and_what_was_registered(size: int) -> None:
    messages = [message(cls.model_validate(cls.example | changes), number, about="m") for number, (cls, changes) in
                enumerate(HISTORY, 1)]  # fmt: skip
    with fresh_database() as database:
        for start in range(0, len(messages), size):
            write(database, "MODELS", messages[start : start + size])
        rows = [reader(ModelRow)(row) for row in database.rows(queries.text("models"))]
    both, unregistered, undescribed = sorted(rows, key=lambda row: row.last_sequence)
    assert (both.size_bytes, both.fetch_bytes, both.architecture) == (5, 551_000_000, "GPT2LMHeadModel")
    assert (both.licence, both.tags, both.need_bytes) == ("apache-2.0", ["a"], ModelDescribed.example["need_bytes"])
    assert both.registered_at
    assert both.described_at
    assert both.registered_at < both.described_at
    assert (unregistered.kind, unregistered.revision, unregistered.registered_at) == (None, "other", None)
    assert (undescribed.revision, undescribed.described_at, undescribed.need_bytes) == (None, None, None)


def test_usage_is_what_tasks_made_of_a_revision() -> None:
    ids = [f"01JZ000000000000000000000{n}" for n in range(3)]
    events: list[tuple[str, Any]] = [
        (ids[n], TaskSubmitted.model_validate(TaskSubmitted.example | {"task_id": ids[n], "model": model}))
        for n, model in enumerate(["org/m", "org/m@r1", "org/m"])
    ]
    for n in (0, 1):
        assigned = TaskAssigned.model_validate(TaskAssigned.example | {"task_id": ids[n], "revision": "r1"})
        ended = TaskSucceeded.model_validate(TaskSucceeded.example | {"task_id": ids[n], "run_ms": 1500.0})
        events += [(ids[n], assigned), (ids[n], ended)]
    with fresh_database() as database:
        write(database, "TASKS", [message(event, n, about=about) for n, (about, event) in enumerate(events, 1)])
        [row] = [reader(ModelUsageRow)(row) for row in database.rows(queries.text("model_usage"))]
    assert (row.model, row.revision, row.runs, row.run_s) == ("org/m", "r1", 2, 3.0)
    assert row.last_used_at is not None
