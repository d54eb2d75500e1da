"""What a node does next about its models: by property, over whatever was wished, told and found on the disk."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.model import (
    IMPORT,
    ModelCheckAsked,
    ModelChecked,
    ModelDescribed,
    ModelDropped,
    ModelEvent,
    ModelFetchAsked,
    ModelFetchCancelled,
    ModelFetchFailed,
    ModelFetchStarted,
    ModelFetchStopped,
    ModelImportAsked,
    ModelKept,
    ModelPinned,
    ModelRemovalAsked,
    ModelStored,
    ModelUnpinned,
)
from bitinglip.models.state import Key, Models, evolve
from bitinglip.workers.modelplan import Action, Check, Disk, Fetch, Remove, TakeIn, Tell, to_do

NOW = datetime(2026, 1, 1, tzinfo=UTC)
KEYS: list[Key] = [("org/a", "1" * 40), ("org/b", "2" * 40)]
NODES = ["me", "you"]
NOTHING = Disk()
WISHES = (ModelFetchAsked, ModelFetchCancelled, ModelRemovalAsked, ModelCheckAsked, ModelPinned, ModelUnpinned)
FACTS = (
    ModelFetchStarted,
    ModelFetchFailed,
    ModelFetchStopped,
    ModelStored,
    ModelDropped,
    ModelKept,
    ModelChecked,
)


def event(kind: type[ModelEvent], key: Key = KEYS[0], *nodes: str, **more: Any) -> ModelEvent:
    about: dict[str, Any] = {"reference": key[0], "revision": key[1]}
    if kind in WISHES:
        about["nodes"] = list(nodes or ("me",))
    elif kind in FACTS:
        about["node_id"] = nodes[0] if nodes else "me"
    return kind.model_validate(kind.example | about | more)


def described(key: Key, **more: Any) -> ModelEvent:
    return event(ModelDescribed, key, **more)


def known(events: Iterable[ModelEvent]) -> Models:
    models = Models()
    for number, each in enumerate(events, 1):
        models = evolve(models, each, NOW, number)
    return models


def alone(events: Iterable[ModelEvent], disk: Disk = NOTHING, after_s: float = 0.0) -> list[Action]:
    return to_do(known(events), disk, "me", NOW + timedelta(seconds=after_s))


keys = st.sampled_from(KEYS)
wishes = st.builds(
    lambda kind, key, nodes: event(kind, key, *nodes),
    st.sampled_from(WISHES),
    keys,
    st.lists(st.sampled_from(NODES), min_size=1, unique=True),
)
facts = st.builds(lambda kind, key, node: event(kind, key, node), st.sampled_from(FACTS), keys, st.sampled_from(NODES))
histories = st.lists(st.one_of(wishes, facts, keys.map(described)), max_size=12)
disks = st.builds(
    lambda stored, unfinished: Disk({key: 1 for key in stored}, frozenset(unfinished - stored)),
    st.sets(keys),
    st.sets(keys),
)


@given(histories, disks)
def test_a_revision_has_one_thing_to_be_done_at_most(history: list[ModelEvent], disk: Disk) -> None:
    actions = to_do(known(history), disk, "me", NOW)
    keys = [action.key for action in actions if not isinstance(action, TakeIn)]
    assert len(keys) == len(set(keys))


@given(histories, disks)
def test_what_is_there_is_never_fetched_and_what_is_not_never_checked(history: list[ModelEvent], disk: Disk) -> None:
    for action in to_do(known(history), disk, "me", NOW):
        match action:
            case Fetch(key=key):
                assert key not in disk.stored
            case Check(key=key) | Tell(key=key, what="stored"):
                assert key in disk.stored
            case Tell(key=key):
                assert key not in disk.stored
            case _:
                pass


@given(histories, disks)
def test_doing_what_is_to_be_done_comes_to_an_end(history: list[ModelEvent], disk: Disk) -> None:
    """Each thing that is done and told leaves less to do: a node does not go round in circles."""
    at = NOW + timedelta(hours=1)  # whoever else was waited for is not waited for any more
    told = list(history)
    actions: list[Action] = []
    for _ in range(2 * len(KEYS) + 3):
        actions = [each for each in to_do(known(told), disk, "me", at) if not isinstance(each, TakeIn)]
        if not actions:
            return
        disk, event_told = done(actions[0], disk)
        told += event_told
    raise AssertionError(actions)


def done(action: Action, disk: Disk) -> tuple[Disk, list[ModelEvent]]:
    assert not isinstance(action, TakeIn)
    key, stored = action.key, dict(disk.stored)
    left = disk.unfinished - {key}
    match action:
        case Fetch():
            assert action.not_before is None
            return Disk({**stored, key: 1}, left), [event(ModelFetchStarted, key), event(ModelStored, key)]
        case Remove(tell=tell):
            stored.pop(key, None)
            return Disk(stored, left), [event(ModelDropped, key, reason="removed")] if tell else []
        case Check():
            return disk, [event(ModelChecked, key)]
        case Tell(what="stored"):
            return disk, [event(ModelStored, key)]
        case Tell():
            return disk, [event(ModelDropped, key, reason="missing")]


@given(histories, disks)
def test_a_revision_that_was_asked_for_last_is_there_in_the_end(history: list[ModelEvent], disk: Disk) -> None:
    at, told = NOW + timedelta(hours=1), [*history, described(KEYS[0]), event(ModelFetchAsked, KEYS[0])]
    while actions := to_do(known(told), disk, "me", at):
        disk, more = done(actions[0], disk)
        told += more
    assert KEYS[0] in disk.stored
    assert known(told).get(*KEYS[0]).on("me").status == "stored"


@given(histories, disks)
def test_a_revision_whose_removal_was_asked_for_last_is_gone_in_the_end(history: list[ModelEvent], disk: Disk) -> None:
    at, told = NOW + timedelta(hours=1), [*history, event(ModelStored), event(ModelRemovalAsked)]
    while actions := to_do(known(told), disk, "me", at):
        disk, more = done(actions[0], disk)
        told += more
    assert KEYS[0] not in disk.stored
    assert KEYS[0] not in disk.unfinished


# --- one thing at a time ----------------------------------------------------------------------------------------------


def test_what_is_not_described_waits_for_that() -> None:
    assert alone([event(ModelFetchAsked)]) == []
    assert alone([event(ModelFetchAsked), described(KEYS[0])]) == [Fetch(KEYS[0])]


def test_the_oldest_wish_comes_first() -> None:
    told = [described(key) for key in KEYS] + [event(ModelFetchAsked, KEYS[1]), event(ModelFetchAsked, KEYS[0])]
    assert alone(told) == [Fetch(KEYS[1]), Fetch(KEYS[0])]


def test_a_fetch_that_failed_is_tried_again_when_it_was_said_to_be_or_asked_for_anew() -> None:
    told = [described(KEYS[0]), event(ModelFetchAsked), event(ModelFetchFailed, retry_in_s=30.0)]
    assert alone(told) == [Fetch(KEYS[0], NOW + timedelta(seconds=30))]
    assert alone(told, after_s=30) == [Fetch(KEYS[0])]
    told[-1] = event(ModelFetchFailed, retry_in_s=None)
    assert alone(told, after_s=1e6) == []
    assert alone([*told, event(ModelFetchAsked)]) == [Fetch(KEYS[0])]


def test_what_is_asked_meanwhile_counts_and_not_what_the_node_says_too_late() -> None:
    begun = [described(KEYS[0]), event(ModelFetchAsked)]
    assert alone([*begun, event(ModelFetchCancelled), event(ModelFetchStarted)]) == []
    removed = [*begun, event(ModelRemovalAsked)]
    assert alone([*removed, event(ModelFetchStarted), event(ModelFetchStopped)]) == [Remove(KEYS[0])]
    assert alone([*removed, event(ModelStored)], Disk({KEYS[0]: 1})) == [Remove(KEYS[0])]
    revived = [*begun, event(ModelStored), event(ModelRemovalAsked), event(ModelFetchAsked)]
    assert alone([*revived, event(ModelDropped, reason="removed")]) == [Fetch(KEYS[0])]


def test_what_somebody_took_away_is_told_and_fetched_again_if_it_is_pinned() -> None:
    told = [described(KEYS[0]), event(ModelPinned), event(ModelStored)]
    assert alone(told) == [Tell(KEYS[0], "missing")]
    assert alone([*told, event(ModelDropped, reason="missing")]) == [Fetch(KEYS[0])]
    told[1] = event(ModelFetchAsked)
    assert alone([*told, event(ModelDropped, reason="missing")]) == []


def test_what_the_log_never_heard_of_is_told() -> None:
    assert alone([], Disk({KEYS[0]: 1})) == [Tell(KEYS[0], "stored")]
    assert alone([], Disk(unfinished=frozenset(KEYS))) == []


def test_what_is_left_of_a_model_that_is_not_wished_any_more_goes() -> None:
    told = [event(ModelStored), event(ModelDropped, reason="missing")]
    assert alone(told, Disk(unfinished=frozenset({KEYS[0]}))) == [Remove(KEYS[0], tell=False)]
    stopped = [event(ModelFetchAsked), event(ModelFetchCancelled)]
    assert alone(stopped, Disk(unfinished=frozenset({KEYS[0]}))) == []  # it stays for the next time


def test_one_node_begins_and_the_others_wait_for_it() -> None:
    both = known([described(KEYS[0]), event(ModelFetchAsked, KEYS[0], "me", "you")])
    plans = {node: to_do(both, Disk(), node, NOW) for node in NODES}
    [(first, _), (second, [waits])] = sorted(plans.items(), key=lambda plan: plan[1][0] != Fetch(KEYS[0]))
    assert plans[first] == [Fetch(KEYS[0])]
    assert isinstance(waits, Fetch)
    assert waits.not_before is not None
    assert to_do(both, Disk(), second, waits.not_before) == [Fetch(KEYS[0])]
    begun = evolve(both, event(ModelFetchStarted, KEYS[0], first), NOW + timedelta(seconds=2), 9)
    [still] = to_do(begun, Disk(), second, waits.not_before)
    assert isinstance(still, Fetch)
    assert still.not_before is not None
    assert to_do(begun, Disk(), second, still.not_before) == [Fetch(KEYS[0])]
    stored = evolve(begun, event(ModelStored, KEYS[0], first), NOW + timedelta(seconds=4), 10)
    assert to_do(stored, Disk(), second, NOW + timedelta(seconds=4)) == [Fetch(KEYS[0])]
    assert to_do(both, Disk(), second, NOW, peers=False) == [Fetch(KEYS[0])]


def test_what_a_model_needs_beside_it_comes_along_if_it_is_known() -> None:
    speaker, vocoder = KEYS
    told = [described(speaker, parts={"vocoder": vocoder[0]}), event(ModelFetchAsked, speaker)]
    assert alone(told) == [Fetch(speaker)]
    assert set(alone([*told, described(vocoder)])) == {Fetch(speaker), Fetch(vocoder)}
    told = [*told, described(vocoder), event(ModelStored, speaker)]
    assert alone(told, Disk({speaker: 1})) == [Fetch(vocoder)]
    gone = [*told, event(ModelStored, vocoder), event(ModelDropped, vocoder, reason="removed")]
    assert alone(gone, Disk({speaker: 1})) == []  # somebody wanted it so


def test_a_check_is_done_once() -> None:
    told = [event(ModelStored), event(ModelCheckAsked, repair=True)]
    assert alone(told, Disk({KEYS[0]: 1})) == [Check(KEYS[0], repair=True)]
    assert alone([*told, event(ModelChecked)], Disk({KEYS[0]: 1})) == []
    broken = [described(KEYS[0]), *told, event(ModelDropped, reason="damaged"), event(ModelChecked, repaired=False)]
    assert alone(broken) == [Fetch(KEYS[0])]


def test_an_import_is_done_once() -> None:
    asked = ModelImportAsked(reference="lab/a", node_id="me", path="/models/a", by=None)
    assert alone([asked]) == [TakeIn("lab/a", "/models/a")]
    assert to_do(known([asked]), Disk(), "you", NOW) == []
    failed = event(ModelFetchFailed, ("lab/a", IMPORT), retry_in_s=None)
    assert alone([asked, failed]) == []
    assert alone([asked, failed, asked]) == [TakeIn("lab/a", "/models/a")]
    stored = event(ModelStored, ("lab/a", "sha256:1"), source="import")
    assert alone([asked, stored], Disk({("lab/a", "sha256:1"): 1})) == []
