"""diffusers' configs of transformers that come without, told by the shapes of their tensors (of diffusers' names)."""

from __future__ import annotations

import math
from typing import Any

from jpgen.errors import WeightsError
from jpgen.layout import Shapes

HEADS = 16
"""Attention heads of PixArt, at its one width (1,152)."""


def flux_config(shapes: Shapes) -> dict[str, Any]:
    """Of a FLUX.1 transformer; raises WeightsError for what is cut off."""
    width, channels = _side(shapes, "x_embedder.weight", 0), _side(shapes, "x_embedder.weight", 1)
    head = _side(shapes, "single_transformer_blocks.0.attn.norm_q.weight", 0)
    return {
        "in_channels": channels, "num_layers": _blocks(shapes, "transformer_blocks"),
        "num_single_layers": _blocks(shapes, "single_transformer_blocks"), "attention_head_dim": head, "num_attention_heads": width // head,
        "joint_attention_dim": _side(shapes, "context_embedder.weight", 1),
        "pooled_projection_dim": _side(shapes, "time_text_embed.text_embedder.linear_1.weight", 1),
        "guidance_embeds": any(name.startswith("time_text_embed.guidance_embedder.") for name in shapes),
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16], "patch_size": 1,
    }  # fmt: skip


def pixart_config(shapes: Shapes, position: tuple[int, ...] | None) -> dict[str, Any]:
    """Of a PixArt transformer; `position`: the shape of the table of positions [1, patches, width] in its authors' files (None: 1,024 pixels)."""
    width, caption = _side(shapes, "pos_embed.proj.weight", 0), _side(shapes, "caption_projection.linear_1.weight", 1)
    patch, channels = _side(shapes, "pos_embed.proj.weight", 2), _side(shapes, "pos_embed.proj.weight", 1)
    side = patch * math.isqrt(position[1]) if position and len(position) == 3 else 128
    return {
        "num_layers": _blocks(shapes, "transformer_blocks"), "num_attention_heads": HEADS, "attention_head_dim": width // HEADS,
        "cross_attention_dim": width, "caption_channels": caption, "in_channels": channels,
        "out_channels": _side(shapes, "proj_out.weight", 0) // patch**2, "patch_size": patch, "sample_size": side, "interpolation_scale": side / 64,
        "norm_type": "ada_norm_single", "use_additional_conditions": any(".resolution_embedder." in name for name in shapes),
    }  # fmt: skip


def _side(shapes: Shapes, name: str, dim: int) -> int:
    if name not in shapes or dim >= len(shapes[name]):
        raise WeightsError(f"{name} がありません / the transformer lacks {name}: cut off, or another model")
    return shapes[name][dim]


def _blocks(shapes: Shapes, kind: str) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith(f"{kind}.")})
