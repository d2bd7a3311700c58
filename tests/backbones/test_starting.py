"""Pictures to begin from: what diffusers' own Img2Img and Inpaint pipelines draw, on every family, alone and in a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from PIL import Image

from jpgen.backbones import flux, load_backbone, pixart, sd, sdxl
from jpgen.backbones.latents import encode, to_pixels
from jpgen.backbones.schedulers import OWN, make_scheduler
from jpgen.backbones.starting import latent_mask, noisy
from jpgen.backbones.unet import SCHEDULE, UnetBackbone, toy_vae
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, IncompatibleError
from jpgen.pictures import steps_of
from jpgen.types import Conditioning, InitImage, SamplingConfig, Step
from tests.toys import stable_diffusion as toys
from tests.toys.pictures import mask, picture

CONFIG = SamplingConfig(width=64, height=64, steps=4, guidance_scale=3.0)
FAMILIES = {"sd": sd.toy, "sdxl": sdxl.toy, "pixart": pixart.toy, "flux": flux.toy}
SCHEDULERS = {
    "dpm++2m": (DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_order": 2}), "euler": (EulerDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {"solver_order": 2}), "lcm": (LCMScheduler, {"original_inference_steps": 50}),
}  # fmt: skip


def conditioning(backbone: Any, seed: int = 0, rows: int = 1) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(rows, 7, backbone.spec.width, generator=generator)
    pooled = None if backbone.spec.pooled_width is None else torch.randn(rows, backbone.spec.pooled_width, generator=generator)
    return Conditioning(tokens, torch.ones(rows, 7, dtype=torch.int64), pooled)


def default(backbone: Any) -> SamplingConfig:
    return replace(CONFIG, scheduler=backbone.default.scheduler, guidance_scale=backbone.default.guidance_scale)


def drawn(backbone: Any, init: InitImage | None, config: SamplingConfig | None = None, seeds: tuple[int, ...] = (7,), **more: Any) -> np.ndarray:
    one, other = conditioning(backbone, 1, len(seeds)), conditioning(backbone, 2, len(seeds))
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    images = backbone.sample(one, other, config or default(backbone), generators=generators, init=init, **more)
    return np.stack([np.asarray(image, int) for image in images])


def plain(backbone: UnetBackbone, kind: Any, scheduler: str, **wanted: Any) -> np.ndarray:
    """The picture of diffusers alone, with the same embeddings, generator and parts."""
    parts = backbone._pipeline.components
    extra: dict[str, Any] = {"add_watermarker": False} if backbone.spec.pooled_width else {"requires_safety_checker": False}
    sampler, settings = SCHEDULERS[scheduler]
    pipeline = kind(**{**parts, "scheduler": sampler.from_config({**SCHEDULE, **settings})}, **extra)
    pipeline.set_progress_bar_config(disable=True)
    one, other = conditioning(backbone, 1), conditioning(backbone, 2)
    embeddings = {"prompt_embeds": one.tokens, "negative_prompt_embeds": other.tokens}
    if one.pooled is not None:
        embeddings |= {"pooled_prompt_embeds": one.pooled, "negative_pooled_prompt_embeds": other.pooled}
    with torch.inference_mode():
        made = pipeline(
            **embeddings, image=picture(), generator=[torch.Generator().manual_seed(7)], num_inference_steps=4, guidance_scale=3.0, **wanted
        )
    return np.asarray(made.images[0], int)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(("family", "kind"), [("sd", StableDiffusionImg2ImgPipeline), ("sdxl", StableDiffusionXLImg2ImgPipeline)])
def test_from_a_picture_as_plain_diffusers_does(family: str, kind: Any, scheduler: str) -> None:
    backbone = FAMILIES[family]()
    ours = drawn(backbone, InitImage(picture(), 0.5), replace(CONFIG, scheduler=scheduler))[0]
    np.testing.assert_allclose(ours, plain(backbone, kind, scheduler, strength=0.5), atol=1)
    assert abs(ours - drawn(backbone, InitImage(picture(seed=1), 0.5), replace(CONFIG, scheduler=scheduler))[0]).max() > 5


@pytest.mark.parametrize("strength", [0.5, 1.0])
@pytest.mark.parametrize("scheduler", [name for name in SCHEDULERS if name != "lcm"])  # there diffusers draws the noise of its steps later than we do
@pytest.mark.parametrize(("family", "kind"), [("sd", StableDiffusionInpaintPipeline), ("sdxl", StableDiffusionXLInpaintPipeline)])
def test_inpainting_as_plain_diffusers_does_inside_and_exact_outside(family: str, kind: Any, scheduler: str, strength: float) -> None:
    backbone, inside = FAMILIES[family](), np.asarray(mask()) > 0
    ours = drawn(backbone, InitImage(picture(), strength, mask()), replace(CONFIG, scheduler=scheduler))[0]
    wanted = plain(backbone, kind, scheduler, strength=strength, mask_image=mask(), width=64, height=64)
    np.testing.assert_allclose(ours[inside], wanted[inside], atol=1)
    np.testing.assert_array_equal(ours[~inside], np.asarray(picture(), int)[~inside])
    assert abs(wanted[~inside] - np.asarray(picture(), int)[~inside]).max() > 5  # which diffusers alone does not promise


@pytest.mark.parametrize("masked", [False, True])
def test_flux_as_plain_diffusers_does(masked: bool) -> None:
    backbone, config = flux.toy(), replace(CONFIG, guidance_scale=1.0, scheduler=OWN)
    backbone._schedule = {**backbone._schedule, "shift": 3.0}
    parts = {**backbone._pipeline.components, "scheduler": make_scheduler(OWN, backbone._schedule)}
    pipeline = (FluxInpaintPipeline if masked else FluxImg2ImgPipeline)(**parts)
    pipeline.set_progress_bar_config(disable=True)
    one = conditioning(backbone, 1)
    extra = {"mask_image": mask()} if masked else {}
    with torch.inference_mode():
        made = pipeline(
            prompt_embeds=one.tokens, pooled_prompt_embeds=one.pooled, image=picture(), strength=0.5, num_inference_steps=4, guidance_scale=1.0,
            width=64, height=64, generator=[torch.Generator().manual_seed(7)], **extra,
        ).images[0]  # fmt: skip
    ours, wanted = drawn(backbone, InitImage(picture(), 0.5, mask() if masked else None), config)[0], np.asarray(made, int)
    inside = np.asarray(mask()) > 0 if masked else np.full((64, 64), True)
    np.testing.assert_allclose(ours[inside], wanted[inside], atol=1)
    np.testing.assert_array_equal(ours[~inside], np.asarray(picture(), int)[~inside])
    assert wanted.std() > 5


def test_pixart_as_its_scheduler_alone_does() -> None:
    """No pipeline of diffusers to compare with: the sum by hand, one step after the other."""
    backbone, steps = pixart.toy(), 4
    one, scheduler = conditioning(backbone, 1), make_scheduler("dpm++2m", backbone._schedule)
    generator = torch.Generator().manual_seed(7)
    transformer, vae = backbone._pipeline.transformer, backbone._pipeline.vae
    with torch.inference_mode():
        clean = vae.encode(to_pixels(picture())).latent_dist.sample(generator)
        noise = torch.randn(clean.shape, generator=generator)
        scheduler.set_timesteps(steps)
        scheduler.set_begin_index(2)
        latents = 0.5 * clean + 0.5 * noise  # a flow's half way: sigma 0.5
        assert scheduler.sigmas[2] == pytest.approx(0.5, abs=0.01)
        latents = noisy(scheduler, clean, noise, scheduler.timesteps[2:3])
        hole = latent_mask(mask(), 16)
        for i, time in enumerate(scheduler.timesteps[2:]):
            output = transformer(
                latents, encoder_hidden_states=one.tokens, encoder_attention_mask=one.mask, timestep=time[None],
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample  # fmt: skip
            latents = scheduler.step(output, time, latents).prev_sample
            sigma = scheduler.sigmas[2 + i + 1]
            latents = hole * latents + (1 - hole) * ((1 - sigma) * clean + sigma * noise)
        wanted = np.asarray(backbone.decode(latents)[0], int)
    ours = drawn(backbone, InitImage(picture(), 0.5, mask()), replace(CONFIG, guidance_scale=1.0))[0]
    inside = np.asarray(mask()) > 0
    np.testing.assert_allclose(ours[inside], wanted[inside], atol=1)
    np.testing.assert_array_equal(ours[~inside], np.asarray(picture(), int)[~inside])


@pytest.mark.parametrize("family", FAMILIES)
def test_strength_0_is_the_autoencoder_and_1_the_words_alone(family: str) -> None:
    backbone = FAMILIES[family]()
    with torch.inference_mode():
        latents = encode(backbone._pipeline.vae, to_pixels(picture()), [torch.Generator().manual_seed(7)])
        if family == "flux":
            decoded = backbone._decode(backbone._pipeline._pack_latents(latents, 1, 4, 32, 32), default(backbone))
        else:
            torch.testing.assert_close(backbone.encode(picture(), seed=7), latents)
            decoded = backbone.decode(latents)
    np.testing.assert_array_equal(drawn(backbone, InitImage(picture(), 0.0))[0], np.asarray(decoded[0], int))
    np.testing.assert_array_equal(drawn(backbone, InitImage(picture(), 1.0)), drawn(backbone, None))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("masked", [False, True])
def test_alone_is_the_same_as_in_a_batch(family: str, masked: bool) -> None:
    backbone, init = FAMILIES[family](), InitImage(picture(), 0.6, mask() if masked else None)
    config = default(backbone)
    together = backbone.sample(*[conditioning(backbone, i, 2) for i in (1, 2)], config, generators=generators(3, 4), init=init)
    for row, seed in ((0, 3), (1, 4)):
        one, other = (conditioning(backbone, i, 2).rows(row, row + 1) for i in (1, 2))
        alone = backbone.sample(one, other, config, generators=generators(seed), init=init)[0]
        np.testing.assert_allclose(np.asarray(alone, int), np.asarray(together[row], int), atol=1)
    assert np.abs(np.asarray(together[0], int) - np.asarray(together[1], int)).max() > 1


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_are_those_that_are_run_and_can_be_cancelled(family: str) -> None:
    backbone, seen = FAMILIES[family](), []
    init = InitImage(picture(), 0.5, mask())

    def on_step(step: Step) -> None:
        seen.append((step.index, step.total))
        shown = np.asarray(step.preview()[0], int)
        np.testing.assert_array_equal(shown[:16], np.asarray(picture(), int)[:16])

    watched = drawn(backbone, init, on_step=on_step)
    assert seen == [(1, 2), (2, 2)]
    np.testing.assert_array_equal(watched, drawn(backbone, init))
    with pytest.raises(Cancelled, match="step 1 of 2"):
        drawn(backbone, init, on_step=lambda _: False)
    np.testing.assert_array_equal(drawn(backbone, init), watched)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mask_smaller_than_a_latent_still_draws_and_a_picture_of_any_size_fits(family: str) -> None:
    backbone, dot = FAMILIES[family](), Image.new("L", (128, 256))
    dot.paste(255, (66, 130, 70, 134))
    made = drawn(backbone, InitImage(picture(128, 256), 1.0, dot))[0]
    kept = drawn(backbone, InitImage(picture(128, 256), 0.0, dot))[0]
    changed = np.abs(made - kept).max(axis=-1) > 0
    assert made.shape == (64, 64, 3)
    assert changed.any() and changed.sum() <= 4


@pytest.mark.parametrize(("steps", "strength", "run"), [(10, 0.6, 6), (10, 0.0, 0), (10, 0.01, 1), (10, 1.0, 10), (1, 0.3, 1), (100, 0.29, 29)])
def test_steps_of(steps: int, strength: float, run: int) -> None:
    assert steps_of(steps, strength) == run


# ── U-Nets that were trained to inpaint ────────────────────────────────────────────────────────────────────────────────────────────────────


def inpainting_unet() -> UnetBackbone:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        in_channels=9, sample_size=8, block_out_channels=(32, 32), layers_per_block=1, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=2, norm_num_groups=8,
    )  # fmt: skip
    return UnetBackbone("toy-inpainting", unet, toy_vae(), SCHEDULE, CONFIG)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_unet_trained_to_inpaint_as_plain_diffusers_runs_it(strength: float) -> None:
    backbone, inside = inpainting_unet(), np.asarray(mask()) > 0
    ours = drawn(backbone, InitImage(picture(), strength, mask()), CONFIG)[0]
    wanted = plain(backbone, StableDiffusionInpaintPipeline, "dpm++2m", strength=strength, mask_image=mask(), width=64, height=64)
    np.testing.assert_allclose(ours[inside], wanted[inside], atol=1)
    np.testing.assert_array_equal(ours[~inside], np.asarray(picture(), int)[~inside])
    other = drawn(backbone, InitImage(picture(seed=5), strength, mask()), CONFIG)[0]
    assert abs(other - ours)[inside].max() > 1  # it sees what is around
    assert not backbone._pipeline.unet._forward_pre_hooks


def test_a_unet_trained_to_inpaint_wants_a_picture() -> None:
    backbone = inpainting_unet()
    with pytest.raises(IncompatibleError, match="trained to inpaint"):
        drawn(backbone, None, CONFIG)
    assert drawn(backbone, InitImage(picture(), 0.5), CONFIG).shape == (1, 64, 64, 3)  # no mask: all of it


def test_an_inpainting_checkpoint_opens(tmp_path: Path) -> None:
    torch.manual_seed(1)
    unet = UNet2DConditionModel(in_channels=9, sample_size=8, block_out_channels=(32, 32, 32, 64), cross_attention_dim=24, attention_head_dim=8)
    text = {"cond_stage_model.transformer.text_model.final_layer_norm.weight": torch.ones(24)}
    toys._write_file(tmp_path / "inpainting.safetensors", toys.ldm_unet(unet), toys.ldm_vae(toys.autoencoder()), text)
    AutoencoderTiny().save_pretrained(tmp_path / "tiny")
    parts = {"preview_vae": "tiny"}  # of the latents' channels, not of all that the U-Net takes
    entry = Entry("toy", "sd", encoder="clip", path=str(tmp_path / "inpainting.safetensors"), default=CONFIG, parts=parts)
    backbone = load_backbone(entry, torch.float32)
    assert backbone.inpaints
    ours = drawn(backbone, InitImage(picture(), 0.5, mask()), CONFIG)
    np.testing.assert_array_equal(ours[0, :16], np.asarray(picture(), int)[:16])
