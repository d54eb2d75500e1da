"""What waits, counted by queue and by key."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import KeyFull, QueueFull
from bitinglip.events.streams import Route
from bitinglip.events.subjects import WorkClass, encode_queue
from bitinglip.gateway.pressure import RETRY_DEFAULT_S, RETRY_MOST_S, Depths

QUEUE_MOST, KEY_MOST = 8, 12
ROUTES = [
    Route(lane, encode_queue(model, WorkClass(share=key)))
    for key in ("", "ann", "bob")
    for lane, model in (("normal", "a"), ("normal", "b"), ("batch", "a"))
]
COUNTS = st.dictionaries(st.sampled_from(ROUTES), st.integers(1, 6), min_size=1, max_size=3)


def key_of(route: Route) -> str:
    """Return whose queue it is."""
    return next((key for key in ("ann", "bob") if key in route.queue), "")


def state(depths: Depths) -> tuple[dict[Route, int], dict[str, int]]:
    """Return all that waits."""
    return (
        {route: depth.waiting for route, depth in depths.queues.items() if depth.waiting},
        {key: depth.waiting for key, depth in depths.keys.items() if depth.waiting},
    )


@given(st.lists(COUNTS, max_size=30))
def test_requests_are_taken_whole_while_there_is_room_and_not_at_all_otherwise(
    requests: list[dict[Route, int]],
) -> None:
    depths, queues, keys = Depths(QUEUE_MOST, KEY_MOST), Counter[Route](), Counter[str]()
    for request in requests:
        own = Counter[str]()
        for route, count in request.items():
            own[key_of(route)] += count
        fits_queues = all(queues[route] + count <= QUEUE_MOST for route, count in request.items())
        fits_keys = all(keys[key] + count <= KEY_MOST for key, count in own.items())
        if fits_queues and fits_keys:
            depths.add(request)
            queues.update(request)
            keys.update(own)
        else:
            with pytest.raises(KeyFull if fits_queues else QueueFull):
                depths.add(request)
        assert state(depths) == (dict(queues), dict(keys))


@given(COUNTS, COUNTS)
def test_what_was_taken_back_does_not_count(kept: dict[Route, int], taken: dict[Route, int]) -> None:
    depths = Depths(0, 0)
    depths.add(kept)
    before = state(depths)
    depths.add(taken)
    depths.take_back(taken)
    assert state(depths) == before


@given(COUNTS, COUNTS)
def test_a_look_counts_what_the_server_has_and_what_it_does_not_know(
    counted: dict[Route, int], told: dict[Route, int]
) -> None:
    depths = Depths(0, 0)
    depths.add(counted)
    depths.update(told, 1.0)
    expected = counted | told
    keys = Counter[str]()
    for route, count in expected.items():
        keys[key_of(route)] += count
    assert state(depths) == (expected, dict(keys))


def test_a_bound_of_0_is_none() -> None:
    Depths(0, 0).add({ROUTES[0]: 10**9})


def test_the_time_to_come_again_follows_the_rate_of_the_key() -> None:
    depths = Depths(0, KEY_MOST)
    normal, _, batch = ROUTES[3:6]
    depths.update({normal: 8, batch: 4}, 100.0)
    with pytest.raises(KeyFull) as refused:
        depths.add({batch: 1})
    assert refused.value.retry_after_s == RETRY_DEFAULT_S
    depths.update({normal: 6, batch: 4}, 101.0)  # two of them ended in a second
    depths.add({batch: 2})
    with pytest.raises(KeyFull) as refused:
        depths.add({normal: 6})
    assert refused.value.details() == {
        "key": "ann",
        "limit": KEY_MOST,
        "waiting": 12,
        "asked": 6,
        "longest": [
            {"lane": "normal", "model": "a", "waiting": 6},
            {"lane": "batch", "model": "a", "waiting": 6},
        ],
        "retry_after_s": 3,
    }
    depths.update({normal: 6, batch: 6}, 10_000.0)  # next to nothing
    depths.update({normal: 6, batch: 5}, 20_000.0)
    with pytest.raises(KeyFull) as refused:
        depths.add({normal: 2})
    assert refused.value.retry_after_s == RETRY_MOST_S
