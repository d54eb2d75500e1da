"""The simulator: every task that fits runs once, no earlier than it came, and more cards are no worse than none."""

from __future__ import annotations

import subprocess
import sys

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from bitinglip.workers.simulation.whatif import POLICIES, Arrival, Model, Question, answer

GIB = 2**30
ARRIVALS = st.builds(
    Arrival,
    at_s=st.floats(0, 1000),
    lane=st.sampled_from(["interactive", "normal", "batch"]),
    key=st.sampled_from(["", "a", "b"]),
    model=st.sampled_from(["echo", "small", "large", "huge"]),
    run_s=st.floats(0, 60),
)
MODELS = {
    "small": Model(need_bytes=4 * GIB, load_s=5),
    "large": Model(need_bytes=10 * GIB, load_s=30),
    "huge": Model(need_bytes=200 * GIB, load_s=60),
}


@settings(deadline=None, max_examples=50)
@given(st.lists(ARRIVALS, max_size=40), st.lists(st.sampled_from([16 * GIB, 24 * GIB]), min_size=1, max_size=4))
def test_every_task_that_fits_runs_to_its_end(arrivals: list[Arrival], cards: list[int]) -> None:
    told = answer(Question(arrivals=arrivals, models=MODELS, cards=cards, policies=list(POLICIES)))
    fitting = [each for each in arrivals if each.model != "huge"]
    assert told["fits_nowhere"] == len(arrivals) - len(fitting)
    for result in told["results"].values():
        assert (result["tasks"], result["unserved"]) == (len(fitting), 0)
        assert all(0 <= p50 <= p99 for p50, p99 in result["waits_s"].values())
        if fitting:
            first, work_s = min(each.at_s for each in fitting), sum(each.run_s for each in fitting)
            assert result["makespan_s"] >= max(each.at_s + each.run_s for each in fitting) - first - 0.01
            assert result["makespan_s"] >= work_s / len(cards) - 0.01
            assert result["utilisation"] <= 1.001


def test_more_cards_shorten_a_burst() -> None:
    burst = [Arrival(at_s=0, lane="normal", model="small", run_s=10) for _ in range(40)]

    def makespan_s(cards: int) -> float:
        question = Question(arrivals=burst, models=MODELS, cards=[16 * GIB] * cards)
        return answer(question)["results"]["ours"]["makespan_s"]

    assert makespan_s(1) > 400
    assert makespan_s(4) < makespan_s(1) / 2


def test_a_week_without_work_is_passed_over() -> None:
    apart = [Arrival(at_s=day * 86_400.0, lane="normal", model="small", run_s=1) for day in range(8)]
    result = answer(Question(arrivals=apart, models=MODELS, cards=[16 * GIB]))["results"]["ours"]
    assert (result["loads"], result["unserved"]) == (1, 0)
    assert result["makespan_s"] >= 7 * 86_400


def _asked(document: object) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "bitinglip.workers.simulation"]
    return subprocess.run(command, input=orjson.dumps(document), capture_output=True, check=False, timeout=60)


def test_it_is_a_process_that_answers_a_question_or_says_what_is_wrong() -> None:
    question = {"arrivals": [{"at_s": 0, "lane": "normal", "model": "echo", "run_s": 1}], "models": {}, "cards": [GIB]}
    assert orjson.loads(_asked(question).stdout)["results"]["ours"]["tasks"] == 1
    for change, said in (({"cards": []}, b"cards"), ({"policies": ["luck"]}, b"luck"), ({"x": 1}, b"x")):
        refused = _asked(question | change)
        assert (refused.returncode, said in refused.stderr) == (2, True)
