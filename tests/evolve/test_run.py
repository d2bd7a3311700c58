"""A whole search on toys, in one process and in two, killed and continued; and what must never happen in it."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from jpgen.errors import StudyError, WeightsError
from jpgen.evolve import run
from jpgen.evolve.panel import HeldOut, Panel
from jpgen.evolve.trials import Spec, Tryout
from jpgen.merge.search import Genome, Method
from jpgen.merge.study import Trial

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)

import toys  # noqa: E402  # as the processes that are started import it


def evolved(folder: Path, given, **more) -> run.Evolved:
    return run.run_plan(given, folder, toys.opener(given), **more)


def events(folder: Path) -> list[dict]:
    read = [json.loads(line) for line in (folder / run.LOG).read_text().splitlines()]
    return sorted(({**event, "seconds": 0} for event in read), key=lambda event: (event["event"], event.get("trial", 0)))


@pytest.mark.slow
def test_it_finds_the_weights_that_were_taken_apart(tmp_path: Path) -> None:
    """a + t (b − a) is the toy itself at attn 0, other 1; the middle, where it begins, is the plain average."""
    given = toys.plan(tmp_path, evaluations=40, method=Method("", 8, 0.3, 0))
    found = evolved(tmp_path / "s", given)
    assert found.numbers["root.t.attn"] < 0.2 and found.numbers["root.t.other"] > 0.8
    rivals = {one.rival: one for one in found.rivals}
    assert set(rivals) == {"parent 0: a.safetensors", "parent 1: b.safetensors", "average"}
    for one in rivals.values():
        assert one.difference > 0 and one.interval[0] <= one.difference <= one.interval[1]
        assert one.difference == pytest.approx(one.best_mean - one.rival_mean)
    told = yaml.safe_load((tmp_path / "s" / run.BEST).read_text())
    assert told["root"]["t"] == {"attn": found.numbers["root.t.attn"], "other": found.numbers["root.t.other"]}
    assert found.front == (found.trial,) and list(found.hypervolumes) == sorted(found.hypervolumes)
    written = json.loads((tmp_path / "s" / run.HELD_OUT).read_text())
    assert written == [dataclasses.asdict(one) | {"interval": list(one.interval)} for one in found.rivals]


@pytest.mark.slow
def test_one_process_and_two_agree(tmp_path: Path) -> None:
    given = toys.plan(tmp_path, ("drift", "drift"), evaluations=10)
    one, two = evolved(tmp_path / "one", given), evolved(tmp_path / "two", given, workers=2)
    assert events(tmp_path / "one") == events(tmp_path / "two")
    assert dataclasses.replace(one, folder=tmp_path, recipe=tmp_path) == dataclasses.replace(two, folder=tmp_path, recipe=tmp_path)
    assert len(one.front) >= 2  # what is near one parent is far from the other


KILLED = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import toys
from jpgen.evolve import run
if __name__ == "__main__":
    given = toys.plan(Path(sys.argv[1]), ("toys:slowly",), evaluations=12)
    run.run_plan(given, Path(sys.argv[2]), toys.opener(given), workers=int(sys.argv[3]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_and_continued_it_is_the_same_search(tmp_path: Path, workers: int) -> None:
    script, log = tmp_path / "study.py", tmp_path / "killed" / run.LOG
    script.write_text(KILLED.format(here=HERE))
    given = toys.plan(tmp_path, ("toys:slowly",), evaluations=12)
    command = [sys.executable, str(script), str(tmp_path), str(log.parent), str(workers)]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": os.getcwd()})
    while process.poll() is None and (not log.exists() or log.read_bytes().count(b'"tell"') < 5):
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 <= log.read_bytes().count(b'"tell"') < 12
    continued = evolved(log.parent, given)
    whole = evolved(tmp_path / "whole", given)
    assert events(log.parent) == events(tmp_path / "whole")
    assert (continued.trial, continued.numbers, continued.rivals) == (whole.trial, whole.numbers, whole.rivals)
    assert (log.parent / run.BEST).read_bytes() == (tmp_path / "whole" / run.BEST).read_bytes()


def test_held_out_prompts_are_not_seen_while_it_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = tmp_path / "seen.txt"
    monkeypatch.setenv("TOYS_LOG", str(seen))
    given = toys.plan(tmp_path)
    held_out = {"富士山", "犬", "雨の街"}
    evolved(tmp_path / "s", given, held_out=False)
    assert set(seen.read_text().split()) == {"猫", "赤い船"} and len(seen.read_text().split()) == 2 * given.evaluations
    seen.unlink()
    evolved(tmp_path / "s", given)  # the search is over: nothing more of it
    assert set(seen.read_text().split()) == held_out
    with pytest.raises(StudyError, match="when the search is over"):
        given.held_out.open("finished")
    with pytest.raises(TypeError, match="not sent"):
        pickle.dumps(given.held_out)
    spec = Spec(toys.opener(given), Genome.of(given.recipe.free()), given.search, given.scorers, given.sampling)
    assert not any(isinstance(getattr(spec, one.name), HeldOut) for one in dataclasses.fields(spec))
    sent = pickle.dumps(spec)
    assert "猫".encode() in sent and not any(text.encode() in sent for text in held_out)


def test_a_trial_writes_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    given = toys.plan(tmp_path, ("drift", "drift"), evaluations=12)
    parents = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    written = 0

    def audit(event: str, arguments: tuple) -> None:
        nonlocal written
        if active and event == "open" and isinstance(arguments[0], str | os.PathLike) and any(c in str(arguments[1]) for c in "wax+"):
            opened.append(str(arguments[0]))

    opened: list[str] = []
    active = True
    sys.addaudithook(audit)
    evolved(tmp_path / "s", given, held_out=False)
    active = False
    assert {name.rpartition(".")[2] for name in opened} <= {"tmp", "jsonl"} and not any("safetensors" in name for name in opened)
    size = sum(path.stat().st_size for path in (tmp_path / "s").iterdir())
    times = 1 + given.evaluations // 4 + 1  # the picture, page and recipe are written so often
    assert size * times < 64 * 1024 * given.evaluations
    assert {path.name for path in (tmp_path / "s").iterdir()} == {run.LOG, run.BEST, run.PICTURE, run.PAGE}
    assert all(path.stat().st_mtime_ns == before for path, before in parents.items())


def test_scorers_that_fail_are_told_and_the_search_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, told in (("sometimes_nan", "= nan"), ("sometimes_raises", "ValueError: odd")):
        evolved(tmp_path / name, toys.plan(tmp_path, (f"toys:{name}",)), held_out=False)
        tells = [event for event in events(tmp_path / name) if event["event"] == "tell"]
        failed = [event for event in tells if event["scores"] == [None]]
        assert len(tells) == 8 and 0 < len(failed) < 8 and all(told in event["faults"][0] for event in failed)
        assert told in caplog.text
    with pytest.raises(StudyError, match=r"every trial failed.*ZeroDivisionError: no"):
        evolved(tmp_path / "never", toys.plan(tmp_path, ("toys:always_raises",)))
    assert len([event for event in events(tmp_path / "never") if event["event"] == "tell"]) == 8


def test_weights_out_of_bounds_fail_before_a_picture_is_drawn(tmp_path: Path) -> None:
    given = toys.plan(tmp_path, ratio=(3.0, 4.0))
    spec = Spec(toys.opener(given), Genome.of(given.recipe.free()), given.search, given.scorers, given.sampling, ratio=given.ratio)
    tryout = Tryout(spec)
    outcome = tryout.outcome(Trial(0, 0, (0.5, 0.5)))
    assert outcome.failed and "times as large" in outcome.faults[0] and not tryout._drawn


def test_the_model_draws_as_before_and_pictures_are_kept(tmp_path: Path) -> None:
    given = toys.plan(tmp_path)
    tryout = Tryout(Spec(toys.opener(given), Genome.of(given.recipe.free()), given.search, given.scorers, given.sampling))
    picture = np.asarray(tryout.pipeline.generate("猫", seed=1).image)
    first = tryout.draw((0.2, 0.9), tryout.formulas.merged({"root.t.attn": 0.2, "root.t.other": 0.9}), given.search)
    computed = tryout.live.computed
    assert computed == len(tryout.formulas.keys)
    other = tryout.draw((0.4, 0.9), tryout.formulas.merged({"root.t.attn": 0.4, "root.t.other": 0.9}), given.search)
    assert tryout.live.computed - computed == sum(".to_" in key for key in tryout.formulas.keys)
    assert all(a is b for a, b in zip(first, tryout.draw((0.2, 0.9), tryout.formulas.average(), given.search), strict=True))  # from memory
    assert any((np.asarray(a.image) != np.asarray(b.image)).any() for a, b in zip(first, other, strict=True))
    assert [(made.prompt.source, made.seed) for made in first] == [("猫", 3), ("赤い船", 3)]
    assert (np.asarray(tryout.pipeline.generate("猫", seed=1).image) == picture).all()


def test_parents_and_average_are_what_they_are_called(tmp_path: Path) -> None:
    given = toys.plan(tmp_path)
    _, formulas = toys.opener(given)()
    from safetensors.torch import load_file

    a, b = (load_file(tmp_path / f"{name}.safetensors") for name in "ab")
    for key in formulas.keys:
        name = key.removeprefix("transformer.")
        assert torch.equal(formulas.parent(1).tensor(key), b[name])
        torch.testing.assert_close(formulas.average().tensor(key), (a[name] + b[name]) / 2)
    with pytest.raises(StudyError, match="no parent 2"):
        formulas.parent(2)
    with pytest.raises(WeightsError, match=r"no tensor transformer\.nothing"):
        formulas.average().tensor("transformer.nothing")


def test_more_evaluations_go_on_and_another_study_is_refused(tmp_path: Path) -> None:
    given = toys.plan(tmp_path)
    evolved(tmp_path / "s", given, held_out=False, evaluations=4)
    progress: list[run.Progress] = []
    evolved(tmp_path / "s", given, held_out=False, evaluations=8, on_progress=progress.append)
    assert [one.done for one in progress] == [5, 6, 7, 8] and progress[-1].left == 0 and progress[0].left > 0
    evolved(tmp_path / "whole", given, held_out=False)
    assert events(tmp_path / "s") == events(tmp_path / "whole")
    for changed, told in (
        ({"sampling": {"steps": 2}}, r"inputs\.sampling\.steps: 1 → 2"),
        ({"threads": 2}, r"inputs\.threads: 1 → 2"),
        ({"search": Panel(given.search.questions, 4)}, r"inputs\.prompts"),
        ({"scorers": toys.plan(tmp_path, ("toys:brightness",)).scorers}, r"inputs\.scorers\[0\]: 'toys:like_the_toy"),
    ):
        with pytest.raises(StudyError, match=told):
            evolved(tmp_path / "s", dataclasses.replace(given, **changed))
    toys.write_parents(tmp_path)
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes())
    with pytest.raises(StudyError, match=r"inputs\.weights\[0\]\[0\]"):
        evolved(tmp_path / "s", given)


def test_the_page_and_the_picture_tell_the_front(tmp_path: Path) -> None:
    from PIL import Image

    found = evolved(tmp_path / "s", toys.plan(tmp_path, ("drift", "drift", "toys:brightness"), evaluations=8), held_out=False)
    with Image.open(tmp_path / "s" / run.PICTURE) as image:
        assert image.size == (2000, 400) and len(np.unique(np.asarray(image))) > 20
    page = (tmp_path / "s" / run.PAGE).read_text()
    assert page.count('<tr class="front') == len(found.front) and page.count("<circle") == 8 and 'lang="ja"' in page
    assert f"<td>{found.trial}</td>" in page
