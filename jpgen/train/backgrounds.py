"""The backgrounds of rendered scenes: one small painter each, 256×256 RGB, drawn with Pillow.

A painter takes a numpy Generator and returns a new image. `BACKGROUNDS` names each with the Japanese and English words its captions use,
the first word being the usual one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256
"""Side of a scene in pixels."""

Color = tuple[int, int, int]
Painter = Callable[[np.random.Generator], Image.Image]


class At(NamedTuple):
    """What joins a thing to its background: 青空の下の犬 / a dog under a blue sky. Empty, nothing does: 青空の犬, a dog underwater."""

    ja: tuple[str, ...]
    en: tuple[str, ...]


IN = At(("",), ("in",))
UNDER = At(("", "の下"), ("in", "under"))
ON = At(("", "の上"), ("on", "by"))
BARE = At(("",), ("",))


@dataclass(frozen=True)
class Background:
    """One background: its key, its words in both languages, its painter; `plain` ones read 〜色の背景 / on a … background."""

    key: str
    ja: tuple[str, ...]
    en: tuple[str, ...]
    paint: Painter
    plain: bool = False
    at: At = IN


def gradient(rng: np.random.Generator, top: Color, bottom: Color, *, noise: float = 6.0) -> Image.Image:
    """A vertical gradient with soft cloud-like noise (standard deviation `noise`, in 0–255 levels)."""
    ramp = np.linspace(0.0, 1.0, 8, dtype=np.float32)[:, None, None]
    pixels = np.array(top, np.float32) * (1 - ramp) + np.array(bottom, np.float32) * ramp + np.zeros((8, 8, 3), np.float32)
    if noise:
        pixels = pixels + rng.normal(0.0, noise, (8, 8, 1)).astype(np.float32)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)


def _ridge(rng: np.random.Generator, image: Image.Image, level: float, height: int, color: Color) -> None:
    """Fill everything below a wavy line at `level` (a fraction of the height) with `color`."""
    x = np.arange(0, SIZE + 8, 8)
    wave = np.sin(x / SIZE * 6.28 * rng.uniform(0.5, 1.6) + rng.uniform(0, 6.28)) + 0.3 * np.sin(x / SIZE * 18 + rng.uniform(0, 6.28))
    line = [(int(a), int(level * SIZE + height * b)) for a, b in zip(x, wave, strict=True)]
    ImageDraw.Draw(image).polygon([*line, (SIZE + 8, SIZE), (0, SIZE)], fill=color)


def _vary(rng: np.random.Generator, color: Color, amount: int = 12) -> Color:
    return tuple(int(np.clip(c + d, 0, 255)) for c, d in zip(color, rng.integers(-amount, amount + 1, 3), strict=True))  # type: ignore[return-value]


def _dots(rng: np.random.Generator, image: Image.Image, count: int, colors: list[Color], sizes: tuple[int, int], rows: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        x, y, r = int(rng.integers(0, SIZE)), int(rng.integers(*rows)), int(rng.integers(*sizes))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colors[int(rng.integers(len(colors)))])


def _clouds(rng: np.random.Generator, image: Image.Image, color: Color, rows: tuple[int, int], count: int = 3) -> None:
    draw = ImageDraw.Draw(image)
    for _ in range(count):
        x, y, w = int(rng.integers(0, SIZE)), int(rng.integers(*rows)), int(rng.integers(18, 34))
        for dx, scale in ((-w, 0.6), (0, 1.0), (w, 0.7)):
            r = w * scale * 0.6
            draw.ellipse((x + dx - w * scale, y - r, x + dx + w * scale, y + r), fill=color)


def _tree(draw: ImageDraw.ImageDraw, x: int, foot: int, height: int, leaf: Color, trunk: Color = (110, 75, 50)) -> None:
    draw.rectangle((x - height // 14, foot - height // 2, x + height // 14, foot), fill=trunk)
    r = height // 3
    for dx, dy in ((0, -height * 2 // 3), (-r // 2, -height // 2), (r // 2, -height // 2)):
        draw.ellipse((x + dx - r, foot + dy - r, x + dx + r, foot + dy + r), fill=leaf)


def _plain(color: Color) -> Painter:
    def paint(rng: np.random.Generator) -> Image.Image:
        return gradient(rng, _vary(rng, color, 6), _vary(rng, color, 6), noise=0.0)

    return paint


def _unsaid(rng: np.random.Generator) -> Image.Image:
    """What stands behind a thing when the caption says nothing: nearly white, faintly tinted."""
    tint: Color = tuple(int(c) for c in rng.integers(232, 256, 3))  # type: ignore[assignment]
    return gradient(rng, (252, 252, 252), tint, noise=0.0)


def _blue_sky(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (75, 160, 245), (190, 225, 255), noise=3.0)
    _clouds(rng, image, (250, 252, 255), (20, 220), 4)
    return image


def _sunset_sky(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (95, 60, 140), (255, 150, 70), noise=6.0)
    _clouds(rng, image, (255, 175, 120), (90, 220), 3)
    return image


def _night_sky(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (8, 12, 45), (35, 45, 100), noise=3.0)
    _dots(rng, image, 60, [(255, 255, 230), (200, 220, 255)], (0, 3), (0, SIZE))
    return image


def _space(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (20, 5, 35), (50, 10, 70), noise=22.0)
    _dots(rng, image, 70, [(255, 255, 255), (255, 210, 240), (170, 200, 255)], (0, 3), (0, SIZE))
    return image


def _sea(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (130, 200, 250), (215, 240, 255), noise=3.0)
    for level, color in ((0.5, (45, 140, 215)), (0.66, (30, 115, 195)), (0.84, (20, 95, 175))):
        _ridge(rng, image, level, 3, _vary(rng, color, 6))
    return image


def _sunset_sea(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (130, 60, 120), (255, 165, 80), noise=4.0)
    x = int(rng.integers(50, 206))
    ImageDraw.Draw(image).ellipse((x - 26, 92, x + 26, 144), fill=(255, 225, 140))
    for level, color in ((0.5, (140, 70, 110)), (0.66, (110, 55, 105)), (0.84, (80, 40, 95))):
        _ridge(rng, image, level, 3, _vary(rng, color, 6))
    return image


def _underwater(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (60, 190, 225), (10, 70, 130), noise=4.0)
    _ridge(rng, image, 0.9, 5, (215, 195, 140))
    draw = ImageDraw.Draw(image)
    for _ in range(14):
        x, y, r = int(rng.integers(0, SIZE)), int(rng.integers(0, 220)), int(rng.integers(2, 7))
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(200, 240, 255), width=2)
    return image


def _grass(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (130, 205, 250), (225, 242, 255), noise=3.0)
    _ridge(rng, image, 0.56, 10, _vary(rng, (125, 200, 90)))
    _ridge(rng, image, 0.74, 8, _vary(rng, (90, 175, 70)))
    return image


def _flowers(rng: np.random.Generator) -> Image.Image:
    image = _grass(rng)
    _dots(rng, image, 60, [(240, 80, 120), (255, 220, 70), (255, 255, 255), (180, 110, 230), (255, 140, 60)], (3, 6), (160, SIZE))
    return image


def _forest(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (165, 215, 190), (95, 150, 95), noise=4.0)
    draw = ImageDraw.Draw(image)
    for foot, height, leaf in ((170, 110, (60, 125, 75)), (215, 140, (40, 100, 60))):
        for x in range(int(rng.integers(-10, 20)), SIZE + 20, 46):
            _tree(draw, x, foot, height, _vary(rng, leaf))
    _ridge(rng, image, 0.82, 4, (75, 105, 55))
    return image


def _autumn(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (150, 205, 245), (245, 235, 220), noise=3.0)
    _ridge(rng, image, 0.5, 18, (170, 90, 60))
    draw = ImageDraw.Draw(image)
    for foot in (175, 225):
        for x in range(int(rng.integers(-10, 20)), SIZE + 20, 48):
            _tree(draw, x, foot, 105, [(215, 70, 40), (235, 140, 40), (240, 190, 60)][int(rng.integers(3))])
    _ridge(rng, image, 0.86, 4, (190, 140, 70))
    return image


def _cherry(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (150, 210, 250), (250, 235, 245), noise=3.0)
    draw = ImageDraw.Draw(image)
    for x in range(int(rng.integers(-10, 16)), SIZE + 20, 50):
        _tree(draw, x, 200, 150, _vary(rng, (250, 180, 205), 8), (95, 65, 60))
    _ridge(rng, image, 0.78, 3, (170, 205, 120))
    _dots(rng, image, 40, [(255, 205, 225), (255, 225, 235)], (1, 4), (0, SIZE))
    return image


def _snow(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (150, 175, 210), (215, 225, 240), noise=4.0)
    _ridge(rng, image, 0.6, 12, (225, 233, 245))
    _ridge(rng, image, 0.76, 8, (245, 248, 253))
    _dots(rng, image, 60, [(255, 255, 255)], (1, 4), (0, SIZE))
    return image


def _rain(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (95, 105, 125), (160, 170, 185), noise=8.0)
    draw = ImageDraw.Draw(image)
    for _ in range(70):
        x, y = int(rng.integers(0, SIZE + 20)), int(rng.integers(-10, SIZE))
        draw.line((x, y, x - 5, y + 18), fill=(190, 210, 235), width=2)
    return image


def _desert(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (110, 190, 240), (250, 232, 195), noise=3.0)
    _ridge(rng, image, 0.55, 14, _vary(rng, (235, 190, 115)))
    _ridge(rng, image, 0.74, 10, _vary(rng, (220, 170, 95)))
    return image


def _mountains(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (120, 190, 245), (225, 240, 250), noise=3.0)
    draw = ImageDraw.Draw(image)
    for _ in range(4):
        x, top = int(rng.integers(0, SIZE)), int(rng.integers(60, 110))
        draw.polygon([(x - 95, 185), (x, top), (x + 95, 185)], fill=_vary(rng, (100, 120, 150)))
        draw.polygon([(x - 24, top + 22 * 85 // 60), (x, top), (x + 24, top + 22 * 85 // 60)], fill=(245, 248, 255))
    _ridge(rng, image, 0.68, 6, (95, 150, 90))
    return image


def _buildings(rng: np.random.Generator, image: Image.Image, wall: list[Color], window: Color) -> None:
    draw = ImageDraw.Draw(image)
    x = int(rng.integers(-20, 0))
    while x < SIZE:
        width, top = int(rng.integers(34, 58)), int(rng.integers(60, 140))
        draw.rectangle((x, top, x + width, 205), fill=wall[int(rng.integers(len(wall)))])
        for wy in range(top + 10, 195, 18):
            for wx in range(x + 7, x + width - 8, 14):
                if rng.random() < 0.75:
                    draw.rectangle((wx, wy, wx + 6, wy + 8), fill=window)
        x += width + 4
    draw.rectangle((0, 205, SIZE, SIZE), fill=(95, 98, 105))


def _town(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (140, 200, 245), (230, 240, 250), noise=3.0)
    _buildings(rng, image, [(190, 175, 160), (165, 180, 195), (205, 190, 175), (150, 160, 175)], (235, 245, 255))
    return image


def _night_town(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (15, 15, 50), (60, 45, 95), noise=3.0)
    _buildings(rng, image, [(40, 42, 70), (55, 50, 80), (30, 34, 60)], (255, 220, 120))
    return image


def _tatami(rng: np.random.Generator) -> Image.Image:
    image = gradient(rng, (240, 232, 212), (232, 222, 198), noise=2.0)
    draw = ImageDraw.Draw(image)
    shift = int(rng.integers(-16, 17))
    for x in range(-32 + shift, SIZE + 32, 40):
        draw.line((x, 20, x, 158), fill=(150, 110, 75), width=3)
    for y in (20, 66, 112, 158):
        draw.line((0, y, SIZE, y), fill=(150, 110, 75), width=3)
    draw.rectangle((0, 162, SIZE, SIZE), fill=_vary(rng, (190, 195, 125), 8))
    for x in (64 + shift, 192 + shift):
        draw.line((x, 162, x + (x - 128) // 2, SIZE), fill=(70, 95, 60), width=5)
    return image


BACKGROUNDS = (
    Background("", ("",), ("",), _unsaid),
    Background("blue_sky", ("青空", "晴れた空", "青い空"), ("blue sky", "a blue sky", "a clear sky"), _blue_sky, at=UNDER),
    Background("sunset_sky", ("夕焼け空", "夕焼け", "夕暮れの空"), ("sunset sky", "the sunset sky", "an evening sky"), _sunset_sky, at=UNDER),
    Background("night_sky", ("夜空", "星空", "満天の星"), ("starry night sky", "the night sky", "a starry night sky"), _night_sky, at=UNDER),
    Background("space", ("宇宙", "宇宙空間"), ("outer space", "space"), _space),
    Background("sea", ("海", "青い海", "海辺"), ("the sea", "the ocean", "blue sea"), _sea, at=ON),
    Background("sunset_sea", ("夕焼けの海", "夕暮れの海", "夕日の海"), ("the sea at sunset", "a sunset sea"), _sunset_sea, at=ON),
    Background("underwater", ("海の中", "水中", "海底"), ("underwater", "under the sea"), _underwater, at=BARE),
    Background("grass", ("草原", "野原", "原っぱ"), ("a grassy field", "grassland", "a meadow"), _grass),
    Background("flowers", ("花畑", "お花畑"), ("a flower field", "a field of flowers"), _flowers),
    Background("forest", ("森", "森の中"), ("a forest", "the woods"), _forest),
    Background("autumn", ("紅葉の山", "紅葉", "秋の山"), ("autumn leaves", "autumn mountains"), _autumn),
    Background("cherry", ("桜並木", "満開の桜", "桜の木"), ("cherry blossom trees", "cherry trees in full bloom"), _cherry, at=UNDER),
    Background("snow", ("雪景色", "雪原", "雪の中"), ("a snowy landscape", "snow"), _snow),
    Background("rain", ("雨", "雨空", "雨の日"), ("rain", "a rainy day"), _rain),
    Background("desert", ("砂漠", "砂丘"), ("a desert", "sand dunes"), _desert),
    Background("mountains", ("山", "山々", "山脈"), ("mountains", "a mountain range"), _mountains),
    Background("town", ("街", "街並み", "都会"), ("a city", "a town", "city streets"), _town),
    Background("night_town", ("夜の街", "夜景"), ("a city at night", "a night city"), _night_town),
    Background("tatami", ("和室", "畳の部屋"), ("a Japanese room", "a tatami room"), _tatami),
    Background("white", ("白い背景", "白背景"), ("white background",), _plain((255, 255, 255)), plain=True),
    Background("black", ("黒い背景", "黒背景"), ("black background",), _plain((15, 15, 15)), plain=True),
    Background("red", ("赤い背景", "赤背景"), ("red background",), _plain((225, 70, 65)), plain=True),
    Background("blue", ("青い背景", "青背景"), ("blue background",), _plain((85, 140, 235)), plain=True),
    Background("green", ("緑の背景", "緑色の背景"), ("green background",), _plain((120, 200, 120)), plain=True),
    Background("yellow", ("黄色い背景", "黄色の背景"), ("yellow background",), _plain((255, 225, 100)), plain=True),
    Background("pink", ("ピンクの背景", "ピンク色の背景"), ("pink background",), _plain((255, 180, 205)), plain=True),
)
"""Every background; the first is what stands there when the caption names none."""
