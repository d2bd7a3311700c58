"""mame-clip's training on a few drawings made here: facts, cells, resumable to the same numbers, better than it began."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw

from jpgen.encoders import bert
from jpgen.errors import TrainingDataError
from jpgen.evaluate.judge import Judge, JudgeNetwork
from jpgen.evaluate.mame_clip import MameClip
from jpgen.evaluate.scores import label_features
from jpgen.train import clip, clip_cells, clip_texts
from jpgen.train.checkpoint import load_state
from jpgen.train.clip_cells import Album, CellPool, cache_cells, varied
from jpgen.train.judge import judge_config
from jpgen.train.scenes import COLORLESS, Stage, concepts, plan
from jpgen.train.sprites import SIZE, Drawing

KNOWN = concepts()[:4]


def sprite(number: int) -> np.ndarray:
    image = Image.new("RGBA", (SIZE, SIZE))
    draw = ImageDraw.Draw(image)
    box = (20, 20, SIZE - 20, SIZE - 20)
    (draw.ellipse if number % 2 else draw.rectangle)(box, fill=("red", "green", "blue", "gold")[number % 4])
    return np.asarray(image)


def save_sprites(folder: Path, arts: tuple[str, ...]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    drawings = [Drawing(concept.emoji, art, row) for row, (art, concept) in enumerate((art, concept) for art in arts for concept in KNOWN)]
    np.save(folder / "sprites.npy", np.stack([sprite(row) for row in range(len(drawings))]))
    (folder / "sprites.json").write_text(json.dumps([asdict(drawing) for drawing in drawings]), "utf-8")


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    save_sprites(tmp_path / "data", ("noto", "fluent"))
    save_sprites(tmp_path / "data" / "more", ("noto-v1",))
    for module in (clip, clip_cells, clip_texts):
        if hasattr(module, "concepts"):
            monkeypatch.setattr(module, "concepts", lambda: KNOWN)
    monkeypatch.setattr(clip_cells, "SHARD", 16)
    monkeypatch.setattr(clip_cells, "BATCH", 8)
    monkeypatch.setattr(clip, "SHARD", 16)
    monkeypatch.setattr(clip, "BATCH", 16)
    monkeypatch.setattr(clip, "SAVE_EVERY", 2)
    monkeypatch.setattr(clip, "FIT_STEPS", 3)
    return tmp_path / "data"


@pytest.fixture
def judge() -> Judge:
    torch.manual_seed(0)
    config = judge_config()
    small = type(config)(tuple(c.emoji for c in KNOWN), config.colors, config.backgrounds, config.styles, widths=(8, 16, 16), queries=2)
    return Judge(JudgeNetwork(small), small)


def test_a_run_in_two_parts_is_the_run_in_one(data: Path, judge: Judge, tmp_path: Path) -> None:
    for name, stops in (("one", (4,)), ("two", (2, 4))):
        if name == "two":  # the same shards, as another test tells
            shutil.copytree(tmp_path / "one-cells", tmp_path / "two-cells")
        for stop in stops:
            if stop == 2:  # the pace of the learning rate is that of the whole run
                steps_of(clip, data, tmp_path / name, judge, stop=2, whole=4)
            else:
                clip.train_clip(data, tmp_path / name, steps=4, shards=2, judge=judge, encoder=bert.toy())
    one, two = (load_state(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, msg=name)


def steps_of(module: object, data: Path, out: Path, judge: Judge, *, stop: int, whole: int) -> None:
    """Train, and stop as if killed right after the state of step `stop` was written."""

    class Killed(Exception):
        pass

    real = clip.save_state

    def save_and_die(path: Path, state: dict[str, object]) -> None:
        real(path, state)
        if state["step"] == stop:
            raise Killed

    clip.save_state = save_and_die
    try:
        with pytest.raises(Killed):
            clip.train_clip(data, out, steps=whole, shards=2, judge=judge, encoder=bert.toy())
    finally:
        clip.save_state = real


def test_it_learns_the_names_of_what_it_sees(data: Path, judge: Judge, tmp_path: Path) -> None:
    made = clip.train_clip(data, tmp_path / "clip", steps=60, shards=3, learning_rate=3e-3, judge=judge, encoder=bert.toy())
    rows = [json.loads(line) for line in (tmp_path / "clip.jsonl").read_text().splitlines()]
    assert rows[-1]["first"] < rows[0]["first"] - 0.1
    assert label_features(made, [concept.ja[0] for concept in KNOWN]).shape == (4, 32)
    again = MameClip.load(tmp_path / "clip", encoder=bert.toy())
    picture = Image.fromarray(sprite(1)).convert("RGB")
    torch.testing.assert_close(again.image_features([picture]), made.image_features([picture]))


def test_facts_are_what_the_scene_was_planned_with(data: Path) -> None:
    stage = Stage(Album([data]).drawings, among=KNOWN, art=("noto",))
    columns = clip_texts.QUESTIONS
    for seed in range(200):
        scene = plan(seed, stage)
        told = clip_texts.facts(scene)
        first = scene.things[0]
        assert KNOWN[told[columns["first"]]] is first.concept
        assert (told[columns["second"]] >= 0) == (len(scene.things) == 2)
        assert told[columns["count"]] == (scene.count - 1 if len(scene.things) == 1 else -1)
        assert (told[columns["background"]] >= 0) == bool(scene.background.key) and (told[columns["style"]] >= 0) == bool(scene.style.key)
        assert (told[columns["color"]] >= 0) == (first.color is not None and scene.style.key not in COLORLESS)


def test_cells_are_those_of_the_judge_and_a_shard_is_the_same_again(data: Path, judge: Judge, tmp_path: Path) -> None:
    encoder = bert.toy()
    for name in ("shard-000", "again"):
        cache_cells(data, tmp_path / f"{name}.safetensors", 5, judge.network, encoder)
    assert (tmp_path / "shard-000.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    pool = CellPool(tmp_path)
    assert len(pool) == 16
    batch = pool.sample(4, np.random.default_rng(0))
    answers = judge.network.answers(batch.cells)
    assert answers["first"].shape == (4, 4) and batch.captions.shape == (4, 32)
    with pytest.raises(TrainingDataError, match="no shards"):
        CellPool(tmp_path / "nowhere")


def test_varied_drawings_differ_and_keep_their_ground_clear() -> None:
    original = sprite(0)
    one, two = (varied(np.random.default_rng(seed), original) for seed in (1, 2))
    assert one.shape == original.shape and not np.array_equal(one, two)
    assert one[0, 0, 3] == 0 and one[SIZE // 2, SIZE // 2, 3] == 255


def test_an_album_finds_the_sprite_of_every_folder(data: Path) -> None:
    album = Album([data, data / "more"])
    for drawing in album.drawings:
        row = KNOWN.index(next(c for c in KNOWN if c.emoji == drawing.emoji)) + (4 if drawing.art == "fluent" else 0)
        np.testing.assert_array_equal(album.pixels(drawing), sprite(row))


def english(names: clip_texts.Bank) -> torch.Tensor:
    """The first English name of each thing: of Japanese the toy encoder reads too few letters."""
    return names.states["en"][torch.from_numpy(np.concatenate([[0], names.ends["en"][:-1]]))]


def test_names_of_a_thing_fall_together(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    banks = clip_texts.read_banks(bert.toy())
    torch.manual_seed(0)
    network = clip.ClipNetwork(clip.ClipConfig(text_width=32, text_hidden=64, width=24, widths=(8, 16, 16), queries=2))
    anchors = torch.eye(24)[: len(KNOWN)]
    monkeypatch.setattr(clip, "FIT_STEPS", 100)
    clip.fit_texts(network, banks["first"], anchors)
    with torch.no_grad():
        answers = network.text_features(english(banks["first"])) @ anchors.T
    assert answers.argmax(dim=1).tolist() == list(range(len(KNOWN)))
    assert answers.diagonal().min() > 0.8


def test_it_begins_with_the_answers_of_the_judge(data: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "FIT_STEPS", 200)
    banks = clip_texts.read_banks(bert.toy())
    network = clip.ClipNetwork(clip.ClipConfig(text_width=32, text_hidden=64, width=24, widths=(8, 16, 16), queries=2))
    clip.begin_from(judge, network, banks["first"])
    cells = torch.randn(50, 64, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        weight = judge.network.heads["first"].weight
        pooling = network.tower.answers(cells)["image"] @ torch.linalg.pinv(network.tower.heads["image"].weight).T
        wanted = F.normalize(weight - weight.mean(0), dim=-1) @ pooling.T
        names = network.text_features(english(banks["first"]))
        agree = (names @ network.cell_features(cells).T).argmax(0) == wanted.argmax(0)
    assert agree.float().mean() > 0.9
