"""Random weights in SDXL's shape, whole, shallow or narrow, written as a diffusers folder once: what bench-speed opens, nothing to look at."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from jpgen.backbones import load_backbone
from jpgen.backbones.unet import SCHEDULE
from jpgen.encoders import load_encoder
from jpgen.encoders.tokenizers import END, clip_tokenizer
from jpgen.models import recognise
from jpgen.pipeline import Pipeline
from jpgen.types import ModelInfo

VOCABULARY = 49408
PREFIXES = {
    "unet": "unet.", "vae": "vae.", "text_encoder": "conditioner.embedders.0.transformer.", "text_encoder_2": "conditioner.embedders.1.transformer.",
}  # fmt: skip
"""What stable-diffusion.cpp knows the parts of a folder by, when they are in one file."""

STEM = "diffusion_pytorch_model.safetensors"

_FULL = {
    "unet": (320, 640, 1280), "heads": (5, 10, 20), "texts": ((768, 12, 12), (1280, 32, 20)), "vae": (128, 256, 512, 512), "time": 256,
}  # fmt: skip

SHAPES: dict[str, dict[str, Any]] = {
    "full": _FULL,
    "wide": {**_FULL, "layers": (1, 1, 2), "middle": "UNetMidBlock2D"},
    "small": {"unet": (64, 128, 256), "heads": (1, 2, 4), "texts": ((192, 4, 3), (256, 4, 4)), "vae": (32, 64, 128, 128), "time": 64},
}
"""SDXL itself, its width at Segmind-Vega's depth, and a fifth of its width with text encoders of a few layers: (width, layers, heads) of each."""


def written(folder: Path, shape: str, dtype: torch.dtype) -> Path:
    """The folder of this shape's model, filled if it is not yet; some minutes and 7 GB for the full one."""
    place = folder / f"sdxl-{shape}-{str(dtype).removeprefix('torch.')}"
    if (place / "model_index.json").is_file():
        return place
    sizes = SHAPES[shape]
    (one, *_), (two, *_) = sizes["texts"]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            sample_size=128, block_out_channels=sizes["unet"], down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=sizes.get("layers", (1, 2, 10)), mid_block_type=sizes.get("middle", "UNetMidBlock2DCrossAttn"),
            cross_attention_dim=one + two, attention_head_dim=sizes["heads"], use_linear_projection=True, addition_embed_type="text_time",
            addition_time_embed_dim=sizes["time"], projection_class_embeddings_input_dim=two + 6 * sizes["time"],
        )  # fmt: skip
        vae = AutoencoderKL(
            block_out_channels=sizes["vae"], down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2, latent_channels=4, sample_size=1024, scaling_factor=0.13025,
        )  # fmt: skip
        texts = [_text_model(*size, projected=bool(place_)) for place_, size in enumerate(sizes["texts"])]
    for seed, (name, model) in enumerate({"unet": unet, "vae": vae}.items()):
        model.save_config(place / name)
        save_file(_random(model, dtype, seed), place / name / STEM, metadata={"format": "pt"})
    for number, text in enumerate(texts):
        part = place / ("text_encoder_2" if number else "text_encoder")
        text.config.architectures = [type(text).__name__]
        text.config.save_pretrained(part)
        save_file(_random(text, dtype, 7 + number), part / "model.safetensors", metadata={"format": "pt"})
        tokenizer = clip_tokenizer("!" if number else END).inner
        tokenizer.save_pretrained(place / ("tokenizer_2" if number else "tokenizer"))
    known = EulerDiscreteScheduler().config
    EulerDiscreteScheduler.from_config({key: value for key, value in SCHEDULE.items() if key in known}).save_pretrained(place / "scheduler")
    partial = place / f".model_index.{os.getpid()}.tmp"
    partial.write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True}))
    partial.replace(place / "model_index.json")  # last: what is there is whole
    return place


def opened(place: Path) -> Pipeline:
    """The pipeline of such a folder, in the number type of this machine; its weights are not hashed, for they are large."""
    entry = recognise(place)
    info = ModelInfo(entry.name, entry.revision, entry.license, "0" * 10)
    return Pipeline.from_parts(load_encoder(entry.encoder, entry.place), load_backbone(entry), info)


def joined(place: Path) -> Path:
    """One file beside this folder that holds its tensors under the names that stable-diffusion.cpp knows SDXL by; written once."""
    file = place.with_name(f"{place.name}.safetensors")
    if not file.is_file():
        state: dict[str, torch.Tensor] = {}
        for part, prefix in PREFIXES.items():
            for source in sorted((place / part).glob("*.safetensors")):
                state |= {f"{prefix}{_whole(name, prefix)}": tensor for name, tensor in load_file(source).items()}
        partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
        save_file(state, partial)
        partial.replace(file)
    return file


def _whole(name: str, prefix: str) -> str:
    """The name of a tensor as transformers 4 wrote it: version 5 leaves `text_model.` out of models without a projection."""
    return name if not prefix.endswith(".transformer.") or name.startswith("text_") else f"text_model.{name}"


def _text_model(width: int, layers: int, heads: int, *, projected: bool) -> Any:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=width, projection_dim=width, num_hidden_layers=layers, num_attention_heads=heads,
        intermediate_size=4 * width, hidden_act="gelu" if projected else "quick_gelu", bos_token_id=VOCABULARY - 2, eos_token_id=VOCABULARY - 1,
        pad_token_id=0 if projected else VOCABULARY - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def _random(model: Any, dtype: torch.dtype, seed: int) -> dict[str, torch.Tensor]:
    """Weights that keep the size of what passes through: matrices of unit gain, norms of 1, biases of 0."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, tensor in model.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if tensor.ndim < 2:
            made[name] = torch.full(tensor.shape, float("norm" in name and name.endswith("weight")), dtype=dtype)
        else:
            fan_in = tensor[0].numel()
            made[name] = torch.empty(tensor.shape, dtype=dtype).normal_(std=fan_in**-0.5, generator=generator)
    return made
