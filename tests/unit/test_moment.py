"""Moments as people write them."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.errors import NotAMoment
from bitinglip.projections.moment import SECONDS, UNITS, Moment, parse

NOW = datetime(2026, 2, 1, 12, tzinfo=UTC)
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
TIMES = st.datetimes(datetime.min.replace(year=1970), datetime.max.replace(year=2100), timezones=OFFSETS)  # noqa: DTZ901


@given(TIMES, st.sampled_from(["T", " ", "t"]))
def test_every_time_with_a_zone_is_that_time(time: datetime, between: str) -> None:
    assert parse(time.isoformat(between), NOW) == time
    assert parse(time.isoformat(between).replace("+", " "), NOW) == time


@given(st.integers(0, 10**18 - 1))
def test_a_number_is_a_sequence(sequence: int) -> None:
    assert parse(str(sequence), NOW) == sequence


@given(st.lists(st.tuples(st.integers(0, 999), st.sampled_from(sorted(UNITS))), min_size=1, max_size=3), st.data())
def test_distances_add_up(parts: list[tuple[int, str]], data: st.DataObject) -> None:
    words = [f"{number}{data.draw(st.sampled_from(['', ' ']))}{data.draw(st.sampled_from(UNITS[unit]))}"
             for number, unit in parts]  # fmt: skip
    assert parse(f"{' '.join(words)} ago", NOW) == NOW - timedelta(seconds=sum(n * SECONDS[u] for n, u in parts))


@given(st.text(string.printable, max_size=30))
def test_any_text_is_a_moment_or_refused(text: str) -> None:
    try:
        found = parse(text, NOW)
    except NotAMoment:
        return
    assert isinstance(found, int) or found.tzinfo is not None


@pytest.mark.parametrize("text", ["10 min ago", "10min ago", " 10  minutes   ago ", "600 s ago", "0.5 min 9.5 m ago"])
def test_the_same_distance_in_many_words(text: str) -> None:
    assert parse(text, NOW) == NOW - timedelta(minutes=10)


@pytest.mark.parametrize(
    "text",
    ["", "ago", "10 ago", "10 fortnights ago", "min ago", "-1", "1.5", "2026-01-31", "2026-01-31T12:00:00",
     "2026-02-30T12:00:00Z", "2026-01-31T25:00:00Z", "0001-01-01T00:00:00+10:00", "yesterday", "Now", "101 y ago",
     "999999999 w ago", "٣ h ago", "1 h ago ago"],
)  # fmt: skip
def test_what_is_no_moment_is_refused(text: str) -> None:
    with pytest.raises(NotAMoment):
        parse(text, NOW)


def test_now_is_now_and_a_stream_without_events_is_at_its_start() -> None:
    assert parse("now", NOW) == NOW
    assert Moment(NOW, {"TASKS": 7}).of("TASKS") == 7
    assert Moment(NOW, {"TASKS": 7}).of("MODELS") == 0
