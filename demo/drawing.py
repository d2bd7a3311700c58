"""The jobs of the pages: functions of a desk and of values, which are sent to the worker's process. Nothing here, or below it, is of the pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

import jpgen
from demo import merging
from demo.gallery import Gallery
from demo.made import Made, keep, of_item
from demo.scores import likeness, nearest
from demo.worker import Desk
from jpgen.merge import Recipe

JAPANESE, ENGLISH, TRANSLATED, RAW = "japanese", "english", "translated", "raw"
"""The ways in which a comparison reads, in its order."""


@dataclass(frozen=True)
class Order:
    """One picture that is wanted. `sampling`: all of it, or what Pipeline.config takes; `translator` ("": none) puts the prompt into English."""

    prompt: jpgen.Prompt
    seed: int
    model: str
    sampling: jpgen.SamplingConfig | Mapping[str, Any]
    translator: str = ""
    init: jpgen.InitImage | None = None


@dataclass(frozen=True)
class Cell:
    """One picture of a grid: what its two settings are called and are, and all that it is drawn with."""

    x_name: str
    y_name: str
    x: Any
    y: Any
    seed: int
    model: str
    style: str = ""
    sampling: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Drawn:
    """One picture of a comparison: under which heading, the picture, how well it fits its own words (None: nobody can say)."""

    heading: str
    made: Made
    text: str
    score: float | None = None


def prepare(desk: Desk, model: str) -> None:
    """Open the model before anybody asks for a picture."""
    desk.pipeline(model)


def pictures(desk: Desk, orders: Sequence[Order], kept: Gallery, kind: str = "create") -> None:
    """Draw one picture after the other, each in the gallery as soon as it is there."""
    desk.expect(len(orders))
    for order in orders:
        desk.deliver(keep(kept, _drawn(desk, order), kind))


def grid(desk: Desk, cells: Sequence[tuple[Cell, Order]], kept: Gallery) -> None:
    """Draw every cell of a grid; delivers them with their pictures."""
    desk.expect(len(cells))
    for cell, order in cells:
        desk.deliver((cell, keep(kept, _drawn(desk, order), "grid")))


def ways(desk: Desk, orders: Mapping[str, Order], translator: str, kept: Gallery, scored: bool) -> None:
    """Draw what was read in several ways, and by the translator ("": none) in one more; delivers `Drawn`, each `scored` by the Japanese words."""
    given, japanese = dict(orders), orders[JAPANESE]
    if translator:
        given[TRANSLATED] = Order(_translated(japanese.prompt, translator), japanese.seed, japanese.model, japanese.sampling)
    desk.expect(len(given))
    for way in (JAPANESE, ENGLISH, TRANSLATED, RAW):
        if way in given:
            made = _drawn(desk, given[way])
            score = likeness(made.image, japanese.prompt.source) if scored else None
            desk.deliver(Drawn(way, keep(kept, made, "compare"), made.prompt.seen.text, score))


def mixed(desk: Desk, recipe: Recipe, prompt: str, base: str, seed: int, steps: int, kept: Gallery) -> None:
    """Draw by a recipe."""
    desk.deliver(keep(kept, merging.draw(desk, recipe, prompt, base=base, seed=seed, steps=steps), "blend"))


def written(desk: Desk, recipe: Recipe, folder: Path, name: str) -> str:
    """Write the weights of a recipe; returns the name of the file."""
    return merging.save_weights(desk, recipe, folder, name).name


def recognised(desk: Desk, image: Image.Image, labels: Sequence[str]) -> list[tuple[str, float]]:
    """How likely it is that the picture shows each of the labels."""
    return [(label, float(probability)) for label, probability in jpgen.zero_shot(image, labels)]


def found(desk: Desk, kept: Gallery, words: str, limit: int) -> list[Made]:
    """The pictures of the gallery that show what the words say, the best first."""
    return [of_item(item) for item in nearest(kept, words, desk, limit=limit)]


def _drawn(desk: Desk, order: Order) -> jpgen.Generation:
    pipeline, sampling = desk.pipeline(order.model), order.sampling
    if order.translator:
        pipeline = pipeline.with_translator(order.translator)
    config = sampling if isinstance(sampling, jpgen.SamplingConfig) else pipeline.config(**sampling)
    return pipeline.generate(order.prompt, seed=order.seed, config=config, on_step=desk.on_step, init=order.init)


def _translated(prompt: jpgen.Prompt, translator: str) -> jpgen.Prompt:
    """The prompt in English, as a model that reads English alone would get it."""
    opened = jpgen.open_translator(translator)
    if opened is None:
        return prompt
    (text,) = opened.translate([prompt.text])
    return jpgen.Prompt(source=prompt.source, text=text, negative="", spans=((text, 1.0),))
