"""The judge: a small classifier that reads from a picture which things, colour, count, layout, background and style it shows.

It has never seen a picture made by a model: `jpgen.train.judge` trains it on rendered scenes alone. What it can name at all stands in the
`config.json` beside its weights; how well it reads real renders, the ceiling of every figure it gives, in `ceiling.json`.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from jpgen.compute import best_dtype
from jpgen.errors import WeightsError
from jpgen.weights import eight_bit_matrices, load_weights, save_weights

SIDE = 128
"""Side in pixels of what the network sees."""

MAX_COUNT = 5
LAYOUTS = ("one", "beside", "above", "front", "count")
WEIGHTS = "judge.safetensors"
CONFIG = "config.json"
CEILING = "ceiling.json"
BATCH = 32

CULTURE = frozenset("⛩🎐🎏🎍🎎🎋🎑🗻🏯🗾🗼🍣🍡🍙🍘🍢🍱🍵🍶🍧🍜👘🪭🏮🎴👹👺🥷🌸🍁🌾🎆🚄🎒")
"""Emoji of the things that belong to Japan."""


@dataclass(frozen=True)
class JudgeConfig:
    """What a judge can name: emoji of things, keys of colours, backgrounds and styles ("" first: none said); and the size of its network."""

    things: tuple[str, ...]
    colors: tuple[str, ...]
    backgrounds: tuple[str, ...]
    styles: tuple[str, ...]
    widths: tuple[int, int, int] = (64, 128, 256)
    queries: int = 8

    @property
    def heads(self) -> dict[str, int]:
        """Head -> number of its classes; the last class of `second` is none."""
        return {
            "first": len(self.things),
            "second": len(self.things) + 1,
            "color": len(self.colors),
            "count": MAX_COUNT,
            "layout": len(LAYOUTS),
            "background": len(self.backgrounds),
            "style": len(self.styles),
        }


HEADS = {"first": "things", "second": "things", "color": "colors", "background": "backgrounds", "style": "styles"}
"""Head -> the names of its classes in the config, of those that have names there."""


@dataclass(frozen=True)
class Reading:
    """What the judge sees in one picture.

    `first` is the emoji of the left, upper or front thing and `second` that of the other (None: there is none); `color` the key of the first
    thing's colour ("": its own); `count` 1…5; `layout` one of `LAYOUTS`; `background` and `style` their keys ("": nothing, plain);
    `first_top5` the five likeliest emoji of the first thing, best first.
    """

    first: str
    second: str | None
    color: str
    count: int
    layout: str
    background: str
    style: str
    first_top5: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """What a prompt or a scene says a picture shows, in the terms of `Reading`; None is left unsaid."""

    first: str | None = None
    second: str | None = None
    color: str | None = None
    count: int | None = None
    layout: str | None = None
    background: str | None = None
    style: str | None = None


def score(facts: Facts, reading: Reading) -> dict[str, bool]:
    """Whether the reading agrees, for every figure that the facts allow.

    `object`, `object_top5` (the first thing), `culture` (the same, of `CULTURE` alone), `second`, `both`, `color`, `count`, `background`, `style`;
    for two things side by side also `left_right` (both right and in order) and, if both are there, `order`.
    """
    said: dict[str, bool] = {}
    if facts.first is not None:
        said["object"], said["object_top5"] = reading.first == facts.first, facts.first in reading.first_top5
        if facts.first in CULTURE:
            said["culture"] = said["object"]
    if facts.first is not None and facts.second is not None:
        said["second"] = reading.second == facts.second
        said["both"] = said["object"] and said["second"]
        if facts.layout == "beside":
            said["left_right"] = said["both"] and reading.layout == "beside"
            if {reading.first, reading.second} == {facts.first, facts.second}:
                said["order"] = said["left_right"]
    for name in ("color", "count", "background", "style"):
        if (wanted := getattr(facts, name)) is not None:
            said[name] = getattr(reading, name) == wanted
    return said


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), the last convolution starting at zero; keeps [batch, width, side, side]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_in, self.norm_out = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        for parameter in self.conv_out.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, of the shape of `x`."""
        return x + self.conv_out(F.silu(self.norm_out(self.conv_in(F.silu(self.norm_in(x))))))


class JudgeNetwork(nn.Module):
    """Convolutions on 32×32, 16×16 and 8×8 grids, attention pooling over the 64 cells, and one linear head for each question."""

    def __init__(self, config: JudgeConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.widths
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, fine, 3, padding=1),
            Residual(fine),
            Residual(fine),
            nn.Conv2d(fine, middle, 3, stride=2, padding=1),
            Residual(middle),
            Residual(middle),
            nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
            Residual(coarse),
            Residual(coarse),
            nn.GroupNorm(8, coarse),
        )
        self.position = nn.Parameter(torch.randn(1, (SIDE // 16) ** 2, coarse) * 0.1)
        self.queries = nn.Parameter(torch.randn(config.queries, coarse))
        self.key, self.value = nn.Linear(coarse, coarse), nn.Linear(coarse, coarse)
        self.norm = nn.LayerNorm(config.queries * coarse)
        self.heads = nn.ModuleDict({name: nn.Linear(config.queries * coarse, size) for name, size in config.heads.items()})
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits [batch, classes] of every head, for `pixels` [batch, 3, 128, 128] in −1…1."""
        return self.answers(self.cells(pixels))

    def cells(self, pixels: Tensor) -> Tensor:
        """What the convolutions see in each of 8×8 cells, [batch, 64, width]."""
        seen: Tensor = self.body(pixels)
        return seen.flatten(2).transpose(1, 2)

    def answers(self, cells: Tensor) -> dict[str, Tensor]:
        """Logits [batch, classes] of every head, for `cells` [batch, 64, width]."""
        cells = cells + self.position
        weights = (self.queries @ self.key(cells).transpose(1, 2) / cells.shape[-1] ** 0.5).softmax(dim=-1)
        pooled = self.norm((weights @ self.value(cells)).flatten(1))
        return {name: head(pooled) for name, head in self.heads.items()}


class Judge:
    """A network and the names of its classes.

    >>> from jpgen.evaluate.judge import Judge
    >>> Judge.load().read([image])[0].first  # doctest: +SKIP
    '🐈'
    """

    def __init__(self, network: JudgeNetwork, config: JudgeConfig) -> None:
        """A judge of parts; the network is put in evaluation mode."""
        self.network, self.config = network.eval(), config

    @classmethod
    def load(cls, folder: Path | None = None) -> Judge:
        """The judge inside the package, or that of `folder`; raises WeightsError if it is missing, damaged or does not fit its config."""
        folder = folder or Path(str(resources.files("jpgen"))) / "evaluate" / "judge"
        try:
            stored: dict[str, Any] = json.loads((folder / CONFIG).read_text("utf-8"))
            fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
            config = JudgeConfig(**fields)
            network = JudgeNetwork(config)
        except FileNotFoundError as error:
            raise WeightsError(f"{folder} に審判がありません / no judge in {folder}; install jpgen again or train one (jpgen.train.judge)") from error
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, TypeError, ValueError, AttributeError) as error:
            raise WeightsError(f"{folder / CONFIG} は壊れています / damaged {folder / CONFIG} ({error}); fetch it again") from error
        try:
            network.load_state_dict(load_weights(folder / WEIGHTS))
        except RuntimeError as error:
            raise WeightsError(f"{folder / WEIGHTS} と {CONFIG} が合いません / weights and config of the judge do not fit: {error}") from error
        return cls(network, config)

    def save(self, folder: Path) -> None:
        """Write config.json and the weights (matrices in 8 bits) to `folder`, making it if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.network.state_dict(), bits=eight_bit_matrices)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), ensure_ascii=False, indent=1) + "\n", "utf-8")

    def among(self, *, things: Sequence[str], colors: Sequence[str], backgrounds: Sequence[str], styles: Sequence[str] = ("",)) -> Judge:
        """The same judge, which must choose among these (the colours and backgrounds beside "", of its own none); raises ValueError for others."""
        named: dict[str, Any] = {"things": tuple(things), "colors": ("", *colors), "backgrounds": ("", *backgrounds), "styles": tuple(styles)}
        config = replace(self.config, **named)
        rows = {head: [getattr(self.config, key).index(one) for one in named[key]] for head, key in HEADS.items()}
        rows["second"].append(len(self.config.things))
        network = copy.deepcopy(self.network)
        for head, kept in rows.items():
            whole = self.network.heads[head].state_dict()
            linear = nn.Linear(whole["weight"].shape[1], len(kept))
            linear.load_state_dict({name: value[kept] for name, value in whole.items()})
            network.heads[head] = linear
        return Judge(network.requires_grad_(False), config)

    @torch.inference_mode()
    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        """One reading for each image, of any size and mode (squares suit best: others are squeezed)."""
        readings: list[Reading] = []
        for start in range(0, len(images), BATCH):
            pixels = np.stack([np.asarray(shrink(image)) for image in images[start : start + BATCH]])
            readings += self._readings(logits(self.network, torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        return readings

    def _readings(self, answers: dict[str, Tensor]) -> list[Reading]:
        names, size = self.config, len(answers["first"])
        top5 = answers["first"].topk(min(5, len(names.things)), dim=1).indices.tolist()
        best = {name: answer.argmax(dim=1).tolist() for name, answer in answers.items()}
        return [
            Reading(
                first=names.things[top5[i][0]],
                second=(*names.things, None)[best["second"][i]],
                color=names.colors[best["color"][i]],
                count=best["count"][i] + 1,
                layout=LAYOUTS[best["layout"][i]],
                background=names.backgrounds[best["background"][i]],
                style=names.styles[best["style"][i]],
                first_top5=tuple(names.things[j] for j in top5[i]),
            )
            for i in range(size)
        ]


def shrink(image: Image.Image) -> Image.Image:
    """The image as the judge sees it: RGB, 128×128 by box filter."""
    return image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)


def logits(network: JudgeNetwork, pixels: Tensor) -> dict[str, Tensor]:
    """fp32 logits of every head for `pixels` uint8 [batch, 3, 128, 128], computed in bf16 where this machine is good at it."""
    scaled = pixels.to(memory_format=torch.channels_last).float() / 127.5 - 1
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16):
        answers = network(scaled)
    return {name: answer.float() for name, answer in answers.items()}
