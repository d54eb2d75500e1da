"""What a model's events say of its pauses."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bitinglip.events.model import ModelRegistered, QueuePaused, QueueResumed
from bitinglip.events.pauses import lanes_paused
from bitinglip.events.registry import Event
from bitinglip.events.task import LANES

REGISTERED = ModelRegistered.model_validate(ModelRegistered.example)


def turn(*, pause: bool, lane: str | None) -> Event:
    said = {"model": "m", "lane": lane, "by": None}
    return QueuePaused.model_validate(said) if pause else QueueResumed.model_validate(said)


@given(st.lists(st.tuples(st.booleans(), st.sampled_from((None, *LANES)))))
def test_the_last_word_about_a_lane_holds(said: list[tuple[bool, str | None]]) -> None:
    last = {lane: False for lane in LANES}
    for pause, meant in said:
        last |= {lane: pause for lane in LANES if meant in (None, lane)}
    events = [turn(pause=pause, lane=lane) for pause, lane in said]
    assert lanes_paused([REGISTERED, *events, REGISTERED]) == {lane for lane, paused in last.items() if paused}
