"""Reports: the buckets of time have no gap, a chart tells all of a sum, and what is drawn fits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.cli import charts
from bitinglip.gateway.charts import svg
from bitinglip.gateway.reportpage import page
from bitinglip.projections.reports import BUCKETS_MOST, STEPS, Chart, Chosen, report

START = datetime(2026, 1, 1, tzinfo=UTC)
TIMES = st.integers(-3_000_000, 4_000_000).map(lambda minutes: START + timedelta(minutes=minutes))
LENGTHS = st.timedeltas(timedelta(minutes=1), timedelta(days=800))
USED = ("failed", "cancelled", "expired", "dead_lettered", "attempts", "input_tokens", "output_tokens", "images")


@given(TIMES, LENGTHS)
def test_buckets_cover_the_time(since: datetime, length: timedelta) -> None:
    chosen = Chosen(name="usage", since=since, until=since + length, by="model")
    buckets, step = chosen.buckets(), STEPS[chosen.step]
    assert buckets[0] <= since < buckets[0] + step
    assert buckets[-1] < chosen.until <= buckets[-1] + step
    assert all(after - before == step for before, after in pairwise(buckets))
    assert len(buckets) <= 2 * BUCKETS_MOST


def used(name: str, bucket_at: datetime, succeeded: int) -> dict[str, Any]:
    row = dict.fromkeys(USED, 0) | {"run_s": succeeded / 2, "audio_ms": 0, "energy_j": None}
    return row | {"name": name, "bucket_at": bucket_at.replace(tzinfo=None), "succeeded": succeeded}


ROWS = st.lists(st.tuples(st.sampled_from("abcdefghijkl<"), st.integers(0, 23), st.integers(0, 9)), max_size=40)


async def made(told: list[tuple[str, int, int]]) -> Any:
    async def rows(_name: str, _params: Any) -> list[dict[str, Any]]:
        return [used(name, START + timedelta(hours=hour), succeeded) for name, hour, succeeded in told]

    return await report(Chosen(name="usage", since=START, until=START + timedelta(days=1), by="model"), rows)


@settings(deadline=None)
@given(ROWS)
async def test_a_chart_and_the_table_tell_all_of_it(told: list[tuple[str, int, int]]) -> None:
    found = await made(told)
    total = sum(succeeded for _, _, succeeded in told)
    chart = found.charts[0]
    assert sum(sum(values) for _, values in chart.series) == total
    assert sum(row[1] for row in found.rows) == total
    assert {len(values) for _, values in chart.series} <= {24}
    assert len(chart.series) <= len(charts.FILLS)
    assert "<</td>" not in page(found)


NUMBERS = st.one_of(st.none(), st.floats(0, 1e12), st.integers(0, 10**12))


@st.composite
def drawn_charts(draw: Any) -> Chart:
    labels = [f"l{number}" for number in range(draw(st.integers(1, 90)))]
    names = draw(st.lists(st.text("abc/-", min_size=1, max_size=12), max_size=7, unique=True))
    values = st.lists(NUMBERS, min_size=len(labels), max_size=len(labels)).filter(any)
    series = [(name, draw(values)) for name in names]
    return Chart("Title", "ms", draw(st.sampled_from(["stacked", "lines", "bars"])), labels, series)


@settings(deadline=None, max_examples=50)
@given(drawn_charts(), st.integers(40, 79), st.booleans())
def test_every_chart_can_be_drawn(chart: Chart, width: int, colours: bool) -> None:
    told: Any = {name: getattr(chart, name) for name in ("title", "unit", "kind", "labels", "series")}
    drawn = charts.draw(told, width, colours=colours)
    assert ("\x1b[" in drawn) is (colours and any(any(values) for _, values in chart.series))
    if not colours and chart.kind != "bars" and chart.series:
        assert max(map(len, drawn.splitlines()[1:-1])) <= width
    assert svg(chart).startswith("<svg")
