"""Tables: which columns are shown in how much room, and how wide."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitinglip.cli.render import FOLDED_LEAST, GAP, Column, distance, fitted

COLUMNS = st.lists(
    st.builds(
        Column,
        name=st.text("abc", min_size=1, max_size=12),
        values=st.lists(st.none() | st.text("xyz", max_size=60) | st.integers(), min_size=1, max_size=3),
        folds=st.booleans(),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda column: column.name,
)


@given(COLUMNS, st.integers(1, 300), st.data())
def test_a_table_fits_if_it_can_and_keeps_what_must_be_whole(
    columns: list[Column], room: int, data: st.DataObject
) -> None:
    spare = data.draw(st.lists(st.sampled_from([column.name for column in columns]), unique=True))
    shown = fitted(columns, spare, room)
    names = [column.name for column, _ in shown]
    assert names == [column.name for column in columns if column.name in names]
    for column in columns:
        if column.name not in names:
            assert column.name in spare or (column.folds and not any(value is not None for value in column.values))
    for column, width in shown:
        assert width == column.natural or (column.folds and FOLDED_LEAST <= width < column.natural)
    total = sum(width + GAP for _, width in shown) - GAP
    if total > room:
        assert all(width == column.least for column, width in shown)
        assert not set(spare) & set(names)


@given(COLUMNS)
def test_in_enough_room_nothing_folds_and_nothing_spare_is_left_out(columns: list[Column]) -> None:
    shown = fitted(columns, [column.name for column in columns], 10_000)
    assert all(width == column.natural for column, width in shown)
    told = [column.name for column in columns if any(value is not None for value in column.values)]
    assert set(told) <= {column.name for column, _ in shown}


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.4, "0 s"), (-0.4, "0 s"), (59, "59 s"), (60, "1 min"), (7_300, "2 h"), (200_000, "2 d"), (-3_480, "in 58 min")],
)
def test_a_distance_is_told_in_its_largest_unit(seconds: float, told: str) -> None:
    assert distance(seconds) == told
