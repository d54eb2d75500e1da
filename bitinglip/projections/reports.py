"""Reports: what was used, how long it took, what failed, and how the models did, as tables and as series over time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

Step = Literal["hour", "day", "week"]
Rows = Callable[[str, Mapping[str, Any]], Awaitable[list[dict[str, Any]]]]
"""Answers one of the named questions."""

BY: Mapping[str, tuple[str, ...]] = {
    "usage": ("model", "key", "kind"),
    "latency": ("model", "lane", "kind"),
    "failures": ("failure", "model", "worker", "node"),
    "models": ("model",),
}
"""By what each report can be told, the first if nothing is said."""
BUCKETS_MOST = 64
SERIES_MOST = 6
"""Series of a chart; what is smaller is told together."""
OTHERS = "(others)"
STEPS: Mapping[Step, timedelta] = {"hour": timedelta(hours=1), "day": timedelta(days=1), "week": timedelta(weeks=1)}
_MONDAY = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which report, of what."""

    name: str
    since: datetime
    """From the beginning of its hour."""
    until: datetime
    by: str
    key: str | None = None
    model: str | None = None

    @property
    def step(self) -> Step:
        """How long a bucket of time is."""
        hours = (self.until - self.since) / timedelta(hours=1)
        return "hour" if hours <= BUCKETS_MOST else "day" if hours <= BUCKETS_MOST * 24 else "week"

    def buckets(self) -> list[datetime]:
        """Return where the buckets begin."""
        length = STEPS[self.step]
        first = _MONDAY + (self.since - _MONDAY) // length * length
        return [first + length * number for number in range(-((first - self.until) // length))]

    def params(self) -> dict[str, Any]:
        """Return the parameters of its questions."""
        hour = self.since.replace(minute=0, second=0, microsecond=0)
        times = {"since": hour.replace(tzinfo=None), "until": self.until.replace(tzinfo=None)}
        return {"by": self.by, "step": self.step, "model": self.model} | times


@dataclass(frozen=True, slots=True)
class Chart:
    """Numbers over time, or by name."""

    title: str
    unit: str
    kind: Literal["stacked", "lines", "bars"]
    labels: list[str]
    series: list[tuple[str, list[float | None]]]


@dataclass(frozen=True, slots=True)
class Report:
    """A report: one table, and charts."""

    name: str
    title: str
    since: datetime
    until: datetime
    by: str
    columns: list[str]
    """With units in their names."""
    rows: list[list[Any]]
    charts: list[Chart]

    @property
    def heading(self) -> str:
        """What stands above it."""
        return self.title if len(BY[self.name]) == 1 else f"{self.title} by {self.by}"


async def report(chosen: Chosen, rows: Rows) -> Report:
    """Make a report."""
    return await _MAKERS[chosen.name](chosen, rows)


USED = (
    "succeeded", "failed", "cancelled", "expired", "dead_lettered", "attempts",
    "run_s", "input_tokens", "output_tokens", "images", "audio_ms", "energy_j",
)  # fmt: skip


async def _usage(chosen: Chosen, rows: Rows) -> Report:
    found = await rows("report_usage", chosen.params() | {"key": chosen.key})
    table = _summed(found, USED)
    table.sort(key=lambda row: (-row["run_s"], row["name"]))
    charts = [
        _over_time(chosen, found, "Tasks that succeeded", "tasks", "succeeded"),
        _over_time(chosen, found, "Time on devices", "s", "run_s"),
        _over_time(chosen, found, "Tokens that came out", "tokens", "output_tokens"),
    ]
    return _made(chosen, "Usage", USED, table, charts)


QUANTILES = ("attempts", "mean_ms", "p50_ms", "p90_ms", "p99_ms")
PHASES = ("wait", "load", "run")


async def _latency(chosen: Chosen, rows: Rows) -> Report:
    found = await rows("report_latency", chosen.params())
    table = [row for row in found if row["bucket_at"] is None]
    table.sort(key=lambda row: (row["name"], PHASES.index(row["phase"])))
    most = sorted((row for row in table if row["phase"] == "run"), key=lambda row: -row["attempts"])
    names = [row["name"] for row in most[:SERIES_MOST]]
    charts = [
        _lines(chosen, found, names, phase, quantile) for phase in ("wait", "run") for quantile in QUANTILES[2::2]
    ]
    return _made(chosen, "Latency", ("phase", *QUANTILES), table, charts)


FAILED = ("failures", "retried", "final")


async def _failures(chosen: Chosen, rows: Rows) -> Report:
    found = await rows("report_failures", chosen.params())
    table = _summed(found, FAILED)
    latest = {row["name"]: row for row in sorted(found, key=lambda row: row["last_at"])}
    for row in table:
        last = latest[row["name"]]
        row |= {"last_at": last["last_at"].replace(tzinfo=UTC), "last_message": last["last_message"]}
        row |= {"last_task_id": last["last_task_id"]}
    table.sort(key=lambda row: (-row["failures"], row["name"]))
    charts = [_over_time(chosen, found, "Attempts that failed", "attempts", "failures")]
    return _made(chosen, "Failures", (*FAILED, "last_at", "last_message", "last_task_id"), table, charts)


OF_MODELS = (
    "tasks", "succeeded", "failures", "run_s", "output_tokens", "tokens_per_s",
    "wait_p50_ms", "run_p50_ms", "run_p99_ms", "energy_j",
)  # fmt: skip


async def _models(chosen: Chosen, rows: Rows) -> Report:
    params = chosen.params()
    used = {row["name"]: row for row in _summed(await rows("report_usage", params | {"key": chosen.key}), USED)}
    failed = {row["name"]: row["failures"] for row in _summed(await rows("report_failures", params), FAILED)}
    took = {(row["name"], row["phase"]): row for row in await rows("report_latency", params) if not row["bucket_at"]}
    table = [
        _model(name, used.get(name, {}), failed.get(name, 0), took) for name in sorted(used.keys() | failed.keys())
    ]
    table.sort(key=lambda row: -row["run_s"])
    shown = table[: 3 * SERIES_MOST]
    charts = [
        _bars("Time on devices", "s", shown, ("run_s",)),
        _bars("Half of the runs took less, and all but one in a hundred", "ms", shown, ("run_p50_ms", "run_p99_ms")),
    ]
    return _made(chosen, "Models", OF_MODELS, table, charts)


def _model(
    name: str, used: Mapping[str, Any], failures: int, took: Mapping[tuple[str, str], Mapping[str, Any]]
) -> dict[str, Any]:
    run_s, tokens = used.get("run_s", 0.0), used.get("output_tokens", 0)
    ends = ("succeeded", "failed", "cancelled", "expired", "dead_lettered")
    wait, run = took.get((name, "wait"), {}), took.get((name, "run"), {})
    return {
        "name": name,
        "tasks": sum(used.get(end, 0) for end in ends),
        "succeeded": used.get("succeeded", 0),
        "failures": failures,
        "run_s": run_s,
        "output_tokens": tokens,
        "tokens_per_s": tokens / run_s if run_s and tokens else None,
        "wait_p50_ms": wait.get("p50_ms"),
        "run_p50_ms": run.get("p50_ms"),
        "run_p99_ms": run.get("p99_ms"),
        "energy_j": used.get("energy_j"),
    }


_MAKERS = {"usage": _usage, "latency": _latency, "failures": _failures, "models": _models}


# --- parts ------------------------------------------------------------------------------------------------------------


def _made(
    chosen: Chosen, title: str, columns: Seq[str], table: Iterable[dict[str, Any]], charts: list[Chart]
) -> Report:
    rows = [[row["name"], *[_rounded(row[column]) for column in columns]] for row in table]
    return Report(chosen.name, title, chosen.since, chosen.until, chosen.by, [chosen.by, *columns], rows, charts)


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def _summed(found: Iterable[Mapping[str, Any]], columns: Seq[str]) -> list[dict[str, Any]]:
    """Add up the buckets of each name; what is null everywhere stays so."""
    totals: dict[str, dict[str, Any]] = {}
    for row in found:
        total = totals.setdefault(row["name"], {"name": row["name"]} | dict.fromkeys(columns))
        for column in columns:
            if row[column] is not None:
                total[column] = (total[column] or 0) + row[column]
    return list(totals.values())


def _over_time(chosen: Chosen, found: Seq[Mapping[str, Any]], title: str, unit: str, column: str) -> Chart:
    """Return a chart of a sum by name, the largest names first, the small ones together."""
    totals = sorted(_summed(found, (column,)), key=lambda row: (-(row[column] or 0), row["name"]))
    named = [row["name"] for row in totals if row[column]]
    kept = named[:SERIES_MOST] if len(named) > SERIES_MOST + 1 else named
    series = {name: dict.fromkeys(chosen.buckets(), 0.0) for name in [*kept, *([OTHERS] if kept != named else [])]}
    for row in found:
        if row[column]:
            of = series[row["name"] if row["name"] in series else OTHERS]
            of[row["bucket_at"].replace(tzinfo=UTC)] += row[column]
    shown: list[tuple[str, list[float | None]]] = [(name, list(values.values())) for name, values in series.items()]
    return Chart(f"{title}, by {chosen.by}", unit, "stacked", _labels(chosen), shown)


def _lines(chosen: Chosen, found: Seq[Mapping[str, Any]], names: Seq[str], phase: str, quantile: str) -> Chart:
    told = {(row["name"], row["bucket_at"]): row[quantile] for row in found if row["phase"] == phase}
    buckets = [bucket.replace(tzinfo=None) for bucket in chosen.buckets()]
    series = [(name, [told.get((name, bucket)) for bucket in buckets]) for name in names]
    title = f"{phase.capitalize()}, {quantile.removesuffix('_ms')}, by {chosen.by}"
    return Chart(title, "ms", "lines", _labels(chosen), [each for each in series if any(each[1])])


def _bars(title: str, unit: str, table: Seq[Mapping[str, Any]], columns: Seq[str]) -> Chart:
    series: list[tuple[str, list[float | None]]] = [(column, [row[column] for row in table]) for column in columns]
    labels = [row["name"] for row in table]
    return Chart(title, unit, "bars", labels, [each for each in series if any(each[1])])


def _labels(chosen: Chosen) -> list[str]:
    form = "%m-%d %H:00" if chosen.step == "hour" else "%Y-%m-%d"
    return [bucket.strftime(form) for bucket in chosen.buckets()]
