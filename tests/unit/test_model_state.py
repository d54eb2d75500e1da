"""The fold of what is wished and what is there."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.model import (
    ModelAliasRemoved,
    ModelAliasSet,
    ModelDropped,
    ModelEvent,
    ModelFetchAsked,
    ModelFetchCancelled,
    ModelFetchFailed,
    ModelFetchProgressed,
    ModelFetchStarted,
    ModelFetchStopped,
    ModelImportAsked,
    ModelKept,
    ModelPinned,
    ModelRegistered,
    ModelRemovalAsked,
    ModelStored,
    ModelUnpinned,
)
from bitinglip.models.state import Holding, Models, evolve

AT = datetime(2026, 1, 2, tzinfo=UTC)
NAME, COMMIT = "openai-community/gpt2", ModelStored.example["revision"]

ASKED: list[type[ModelEvent]] = [ModelFetchAsked, ModelFetchCancelled, ModelRemovalAsked, ModelPinned, ModelUnpinned]
TOLD: list[type[ModelEvent]] = [
    ModelFetchStarted,
    ModelFetchProgressed,
    ModelFetchFailed,
    ModelFetchStopped,
    ModelImportAsked,
    ModelStored,
    ModelDropped,
    ModelKept,
]


def an(cls: type[ModelEvent], **changes: object) -> ModelEvent:
    return cls.model_validate(cls.example | changes)


def folded(*events: ModelEvent) -> Models:
    models = Models()
    for sequence, event in enumerate(events, 1):
        models = evolve(models, event, AT, sequence)
    return models


def holding(*events: ModelEvent, node_id: str = "rig-1") -> Holding:
    return folded(*events).get(NAME, COMMIT).on(node_id)


def test_a_wish_becomes_a_fetch_and_then_a_store() -> None:
    events = [an(ModelFetchAsked), an(ModelFetchStarted), an(ModelFetchProgressed), an(ModelStored)]
    assert [holding(*events[:count]).status for count in range(5)] == [
        "absent",
        "wanted",
        "fetching",
        "fetching",
        "stored",
    ]
    assert holding(*events[:3]).done_bytes == 320_000_000
    assert holding(*events).stored_bytes == holding(*events).total_bytes == 551_000_000
    assert holding(*events, node_id="rig-2").status == "absent"


def test_asking_again_for_what_is_there_or_under_way_changes_nothing() -> None:
    assert holding(an(ModelStored), an(ModelFetchAsked)).status == "stored"
    assert holding(an(ModelFetchAsked), an(ModelFetchStarted), an(ModelFetchAsked)).status == "fetching"


def test_a_failure_says_why_until_somebody_asks_anew() -> None:
    failed = [an(ModelFetchAsked), an(ModelFetchStarted), an(ModelFetchFailed)]
    assert holding(*failed).code == "disk_full"
    again = holding(*failed, an(ModelFetchAsked))
    assert (again.status, again.code, again.problem) == ("wanted", None, None)


def test_a_cancel_ends_a_fetch_and_a_wish_but_leaves_what_is_stored() -> None:
    assert holding(an(ModelFetchAsked), an(ModelFetchCancelled)).status == "stopped"
    assert holding(an(ModelFetchAsked), an(ModelFetchStarted), an(ModelFetchCancelled)).status == "stopped"
    assert holding(an(ModelStored), an(ModelFetchCancelled)).status == "stored"
    late = an(ModelFetchProgressed)
    assert holding(an(ModelFetchAsked), an(ModelFetchStopped), late).status == "stopped", "a tick that was overtaken"


def test_an_import_is_waited_for_until_its_own_folder_is_there() -> None:
    asked = an(ModelImportAsked, reference=NAME, node_id="rig-1")
    fetched = an(ModelStored, source="import", node_id="rig-1", peer_bytes=551_000_000)
    taken_in = an(ModelStored, source="import", node_id="rig-1", hub_bytes=0, peer_bytes=0)
    assert (NAME, "rig-1") in folded(asked, fetched).imports, "what another node handed over is another folder"
    assert folded(asked, fetched, taken_in).imports == {}


def test_a_pin_is_a_wish_that_lasts() -> None:
    assert holding(an(ModelPinned)).wanted
    kept = holding(an(ModelPinned), an(ModelStored))
    assert (kept.status, kept.pinned) == ("stored", True)
    assert holding(an(ModelPinned), an(ModelStored), an(ModelDropped, reason="missing")).status == "wanted"
    assert holding(an(ModelPinned), an(ModelStored), an(ModelUnpinned), an(ModelDropped)).status == "absent"


def test_a_removal_is_a_wish_that_may_be_refused() -> None:
    stored = [an(ModelPinned), an(ModelStored), an(ModelRemovalAsked)]
    assert holding(*stored).status == "removing"
    assert not holding(*stored).pinned
    assert holding(*stored, an(ModelDropped, reason="removed")).status == "absent"
    kept = holding(*stored, an(ModelKept))
    assert (kept.status, kept.problem) == ("stored", "a worker has it in memory")
    part = [an(ModelFetchAsked), an(ModelFetchStarted), an(ModelRemovalAsked)]
    assert holding(*part).status == "removing", "what has come in part goes as well"
    assert holding(*part, an(ModelFetchStopped)).status == "removing"
    assert holding(*part, an(ModelStored)).status == "removing", "it was overtaken"
    assert holding(an(ModelRemovalAsked)).status == "absent"


def test_an_alias_remembers_what_it_stood_for() -> None:
    first, second = an(ModelAliasSet), an(ModelAliasSet, revision="1" * 40)
    alias = folded(first, second).aliases["llama"]
    assert alias.revision == "1" * 40
    assert alias.before == (("meta-llama/Llama-3.1-8B", "d04e592bb4f6aa9cfee91e2e20afa771667e1d4b"),)
    assert folded(first, an(ModelAliasRemoved)).aliases == {}


def test_a_kind_of_a_revision_is_registered_once() -> None:
    again = an(ModelRegistered, context_tokens=2048)
    embeds = an(ModelRegistered, kind="embedding")
    registered = folded(an(ModelRegistered), embeds, again).get(NAME, COMMIT).registered
    assert {event.kind: event.context_tokens for event in registered} == {"embedding": 1024, "text-generation": 2048}
    assert folded(an(ModelRegistered, revision=None)).revisions == {}


events_of_one = st.lists(
    st.builds(
        lambda cls, node: an(cls, **({"nodes": [node]} if cls in ASKED else {"node_id": node})),
        st.sampled_from(ASKED + TOLD),
        st.sampled_from(["rig-1", "rig-2"]),
    ),
    max_size=12,
)


@given(events_of_one)
def test_a_node_is_told_of_by_its_own_events_alone(events: list[ModelEvent]) -> None:
    def about(event: ModelEvent, node: str) -> bool:
        return node in cast("list[str]", getattr(event, "nodes", [getattr(event, "node_id", "")]))

    for node in ("rig-1", "rig-2"):
        ours = [event for event in events if about(event, node)]
        both, alone = holding(*events, node_id=node), holding(*ours, node_id=node)
        assert (both.status, both.pinned, both.problem) == (alone.status, alone.pinned, alone.problem)


@given(events_of_one)
def test_what_is_stored_and_what_is_wished_never_mix(events: list[ModelEvent]) -> None:
    """A pin never rests on a holding that is not there and not wished for; no progress outlives a drop."""
    after = holding(*events, an(ModelDropped))
    assert after.status in {"absent", "wanted"}
    assert after.done_bytes == 0
    stored = holding(*events, an(ModelStored))
    assert stored.code is None
    assert stored.status == ("removing" if holding(*events).status == "removing" else "stored")
