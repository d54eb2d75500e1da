"""Simulate every scenario under every scheduler; writes docs/scheduling/*.svg and results.json, prints the table.

    python -m benchmarks.scheduling [SCENARIO ...]

Waits, loads, utilisation and fairness are the same on every machine; the times of a decision are this machine's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.scheduling.plots import bars
from benchmarks.scheduling.schedulers import Static
from benchmarks.scheduling.world import LANES, Scenario, arrivals, make
from benchmarks.support import machine
from bitinglip.workers.simulation.loop import Outcome, Simulation
from bitinglip.workers.simulation.schedulers import Fifo, Ours, Scheduler
from bitinglip.workers.simulation.world import World

FOLDER = Path(__file__).parents[2] / "docs" / "scheduling"
SCENARIOS = (
    Scenario("1 card", 1, 3, 0.4, 7200),
    Scenario("6 cards", 6, 8, 0.5, 7200),
    Scenario("20 cards", 20, 30, 0.5, 3600),
    Scenario("20, bursts", 20, 30, 0.5, 3600, bursty=True),
    Scenario("100 cards", 100, 100, 0.6, 1800),
    Scenario("1,000 cards", 1000, 1000, 0.6, 600),
)
SCHEDULERS: dict[str, Callable[[World], Scheduler]] = {"ours": Ours, "fifo": Fifo, "static": Static}

Results = dict[str, dict[str, Outcome]]


def main() -> None:
    """Simulate what is named, or everything; only everything is written down."""
    chosen = [scenario for scenario in SCENARIOS if scenario.name in sys.argv[1:] or not sys.argv[1:]]
    results: Results = {}
    times: dict[str, Any] = {}
    for scenario in chosen:
        results[scenario.name] = {}
        for name, scheduler in SCHEDULERS.items():
            started, world = time.monotonic(), make(scenario)
            deciding = scheduler(world)
            results[scenario.name][name] = Simulation(name, world, deciding, arrivals(scenario, world)).run()
            if isinstance(deciding, Ours):
                times[scenario.name] = _times(deciding)
            sys.stdout.write(f"{scenario.name}, {name}: {time.monotonic() - started:.1f} s\n")
            sys.stdout.flush()
    sys.stdout.write(table(results) + json.dumps(times) + "\n")
    if len(chosen) == len(SCENARIOS):
        _write(results, times)


def table(results: Results) -> str:
    """Write the figures as a Markdown table."""
    head = "| cards | scheduler | " + " | ".join(f"{lane} p50 / p99" for lane in LANES)
    head += " | loads per 1,000 | utilisation | Jain | not started |\n|" + " --- |" * 9 + "\n"
    return head + "".join(
        f"| {scenario} | {name} | "
        + " | ".join(f"{p50:,.1f} / {p99:,.0f} s" for p50, p99 in outcome.waits_s.values())
        + f" | {outcome.loads_per_1000:.0f} | {outcome.utilisation:.0%} | {outcome.fairness:.2f} "
        f"| {outcome.unserved:,} of {outcome.tasks:,} |\n"
        for scenario, outcomes in results.items()
        for name, outcome in outcomes.items()
    )


def _times(ours: Ours) -> dict[str, float]:
    return {
        "decisions": ours.decisions,
        "decision_mean_ms": round(ours.decision_s / max(1, ours.decisions) * 1000, 4),
        "decision_longest_ms": round(ours.longest_s * 1000, 3),
        "plan_mean_ms": round(ours.plan_s / max(1, ours.plans) * 1000, 3),
        "plan_longest_ms": round(ours.longest_plan_s * 1000, 3),
    }


def _write(results: Results, times: dict[str, Any]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for lane in LANES:
        for at, part in enumerate(("p50", "p99")):
            picked = _picked(results, lambda outcome, lane=lane, at=at: outcome.waits_s[lane][at])
            _draw(f"wait-{lane}-{part}", bars(f"Wait before a start, {lane}, {part}", " s", picked, logarithmic=True))
    _draw("loads", bars("Loads per 1,000 tasks", "", _picked(results, lambda outcome: outcome.loads_per_1000)))
    _draw("utilisation", bars("Utilisation", "", _picked(results, lambda outcome: outcome.utilisation)))
    _draw("fairness", bars("Jain's index over the keys", "", _picked(results, lambda outcome: outcome.fairness)))
    document = {
        "machine": machine(),
        "times": times,
        "results": {name: {key: each.json() for key, each in some.items()} for name, some in results.items()},
    }
    (FOLDER / "results.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def _picked(results: Results, pick: Callable[[Outcome], float]) -> dict[str, dict[str, float]]:
    return {name: {key: pick(outcome) for key, outcome in some.items()} for name, some in results.items()}


def _draw(name: str, picture: str) -> None:
    (FOLDER / f"{name}.svg").write_text(picture, "utf-8")


if __name__ == "__main__":
    main()
