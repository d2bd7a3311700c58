"""`jpgen evolve` as it is typed."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from jpgen.cli import main
from jpgen.evolve import run
from jpgen.evolve.example import PROMPTS, SPOILT, STUDY
from jpgen.evolve.plan import read_plan
from jpgen.merge.reading import load_recipe


@pytest.mark.slow
def test_the_example_is_written_and_runs(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    done = CliRunner().invoke(main, ["evolve", "--example", str(folder)])
    assert done.exit_code == 0, done.output
    assert {path.name for path in folder.iterdir()} == {STUDY, PROMPTS, *SPOILT}
    one, other = (load_file(folder / name) for name in SPOILT)
    assert one.keys() == other.keys() and all(not torch.equal(one[key], other[key]) for key in one if one[key].numel() > 1)
    plan = read_plan(folder / STUDY, load_recipe)
    assert len(plan.search.questions) == 12 and len(plan.held_out) == 48
    small = (folder / STUDY).read_text("utf-8").replace("search: 12, held_out: 48", "search: 2, held_out: 2").replace("steps: 4", "steps: 1")
    (folder / STUDY).write_text(small.replace("population: 8", "population: 4"), "utf-8")
    done = CliRunner().invoke(main, ["evolve", str(folder / STUDY), "--evaluations", "4", "--weight", "judge_probability=1", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found["numbers"]) == {"root.t.attn", "root.t.other"} and len(found["rivals"]) == 3
    assert "4/4 試行" in done.stderr and "残り / left 0:00" in done.stderr
    best = load_recipe(folder / "study" / run.BEST)
    assert not best.free() and best.root.params["t"] == {"attn": found["numbers"]["root.t.attn"], "other": found["numbers"]["root.t.other"]}
    again = CliRunner().invoke(main, ["evolve", "--example", str(folder)])
    assert again.exit_code == 2 and "is there already" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [([], "name a study file"), (["nowhere.yaml"], "cannot read the study"), (["nowhere.yaml", "--weight", "judge"], "judge=1")],
)
def test_what_is_wrong_is_one_line(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(main, ["evolve", *arguments])
    assert done.exit_code == 2 and told in done.stderr and done.stderr.count("\n") == 1
