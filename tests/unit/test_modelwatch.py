"""When a model that is followed has come, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest

from bitinglip.cli.client import ServerEvent
from bitinglip.cli.modelwatch import Outcomes, describe, how_far, size


def event(kind: str, **data: Any) -> ServerEvent:
    return ServerEvent("1", f"model.{kind}", {"data": data})


def holding(status: str, **more: Any) -> dict[str, Any]:
    return {"status": status, "retry_at": None, "problem": None, "remedy": None} | more


def test_what_was_over_before_it_was_looked_at_is_not_waited_for() -> None:
    known = {
        "a": holding("stored"),
        "b": holding("failed", problem="The disk is full.", remedy="Make room."),
        "c": holding("failed", retry_at="2026-01-01T00:00:00Z"),
        "d": holding("stopped"),
        "e": holding("fetching"),
        "other": holding("failed", problem="x"),
    }
    outcomes = Outcomes(["a", "b", "c", "d", "e", "f"], known)
    assert outcomes.pending == {"c", "e", "f"}
    assert outcomes.failed == {"b": "The disk is full. Make room."}
    assert outcomes.stopped == {"d"}


def test_it_is_over_when_each_node_has_it_or_does_not_get_it() -> None:
    outcomes = Outcomes(["a", "b", "c"], {})
    assert not outcomes.take(event("stored", node_id="a"))
    assert not outcomes.take(event("fetch_failed", node_id="b", message="Away.", retry_in_s=3.0))
    assert not outcomes.take(event("fetch_failed", node_id="b", message="Gone.", retry_in_s=None))
    assert not outcomes.take(event("fetch_failed", node_id="other", message="x", retry_in_s=None))
    assert outcomes.take(event("fetch_cancelled", nodes=["a", "c"]))
    assert (outcomes.failed, outcomes.stopped) == ({"b": "Gone."}, {"c"})


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, None), (5, "5 B"), (4_200, "4.2 kB"), (551_000_000, "551 MB"), (16_060_000_000, "16.1 GB")],
)
def test_sizes_are_written_for_people(count: int | None, text: str | None) -> None:
    assert size(count) == text


def test_events_are_written_on_a_line() -> None:
    far = {"done_bytes": 5 * 10**8, "total_bytes": 10**9, "bytes_per_s": 5e7, "left_s": 10.4, "step": "fetching"}
    assert how_far(far) == "500 MB of 1 GB, 50 MB/s, 10 s left"
    assert how_far(far | {"step": "checking"}) == "500 MB of 1 GB, checking"
    failed = event("fetch_failed", node_id="a", message="Away.", retry_in_s=3.0)
    assert describe(failed) == "a: fetch failed; Away.; again in 3 s"
    assert describe(event("fetch_asked", nodes=["a", "b"])) == "a, b: fetch asked"
