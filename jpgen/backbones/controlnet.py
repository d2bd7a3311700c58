"""ControlNets (Zhang et al. 2023, arXiv 2302.05543): networks that hold a picture to the lines, depth or pose of another, checked to fit."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, FluxControlNetModel, FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor

from jpgen.backbones import single_file
from jpgen.backbones.loading import filled, read_config
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.layout import recognise
from jpgen.pictures import fit, read_picture
from jpgen.safety import check_safetensors
from jpgen.types import Control, SamplingConfig

FAMILY_OF_WIDTH = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}
"""Which models read text states of this width."""

Loaded = dict[Path, Any]
"""ControlNets that are open, by where they are."""


def nets_of(controls: Sequence[Control], loaded: Loaded, load: Callable[[Path], Any]) -> list[Any]:
    """The nets of the controls, loaded where they are not yet."""
    places = [Path(control.net).expanduser().resolve() for control in controls]
    for place in places:
        if place not in loaded:
            loaded[place] = load(place)
    return [loaded[place] for place in places]


def arguments(controls: Sequence[Control], config: SamplingConfig, image: str) -> dict[str, Any]:
    """What diffusers' pipelines for several ControlNets are told of them; `image` is what the pipeline calls the pictures."""
    return {
        image: [fit(read_picture(control.image, "control"), config.width, config.height) for control in controls],
        "controlnet_conditioning_scale": [float(control.scale) for control in controls],
        "control_guidance_start": [float(control.start) for control in controls],
        "control_guidance_end": [float(control.end) for control in controls],
    }


def load_for_unet(path: Path, unet: UNet2DConditionModel, model: str) -> ControlNetModel:
    """A ControlNet for this U-Net: a folder of diffusers', or a file by the names of LDM (A1111's) or diffusers.

    A single file says nothing of its settings: they are the U-Net's, of which every such net is a copy. Raises WeightsError, IncompatibleError.
    """
    if path.is_dir():
        config = _config(path, ControlNetModel)
        width, sized = int(config.get("cross_attention_dim", 0)), config.get("addition_embed_type") == "text_time"
    else:
        if (found := recognise(path)).kind != "controlnet":
            raise WeightsError(f"{path} は ControlNet ではありません / {path} is no ControlNet but {found.kind} of {found.variant}")
        shapes = {name: stored.shape for name, stored in check_safetensors(path).tensors.items()}
        width = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
        sized = any(re.search(r"(^|\.)(label_emb\.0\.0|add_embedding\.linear_1)\.weight$", name) for name in shapes)
    wanted = (unet.config.cross_attention_dim, unet.config.addition_embed_type == "text_time")
    if (width, sized) != wanted:
        raise IncompatibleError(
            f"{path} は {_family(width, sized)} 用の ControlNet で、{model} は {_family(*wanted)} です / the ControlNet {path} is for "
            f"{_family(width, sized)}, the model {model} is {_family(*wanted)}: choose a ControlNet made for it"
        )
    net = filled(ControlNetModel, path, unet.dtype) if path.is_dir() else single_file.load_controlnet(path, unet)
    return net.to(unet.device, memory_format=torch.channels_last)


def load_for_flux(path: Path, transformer: FluxTransformer2DModel, model: str) -> FluxControlNetModel:
    """A ControlNet for FLUX.1: a folder of diffusers'; raises WeightsError, IncompatibleError (other widths, a union of several kinds)."""
    if not path.is_dir():
        raise WeightsError(
            f"{path}: FLUX の ControlNet は diffusers 形式のフォルダで渡してください / "
            "a ControlNet for FLUX must be a folder as diffusers lays it out"
        )
    config = _config(path, FluxControlNetModel)
    if config.get("num_mode"):
        raise IncompatibleError(f"{path}: 複数の種類を一つにした ControlNet は使えません / a union of ControlNets cannot be used: give a single one")
    told, wanted = (
        {name: value.get(name) for name in ("in_channels", "joint_attention_dim", "pooled_projection_dim")} for value in (config, transformer.config)
    )
    if told != wanted:
        raise IncompatibleError(
            f"{path} は {model} に合いません / the ControlNet {path} has {told}, the model {model} has {wanted}: choose one made for it"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FluxPosEmbed` is deprecated", FutureWarning)  # diffusers says so of its own code
        return filled(FluxControlNetModel, path, transformer.dtype).to(transformer.device)


@contextmanager
def masked(nets: Sequence[ControlNetModel], mask: Tensor) -> Iterator[None]:
    """Lets the ControlNets attend to no token of mask 0, as the U-Net does: their blocks take a mask, the net itself has no way to say so."""
    if bool(mask.all()):
        yield
        return

    def add(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kept = mask.to(next(block.parameters()))
        return args, {**kwargs, "encoder_attention_mask": ((1 - kept) * -10000.0).unsqueeze(1)}

    blocks = [block for net in nets for block in (*net.down_blocks, net.mid_block) if getattr(block, "has_cross_attention", False)]
    handles = [block.register_forward_pre_hook(add, with_kwargs=True) for block in blocks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _config(folder: Path, kind: Any) -> dict[str, Any]:
    config = read_config(folder)
    name = config.get("_class_name")
    if name != kind.__name__:
        raise WeightsError(
            f"{folder} は {kind.__name__} ではありません / {folder} holds {name!r}, wanted {kind.__name__}: choose a ControlNet of this family"
        )
    return config


def _family(width: int, sized: bool) -> str:
    known = FAMILY_OF_WIDTH.get(width, f"{'Stable Diffusion XL' if sized else 'Stable Diffusion'} of width {width}")
    return f"{known} ({'sdxl' if sized else 'sd'}, {width})"
