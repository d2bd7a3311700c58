"""Groups of tensors, by their names: what a parameter of a recipe may be given for, and which group counts for a tensor.

From the widest to the most specific, and the most specific one that is given counts:
"global" · components ("unet", "text_encoder" …) · "attn" and "other" (Sakana AI's published split) · blocks · "/regular expression/".
Blocks are those of MBW for U-Nets ("IN00".."IN11", "M00", "OUT00".."OUT11"; of SDXL up to 08), "block.N" of PixArt and other transformers,
"double.N" and "single.N" of FLUX, in the names of diffusers and of the original programs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from typing import TypeVar

T = TypeVar("T")

GLOBAL, ATTN, OTHER = "global", "attn", "other"

COMPONENTS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3", "vae")

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
"""What is in the names of attention's tensors, by the script published with Evo-Ukiyoe."""

BLOCK = re.compile(r"(?:IN|OUT)(?:0\d|1[01])|M00|(?:block|double|single)\.\d{1,3}")

ORIGINAL = (
    (r"(?:^|\.)input_blocks\.(\d+)\.", "IN{:02d}"), (r"(?:^|\.)middle_block\.", "M00"), (r"(?:^|\.)output_blocks\.(\d+)\.", "OUT{:02d}"),
    (r"(?:^|\.)mid_block\.", "M00"), (r"(?:^|\.)double_blocks\.(\d+)\.", "double.{}"), (r"(?:^|\.)single_blocks\.(\d+)\.", "single.{}"),
    (r"(?:^|\.)single_transformer_blocks\.(\d+)\.", "single.{}"), (r"^(?:unet\.)?conv_in\.", "IN00"),
    (r"^(?:transformer\.|model\.diffusion_model\.)?(?:blocks|layers)\.(\d+)\.", "block.{}"),
)  # fmt: skip
"""Names, and the block they are of."""

NO_BLOCK = re.compile(r"(?:vae|text_encoder(?:_\d)?)\.|(?:en|de)coder\.")
"""Components whose parts are called like those of others, and are none of the blocks."""

DOWN = re.compile(r"^(?:unet\.)?(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.")
TRANSFORMER = re.compile(r"^(?:transformer\.)?transformer_blocks\.(\d+)\.")


def is_group(name: str) -> bool:
    """Whether a parameter may be given for this.

    >>> is_group("attn"), is_group("OUT08"), is_group("/norm/"), is_group("atn")
    (True, True, True, False)
    """
    return name in (GLOBAL, ATTN, OTHER, *COMPONENTS) or bool(BLOCK.fullmatch(name)) or is_pattern(name)


def is_pattern(name: str) -> bool:
    """Whether it is a regular expression between slashes."""
    if len(name) < 3 or name[0] != "/" or name[-1] != "/":
        return False
    try:
        re.compile(name[1:-1])
    except re.error:
        return False
    return True


def group(name: str) -> str:
    """ "attn" or "other": the group of Sakana's script that a tensor of this name is of.

    >>> group("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"), group("conv_in.weight")
    ('attn', 'other')
    """
    return ATTN if any(part in name for part in ATTENTION) else OTHER


def block_namer(names: Collection[str]) -> Callable[[str], str]:
    """Tells of a tensor's name the block it is of ("": of none); `names` are all of the model's, which tell diffusers' U-Nets how long a block is."""
    layers = len({found[4] for name in names if (found := DOWN.match(name)) and found[1] == "down" and found[2] == "0" and found[3] == "resnets"})
    flux = any("single_transformer_blocks." in name for name in names)

    @cache
    def block(name: str) -> str:
        if NO_BLOCK.match(name):
            return ""
        if found := DOWN.match(name):
            side, number, kind, layer = found[1], int(found[2]), found[3], int(found[4])
            if side == "down":
                return f"IN{number * (layers + 1) + (layers if kind == 'downsamplers' else layer) + 1:02d}"
            return f"OUT{number * (layers + 1) + (layers if kind == 'upsamplers' else layer):02d}"
        for pattern, told in ORIGINAL:
            if one := re.search(pattern, name):
                return told.format(*map(int, one.groups()))
        one = TRANSFORMER.match(name)
        return (f"double.{one[1]}" if flux else f"block.{one[1]}") if one else ""

    return block


def chosen(groups: Mapping[str, T], name: str, component: str, block: str, also: Collection[str] = ()) -> T | None:
    """What of `groups` counts for the tensor `name`; None if it is in none of them. Of several expressions that fit, the last counts.

    Expressions may fit what files call it (`also`), too.

    >>> chosen({"global": 1, "attn": 2, "IN01": 3}, "down_blocks.0.attentions.0.to_q.weight", "unet", "IN01")
    3
    """
    fitting = [value for key, value in groups.items() if is_pattern(key) and any(re.search(key[1:-1], one) for one in (name, *also))]
    if fitting:
        return fitting[-1]
    for key in (block, group(name), component, GLOBAL):
        if key and key in groups:
            return groups[key]
    return None
