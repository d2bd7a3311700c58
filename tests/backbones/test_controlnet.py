"""ControlNets: folders and single files open right, and pictures are those of diffusers' own ControlNet pipelines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    FluxControlNetModel,
    FluxControlNetPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
)
from safetensors.torch import save_file

from jpgen.backbones import flux, sd, sdxl
from jpgen.backbones.schedulers import make_scheduler
from jpgen.backbones.unet import SCHEDULE, UnetBackbone
from jpgen.errors import IncompatibleError, SettingError, WeightsError
from jpgen.types import Conditioning, Control, InitImage, SamplingConfig
from tests.toys import stable_diffusion as toys
from tests.toys.pictures import mask, picture

CONFIG = SamplingConfig(width=64, height=64, steps=4, guidance_scale=3.0)
KINDS = {
    "sd": (sd.toy, StableDiffusionControlNetPipeline, StableDiffusionControlNetImg2ImgPipeline, StableDiffusionControlNetInpaintPipeline),
    "sdxl": (sdxl.toy, StableDiffusionXLControlNetPipeline, StableDiffusionXLControlNetImg2ImgPipeline, StableDiffusionXLControlNetInpaintPipeline),
}


def net_for(unet: Any, seed: int = 0) -> ControlNetModel:
    """A ControlNet of random weights, none of them zero, so that it matters."""
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 16, 16, 32)).eval()
    for layer in (*net.controlnet_down_blocks, net.controlnet_mid_block, net.controlnet_cond_embedding.conv_out):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return net


def saved(net: Any, folder: Path) -> Path:
    net.save_pretrained(folder)
    return folder


def conditioning(backbone: Any, seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(1, 7, backbone.spec.width, generator=generator)
    pooled = None if backbone.spec.pooled_width is None else torch.randn(1, backbone.spec.pooled_width, generator=generator)
    return Conditioning(tokens, torch.ones(1, 7, dtype=torch.int64), pooled)


def drawn(backbone: Any, config: SamplingConfig = CONFIG, **more: Any) -> np.ndarray:
    made = backbone.sample(*(conditioning(backbone, i) for i in (1, 2)), config, generators=[torch.Generator().manual_seed(7)], **more)
    return np.asarray(made[0], int)


def plain(backbone: UnetBackbone, kind: Any, nets: list[ControlNetModel], **wanted: Any) -> np.ndarray:
    extra: dict[str, Any] = {"add_watermarker": False} if backbone.spec.pooled_width else {"requires_safety_checker": False}
    scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    pipeline = kind(**{**backbone._pipeline.components, "scheduler": scheduler}, controlnet=nets if len(nets) > 1 else nets[0], **extra)
    pipeline.set_progress_bar_config(disable=True)
    one, other = (conditioning(backbone, i) for i in (1, 2))
    embeddings = {"prompt_embeds": one.tokens, "negative_prompt_embeds": other.tokens}
    if one.pooled is not None:
        embeddings |= {"pooled_prompt_embeds": one.pooled, "negative_pooled_prompt_embeds": other.pooled}
    generator = [torch.Generator().manual_seed(7)]
    with torch.inference_mode():
        return np.asarray(pipeline(**embeddings, generator=generator, num_inference_steps=4, guidance_scale=3.0, **wanted).images[0], int)


@pytest.mark.parametrize("family", KINDS)
def test_one_and_two_nets_as_plain_diffusers_asks_them(family: str, tmp_path: Path) -> None:
    toy, kind, *_ = KINDS[family]
    backbone = toy()
    nets = [net_for(backbone._pipeline.unet, seed) for seed in (3, 4)]
    paths = [saved(net, tmp_path / str(i)) for i, net in enumerate(nets)]
    one = drawn(backbone, controls=[Control(paths[0], picture(seed=2), 0.8, 0.0, 0.5)])
    size = {"width": 64, "height": 64}
    told = {"controlnet_conditioning_scale": 0.8, "control_guidance_start": 0.0, "control_guidance_end": 0.5}
    wanted = plain(backbone, kind, nets[:1], image=picture(seed=2), **told, **size)
    np.testing.assert_allclose(one, wanted, atol=1)
    both = drawn(backbone, controls=[Control(paths[0], picture(seed=2)), Control(paths[1], picture(seed=3), 0.5)])
    wanted = plain(backbone, kind, nets, image=[picture(seed=2), picture(seed=3)], controlnet_conditioning_scale=[1.0, 0.5], **size)
    np.testing.assert_allclose(both, wanted, atol=1)
    without = drawn(backbone)
    assert abs(one - both).max() > 5 < abs(one - without).max()
    assert len(backbone._loaded) == 2  # each kept after its first use
    np.testing.assert_allclose(drawn(backbone, controls=[Control(paths[0], picture(seed=2), 0.0)]), without, atol=1)


@pytest.mark.parametrize("family", KINDS)
def test_with_a_picture_to_begin_from_and_with_a_mask(family: str, tmp_path: Path) -> None:
    toy, _, from_picture, inpaint = KINDS[family]
    backbone = toy()
    net = net_for(backbone._pipeline.unet)
    control = Control(saved(net, tmp_path / "net"), picture(seed=2))
    told = {"image": picture(), "control_image": picture(seed=2), "strength": 0.5, "controlnet_conditioning_scale": 1.0}
    ours = drawn(backbone, init=InitImage(picture(), 0.5), controls=[control])
    np.testing.assert_allclose(ours, plain(backbone, from_picture, [net], **told), atol=1)
    ours, inside = drawn(backbone, init=InitImage(picture(), 0.5, mask()), controls=[control]), np.asarray(mask()) > 0
    np.testing.assert_allclose(ours[inside], plain(backbone, inpaint, [net], mask_image=mask(), **told)[inside], atol=1)
    np.testing.assert_array_equal(ours[~inside], np.asarray(picture(), int)[~inside])


@pytest.mark.parametrize("family", KINDS)
def test_masked_tokens_do_not_matter_to_the_nets_either(family: str, tmp_path: Path) -> None:
    backbone = KINDS[family][0]()
    control = Control(saved(net_for(backbone._pipeline.unet), tmp_path / "net"), picture(seed=2))
    made = conditioning(backbone, 1)
    junk = torch.full((1, 3, backbone.spec.width), 9.0)
    padded = Conditioning(torch.cat([made.tokens, junk], 1), torch.cat([made.mask, torch.zeros(1, 3).long()], 1), made.pooled)
    unmasked = replace(padded, mask=torch.ones_like(padded.mask))

    def picture_of(one: Conditioning) -> np.ndarray:
        return np.asarray(backbone.sample(one, one, CONFIG, generators=[torch.Generator().manual_seed(0)], controls=[control])[0], int)

    np.testing.assert_allclose(picture_of(padded), picture_of(made), atol=1)
    assert abs(picture_of(unmasked) - picture_of(made)).max() > 3
    assert not any(block._forward_pre_hooks for net in backbone._loaded.values() for block in net.modules())


def ldm_controlnet(net: ControlNetModel) -> dict[str, torch.Tensor]:
    """The tensors of a ControlNet by LDM's names."""
    state = net.state_dict()

    class Halfway:  # looks like a U-Net to the names' conversion
        config, up_blocks = net.config, ()

        @staticmethod
        def state_dict() -> dict[str, torch.Tensor]:
            return {name: tensor for name, tensor in state.items() if not name.startswith("controlnet_")}

    made = {name.removeprefix("model.diffusion_model."): tensor for name, tensor in toys.ldm_unet(Halfway()).items()}
    last = len(net.controlnet_cond_embedding.blocks)
    for name, tensor in state.items():
        _, *rest = name.split(".")
        if name.startswith("controlnet_down_blocks."):
            made[f"zero_convs.{rest[0]}.0.{rest[1]}"] = tensor
        elif name.startswith("controlnet_mid_block."):
            made[f"middle_block_out.0.{rest[0]}"] = tensor
        elif name.startswith("controlnet_cond_embedding."):
            place = {"conv_in": 0, "conv_out": 2 * last + 2}.get(rest[0], 2 * int(rest[1]) + 2 if rest[0] == "blocks" else 0)
            made[f"input_hint_block.{place}.{rest[-1]}"] = tensor
    return made


@pytest.mark.parametrize("prefix", ["control_model.", ""])
@pytest.mark.parametrize("family", KINDS)
def test_single_files_by_the_names_of_ldm_and_of_diffusers(family: str, prefix: str, tmp_path: Path) -> None:
    unet = toys.sd_unet(24) if family == "sd" else toys.sdxl_unet(32, 20)
    backbone = UnetBackbone("toy", unet, toys.autoencoder(), SCHEDULE, CONFIG)
    net = net_for(unet)
    ldm = {f"{prefix}{name}": tensor.contiguous() for name, tensor in ldm_controlnet(net).items()}
    save_file(ldm, tmp_path / "ldm.safetensors")
    save_file(net.state_dict(), tmp_path / "diffusers.safetensors")
    wanted = drawn(backbone, controls=[Control(saved(net, tmp_path / "folder"), picture(seed=2))])
    for name in ("ldm", "diffusers"):
        np.testing.assert_array_equal(drawn(backbone, controls=[Control(tmp_path / f"{name}.safetensors", picture(seed=2))]), wanted)
    hole = {name: tensor for name, tensor in ldm.items() if "zero_convs.1.0.bias" not in name}
    save_file(hole, tmp_path / "hole.safetensors")
    with pytest.raises(WeightsError, match=r"controlnet_down_blocks\.1\.bias"):
        drawn(backbone, controls=[Control(tmp_path / "hole.safetensors", picture())])


def test_a_net_of_another_family_and_what_is_no_net_are_told(tmp_path: Path) -> None:
    one, other = sd.toy(), sdxl.toy()
    for_xl = saved(net_for(other._pipeline.unet), tmp_path / "xl")
    with pytest.raises(IncompatibleError, match=r"Stable Diffusion XL of width 64 \(sdxl, 64\), the model toy-sd is Stable Diffusion of width 32"):
        drawn(one, controls=[Control(for_xl, picture())])
    file = tmp_path / "xl.safetensors"
    save_file(net_for(other._pipeline.unet).state_dict(), file)
    with pytest.raises(IncompatibleError, match=r"made for it"):
        drawn(one, controls=[Control(file, picture())])
    one._pipeline.unet.save_pretrained(tmp_path / "unet")
    with pytest.raises(WeightsError, match="holds 'UNet2DConditionModel', wanted ControlNetModel"):
        drawn(one, controls=[Control(tmp_path / "unet", picture())])
    save_file(one._pipeline.unet.state_dict(), tmp_path / "unet.safetensors")
    with pytest.raises(WeightsError, match="is no ControlNet but unet"):
        drawn(one, controls=[Control(tmp_path / "unet.safetensors", picture())])
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut off"):
        drawn(one, controls=[Control(file, picture())])


OWN_WARNING = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")  # diffusers says so of its own code


def flux_net(num_mode: int | None = None) -> FluxControlNetModel:
    torch.manual_seed(5)
    net = FluxControlNetModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 4, 8), num_mode=num_mode,
    ).eval()  # fmt: skip
    for layer in (*net.controlnet_blocks, *net.controlnet_single_blocks, net.controlnet_x_embedder):
        torch.nn.init.normal_(layer.weight, std=0.2)
    return net


@OWN_WARNING
def test_flux_as_plain_diffusers_asks_it(tmp_path: Path) -> None:
    backbone, net = flux.toy(), flux_net()
    config = replace(backbone.default, steps=3)
    control = Control(saved(net, tmp_path / "net"), picture(seed=2), 0.7)
    ours = drawn(backbone, config, controls=[control])
    parts = {**backbone._pipeline.components, "scheduler": make_scheduler("own", backbone._schedule)}
    pipeline = FluxControlNetPipeline(**parts, controlnet=net)
    pipeline.set_progress_bar_config(disable=True)
    one, generator = conditioning(backbone, 1), [torch.Generator().manual_seed(7)]
    noise = pipeline._pack_latents(torch.randn(1, 4, 32, 32, generator=generator[0]), 1, 4, 32, 32)
    with torch.inference_mode():
        wanted = pipeline(
            prompt_embeds=one.tokens, pooled_prompt_embeds=one.pooled, control_image=picture(seed=2), controlnet_conditioning_scale=0.7,
            latents=noise, num_inference_steps=3, guidance_scale=1.0, width=64, height=64, generator=generator,
        ).images[0]  # fmt: skip
    np.testing.assert_allclose(ours, np.asarray(wanted, int), atol=1)
    assert abs(ours - drawn(backbone, config)).max() > 5
    begun = drawn(backbone, config, controls=[control], init=InitImage(picture(), 0.7, mask()))
    np.testing.assert_array_equal(begun[:16], np.asarray(picture(), int)[:16])
    with pytest.raises(SettingError, match="use 'own'"):
        drawn(backbone, replace(config, scheduler="dpm++2m"), controls=[control])


@OWN_WARNING
def test_flux_nets_that_do_not_fit(tmp_path: Path) -> None:
    backbone = flux.toy()
    config = backbone.default
    with pytest.raises(IncompatibleError, match="union"):
        drawn(backbone, config, controls=[Control(saved(flux_net(num_mode=3), tmp_path / "union"), picture())])
    folder = saved(flux_net(), tmp_path / "wide")
    told = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**told, "joint_attention_dim": 64}))
    with pytest.raises(IncompatibleError, match="'joint_attention_dim': 64"):
        drawn(backbone, config, controls=[Control(folder, picture())])
    save_file({"a": torch.zeros(1)}, tmp_path / "net.safetensors")
    with pytest.raises(WeightsError, match="must be a folder"):
        drawn(backbone, config, controls=[Control(tmp_path / "net.safetensors", picture())])
