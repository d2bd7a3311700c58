"""What every backbone promises; a new file in jpgen/backbones is found by its name."""

import importlib

import numpy as np
import pytest
import torch
from PIL.Image import Image

from jpgen.backbones import families
from jpgen.backbones.schedulers import FLOW, SCHEDULERS, make_scheduler
from jpgen.errors import Cancelled, SettingError, UnknownNameError
from jpgen.protocols import Backbone, TextBackbone
from jpgen.types import Conditioning, SamplingConfig, Step


@pytest.fixture(scope="module", params=families())
def backbone(request: pytest.FixtureRequest) -> Backbone | TextBackbone:
    return importlib.import_module(f"jpgen.backbones.{request.param}").toy()


def conditioning(backbone: Backbone, rows: int, length: int = 5) -> Conditioning:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(rows, length, backbone.spec.width, generator=generator)
    width = backbone.spec.pooled_width
    pooled = None if width is None else torch.randn(rows, width, generator=generator)
    return Conditioning(tokens, torch.ones(rows, length, dtype=torch.int64), pooled)


def paint(backbone: Backbone | TextBackbone, rows: int, seeds: list[int], config: SamplingConfig | None = None, **kwargs: object) -> list[Image]:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    if isinstance(backbone, TextBackbone):
        texts, nothing = ["赤い猫", "a dog"][:rows], ["", "雨"][:rows]
        return backbone.sample_texts(texts, nothing, config or backbone.default, generators=generators, **kwargs)
    chosen, nothing = conditioning(backbone, 2).rows(0, rows), conditioning(backbone, 2, 2).rows(0, rows)
    return backbone.sample(chosen, nothing, config or backbone.default, generators=generators, **kwargs)


def sample(backbone: Backbone | TextBackbone, rows: int, seeds: list[int], **kwargs: object) -> list[bytes]:
    return [image.tobytes() for image in paint(backbone, rows, seeds, **kwargs)]


def test_it_meets_the_protocol(backbone: Backbone) -> None:
    assert isinstance(backbone, Backbone) != isinstance(backbone, TextBackbone)
    assert backbone.default.validated(backbone.size_multiple) == backbone.default


def test_pictures_have_the_size_asked_for(backbone: Backbone) -> None:
    image = paint(backbone, 1, [0])[0]
    assert image.size == (backbone.default.width, backbone.default.height)


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(backbone: Backbone) -> None:
    together = sample(backbone, 2, [1, 2])
    alone, other = (sample(backbone, 1, [seed])[0] for seed in (1, 2))
    one, same, unlike = (np.frombuffer(picture, np.uint8).astype(int) for picture in (together[0], alone, other))
    rounding = 1 if backbone.name in ("toy-sd", "toy-sdxl") else 0  # a U-Net's convolutions of a batch round in another order
    assert abs(one - same).max() <= rounding < abs(one - unlike).max()


@pytest.mark.parametrize("family", [family for family in families() if family != "diffusers"])  # that one masks its own tokens
def test_masked_tokens_do_not_matter(family: str) -> None:
    backbone = importlib.import_module(f"jpgen.backbones.{family}").toy()
    made = conditioning(backbone, 1)
    junk = torch.full((1, 3, backbone.spec.width), 9.0)
    padded = Conditioning(torch.cat([made.tokens, junk], 1), torch.cat([made.mask, torch.zeros(1, 3).long()], 1), made.pooled)
    one, other = (np.asarray(backbone.sample(c, c, backbone.default, generators=[torch.Generator().manual_seed(0)])[0], int) for c in (made, padded))
    assert abs(one - other).max() <= 2


def test_the_callback_sees_every_step_and_previews(backbone: Backbone) -> None:
    seen: list[tuple[int, int]] = []

    def on_step(step: Step) -> None:
        seen.append((step.index, step.total))
        assert step.preview()[0].size == (backbone.default.width, backbone.default.height)

    sample(backbone, 1, [1], on_step=on_step)
    assert seen == [(i + 1, backbone.default.steps) for i in range(backbone.default.steps)]


def test_watching_changes_nothing(backbone: Backbone) -> None:
    assert sample(backbone, 1, [1], on_step=lambda step: bool(step.preview())) == sample(backbone, 1, [1])


def test_false_cancels(backbone: Backbone) -> None:
    with pytest.raises(Cancelled, match="cancelled at step 1"):
        sample(backbone, 1, [1], on_step=lambda _: False)
    assert sample(backbone, 1, [1])  # and it can go on afterwards


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_samples(backbone: Backbone, name: str) -> None:
    from dataclasses import replace

    config = replace(backbone.default, scheduler=name, steps=3)
    try:
        assert paint(backbone, 1, [0], config)
    except SettingError as error:  # a sampler that cannot follow a flow says so
        assert name not in FLOW and "flow" in str(error)


def test_an_unknown_scheduler_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"dpm\+\+2m"):
        make_scheduler("dpm++2n", {})
