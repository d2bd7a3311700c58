"""Sprites from icon packages: found by code point, by another set's name, or by words; in one colour; and as what else shows the same."""

import json
from pathlib import Path

import numpy as np
import pytest

from jpgen.train import clip_scenes, sprites
from jpgen.train.clip_scenes import painted, read_kin
from jpgen.train.scenes import concepts
from jpgen.train.sprites import EMOJI_TABLE, load_sprites, render_sprites

SQUARE = '<path fill="{}" d="M2 2h20v20h-20z"/>'
SETS = {"named": ("named", "1", "MIT", "nobody"), "worded": ("worded", "1", "MIT", "nobody")}


def write_package(folder: Path, name: str, icons: dict[str, str], chars: dict[str, str], aliases: dict[str, str] | None = None) -> None:
    package = folder / f"{name}-1" / "package"
    package.mkdir(parents=True)
    made = {icon: {"body": SQUARE.format(color)} for icon, color in icons.items()}
    other = {alias: {"parent": parent} for alias, parent in (aliases or {}).items()}
    (package / "icons.json").write_text(json.dumps({"width": 24, "height": 24, "icons": made, "aliases": other}), "utf-8")
    (package / "chars.json").write_text(json.dumps(chars), "utf-8")


@pytest.fixture
def art(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(sprites.ART, sprites.NAMES_SET, ("named", "1", "MIT", "nobody"))
    icons = {"cat": "#ff0000", "cat-face": "#00ff00", "fish": "#0000ff"}
    write_package(tmp_path, "named", icons, {"1f408": "cat", "1f431": "cat-face", "1f41f": "fish"})
    write_package(tmp_path, "worded", {"cat-fill": "currentColor", "cat": "#ffff00", "seafood": "#00ffff"}, {"f0001": "cat"}, {"fishes": "seafood"})
    table = tmp_path / "-".join(EMOJI_TABLE) / "package" / "en"
    table.mkdir(parents=True)
    rows = [{"emoji": emoji, "hexcode": f"{ord(emoji):X}", "group": 3} for emoji in "🐈🐱🐟🐙"] + [{"emoji": "🇯", "hexcode": "1F1EF", "group": 9}]
    (table / "data.json").write_text(json.dumps(rows), "utf-8")
    return tmp_path


def seen(folder: Path) -> dict[tuple[str, str], list[int]]:
    """(emoji, art set) -> the colour in its middle."""
    pixels, drawings = load_sprites(folder)
    return {(one.emoji, one.art): pixels[one.row, 96, 96].tolist() for one in drawings}


def test_a_drawing_is_found_by_its_code_or_by_the_name_another_set_gives_it(art: Path, tmp_path: Path) -> None:
    render_sprites(art, tmp_path / "out", SETS)
    assert seen(tmp_path / "out") == {
        ("🐈", "named"): [255, 0, 0, 255],
        ("🐱", "named"): [0, 255, 0, 255],
        ("🐟", "named"): [0, 0, 255, 255],
        ("🐈", "worded"): [128, 128, 128, 255],  # the filled one, in the grey that stands for what has no colour of its own
    }


def test_or_by_words(art: Path, tmp_path: Path) -> None:
    render_sprites(art, tmp_path / "out", SETS, words={"🐟": ("sea bream", "Fishes"), "🐙": ("octopus",)})
    found = seen(tmp_path / "out")
    assert found["🐟", "worded"] == [0, 255, 255, 255]
    assert found["🐟", "named"] == [0, 0, 255, 255]
    assert not any(emoji == "🐙" for emoji, _ in found)


def test_kin_are_drawings_of_what_they_show(art: Path, tmp_path: Path) -> None:
    render_sprites(art, tmp_path / "out", SETS, kin={"🐱": "🐈"})
    assert seen(tmp_path / "out") == {("🐈", "named-kin"): [0, 255, 0, 255]}


def test_kin_are_of_concepts_and_none_themselves() -> None:
    known = {concept.emoji for concept in concepts()}
    kin = read_kin()
    assert kin["🐱"] == "🐈" and set(kin.values()) <= known and not known & set(kin)
    assert not any("\ufe0f" in emoji for emoji in kin)


def test_kin_of_the_held_out_art_are_held_out_too() -> None:
    assert not [name for name in clip_scenes.CLIP_ART if name.startswith("emojione")]
    assert len(clip_scenes.CLIP_ART) == len(set(clip_scenes.CLIP_ART))


def test_a_painted_drawing_keeps_its_shape() -> None:
    drawing = np.zeros((192, 192, 4), np.uint8)
    drawing[40:90, 50:60] = (128, 128, 128, 200)
    one, two = (painted(np.random.default_rng(seed), drawing) for seed in (1, 2))
    np.testing.assert_array_equal(one[..., 3], drawing[..., 3])
    assert len(np.unique(one[40:90, 50:60, :3].reshape(-1, 3), axis=0)) == 1
    assert one.dtype == np.uint8 and not np.array_equal(one, two)


def test_art_that_an_older_version_made_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, bool]] = []
    monkeypatch.setattr(clip_scenes, "fetch_art", lambda folder, sets: None)

    def render(_art: Path, out: Path, sets: sprites.ArtSets, **told: object) -> None:
        asked.append((out.name, "emojione" in sets))
        out.mkdir(exist_ok=True)
        (out / "sprites.json").write_text("[]")

    monkeypatch.setattr(clip_scenes, "render_sprites", render)
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "sprites.json").write_text("[]")
    clip_scenes.prepare_more_art(tmp_path)
    clip_scenes.prepare_more_art(tmp_path)
    assert asked == [("more", False), ("kin", False)]
