"""Scenes: pictures composed from sprites, each with the facts its caption tells and a judge can check.

`plan(seed, drawings)` draws every choice of one scene from its seed (background, style, layout, things, colours); `render(scene, …)` paints it.
The same seed gives the same scene for the same concepts and drawings. A `Staging` says what scenes may show; the usual one is everything, anywhere.
"""

from __future__ import annotations

import colorsys
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from jpgen.errors import TrainingDataError, UnknownNameError
from jpgen.train.backgrounds import BACKGROUNDS, Background
from jpgen.train.sprites import Drawing
from jpgen.train.styles import STYLES, Style

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FLAT_ART = ("noto", "twemoji", "fluent-flat")
"""The art sets of scenes whose style asks for none."""


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn: its emoji, its words (the usual one first), how Japanese counts it, how often it appears."""

    emoji: str
    ja: tuple[str, ...]
    en: tuple[str, ...]
    counter: str
    weight: float


@dataclass(frozen=True)
class Color:
    """A colour a thing can be tinted with: its adjectives (the usual one first), hue (0–1), saturation, and value scale."""

    key: str
    ja: tuple[str, ...]
    en: tuple[str, ...]
    hue: float
    saturation: float = 0.85
    value: float = 1.0


COLORS = (
    Color("red", ("赤い", "真っ赤な", "赤色の"), ("red", "bright red"), 0.0),
    Color("orange", ("オレンジ色の", "橙色の"), ("orange",), 0.075),
    Color("yellow", ("黄色い", "黄色の"), ("yellow",), 0.145),
    Color("green", ("緑の", "緑色の"), ("green",), 0.34),
    Color("light_blue", ("水色の", "空色の"), ("light blue", "sky blue", "pale blue"), 0.53, 0.6),
    Color("blue", ("青い", "青色の"), ("blue",), 0.62),
    Color("purple", ("紫の", "紫色の"), ("purple", "violet"), 0.77),
    Color("pink", ("ピンクの", "ピンク色の", "桃色の"), ("pink",), 0.93, 0.5),
    Color("black", ("黒い", "真っ黒な"), ("black", "pitch-black", "jet-black"), 0.0, 0.0, 0.32),
    Color("white", ("白い", "真っ白な"), ("white", "all-white", "pure white"), 0.0, 0.0, 1.9),
)


COLORLESS = frozenset({"monochrome", "line_art", "ukiyoe", "sepia"})  # styles in which a tint could not be seen


@dataclass(frozen=True)
class Thing:
    """One kind of thing in a scene: what, which drawing, its colour (None: its own), and the centre and side of each copy in pixels."""

    concept: Concept
    drawing: Drawing
    color: Color | None
    boxes: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Scene:
    """Every choice of one picture. `layout`: one, small, large, beside (left, right), above (upper, lower), front (front, behind), count."""

    seed: int
    background: Background
    style: Style
    layout: str
    things: tuple[Thing, ...]

    @property
    def count(self) -> int:
        """How many things stand in the picture."""
        return sum(len(thing.boxes) for thing in self.things)


@cache
def concepts() -> tuple[Concept, ...]:
    """The concepts of `concepts.tsv`, in file order."""
    text = (resources.files("jpgen.train") / "concepts.tsv").read_text("utf-8")
    rows = csv.reader((line for line in text.splitlines() if line and not line.startswith("#")), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(Concept(emoji, tuple(ja.split("、")), tuple(en.split(", ")), counter, float(weight)) for emoji, ja, en, counter, weight in rows)


COUNT_GRIDS: Mapping[int, tuple[int, Sequence[tuple[int, int]]]] = {
    2: (104, ((74, 136), (182, 136))),
    3: (84, ((52, 140), (128, 128), (204, 140))),
    4: (92, ((76, 78), (180, 78), (76, 184), (180, 184))),
    5: (76, ((62, 76), (194, 76), (128, 132), (62, 192), (194, 192))),
}
"""How many -> side of each copy, and their centres."""

LAYOUTS = {"one": 0.42, "large": 0.06, "small": 0.06, "beside": 0.16, "above": 0.08, "front": 0.06, "count": 0.16}
"""Layout -> share of the scenes."""


Box = tuple[int, int, int]
"""Centre and side of a thing in pixels: x, y, side."""


@dataclass(frozen=True)
class Staging:
    """What scenes may show, by keys (none: all there is), and how often; by default everything, anywhere.

    `said`, `styled` and `tinted` are the shares with a background, a style and (of the things) a colour. `layouts` are shares too. `places` tells
    where things stand: for a layout one or more ways, of which one is drawn, and in a way the boxes of every thing; without it they are scattered.
    """

    things: tuple[str, ...] = ()
    backgrounds: tuple[str, ...] = ()
    colors: tuple[str, ...] = ()
    said: float = 0.68
    styled: float = 0.3
    tinted: float = 0.22
    layouts: Mapping[str, float] = field(default_factory=lambda: LAYOUTS)
    places: Mapping[str, Sequence[Sequence[Sequence[Sequence[int]]]]] = field(default_factory=dict)

    def concepts(self) -> list[Concept]:
        """Those that may appear; chosen ones all equally often."""
        return [replace(concept, weight=1.0) for concept in concepts() if concept.emoji in self.things] if self.things else list(concepts())

    def painters(self) -> list[Background]:
        """The backgrounds that may be said."""
        return [one for one in BACKGROUNDS[1:] if not self.backgrounds or one.key in self.backgrounds]

    def palette(self) -> list[Color]:
        """The colours a thing may be tinted with."""
        return [color for color in COLORS if not self.colors or color.key in self.colors]


ANYWHERE = Staging()


def read_staging(name: str) -> Staging:
    """The staging in `jpgen/train/stagings` of that name; raises UnknownNameError."""
    files = {file.name.removesuffix(".toml"): file for file in (resources.files("jpgen.train") / "stagings").iterdir()}
    if name not in files:
        raise UnknownNameError.of("場面の決まり / staging", name, sorted(files))
    told: dict[str, Any] = tomllib.loads(files[name].read_text("utf-8"))
    told |= {key: tuple(value) for key, value in told.items() if isinstance(value, list)}
    return Staging(**told)


class Stage:
    """The drawings that scenes may use, by emoji and art set, and the sampling weights of the concepts that have them."""

    def __init__(
        self, drawings: Sequence[Drawing], *, among: Sequence[Concept] | None = None, art: Sequence[str] = FLAT_ART, staging: Staging = ANYWHERE
    ) -> None:
        """Keep the concepts of `among` (default: the staging's) drawn in one of the sets `art`; raises TrainingDataError if none is left."""
        self.staging = staging
        self.art = tuple(art)
        self.rows: dict[tuple[str, str], Drawing] = {(d.emoji, d.art): d for d in drawings}
        self.concepts = [c for c in (staging.concepts() if among is None else among) if any((c.emoji, a) in self.rows for a in self.art)]
        if not self.concepts:
            raise TrainingDataError(
                f"{', '.join(art)} の絵がありません / "
                f"no drawings of the art sets {', '.join(art)}: run jpgen train mame --stage art again"
            )
        weights = np.array([c.weight for c in self.concepts])
        self.shares = weights / weights.sum()

    def draw(self, rng: np.random.Generator, style: Style, *, but: Concept | None = None) -> tuple[Concept, Drawing]:
        """A random concept other than `but`, and one of its drawings that suits the style."""
        while True:
            concept = self.concepts[int(rng.choice(len(self.concepts), p=self.shares))]
            wanted = (style.art,) if style.art else self.art
            found = [self.rows[concept.emoji, a] for a in wanted if (concept.emoji, a) in self.rows]
            if concept is not but and found:
                return concept, found[int(rng.integers(len(found)))]


def plan(seed: int, stage: Stage) -> Scene:
    """All choices of the scene with this seed."""
    rng, staging = np.random.default_rng(seed), stage.staging
    painters, palette = staging.painters(), staging.palette()
    background = painters[int(rng.integers(len(painters)))] if rng.random() < staging.said else BACKGROUNDS[0]
    style = STYLES[int(rng.integers(1, len(STYLES)))] if rng.random() < staging.styled else STYLES[0]
    layout = str(rng.choice(list(staging.layouts), p=list(staging.layouts.values())))
    ways = staging.places.get(layout)
    boxes: Sequence[Sequence[Sequence[int]]] = ways[int(rng.integers(len(ways)))] if ways else scattered(layout, rng)
    things: list[Thing] = []
    for places in boxes:
        concept, drawing = stage.draw(rng, style, but=things[0].concept if things else None)
        colored = style.key not in COLORLESS and rng.random() < staging.tinted
        color = palette[int(rng.integers(len(palette)))] if colored else None
        things.append(Thing(concept, drawing, color, tuple((x, y, side) for x, y, side in places)))
    return Scene(seed, background, style, layout, tuple(things))


def scattered(layout: str, rng: np.random.Generator) -> list[list[Box]]:
    """Where the things of a layout stand, the boxes of each, a little off the middle of their places."""

    def jitter(amount: int) -> int:
        return int(rng.integers(-amount, amount + 1))

    if layout == "count":
        side, centres = COUNT_GRIDS[int(rng.integers(2, 6))]
        return [[(x + jitter(5), y + jitter(5), side + jitter(4)) for x, y in centres]]
    if layout in ("beside", "above", "front"):
        side = 108 + jitter(10)
        first, second = {
            "beside": ((70 + jitter(6), 138 + jitter(8), side), (186 + jitter(6), 138 + jitter(8), side)),
            "above": ((128 + jitter(8), 70 + jitter(5), side), (128 + jitter(8), 188 + jitter(5), side)),
            "front": ((128 + jitter(30), 190 + jitter(6), side - 8), (128 + jitter(10), 108 + jitter(6), 176 + jitter(10))),
        }[layout]
        return [[first], [second]]
    side = {"one": 164 + jitter(20), "large": 226 + jitter(10), "small": 72 + jitter(8)}[layout]
    return [[(128 + jitter(14), 136 + jitter(12), side)]]


def render(scene: Scene, sprites: np.ndarray) -> Image.Image:
    """Paint the scene: a 256×256 RGB image. `sprites` is uint8 [n, side, side, 4]."""
    rng = np.random.default_rng((scene.seed, 1))
    image = scene.background.paint(rng)
    for thing in reversed(scene.things):  # the first thing stands in front
        pixels = sprites[thing.drawing.row]
        sprite = Image.fromarray(tint(pixels, thing.color) if thing.color else np.asarray(pixels))
        for x, y, side in thing.boxes:
            copy = sprite.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
            image.paste(copy, (x - side // 2, y - side // 2), copy)
    return scene.style.apply(rng, image)


GRID = 4
"""Patches along a side of the picture, as the backbone sees it: 4×4 of 64 pixels each."""

REACH = 0.42
"""How far a drawing reaches from its centre, as a share of its side: art leaves a margin."""


UNTOLD = -100
"""In `regions`: no colour to be told here. `cross_entropy` passes over it."""


def regions(scene: Scene, among: Sequence[Concept]) -> np.ndarray:
    """What each patch shows: int16 [3, 4, 4] of thing, colour and style.

    The thing at its centre: the place in `among` plus one, or 0 where the background shows. Its colour: the place in `COLORS` plus one, 0 for its
    own, or `UNTOLD` where nothing stands or the style hides it. The style: the place in `STYLES`.
    Raises ValueError for a concept that is not in `among`.
    """
    centres = (np.arange(GRID) + 0.5) * (256 / GRID)
    out = np.zeros((3, GRID, GRID), np.int16)
    out[1], out[2] = UNTOLD, STYLES.index(scene.style)
    for thing in reversed(scene.things):  # as `render` paints them: the first stands in front
        color = COLORS.index(thing.color) + 1 if thing.color else 0
        for x, y, side in thing.boxes:
            here = np.ix_(abs(centres - y) < REACH * side, abs(centres - x) < REACH * side)
            out[0][here] = among.index(thing.concept) + 1
            out[1][here] = UNTOLD if scene.style.key in COLORLESS else color
    return out


def tint(pixels: np.ndarray, color: Color) -> np.ndarray:
    """The sprite uint8 [side, side, 4] in one colour, its light and shade kept."""
    light = pixels[..., :3].astype(np.float32) @ np.array([0.3, 0.59, 0.11], np.float32) / 255
    if color.saturation == 0:  # black darkens, white lifts the lightness
        light = np.clip(light * color.value if color.value < 1 else 0.72 + 0.28 * light, 0, 1)
        rgb = np.repeat(light[..., None], 3, axis=-1)
    else:
        full = np.array(colorsys.hsv_to_rgb(color.hue, color.saturation, color.value), np.float32)
        step = light[..., None]
        rgb = np.where(step < 0.6, full * (step / 0.6 * 0.85 + 0.15), full + (1 - full) * ((step - 0.6) / 0.4) * 0.8)
    out = np.array(pixels)
    out[..., :3] = np.clip(rgb * 255, 0, 255)
    return out

