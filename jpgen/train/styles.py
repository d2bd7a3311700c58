"""The picture styles of rendered scenes: a filter over the finished 256×256 image, or an art set of drawings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter, ImageOps

from jpgen.train.backgrounds import SIZE

Filter = Callable[[np.random.Generator, Image.Image], Image.Image]


@dataclass(frozen=True)
class Style:
    """One style: its key, its words in both languages, its filter, and the art set it insists on (None: any flat one)."""

    key: str
    ja: tuple[str, ...]
    en: tuple[str, ...]
    apply: Filter
    art: str | None = None


def _as_is(_rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return image


def _pixel_art(_rng: np.random.Generator, image: Image.Image) -> Image.Image:
    small = image.resize((32, 32), Image.Resampling.BOX)
    return ImageOps.posterize(small, 4).resize((SIZE, SIZE), Image.Resampling.NEAREST)


def _monochrome(_rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB")


def _watercolor(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    small = image.resize((SIZE // 2, SIZE // 2), Image.Resampling.BOX).filter(ImageFilter.MedianFilter(5))
    wet = Image.blend(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC), Image.new("RGB", (SIZE, SIZE), (255, 255, 255)), 0.28)
    paper = Image.fromarray(np.clip(rng.normal(243, 9, (48, 48)), 0, 255).astype(np.uint8)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return ImageChops.multiply(wet, Image.merge("RGB", (paper,) * 3))


def _line_art(_rng: np.random.Generator, image: Image.Image) -> Image.Image:
    edges = image.convert("L").filter(ImageFilter.GaussianBlur(1)).filter(ImageFilter.FIND_EDGES)
    ink = ImageOps.invert(edges.point([min(255, 9 * max(0, v - 5)) for v in range(256)]))
    ink = ImageOps.expand(ink.crop((2, 2, SIZE - 2, SIZE - 2)), 2, 255)
    return ink.filter(ImageFilter.GaussianBlur(0.6)).convert("RGB")


def _ramp(*stops: tuple[int, int, int]) -> list[int]:
    """A 3×256 lookup that maps lightness through `stops`, dark to light."""
    at = np.linspace(0, 255, len(stops))
    return [int(v) for channel in zip(*stops, strict=True) for v in np.interp(np.arange(256), at, channel)]


_UKIYOE = _ramp((20, 28, 52), (38, 62, 104), (118, 134, 138), (206, 184, 142), (238, 222, 184))
_SEPIA = _ramp((40, 24, 12), (150, 110, 70), (250, 232, 200))


def _ukiyoe(_rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Indigo to paper in five flat tones, the picture's own warm hues kept as vermilion, dark outlines."""
    flat = ImageOps.posterize(image.filter(ImageFilter.GaussianBlur(1.2)), 3)
    aged = Image.blend(flat.convert("L").convert("RGB").point(_UKIYOE), flat, 0.35)
    edges = flat.convert("L").filter(ImageFilter.FIND_EDGES).point([min(255, 5 * v) for v in range(256)])
    edges = ImageOps.expand(edges.crop((2, 2, SIZE - 2, SIZE - 2)), 2, 0)
    return Image.composite(Image.new("RGB", (SIZE, SIZE), (24, 26, 44)), aged, edges)


def _oil(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Short thick strokes: blocky colour, lifted by an embossed brush texture."""
    small = image.resize((SIZE // 4, SIZE // 4), Image.Resampling.BOX).filter(ImageFilter.ModeFilter(3))
    blobs = small.resize((SIZE, SIZE), Image.Resampling.NEAREST).filter(ImageFilter.GaussianBlur(1.5))
    wide = SIZE * 3 // 2
    strokes = Image.fromarray(rng.integers(0, 256, (wide // 6, wide // 18), dtype=np.uint8)).resize((wide, wide), Image.Resampling.BICUBIC)
    edge = (wide - SIZE) // 2
    relief = strokes.rotate(35, Image.Resampling.BILINEAR).crop((edge, edge, edge + SIZE, edge + SIZE)).filter(ImageFilter.EMBOSS)
    texture = Image.merge("RGB", (relief,) * 3)
    return ImageChops.overlay(blobs, Image.blend(Image.new("RGB", (SIZE, SIZE), (128, 128, 128)), texture, 0.55))


def _sepia(_rng: np.random.Generator, image: Image.Image) -> Image.Image:
    return image.convert("L").convert("RGB").point(_SEPIA)


STYLES = (
    Style("", ("",), ("",), _as_is),
    Style("pixel_art", ("ドット絵", "ピクセルアート"), ("pixel art",), _pixel_art),
    Style("monochrome", ("モノクロ", "白黒"), ("monochrome", "black and white"), _monochrome),
    Style("watercolor", ("水彩画風", "水彩画", "水彩"), ("watercolor", "watercolor painting"), _watercolor),
    Style("line_art", ("線画", "線画風"), ("line art", "line drawing"), _line_art),
    Style("ukiyoe", ("浮世絵風", "浮世絵"), ("ukiyo-e style", "ukiyo-e"), _ukiyoe),
    Style("oil", ("油絵風", "油絵", "油彩画"), ("oil painting", "oil painting style"), _oil),
    Style("sepia", ("セピア調", "セピア色"), ("sepia", "sepia tone"), _sepia),
    Style("3d", ("3D風", "立体的な3D", "3DCG"), ("3D style", "3D render"), _as_is, art="fluent"),
)
"""Every style; the first is the plain one, when the caption names none."""
