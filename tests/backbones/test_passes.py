"""Guidance intervals and step caches against plain diffusers: off they change nothing, on they are what they say, and afterwards nothing is left."""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel

from jpgen.backbones.caches import CACHES, cached, deepcache, first_block
from jpgen.backbones.passes import guided_steps, passes
from jpgen.errors import IncompatibleError, SettingError, UnknownNameError
from jpgen.types import Conditioning, Control, InitImage, SamplingConfig
from tests.toys.pictures import mask, picture

FAMILIES = ["sd", "sdxl", "pixart", "flux"]


def toy(family: str) -> Any:
    return importlib.import_module(f"jpgen.backbones.{family}").toy()


def conditioning(backbone: Any, rows: int, seed: int = 3) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 5, backbone.spec.width, generator=generator)
    width = backbone.spec.pooled_width
    return Conditioning(tokens, torch.ones(rows, 5, dtype=torch.int64), None if width is None else torch.randn(rows, width, generator=generator))


def pictures(backbone: Any, rows: int = 1, more: dict[str, Any] | None = None, **settings: Any) -> np.ndarray:
    config = replace(backbone.default, **{"guidance_scale": 3.0, "steps": 4, **settings})
    generators = [torch.Generator().manual_seed(seed) for seed in range(rows)]
    wanted, unwanted = (conditioning(backbone, 2, seed).rows(0, rows) for seed in (3, 4))
    made = backbone.sample(wanted, unwanted, config, generators=generators, **(more or {}))
    return np.stack([np.asarray(image, int) for image in made])


def denoiser(backbone: Any) -> Any:
    return getattr(backbone._pipeline, "unet", None) or backbone._pipeline.transformer


def forwards(module: Any) -> dict[str, Any]:
    return {name: vars(one)["forward"] for name, one in module.named_modules() if "forward" in vars(one)}


@pytest.mark.parametrize(
    ("start", "stop", "total", "wanted"),
    [(0.0, 1.0, 5, range(5)), (0.1, 0.8, 10, range(1, 8)), (0.7, 1.0, 10, range(7, 10)), (0.28, 0.6, 25, range(7, 15)), (0.5, 0.5, 8, range(4, 4)),
     (0.0, 0.01, 30, range(1))],
)  # fmt: skip
def test_which_steps_are_guided(start: float, stop: float, total: int, wanted: range) -> None:
    assert guided_steps(SamplingConfig(64, 64, total, 2.0, guidance_start=start, guidance_stop=stop), total) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_an_interval_of_no_step_is_no_guidance_and_one_of_all_is_guidance(family: str) -> None:
    backbone = toy(family)
    unguided = pictures(backbone, guidance_scale=1.0)
    guided = pictures(backbone)
    assert (pictures(backbone, guidance_start=0.5, guidance_stop=0.5) == unguided).all()
    assert (pictures(backbone, guidance_start=0.0, guidance_stop=1.0) == guided).all()
    between = pictures(backbone, guidance_stop=0.5)
    assert (between != guided).any() and (between != unguided).any()
    assert forwards(denoiser(backbone)) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_outside_the_interval_the_scale_does_not_matter(family: str) -> None:
    """By hand: guidance that is told scale 1 on the steps outside gives the same picture."""
    backbone = toy(family)
    model = denoiser(backbone)
    wanted = []
    for rows in (1, 2):
        with torch.inference_mode():
            wanted.append(by_hand(backbone, model, rows))
        made = pictures(backbone, rows, guidance_start=0.25, guidance_stop=0.75)
        assert abs(made - wanted[-1]).max() <= 1


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_an_interval_beside_a_controlnet_and_a_picture_to_begin_from(family: str, tmp_path: Path) -> None:
    backbone = toy(family)
    net = ControlNetModel.from_unet(denoiser(backbone), conditioning_embedding_out_channels=(8, 16, 16, 32)).eval()
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    net.save_pretrained(tmp_path)
    for more in ({"controls": [Control(tmp_path, picture())]}, {"init": InitImage(picture(), 1.0, mask())}):
        with torch.inference_mode():
            wanted = by_hand(backbone, denoiser(backbone), 2, more)
        assert abs(pictures(backbone, 2, more, guidance_start=0.25, guidance_stop=0.75) - wanted).max() <= 1
        assert abs(pictures(backbone, 2, more) - wanted).max() > 1
        assert pictures(backbone, 2, more, cache="deepcache").shape == wanted.shape


def by_hand(backbone: Any, model: Any, rows: int, more: dict[str, Any] | None = None) -> np.ndarray:
    """The plain, fully guided run, in which the negative half of what the model says is replaced by the other on the first and the last step."""
    calls, kept = [0], [None]
    forward = model.forward
    in_turn = "Flux" in type(model).__name__

    def changed(*args: Any, **kwargs: Any) -> Any:
        made = forward(*args, **kwargs)[0]
        step = calls[0] // 2 if in_turn else calls[0]
        second = bool(calls[0] % 2)
        calls[0] += 1
        if in_turn:
            kept[0] = made if not second else kept[0]
            return (kept[0],) if second and step in (0, 3) else (made,)
        return (torch.cat([made[rows:], made[rows:]]),) if step in (0, 3) else (made,)

    model.forward = changed
    try:
        return pictures(backbone, rows, more)
    finally:
        del model.forward


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_deepcache_of_one_step_is_no_cache(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = toy(family)
    plain, lossy = pictures(backbone, steps=6), pictures(backbone, steps=6, cache="deepcache")
    assert (plain != lossy).any()
    assert abs(plain - lossy).mean() < 40  # lossy, but the same picture
    monkeypatch.setitem(CACHES, "deepcache", lambda unet: deepcache(unet, every=1))  # type: ignore[index]
    assert (pictures(backbone, steps=6, cache="deepcache") == plain).all()
    assert forwards(denoiser(backbone)) == {}


def test_deepcache_reuses_exactly_the_deep_features() -> None:
    """By hand on the stock U-Net: the last block up sees fresh features of the first block down beside the kept ones of the depth."""
    unet = toy("sd")._pipeline.unet
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    text = torch.randn(2, 5, 32, generator=generator)
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        handle = unet.up_blocks[-1].register_forward_pre_hook(lambda _m, _a, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True)
        with deepcache(unet, every=2):
            first = unet(one, 500, text, return_dict=False)[0]
            second = unet(other, 400, text, return_dict=False)[0]
            third = unet(other, 400, text, return_dict=False)[0]
        handle.remove()
        assert torch.equal(first, unet(one, 500, text, return_dict=False)[0])
        assert torch.equal(third, unet(other, 400, text, return_dict=False)[0])
        assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
        handle = unet.up_blocks[-1].register_forward_pre_hook(
            lambda _m, args, kwargs: (args, {**kwargs, "hidden_states": seen[0]}), with_kwargs=True
        )
        assert torch.equal(second, unet(other, 400, text, return_dict=False)[0])
        handle.remove()


def test_a_first_block_cache_without_tolerance_is_no_cache() -> None:
    backbone = toy("pixart")
    plain = pictures(backbone, 2, steps=6)
    model, config = denoiser(backbone), replace(backbone.default, guidance_scale=3.0, steps=6)
    with first_block(model, threshold=-1.0):
        assert abs(pictures(backbone, 2, steps=6) - plain).max() <= 1  # lean or not: rounding
    assert forwards(model) == {} and config.cache == "none"


def test_a_first_block_cache_judges_each_row_alone() -> None:
    backbone = toy("pixart")
    together = pictures(backbone, 2, steps=12, cache="firstblock")
    alone = pictures(backbone, 1, steps=12, cache="firstblock")
    assert abs(together[:1] - alone).max() <= 1
    assert (pictures(backbone, 2, steps=12) != together).any()


def test_flux_uses_the_cache_of_diffusers() -> None:
    backbone = toy("flux")
    plain = pictures(backbone, steps=8)
    cached_ = pictures(backbone, steps=8, cache="firstblock")
    assert abs(cached_ - plain).mean() < 40
    assert (pictures(backbone, steps=8) == plain).all()  # it is off again


def test_what_a_cache_is_not_made_for_is_refused() -> None:
    with pytest.raises(IncompatibleError, match="deepcache is for U-Nets"):
        pictures(toy("pixart"), cache="deepcache")
    with pytest.raises(IncompatibleError, match="firstblock is for transformers"):
        pictures(toy("sd"), cache="firstblock")
    with pytest.raises(UnknownNameError, match="deepcache"):
        pictures(toy("sd"), cache="deepcash")
    with pytest.raises(UnknownNameError):
        cached(torch.nn.Identity(), "")


def test_everything_is_taken_off_when_a_run_fails() -> None:
    backbone = toy("sd")
    model = denoiser(backbone)
    config = replace(backbone.default, guidance_scale=2.0, guidance_stop=0.5, cache="deepcache")
    with pytest.raises(ZeroDivisionError), passes(model, config, backbone._pipeline.scheduler, guided=True):
        assert forwards(model)
        raise ZeroDivisionError
    assert forwards(model) == {}


def test_pipelines_run_as_they_are_take_no_interval() -> None:
    backbone = toy("diffusers")
    config = replace(backbone.default, guidance_stop=0.5)
    with pytest.raises(SettingError, match="guides on all steps"):
        backbone.sample_texts(["猫"], [""], config, generators=[torch.Generator().manual_seed(0)])
    config = replace(backbone.default, cache="deepcache", steps=4)
    assert backbone.sample_texts(["猫"], [""], config, generators=[torch.Generator().manual_seed(0)])
    assert forwards(denoiser(backbone)) == {}
