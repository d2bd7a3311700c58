from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from jpgen.errors import PromptError, WeightsError
from jpgen.evaluate import bench_mame
from jpgen.evaluate.judge import CEILING, CULTURE, LAYOUTS, Facts, Judge, JudgeConfig, JudgeNetwork, Reading, logits, score, shrink
from jpgen.pipeline import Pipeline
from jpgen.train import judge as training
from jpgen.train.backgrounds import BACKGROUNDS
from jpgen.train.scenes import COLORS, Stage, concepts, plan, read_staging
from jpgen.train.sprites import Drawing
from jpgen.train.styles import STYLES

PROMPTS = Path(__file__).parents[2] / "prompts" / "mame_eval.tsv"
KINDS = {"object": 70, "background": 60, "color": 50, "style": 40, "count": 40, "left_right": 40}

CONFIG = JudgeConfig(("🐈", "🐕", "⛩", "🍣", "🎐", "🗻"), ("", "red"), ("", "sea"), ("", "oil"), widths=(8, 16, 24), queries=2)
READING = Reading("🐈", "🐕", "red", 2, "beside", "sea", "", ("🐈", "🐕", "⛩", "🍣", "🎐"))


def small_judge(config: JudgeConfig = CONFIG) -> Judge:
    torch.manual_seed(0)
    return Judge(JudgeNetwork(config), config)


def pictures(count: int, side: int = 256) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)]


# --- the network and its readings ---


def test_each_head_has_its_classes():
    answers = logits(JudgeNetwork(CONFIG), torch.zeros(3, 3, 128, 128, dtype=torch.uint8))
    assert {name: tuple(answer.shape) for name, answer in answers.items()} == {name: (3, size) for name, size in CONFIG.heads.items()}
    assert all(answer.dtype == torch.float32 for answer in answers.values())


def test_readings_name_what_the_config_names():
    for reading in small_judge().read(pictures(3)):
        assert reading.first in CONFIG.things
        assert reading.first_top5[0] == reading.first
        assert len(set(reading.first_top5)) == 5
        assert reading.second in (*CONFIG.things, None)
        assert (reading.color in CONFIG.colors, reading.background in CONFIG.backgrounds, reading.style in CONFIG.styles) == (True, True, True)
        assert reading.layout in LAYOUTS
        assert 1 <= reading.count <= 5


def test_a_judge_of_fewer_chooses_the_likeliest_of_them():
    judge = small_judge()
    fewer = judge.among(things=["🗻", "🐕"], colors=["red"], backgrounds=[], styles=["oil"])
    assert fewer.config.things == ("🗻", "🐕") and fewer.config.colors == ("", "red") and fewer.config.backgrounds == ("",)
    pixels = torch.randint(0, 256, (4, 3, 128, 128), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    whole, part = logits(judge.network, pixels), logits(fewer.network, pixels)
    torch.testing.assert_close(part["first"], whole["first"][:, [5, 1]])
    torch.testing.assert_close(part["second"], whole["second"][:, [5, 1, 6]])
    torch.testing.assert_close(part["layout"], whole["layout"])
    assert {reading.first for reading in fewer.read(pictures(6))} <= {"🗻", "🐕"} and judge.config == CONFIG
    with pytest.raises(ValueError, match="not in"):
        judge.among(things=["🚗"], colors=[], backgrounds=[])


def test_any_size_and_mode_is_read():
    small = pictures(1, side=128)[0]
    assert shrink(small).tobytes() == small.tobytes()
    assert len(small_judge().read([small.convert("RGBA"), small.convert("L"), small.resize((300, 200))])) == 3
    assert small_judge().read([]) == []


def test_a_saved_judge_reads_alike(tmp_path):
    judge = small_judge()
    judge.save(tmp_path / "judge")
    again = Judge.load(tmp_path / "judge")
    assert again.config == CONFIG
    given = pictures(4)
    assert [replace(r, first_top5=()) for r in again.read(given)] == [replace(r, first_top5=()) for r in judge.read(given)]


def test_a_missing_or_damaged_judge_is_a_weights_error(tmp_path):
    with pytest.raises(WeightsError, match="no judge"):
        Judge.load(tmp_path)
    small_judge().save(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text("utf-8"))
    for wrong, message in ((stored | {"queries": 3}, "do not fit"), (stored | {"speed": 3}, "damaged"), ([], "damaged")):
        (tmp_path / "config.json").write_text(json.dumps(wrong), "utf-8")
        with pytest.raises(WeightsError, match=message):
            Judge.load(tmp_path)


# --- scoring ---


@pytest.mark.parametrize(
    ("facts", "wanted"),
    [
        (Facts(), {}),
        (Facts(first="🐈"), {"object": True, "object_top5": True}),
        (Facts(first="⛩"), {"object": False, "object_top5": True, "culture": False}),
        (Facts(first="🗻"), {"object": False, "object_top5": False, "culture": False}),
        (Facts(color="red", count=3, background="sea", style="oil"), {"color": True, "count": False, "background": True, "style": False}),
        (
            Facts(first="🐈", second="🐕", layout="beside"),
            {"object": True, "object_top5": True, "second": True, "both": True, "left_right": True, "order": True},
        ),
        (
            Facts(first="🐕", second="🐈", layout="beside"),
            {"object": False, "object_top5": True, "second": False, "both": False, "left_right": False, "order": False},
        ),
        (Facts(first="🐈", second="🍣", layout="beside"), {"object": True, "object_top5": True, "second": False, "both": False, "left_right": False}),
    ],
)
def test_score(facts, wanted):
    assert score(facts, READING) == wanted


# --- training ---


def fake_drawings() -> list[Drawing]:
    emojis = [concept.emoji for concept in concepts()[:8]]
    return [Drawing(emoji, art, i) for i, (emoji, art) in enumerate((e, a) for e in emojis for a in (*training.JUDGE_ART, "emojione"))]


def test_labels_name_the_scene():
    config, drawings = training.judge_config(), fake_drawings()
    for scene in training.scenes(drawings, training.JUDGE_ART, iter(range(200))):
        facts = training.facts_of(scene)
        classes = dict(zip(config.heads, training.labels(facts, config), strict=True))
        assert config.things[classes["first"]] == scene.things[0].concept.emoji
        assert (*config.things, None)[classes["second"]] == (scene.things[1].concept.emoji if len(scene.things) > 1 else None)
        assert (classes["color"] == training.UNSAID) == (scene.style.key in ("monochrome", "line_art", "ukiyoe", "sepia"))
        assert classes["count"] + 1 == scene.count
        assert training.asked(facts).color != ""


def test_scenes_keep_to_their_art():
    drawings = fake_drawings()
    seen = list(training.scenes(drawings, training.JUDGE_ART, iter(range(150))))
    assert len(seen) == 150
    assert all((thing.drawing.art == "fluent") == (scene.style.key == "3d") for scene in seen for thing in scene.things)
    assert [scene.seed for scene in seen[:5]] == [plan(seed, Stage(drawings)).seed for seed in range(5)]
    unseen = list(training.scenes(drawings, training.UNSEEN_ART, iter(range(150))))
    assert {thing.drawing.art for scene in unseen for thing in scene.things} == {"emojione"}


def test_every_other_scene_stands_on_the_places_of_mame():
    three = {tuple(tuple(box) for box in boxes) for way in read_staging("mame").places["count"] for boxes in way if len(boxes) == 3}
    seen = [scene for scene in training.scenes(fake_drawings(), training.JUDGE_ART, iter(range(400))) if scene.count == 3 and len(scene.things) == 1]
    assert {scene.seed % 2 for scene in seen} == {0, 1}
    assert all((scene.things[0].boxes in three) == (scene.seed % 2 == 1) for scene in seen)


@pytest.mark.parametrize("seed", range(4))
def test_softening_keeps_the_size_and_is_repeatable(seed):
    picture = shrink(pictures(1)[0])
    soft = training.soften(np.random.default_rng(seed), picture)
    assert soft.shape == (128, 128, 3)
    assert soft.dtype == np.uint8
    assert (soft == training.soften(np.random.default_rng(seed), picture)).all()


def test_training_writes_a_judge_and_resumes(tmp_path, monkeypatch):
    drawings = fake_drawings()
    sprites = np.random.default_rng(0).integers(0, 256, (len(drawings), 24, 24, 4), dtype=np.uint8)
    monkeypatch.setattr(training, "load_sprites", lambda _data: (sprites, drawings))
    monkeypatch.setattr(training, "BATCH", 4)
    monkeypatch.setattr(training, "judge_config", lambda base=training.judge_config: replace(base(), widths=(8, 16, 24), queries=2))
    training.train_judge(tmp_path, tmp_path / "judge", steps=1, workers=0, ceiling=8)
    judge = training.train_judge(tmp_path, tmp_path / "judge", steps=3, workers=0, ceiling=8)
    assert judge.config.things == tuple(concept.emoji for concept in concepts())
    assert sorted(file.name for file in (tmp_path / "judge").iterdir()) == [CEILING, "config.json", "judge.safetensors"]
    (tmp_path / "judge.pt").unlink()
    again = training.train_judge(tmp_path, tmp_path / "judge", steps=0, workers=0, ceiling=8)
    assert all(torch.equal(one, other) for one, other in zip(again.network.parameters(), judge.network.parameters(), strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "judge.jsonl").read_text("utf-8").splitlines()]
    assert steps == [1, 3]
    ceiling = json.loads((tmp_path / "judge" / CEILING).read_text("utf-8"))
    assert ceiling["seen"]["pictures"] == 8
    assert set(ceiling) == {"seen", "unseen", "styles"}
    assert {"object", "object_top5"} <= set(ceiling["seen"])
    assert set(ceiling["styles"]) <= {style.key for style in STYLES[1:]}


# --- the prompts of the bench ---


def rows() -> list[dict[str, str]]:
    with PROMPTS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_prompts_are_well_formed():
    questions = rows()
    assert Counter(row["kind"] for row in questions) == KINDS
    known = {
        "first": {concept.emoji for concept in concepts()},
        "second": {concept.emoji for concept in concepts()} | {""},
        "color": {color.key for color in COLORS} | {""},
        "background": {background.key for background in BACKGROUNDS},
        "style": {style.key for style in STYLES},
        "layout": {*LAYOUTS, ""},
        "count": {"", "1", "2", "3", "4"},
    }
    for row in questions:
        assert None not in row.values(), row
        assert row["ja"] == row["ja"].strip() != "", row
        assert row["en"].isascii(), row
        assert row["en"] == row["en"].strip() != "", row
        assert {name: row[name] for name, keys in known.items() if row[name] not in keys} == {}, row["id"]
    for column in ("id", "ja", "en"):
        assert max(Counter(row[column] for row in questions).values()) == 1


def test_the_prompts_cover_everything_that_is_measured():
    by_kind = {kind: [row for row in rows() if row["kind"] == kind] for kind in KINDS}
    assert {row["background"] for row in by_kind["background"]} == {background.key for background in BACKGROUNDS[1:]}
    assert {row["color"] for row in by_kind["color"]} == {color.key for color in COLORS}
    assert {row["style"] for row in by_kind["style"]} == {style.key for style in STYLES[1:]}
    assert Counter(row["count"] for row in by_kind["count"]) == {"1": 10, "2": 10, "3": 10, "4": 10}
    assert all(row["second"] and row["layout"] == "beside" for row in by_kind["left_right"])
    for kind in KINDS:
        assert max(Counter(row["first"] for row in by_kind[kind]).values()) == 1
    assert sum(row["first"] in CULTURE for row in rows()) >= 60
    assert {concept.emoji for concept in concepts()} >= CULTURE


# --- the table ---


def test_the_table_scores_what_is_said():
    questions = bench_mame.read_questions(PROMPTS)
    blank = Image.new("RGB", (8, 8))
    given = []
    for question in questions:
        facts = question.facts
        right = replace(
            READING,
            first=facts.first or "",
            second=facts.second,
            color=facts.color or "",
            count=facts.count or 1,
            layout=facts.layout or "one",
            background=facts.background or "",
            style=facts.style or "",
            first_top5=(facts.first or "",),
        )
        given.append(bench_mame.Answer(question, 1, (blank, blank), right, replace(right, background="nowhere")))
    figures = {figure.name: figure for figure in bench_mame.tabulate(given, {"object": 0.5, "background": 1.0})}
    assert (figures["object"].n, figures["object"].ja, figures["object"].of_ceiling(1.0), figures["object"].passed) == (300, 1.0, 2.0, True)
    assert (figures["background"].ja, figures["background"].en, figures["background"].interval, figures["background"].passed) == (1, 0, (1, 1), False)
    assert {name: figure.n for name, figure in figures.items() if name in KINDS} == {
        "object": 300,
        "background": 89,
        "color": 53,
        "style": 40,
        "count": 40,
        "left_right": 40,
    }
    assert figures["style"].passed is None
    text = bench_mame.table(list(figures.values()))
    assert len({bench_mame._width(line) for line in text.splitlines()}) == 1
    assert "背景 / background" in text
    assert bench_mame.sheet(given[:9]).size == (8 * 198 + 6, 2 * 114 + 6)


def test_every_question_is_drawn_several_times_and_counts_once_in_the_interval():
    class Colors(Pipeline):
        """Draws a colour that is the seed's, and for every second seed another in English."""

        def __init__(self):
            pass

        def generate_many(self, prompts, *, seed, count, **_):
            return [SimpleNamespace(image=Image.new("RGB", (8, 8), (seed + n, language * (n % 2), 0))) for language in (0, 1) for n in range(count)]

    class Reads(Judge):
        """Counts the green."""

        def __init__(self):
            pass

        def read(self, images):
            return [replace(READING, count=1 + image.getpixel((0, 0))[1]) for image in images]

    questions = [bench_mame.Question(str(n), "count", "猫", "cat", Facts(count=1)) for n in range(3)]
    given = list(bench_mame.answers(Colors(), Reads(), questions, 10, 4))
    assert [answer.seed for answer in given] == list(range(10, 22))
    assert [answer.question.id for answer in given] == [str(n) for n in range(3) for _ in range(4)]
    assert all(answer.images[0].getpixel((0, 0))[0] == answer.images[1].getpixel((0, 0))[0] == answer.seed for answer in given)
    count = next(figure for figure in bench_mame.tabulate(given, {}) if figure.name == "count")
    assert (count.n, count.ja, count.en, count.interval) == (12, 1.0, 0.5, (0.5, 0.5))  # the same half in each question


def test_a_wrong_prompt_file_is_one_clear_error(tmp_path, capsys):
    with pytest.raises(PromptError, match="cannot read"):
        bench_mame.read_questions(tmp_path / "none.tsv")
    (tmp_path / "odd.tsv").write_text("id\tja\n", "utf-8")
    assert bench_mame.main(["--prompts", str(tmp_path / "odd.tsv")]) == 2
    assert capsys.readouterr().err.startswith("エラー / error:")
    with pytest.raises(SystemExit, match="2"):
        bench_mame.main(["--count", "0"])
    assert "1 以上で" in capsys.readouterr().err
