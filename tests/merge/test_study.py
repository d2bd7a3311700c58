"""The log: kill -9 and go on, a torn line, another study, faults; with the whole search in a real process."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jpgen.errors import StudyError
from jpgen.merge.search import Genome, Method
from jpgen.merge.study import Objective, Outcome, Study, Trial, differences


@dataclass(frozen=True)
class Free:
    low: float
    high: float
    initial: float | None = None


GENOME = Genome.of({"a": Free(0, 1), "b": Free(-2, 2)})
ONE = (Objective("score"),)
TWO = (Objective("score"), Objective("drift", "minimise"))
INPUTS = {"recipe": {"method": "slerp"}, "prompts": ["猫"]}


def opened(path: Path, objectives=ONE, **changed) -> Study:
    given = {"genome": GENOME, "method": Method("", 4, 0.25, 7), "objectives": objectives, "inputs": INPUTS}
    return Study.open(path, **{**given, **changed})


def score(trial: Trial) -> Outcome:
    return Outcome(trial.id, (-sum((x - 0.3) ** 2 for x in trial.point),))


def both(trial: Trial) -> Outcome:
    return Outcome(trial.id, (trial.point[0], trial.point[0] ** 2 + trial.point[1]))


def judged(path: Path, evaluations: int, judge=score, order=lambda trials: trials, objectives=ONE) -> list[dict]:
    """The study's events without the seconds, tells by trial."""
    with opened(path, objectives) as study:
        study.run(evaluations, lambda trials: map(judge, order(trials)))
    return events(path)


def events(path: Path) -> list[dict]:
    read = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(({**event, "seconds": 0} for event in read), key=lambda event: (event["event"], event.get("trial", 0)))


@pytest.mark.parametrize(("judge", "objectives"), [(score, ONE), (both, TWO)])
def test_a_search_in_pieces_is_the_search_in_one(tmp_path: Path, judge, objectives) -> None:
    whole = judged(tmp_path / "whole.jsonl", 22, judge, objectives=objectives)
    for evaluations in (1, 4, 9, 9, 15, 22):
        pieces = judged(tmp_path / "pieces.jsonl", evaluations, judge, objectives=objectives)
    assert pieces == whole and len(whole) == 1 + 2 * 22


@pytest.mark.parametrize(("judge", "objectives"), [(score, ONE), (both, TWO)])
def test_who_is_done_first_changes_nothing(tmp_path: Path, judge, objectives) -> None:
    backwards = judged(tmp_path / "b.jsonl", 16, judge, lambda trials: list(reversed(trials)), objectives)
    assert backwards == judged(tmp_path / "a.jsonl", 16, judge, objectives=objectives)


SLOW = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_study import opened, score

def slow(trial):
    time.sleep(0.1)
    return score(trial)

with opened(Path(sys.argv[1])) as study:
    study.run(24, lambda trials: map(slow, trials))
"""


def test_killed_at_any_moment_it_continues_bit_by_bit(tmp_path: Path) -> None:
    whole = judged(tmp_path / "whole.jsonl", 24)
    path, code = tmp_path / "killed.jsonl", SLOW.format(tests=str(Path(__file__).parent))
    for kills, wanted in enumerate((3, 9, 14)):
        process = subprocess.Popen([sys.executable, "-c", code, str(path)])
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b'"tell"') < wanted):
            time.sleep(0.01)
        assert process.poll() is None, kills
        process.send_signal(signal.SIGKILL)
        process.wait()
        with path.open("rb") as file:
            assert wanted <= file.read().count(b'"tell"') < 24
    assert judged(path, 24) == whole
    with opened(path) as study, opened(tmp_path / "whole.jsonl") as other:
        assert study.finished(24).trial == other.finished(24).trial
        assert study.best() == other.best()


def test_a_trial_asked_but_not_told_is_judged_again_at_its_point(tmp_path: Path) -> None:
    whole = judged(tmp_path / "whole.jsonl", 12)
    path = tmp_path / "cut.jsonl"
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:7]))  # config, four asks, two tells
    seen: list[Trial] = []
    with opened(path) as study:
        study.run(12, lambda trials: (seen.append(trial) or score(trial) for trial in trials))
    assert [trial.id for trial in seen[:2]] == [2, 3] and seen[0].point == tuple(json.loads(lines[3])["x"])
    assert events(path) == whole


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_dropped_and_said(tmp_path: Path, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    whole = judged(tmp_path / "whole.jsonl", 8)
    data = (tmp_path / "whole.jsonl").read_bytes()
    path = tmp_path / "torn.jsonl"
    path.write_bytes(data[:-cut])
    with opened(path) as study:
        assert study.dropped and len(study.told) == 7
        study.run(8, lambda trials: map(score, trials))
    assert "cut off" in caplog.text and events(path) == whole


def test_a_log_torn_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "torn.jsonl"
    path.write_bytes(b'{"event":"conf')
    assert judged(path, 4) == judged(tmp_path / "whole.jsonl", 4)


def test_damage_elsewhere_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    judged(path, 8)
    lines = path.read_bytes().splitlines(keepends=True)
    never = b'{"event":"tell","trial":99,"scores":[1.0],"seconds":0}\n'
    for bad in (b"{]\n", b'{"event":"ask"}\n', lines[1], never, b'["ask"]\n', b'{"event":"x"}\n'):
        path.write_bytes(b"".join([*lines[:5], bad, *lines[5:]]))
        with pytest.raises(StudyError, match="line 6 is damaged"):
            opened(path)


def test_points_that_are_not_the_optimisers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    judged(path, 4)
    lines = path.read_text().splitlines()
    event = json.loads(lines[2])
    event["x"][0] += 1e-3
    path.write_text("\n".join([*lines[:2], json.dumps(event), *lines[3:]]) + "\n")
    with opened(path) as study, pytest.raises(StudyError, match="trial 1 is at another point"):
        study.run(4, lambda trials: map(score, trials))


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"inputs": {**INPUTS, "recipe": {"method": "ties"}}}, r"inputs\.recipe\.method: 'slerp' → 'ties'"),
        ({"inputs": {**INPUTS, "prompts": ["犬"]}}, r"inputs\.prompts\[0\]: '猫' → '犬'"),
        ({"method": Method("", 6, 0.25, 7)}, r"optimiser\.population: 4 → 6"),
        ({"genome": Genome.of({"a": Free(0, 1), "b": Free(-2, 1)})}, r"genome\.b\[1\]: 2\.0 → 1\.0"),
        ({"objectives": (Objective("score", "minimise"),)}, r"objectives\[0\]\.goal: 'maximise' → 'minimise'"),
    ],
)
def test_another_study_is_refused_with_what_differs(tmp_path: Path, changed: dict, told: str) -> None:
    path = tmp_path / "s.jsonl"
    judged(path, 4)
    before = path.read_bytes()
    with pytest.raises(StudyError, match=told):
        opened(path, **changed)
    assert path.read_bytes() == before
    assert differences({"a": 1}, {"b": 1}) == ["a: 1 → None", "b: None → 1"]


def test_another_version_of_the_optimiser_is_another_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged(tmp_path / "s.jsonl", 4)
    monkeypatch.setattr("cmaes.__version__", "9.9")
    with pytest.raises(StudyError, match=r"optimiser\.version: 'cmaes .*' → 'cmaes 9\.9'"):
        opened(tmp_path / "s.jsonl")


def test_no_two_processes_at_one_study(tmp_path: Path) -> None:
    with opened(tmp_path / "s.jsonl"), pytest.raises(StudyError, match="another process"):
        opened(tmp_path / "s.jsonl")
    opened(tmp_path / "s.jsonl").close()


def test_scores_that_are_no_numbers_are_the_worst_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def judge(trial: Trial) -> Outcome:
        if trial.id == 1:
            return Outcome(1, (math.nan, 0.0))
        return Outcome(2, (None, 1.0), ("score: ZeroDivisionError: x",)) if trial.id == 2 else both(trial)

    path = tmp_path / "s.jsonl"
    judged(path, 8, judge, objectives=TWO)
    assert "score = nan" in caplog.text and "ZeroDivisionError" in caplog.text
    with opened(path, TWO) as study:
        assert len(study.told) == 8 and np.isinf(study.costs()[[1, 2]]).all() and np.isfinite(study.costs()[[0, 3, 4, 5, 6, 7]]).all()
        assert study.told[1].failed and study.told[1].faults == ("score = nan",)
        assert not {1, 2} & {trial.id for trial in study.front()}


def test_a_point_that_was_told_is_not_judged_again(tmp_path: Path) -> None:
    judgements: list[Trial] = []

    def judge(trial: Trial) -> Outcome:
        judgements.append(trial)
        return Outcome(trial.id, (0.0, 0.0))

    path = tmp_path / "s.jsonl"
    with opened(path, TWO, method=Method("nsga2", 4, 0.25, 3)) as study:
        study.run(60, lambda trials: map(judge, trials))
        repeated = [outcome for outcome in study.told.values() if outcome.same_as is not None]
        assert repeated and len(judgements) == 60 - len(repeated)
        assert all(study.asked[one.id].point == study.asked[one.same_as].point for one in repeated)


def test_front_hypervolume_and_choice(tmp_path: Path) -> None:
    scores = {0: (0.0, 0.0), 1: (1.0, 1.0), 2: (0.5, 0.2), 3: (0.4, 0.5), 4: (0.6, 0.1), 5: (0.0, 2.0), 6: (0.1, 2.0), 7: (0.0, 1.0)}
    path = tmp_path / "s.jsonl"
    with opened(path, TWO, method=Method("nsga2", 4)) as study:
        study.run(8, lambda trials: (Outcome(trial.id, scores[trial.id]) for trial in trials))
        assert [trial.id for trial in study.front()] == [0, 1, 4]
        assert [study.best(weights).id for weights in ({"score": 1.0}, {"drift": 1.0}, {"score": 1.0, "drift": 1.0})] == [1, 0, 4]
        # costs −score and drift; the worst of the first four is (0, 1), the reference a tenth of the range beyond: (0.1, 1.1)
        first = 0.1 * 1.1 + 0.5 * 0.9 + 0.5 * 0.1
        assert study.hypervolumes()[0] == pytest.approx(first)
        assert study.hypervolumes()[1] == pytest.approx(0.1 * 1.1 + 0.6 * 1.0 + 0.4 * 0.1)
        with pytest.raises(StudyError, match="no such objective"):
            study.best({"beauty": 1.0})


def test_held_out_prompts_wait_for_the_end(tmp_path: Path) -> None:
    with opened(tmp_path / "s.jsonl") as study:
        study.run(4, lambda trials: map(score, trials))
        with pytest.raises(StudyError, match="4 of 8"):
            study.finished(8)
        assert study.finished(4).trial == study.best()


def test_a_trial_costs_a_few_hundred_bytes(tmp_path: Path) -> None:
    judged(tmp_path / "s.jsonl", 40)
    assert sum(os.path.getsize(tmp_path / name) for name in os.listdir(tmp_path)) < 40 * 1024
