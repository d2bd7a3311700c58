"""CLIP text encoders out of one file in the layout of stable-diffusion-webui (A1111, LDM): configs are read off the tensors' shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTextConfig

from jpgen.encoders.tokenizers import END, ClipTokenizer, clip_tokenizer
from jpgen.errors import WeightsError
from jpgen.layout import Shapes
from jpgen.weights import load_weights

PLACES = {"": ("cond_stage_model.", "conditioner.embedders.0."), "_2": ("conditioner.embedders.1.",)}
"""What the names of the first and of the second text encoder begin with: those of SD, of SDXL."""

HEAD = 64
"""Width of an attention head in every CLIP text encoder."""

OPEN_CLIP = (
    (r"^token_embedding\.", "embeddings.token_embedding."), (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_final\.", "final_layer_norm."), (r"^text_projection$", "text_projection.weight"), (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."), (r"\.attn\.", ".self_attn."), (r"\.mlp\.c_fc\.", ".mlp.fc1."), (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)  # fmt: skip
"""Names of OpenCLIP's tensors -> transformers'."""


def read_clip(path: Path, suffix: str, dtype: torch.dtype) -> tuple[CLIPTextConfig, dict[str, Tensor], ClipTokenizer]:
    """Config, tensors (names as transformers' without `text_model.`) and tokenizer of the first (`""`) or second (`"_2"`) text encoder.

    Stable Diffusion 2 learnt from the last layer but one of OpenCLIP's, so the last is left out, as diffusers does. Raises WeightsError.
    """
    tensors = load_weights(path, None)
    for place in PLACES[suffix]:
        own = {name.removeprefix(place): tensor for name, tensor in tensors.items() if name.startswith(place)}
        if own:
            break
    else:
        raise WeightsError(f"{path} にテキストエンコーダがありません / {path} holds no text encoder{suffix}: give a whole model")
    is_open = any(name.startswith("model.") for name in own)
    if is_open:
        state = _from_open_clip({name.removeprefix("model."): tensor for name, tensor in own.items()}, projected=suffix == "_2")
    else:
        state = {name.removeprefix("transformer.").removeprefix("text_model."): tensor for name, tensor in own.items()}
    state = {name: tensor.to(dtype) for name, tensor in state.items() if not name.endswith("position_ids")}
    config, tokenizer = clip_config({name: tuple(tensor.shape) for name, tensor in state.items()}, path, is_open=is_open)
    return config, state, tokenizer


def clip_config(shapes: Shapes, path: Path, *, is_open: bool) -> tuple[CLIPTextConfig, ClipTokenizer]:
    """Config and tokenizer of an encoder (OpenCLIP's or CLIP's) whose tensors, named as transformers' without `text_model.`, have these shapes."""
    config = _config(shapes, path, hidden_act="gelu" if is_open else "quick_gelu")
    tokenizer = clip_tokenizer("!" if is_open else END)
    if len(tokenizer) != config.vocab_size:
        raise WeightsError(
            f"{path}: 語彙が CLIP のものではありません / its text encoder has {config.vocab_size} pieces, CLIP's tokenizer {len(tokenizer)}: "
            "give the model as a diffusers folder, with its tokenizer"
        )
    config.bos_token_id, config.eos_token_id, config.pad_token_id = *tokenizer.begin, *tokenizer.end, tokenizer.pad
    return config, tokenizer


def _from_open_clip(own: Mapping[str, Tensor], *, projected: bool) -> dict[str, Tensor]:
    last = max((int(match[1]) for name in own if (match := re.match(r"transformer\.resblocks\.(\d+)\.", name))), default=-1)
    unused: tuple[str, ...] = ("logit_scale", "attn_mask")
    if not projected and "text_projection" in own:  # whole; files made from diffusers' folders lack both
        unused += ("text_projection", f"transformer.resblocks.{last}.")
    state: dict[str, Tensor] = {}
    for name, tensor in own.items():
        if name.startswith(unused):
            continue
        new = name
        for pattern, with_what in OPEN_CLIP:
            new = re.sub(pattern, with_what, new)
        if ".in_proj_" in new:
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                state[new.replace("in_proj_", f"{part}_proj.")] = piece
        else:
            state[new] = tensor.T.contiguous() if name == "text_projection" else tensor
    return state


def _config(shapes: Shapes, path: Path, *, hidden_act: str) -> CLIPTextConfig:
    try:
        vocab, width = shapes["embeddings.token_embedding.weight"]
        projection = shapes.get("text_projection.weight")
        return CLIPTextConfig(
            vocab_size=vocab, hidden_size=width, intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
            num_hidden_layers=len({name.split(".")[2] for name in shapes if name.startswith("encoder.layers.")}),
            num_attention_heads=max(1, width // HEAD), max_position_embeddings=shapes["embeddings.position_embedding.weight"][0],
            projection_dim=width if projection is None else projection[0], hidden_act=hidden_act,
        )  # fmt: skip
    except KeyError as error:
        raise WeightsError(f"{path} のテキストエンコーダに {error} がありません / its text encoder lacks {error}: not CLIP's, or cut off") from error
