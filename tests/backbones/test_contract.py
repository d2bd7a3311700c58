"""What every backbone promises; a new file in jpgen/backbones is found by its name."""

import importlib

import numpy as np
import pytest
import torch

from jpgen.backbones import families
from jpgen.backbones.schedulers import SCHEDULERS, make_scheduler
from jpgen.errors import Cancelled, UnknownNameError
from jpgen.types import Backbone, Conditioning, Step


@pytest.fixture(scope="module", params=families())
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return importlib.import_module(f"jpgen.backbones.{request.param}").toy()


def conditioning(backbone: Backbone, rows: int, length: int = 5) -> Conditioning:
    tokens = torch.randn(rows, length, backbone.spec.width, generator=torch.Generator().manual_seed(3))
    return Conditioning(tokens, torch.ones(rows, length, dtype=torch.int64))


def sample(backbone: Backbone, rows: int, seeds: list[int], **kwargs: object) -> list[bytes]:
    made = conditioning(backbone, 2)
    chosen = Conditioning(made.tokens[:rows], made.mask[:rows])
    nothing = conditioning(backbone, rows, 2)
    images = backbone.sample(chosen, nothing, backbone.default, generators=[torch.Generator().manual_seed(s) for s in seeds], **kwargs)
    return [image.tobytes() for image in images]


def test_it_meets_the_protocol(backbone: Backbone) -> None:
    assert isinstance(backbone, Backbone)
    assert backbone.default.validated(backbone.size_multiple) == backbone.default


def test_pictures_have_the_size_asked_for(backbone: Backbone) -> None:
    made = conditioning(backbone, 1)
    image = backbone.sample(made, made, backbone.default, generators=[torch.Generator().manual_seed(0)])[0]
    assert image.size == (backbone.default.width, backbone.default.height)


def test_the_same_seed_gives_the_same_picture_alone_and_in_a_batch(backbone: Backbone) -> None:
    together = sample(backbone, 2, [1, 2])
    assert together[0] == sample(backbone, 1, [1])[0]
    assert together[0] != sample(backbone, 1, [2])[0]


def test_masked_tokens_do_not_matter(backbone: Backbone) -> None:
    made = conditioning(backbone, 1)
    junk = torch.full((1, 3, backbone.spec.width), 9.0)
    padded = Conditioning(torch.cat([made.tokens, junk], 1), torch.cat([made.mask, torch.zeros(1, 3).long()], 1))
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

    made = conditioning(backbone, 1)
    config = replace(backbone.default, scheduler=name, steps=3)
    assert backbone.sample(made, made, config, generators=[torch.Generator().manual_seed(0)])


def test_an_unknown_scheduler_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"dpm\+\+2m"):
        make_scheduler("dpm++2n", {})
