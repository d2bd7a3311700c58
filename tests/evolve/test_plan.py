"""Study files: what they say, and all that is wrong with one at once; prompts, scorers, sources."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jpgen.errors import PromptError, StudyError, UnknownNameError, WeightsError
from jpgen.evaluate.judge import Facts, Judge
from jpgen.evolve.panel import Panel, evenly, halves, read_prompts, split
from jpgen.evolve.plan import read_plan
from jpgen.evolve.scorers import Drift, JudgeScore, Scorer
from jpgen.evolve.sources import Sources
from jpgen.merge.reading import load_recipe
from jpgen.merge.recipe import Model
from jpgen.types import Generation, ModelInfo, Prompt, SamplingConfig

HERE = str(Path(__file__).parent)
sys.path.insert(0, HERE)

import toys  # noqa: E402

STUDY = """\
recipe: {root: {method: lerp, inputs: [a.safetensors, b.safetensors], t: {attn: {free: [0, 1]}, other: {free: [0, 1], initial: 0.25}}}}
prompts: {file: prompts.txt, search: 2, held_out: 1}
objectives: [judge, {scorer: drift, parent: 1, weight: 0.5}, {scorer: "toys:brightness", name: light, goal: minimise}]
"""


def written(folder: Path, text: str = STUDY) -> Path:
    (folder / "prompts.txt").write_text("猫\n\n# 注\n犬\n赤い船\n", "utf-8")
    (folder / "study.yaml").write_text(text, "utf-8")
    return folder / "study.yaml"


def pictured(prompt: str, image: Image.Image, seed: int = 0) -> Generation:
    info = ModelInfo("toy", "0", "Apache-2.0", "0")
    return Generation(image, Prompt(prompt, prompt), SamplingConfig(64, 64, 1, 1.0), seed, info, "toy", "native", 0.0)


def test_a_study_says_what_is_searched(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path), load_recipe)
    assert list(plan.recipe.free()) == ["root.t.attn", "root.t.other"] and plan.model == "mame" and plan.evaluations == 40 and plan.threads == 1
    assert [(one.name, one.goal, one.weight) for one in plan.objectives] == [
        ("judge", "maximise", 1.0), ("drift", "minimise", 0.5), ("light", "minimise", 1.0),
    ]  # fmt: skip
    assert plan.scorers[1].parent == 1 and plan.search.prompts == ["猫", "犬"] and len(plan.held_out) == 1


def test_the_recipe_may_be_a_file_beside_the_study(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("root: {method: lerp, inputs: [a.safetensors, b.safetensors], t: {free: [0, 1]}}\n")
    path = written(tmp_path, "recipe: r.yaml\n" + STUDY.partition("\n")[2])
    assert list(read_plan(path, load_recipe).recipe.free()) == ["root.t"]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = """\
prompts: {file: prompts.txt, serch: 2}
objectives: [judge, judge, {scorer: beauty}, {goal: maximise}, {scorer: judge, name: x, goal: up, weight: -1}]
optimiser: {population: many}
evaluations: 0
norm_ratio: [4, 1]
sampling: {stpes: 3}
colour: red
"""
    with pytest.raises(StudyError) as found:
        read_plan(written(tmp_path, text), load_recipe)
    for told in (
        "recipe がありません", "prompts.serch?", "objectives: judge が二度", "objectives[2].scorer: 'beauty'", "objectives[3]", "goal 'up'",
        "optimiser.population: 'many'", "evaluations: 0", "norm_ratio: [4, 1]", "sampling.stpes?", "colour?",
    ):  # fmt: skip
        assert told in str(found.value), told


@pytest.mark.parametrize("text", ["- 1\n", "a: [\n", "", "!!python/object/apply:os.system [ls]\n"])
def test_what_is_no_study_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(StudyError, match="study"):
        read_plan(written(tmp_path, text), load_recipe)
    with pytest.raises(StudyError, match="cannot read"):
        read_plan(tmp_path / "nowhere.yaml", load_recipe)


def test_both_halves_of_the_prompts_are_from_the_whole_file_and_share_nothing() -> None:
    questions = toys.questions(*map(str, range(20)))
    search, held_out = split(questions, 5, 5, seed=1, pictures=2)
    from jpgen.merge.study import Finished, Outcome, Trial

    rest = held_out.open(Finished(Trial(0, 0, ()), Outcome(0, ())))
    assert search.prompts == ["0", "4", "8", "12", "16"] and rest.prompts == ["1", "5", "9", "13", "17"]
    assert (search.seed, rest.pictures) == (1, 2) and evenly(questions, 20) == questions
    for numbers in ((20, 1), (0, 1), (1, 0)):
        with pytest.raises(StudyError, match="of 20"):
            split(questions, *numbers, seed=1, pictures=1)
    with pytest.raises(StudyError, match="in both: 3"):
        halves(questions[:4], questions[3:6], seed=1, pictures=1)


def test_prompts_are_read_from_tables_and_lists(tmp_path: Path) -> None:
    questions = read_prompts(Path("prompts/mame_eval.tsv"))
    assert len(questions) == 300 and questions[0].facts == Facts(first="🐈")
    written(tmp_path)
    assert [one.ja for one in read_prompts(tmp_path / "prompts.txt")] == ["猫", "犬", "赤い船"]
    (tmp_path / "twice.txt").write_text("猫\n猫\n", "utf-8")
    for name, told in (("twice.txt", "twice: 猫"), ("nowhere.txt", "cannot read")):
        with pytest.raises(PromptError, match=told):
            read_prompts(tmp_path / name)


def test_the_judge_counts_stated_facts_and_gives_their_probability() -> None:
    judge = Judge.load()
    images = [Image.new("RGB", (64, 64), color) for color in ("white", "navy")]
    reading = judge.read(images)[0]
    other = next(thing for thing in judge.config.things if thing != reading.first)
    facts = {"a": Facts(first=reading.first, background=reading.background), "b": Facts(first=other, count=reading.count)}
    made = [pictured("a", images[0]), pictured("b", images[0])]
    assert JudgeScore(judge, facts)(made) == pytest.approx((1 + 0.5) / 2)
    right, wrong = (JudgeScore(judge, {"a": Facts(first=thing)}, soft=True)([made[0]]) for thing in (reading.first, other))
    assert 0 <= wrong < right <= 1
    things = [JudgeScore(judge, {"a": Facts(first=thing)}, soft=True)([made[0]]) for thing in judge.config.things]
    assert sum(things) == pytest.approx(1, abs=1e-3)
    with pytest.raises(StudyError, match="nothing tells the judge what 1 prompts say"):
        JudgeScore(judge, {"a": Facts()})


def test_drift_is_the_mean_distance_of_pixels() -> None:
    black, grey = (Image.new("RGB", (8, 8), (level,) * 3) for level in (0, 51))
    drift = Drift([pictured("a", black), pictured("b", grey, 1)])
    assert drift([pictured("a", black), pictured("b", grey, 1)]) == 0
    assert drift([pictured("a", grey), pictured("b", grey, 1)]) == pytest.approx(0.1)


def test_functions_are_scorers_by_name_and_other_code_is_another_scorer(tmp_path: Path) -> None:
    (tmp_path / "mine_a.py").write_text("def one(generations):\n    return 1.0\n")
    scorer = Scorer("mine_a:one", 0, str(tmp_path))
    assert scorer.open(Panel(()), lambda _: [])([]) == 1.0
    before = scorer.identity
    assert before.startswith("mine_a:one ") and len(before.split()[1]) == 64
    (tmp_path / "mine_a.py").write_text("def one(generations):\n    return 2.0\n")
    assert scorer.identity != before and Scorer("drift", 1).identity == "drift(1)" and Scorer("judge").identity == "judge"
    for name, told in (("nowhere_at_all:f", "ModuleNotFoundError"), ("mine_a:two", "AttributeError"), ("math:pi", "no function")):
        with pytest.raises(StudyError, match=told):
            _ = Scorer(name, 0, str(tmp_path)).identity


def test_sources_are_files_and_folders_and_say_what_is_missing(tmp_path: Path) -> None:
    tensors = {"x.weight": torch.ones(2, 2), "steps": torch.tensor([1])}
    save_file(tensors, tmp_path / "bare.safetensors")
    save_file({f"unet.{name}": value for name, value in tensors.items()}, tmp_path / "named.safetensors")
    (tmp_path / "folder" / "unet").mkdir(parents=True)
    save_file(tensors, tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    models = [Model("bare.safetensors"), Model("named.safetensors", component="unet"), Model("folder")]
    sources = Sources(models, default="unet", folder=tmp_path)
    for model in models:
        assert sources.keys(model) == ["unet.x.weight"] and torch.equal(sources.read(model, "unet.x.weight"), tensors["x.weight"])
    assert len(sources.digests) == 3 and sources.digests[0] != sources.digests[1] and sources.digests[0] == sources.digests[2]
    for key in ("unet.y", "vae.x.weight"):
        with pytest.raises(WeightsError, match=f"no tensor {key}"):
            sources.read(models[0], key)
    with pytest.raises(UnknownNameError):
        Sources([Model("nowhere")], default="unet", folder=tmp_path)


def test_built_in_models_are_sources_by_name() -> None:
    sources = Sources([model := Model("mame")], default="transformer")
    keys = sources.keys(model)
    assert "transformer.transformer_blocks.0.attn1.to_q.weight" in keys
    assert np.isfinite(sources.read(model, keys[0]).float().numpy()).all()
