"""mame-clip's training on a few drawings made here: facts, scenes, resumable to the same numbers, better than it began."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from jpgen.encoders import bert
from jpgen.errors import TrainingDataError
from jpgen.evaluate.efficientnet import EfficientNetLite0
from jpgen.evaluate.mame_clip import ClipConfig, MameClip
from jpgen.evaluate.scores import label_features
from jpgen.train import clip, clip_scenes, clip_texts, scenes
from jpgen.train.checkpoint import load_state
from jpgen.train.clip_scenes import Album, ScenePool, cache_scenes, varied
from jpgen.train.scenes import COLORLESS, Stage, concepts, plan
from jpgen.train.sprites import SIZE, Drawing

KNOWN = concepts()[:4]
SMALL = ClipConfig(text_width=32, text_hidden=40, width=24, side=64, looks=4)


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
    save_sprites(tmp_path / "data" / "kin", ("noto-kin",))
    for module in (clip, clip_texts):
        monkeypatch.setattr(module, "concepts", lambda: KNOWN)
    monkeypatch.setattr(clip_scenes, "SHARD", 16)
    for name, value in {"SHARD": 16, "BATCH": 8, "SAVE_EVERY": 2, "SEEN_SIDE": 64, "PROBE_STEPS": 4, "PROBE_BATCH": 16, "WARM_UP": 2}.items():
        monkeypatch.setattr(clip, name, value)
    return tmp_path / "data"


@pytest.fixture
def trunk() -> EfficientNetLite0:
    torch.manual_seed(0)
    return EfficientNetLite0()


def test_a_run_in_two_parts_is_the_run_in_one(data: Path, trunk: EfficientNetLite0, tmp_path: Path) -> None:
    for name, stops in (("one", (4,)), ("two", (2, 4))):
        if name == "two":  # the same shards, as another test tells
            shutil.copytree(tmp_path / "one-scenes", tmp_path / "two-scenes")
        for stop in stops:
            if stop == 2:  # the pace of the learning rate is that of the whole run
                steps_of(clip, data, tmp_path / name, trunk, stop=2, whole=4)
            else:
                clip.train_clip(data, tmp_path / name, steps=4, shards=2, trunk=trunk, config=SMALL, encoder=bert.toy())
    one, two = (load_state(tmp_path / f"{name}.pt") for name in ("one", "two"))
    assert one["step"] == two["step"] == 4
    for part in ("model", "mean"):
        for name, value in one[part].items():
            torch.testing.assert_close(two[part][name], value, msg=name)
    rows = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [(row.get("probe"), row.get("step")) for row in rows] == [(2, None), (4, None), (None, 2), (None, 4)]  # the first stage but once


def steps_of(module: object, data: Path, out: Path, trunk: EfficientNetLite0, *, stop: int, whole: int) -> None:
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
            clip.train_clip(data, out, steps=whole, shards=2, trunk=trunk, config=SMALL, encoder=bert.toy())
    finally:
        clip.save_state = real


def test_it_learns_the_names_of_what_it_sees(data: Path, trunk: EfficientNetLite0, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "PROBE_STEPS", 60)
    made = clip.train_clip(data, tmp_path / "clip", steps=4, shards=2, learning_rate=3e-3, trunk=trunk, config=SMALL, encoder=bert.toy())
    rows = [json.loads(line) for line in (tmp_path / "clip.jsonl").read_text().splitlines()]
    probed = [row["first"] for row in rows if "probe" in row]  # the second stage is short, and its pictures move and change their colours
    assert probed[-1] < probed[0] - 0.1, probed
    assert label_features(made, [concept.ja[0] for concept in KNOWN]).shape == (4, 24)
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


def test_a_shard_is_the_same_again_and_its_pictures_are_the_scenes(data: Path, tmp_path: Path) -> None:
    encoder = bert.toy()
    for name in ("shard-000", "again"):
        cache_scenes(data, tmp_path / f"{name}.safetensors", 5, encoder)
    assert (tmp_path / "shard-000.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    cache_scenes(data, tmp_path / "shard-001.safetensors", 5 + 16, encoder)
    pool = ScenePool(tmp_path)
    assert len(pool) == 32
    batch = pool.batch(np.array([17, 0, 3]))
    assert batch.pictures.shape == (3, 3, clip_scenes.SIDE, clip_scenes.SIDE) and batch.captions.shape == (3, 32)
    staging = clip_scenes.Staging(layouts=clip_scenes.LAYOUTS, styled=clip_scenes.STYLED, tinted=clip_scenes.TINTED)
    stage = Stage(Album([data, data / "more"]).drawings, art=clip_scenes.CLIP_ART, staging=staging)
    assert batch.facts.tolist() == [clip_texts.facts(plan(seed, stage)) for seed in (5 + 17, 5, 5 + 3)]
    with pytest.raises(TrainingDataError, match="no shards"):
        ScenePool(tmp_path / "nowhere")


def test_layouts_are_shares() -> None:
    assert sum(clip_scenes.LAYOUTS.values()) == pytest.approx(1) and set(clip_scenes.LAYOUTS) == set(scenes.LAYOUTS)


def test_a_moved_picture_is_a_window_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = torch.arange(160, dtype=torch.uint8).expand(2, 3, 160, 160)
    monkeypatch.setattr(clip, "SHIFT", 0.0)
    monkeypatch.setattr(clip, "WINDOW", (0.5, 0.5))
    window = clip.moved(ramp, np.random.default_rng(0))
    assert window.shape == (2, 3, clip.SEEN_SIDE, clip.SEEN_SIDE)
    edges = torch.tensor([window[0, 0, 0, 0], window[0, 0, 0, -1]])
    torch.testing.assert_close(edges, torch.tensor([39.8, 119.2]), atol=0.2, rtol=0)  # the middle half of 0…159
    monkeypatch.setattr(clip, "WINDOW", (1.0, 1.0))
    torch.testing.assert_close(clip.moved(ramp, np.random.default_rng(0)).mean(), torch.tensor(79.5), atol=0.2, rtol=0)


def test_recolored_pictures_keep_white_and_are_not_asked_for_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "RECOLORED", 0.5)
    pictures = torch.full((64, 3, 4, 4), 255.0)
    pictures[:, :, :2] = torch.tensor([200.0, 40.0, 90.0])[:, None, None]
    batch = clip_scenes.SceneBatch(pictures, torch.arange(64 * 6).view(64, 6), torch.ones(64, 5))
    seen = clip.recolored(batch, np.random.default_rng(0))
    changed = seen.captions.isnan().all(dim=1)
    assert 20 < int(changed.sum()) < 44 and torch.equal(changed, seen.captions.isnan().any(dim=1))
    for told, before in ((seen.facts, batch.facts), (seen.pictures, batch.pictures), (seen.captions, batch.captions)):
        assert torch.equal(told[~changed], before[~changed])
    asked = [clip_texts.QUESTIONS[name] for name in ("first", "second", "count")]
    assert torch.equal(seen.facts[:, asked], batch.facts[:, asked])
    assert all((seen.facts[changed][:, clip_texts.QUESTIONS[name]] == clip_texts.UNSAID).all() for name in clip_texts.COLORFUL)
    torch.testing.assert_close(seen.pictures[:, :, 2:], pictures[:, :, 2:], atol=1e-2, rtol=0)
    assert ((seen.pictures[changed] - pictures[changed])[:, :, :2].abs().amax(dim=(1, 2, 3)) > 1).all()
    assert seen.pictures.min() >= 0 and seen.pictures.max() <= 255
    assert torch.equal(batch.pictures, pictures), "the batch itself stays"


def test_where_no_caption_is_true_none_is_asked() -> None:
    torch.manual_seed(0)
    network, encoder = clip.ClipNetwork(SMALL), bert.toy()
    images = torch.nn.functional.normalize(torch.randn(2, SMALL.width), dim=1)
    facts, rng = torch.tensor([[0, -1, -1, -1, -1, 0], [1, -1, -1, -1, -1, -1]]), np.random.default_rng(0)
    captions = torch.full((2, encoder.spec.width), torch.nan)
    losses, _ = clip.clip_losses(network, clip_texts.read_banks(encoder), images, clip_scenes.SceneBatch(torch.empty(2), facts, captions), rng)
    assert set(losses) == {"first", "count"} and all(loss.isfinite() for loss in losses.values())


def test_without_saturation_a_recolored_picture_is_its_own_grey(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RECOLORED", 1.0), ("SATURATION", (0.0, 0.0)), ("GAMMA", (1.0, 1.0))):
        monkeypatch.setattr(clip, name, value)
    batch = clip_scenes.SceneBatch(torch.rand(8, 3, 4, 4) * 255, torch.zeros(8, 6, dtype=torch.int64), torch.ones(8, 5))
    grey = clip.recolored(batch, np.random.default_rng(0)).pictures
    torch.testing.assert_close(grey, batch.pictures.mean(dim=1, keepdim=True).expand_as(grey), atol=1e-2, rtol=0)


def test_the_first_stage_leaves_the_trunk_alone_and_the_second_its_first_blocks(data: Path, trunk: EfficientNetLite0, tmp_path: Path) -> None:
    for steps in (0, 2):
        clip.train_clip(data, tmp_path / "clip", steps=steps, shards=1, trunk=trunk, config=SMALL, encoder=bert.toy())
        if steps == 0:
            assert load_state(tmp_path / "clip.pt")["step"] == 0
            shutil.copy(tmp_path / "clip.pt", tmp_path / "begun.pt")
    begun, done = (load_state(tmp_path / f"{name}.pt")["model"] for name in ("begun", "clip"))
    for name, value in trunk.state_dict().items():
        assert torch.equal(begun[f"trunk.{name}"], value)
        locked = name.startswith("stem.") or (name.startswith("blocks.") and int(name.split(".")[1]) < clip.LOCKED)
        assert torch.equal(done[f"trunk.{name}"], value) == locked, name


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
