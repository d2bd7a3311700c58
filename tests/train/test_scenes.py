"""Scenes and captions: reproducible, true to their facts, natural in both languages."""

import numpy as np
import pytest

from jpgen.errors import UnknownNameError
from jpgen.train.backgrounds import BACKGROUNDS
from jpgen.train.captions import caption
from jpgen.train.scenes import COLORLESS, COLORS, FLAT_ART, LAYOUTS, UNTOLD, Scene, Stage, concepts, plan, read_staging, regions, render, tint
from jpgen.train.sprites import Drawing
from jpgen.train.styles import STYLES

DRAWINGS = [Drawing(c.emoji, art, i) for i, (c, art) in enumerate((c, a) for c in concepts() for a in (*FLAT_ART, "fluent"))]
STAGE = Stage(DRAWINGS)
SPRITES = np.random.default_rng(0).integers(0, 256, (1, 48, 48, 4), dtype=np.uint8).repeat(len(DRAWINGS), 0)


def test_concepts_are_well_formed() -> None:
    assert len(concepts()) >= 300
    for words in ("ja", "en"):
        every = [word for concept in concepts() for word in getattr(concept, words)]
        assert len(every) == len(set(every)), "a word that two concepts share teaches nothing"
        assert all(word and word == word.strip() for word in every)
    assert all(concept.weight > 0 and concept.counter for concept in concepts())


def test_the_same_seed_is_the_same_scene_and_picture() -> None:
    for seed in range(20):
        one, other = plan(seed, STAGE), plan(seed, STAGE)
        assert one == other
        assert render(one, SPRITES).tobytes() == render(other, SPRITES).tobytes()


def test_pictures_have_one_size() -> None:
    assert {render(plan(seed, STAGE), SPRITES).size for seed in range(60)} == {(256, 256)}


def test_scenes_cover_everything() -> None:
    scenes = [plan(seed, STAGE) for seed in range(3000)]
    assert {s.layout for s in scenes} == set(LAYOUTS)
    assert {s.background.key for s in scenes} == {b.key for b in BACKGROUNDS}
    assert {s.style.key for s in scenes} == {s.key for s in STYLES}
    assert {t.color.key for s in scenes for t in s.things if t.color} == {c.key for c in COLORS}
    assert {s.count for s in scenes if s.layout == "count"} == {2, 3, 4, 5}


def test_a_staging_says_what_scenes_show_and_where() -> None:
    told = read_staging("mame-sdxl")
    assert len(told.concepts()) == len(told.things) == len(set(told.things)) == 60 and {c.weight for c in told.concepts()} == {1.0}
    assert len(told.painters()) == len(told.backgrounds) and len(told.palette()) == len(told.colors)
    stage = Stage(DRAWINGS, art=("noto",), staging=told)
    scenes = [plan(seed, stage) for seed in range(1500)]
    assert {s.layout for s in scenes} == set(told.layouts) and {s.background.key for s in scenes} == {"", *told.backgrounds}
    assert {t.concept.emoji for s in scenes for t in s.things} == set(told.things) and {s.count for s in scenes} == {1, 2, 3, 4}
    assert {t.color.key for s in scenes for t in s.things if t.color} == set(told.colors) and {s.style.key for s in scenes} == {""}
    edges = [(x - side // 2, y - side // 2, side) for s in scenes for t in s.things for x, y, side in t.boxes]
    assert all(value % 32 == 0 and 0 <= value <= 192 for edge in edges for value in edge), "on the cells of the latents"
    with pytest.raises(UnknownNameError, match="mame-sdxl"):
        read_staging("mame-sd")


def test_mame_learns_everything_on_fixed_places() -> None:
    told = read_staging("mame")
    assert told.concepts() == list(concepts()) and told.layouts.keys() == told.places.keys() == LAYOUTS.keys()
    stage = Stage(DRAWINGS, art=("noto",), staging=told)
    scenes = [plan(seed, stage) for seed in range(1500)]
    assert {s.count for s in scenes} == {1, 2, 3, 4} and {s.style.key for s in scenes} == {s.key for s in STYLES}
    edges = [(x - side // 2, y - side // 2, side) for s in scenes if s.layout != "small" for t in s.things for x, y, side in t.boxes]
    assert all(value % 32 == 0 and 0 <= value <= 256 for edge in edges for value in edge), "on halves of the backbone's patches"


def test_without_a_generator_captions_take_the_usual_words() -> None:
    stage = Stage(DRAWINGS, art=("noto",), staging=read_staging("mame-sdxl"))
    for scene in (plan(seed, stage) for seed in range(100)):
        for language in ("ja", "en"):
            text = caption(scene, language, None)
            assert text == caption(scene, language, None)
            if language == "ja" or scene.layout != "count":
                assert all(getattr(thing.concept, language)[0] in text for thing in scene.things)
    assert caption(next(s for s in (plan(n, stage) for n in range(400)) if s.layout == "beside" and not s.background.key), "ja", None)[0] == "左"


def test_things_stand_where_the_layout_says() -> None:
    for scene in (plan(seed, STAGE) for seed in range(500)):
        if scene.layout == "beside":
            assert scene.things[0].boxes[0][0] < scene.things[1].boxes[0][0]
        if scene.layout == "above":
            assert scene.things[0].boxes[0][1] < scene.things[1].boxes[0][1]
        if len(scene.things) == 2:
            assert scene.things[0].concept != scene.things[1].concept


def test_regions_tell_what_stands_where() -> None:
    for scene in (plan(seed, STAGE) for seed in range(200)):
        told = regions(scene, concepts())
        assert told.shape == (3, 4, 4)
        places, colors, styles = told
        assert (styles == STYLES.index(scene.style)).all()
        assert ((colors == UNTOLD) == ((places == 0) | (scene.style.key in COLORLESS))).all()
        for thing in scene.things if scene.style.key not in COLORLESS else ():
            wanted = COLORS.index(thing.color) + 1 if thing.color else 0
            assert (colors[places == concepts().index(thing.concept) + 1] == wanted).all()
        there = {concepts().index(thing.concept) + 1 for thing in scene.things}
        assert set(places.flatten().tolist()) <= there | {0}
        x, y, _ = scene.things[0].boxes[0]
        if scene.layout not in ("small", "count"):  # those may stand between the centres of patches
            assert concepts().index(scene.things[0].concept) + 1 in places[y // 64 - 1 : y // 64 + 1, x // 64 - 1 : x // 64 + 1]
        assert (places[0] == 0).any() or scene.layout in ("large", "above", "count")
    left, right = next(s for s in (plan(seed, STAGE) for seed in range(500)) if s.layout == "beside").things
    places = regions(Scene(0, BACKGROUNDS[0], STYLES[0], "beside", (left, right)), concepts())[0]
    assert set(places[:, :2].flatten()) == {0, concepts().index(left.concept) + 1}


def said(scene: Scene, language: str) -> list[str]:
    return [caption(scene, language, np.random.default_rng(n)) for n in range(6)]


@pytest.mark.parametrize("language", ["ja", "en"])
def test_captions_tell_things_colours_places_and_styles(language: str) -> None:
    for scene in (plan(seed, STAGE) for seed in range(150)):
        for text in said(scene, language):
            for thing in scene.things:
                nouns = getattr(thing.concept, language)
                plural = language == "en" and scene.layout == "count"
                assert plural or any(noun in text for noun in nouns), text
                if thing.color:
                    assert any(word in text for word in getattr(thing.color, language)), text
            for part in (scene.background, scene.style):
                assert not part.key or any(word in text for word in getattr(part, language)), text


def test_counts_are_said_with_the_right_counter() -> None:
    words = ("二2２", "三3３", "四4４", "五5５")
    kana = ("ふたつ", "みっつ", "よっつ", "いつつ")
    for scene in (plan(seed, STAGE) for seed in range(600)):
        if scene.layout == "count":
            assert all(any(word in text for word in (*words[scene.count - 2], kana[scene.count - 2])) for text in said(scene, "ja"))


def test_both_languages_have_the_same_ways_to_say_a_thing() -> None:
    wanted = {
        "ja": ("真っ黒な", "空色の", "が一頭", "匹だけ", "ひとつ", "の下に", "で、", "左側に", "が左、", "その右に"),
        "en": ("pitch-black", "sky blue", "a single ", "just one ", "one ", " under ", " on the ", "left side", "on the left,", "to its right"),
    }
    scenes = [plan(seed, STAGE) for seed in range(3_000)]
    for language, ways in wanted.items():
        texts = "\n".join(caption(scene, language, np.random.default_rng((scene.seed, 2))) for scene in scenes)
        assert [way for way in ways if way not in texts] == []


def test_tints_keep_the_shape_and_the_shade() -> None:
    sprite = SPRITES[0]
    for color in COLORS:
        made = tint(sprite, color)
        assert made.shape == sprite.shape
        assert np.array_equal(made[..., 3], sprite[..., 3])
        assert not np.array_equal(made[..., :3], sprite[..., :3])
