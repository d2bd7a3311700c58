"""Where the blocks of a model are in either layout, worked out from the names that are there: how many levels, how many layers in each."""

from __future__ import annotations

import re
from collections.abc import Sequence

Places = dict[str, list[tuple[str, str]]]
"""Kind of block -> what its names begin with, in a single file and in a folder."""


def places_of(part: str, names: Sequence[str], layout: str) -> Places:
    """The places of a part ("unet", "vae" …) whose tensors have these names of this layout ("single" or "diffusers"); {i}: the numbers in them."""
    if part == "unet":
        return _unet(names, layout == "single")
    if part == "vae":
        return _vae(names, layout == "single")
    numbers = sorted({number for name in names for number in re.findall(r"(?<=\.)\d+(?=\.)", name)})
    return {"i": [(number, number) for number in numbers]}


def _unet(names: Sequence[str], is_single: bool) -> Places:
    """LDM numbers all blocks of a side in a row: of each level its layers, then the one that changes the size (going up it is in the last layer)."""
    if is_single:
        ops = sorted(_numbers(r"input_blocks\.(\d+)\.0\.op\.", names))
        before = [n for n in _numbers(r"input_blocks\.(\d+)\.", names) if not ops or n < ops[0]]
        levels, layers = len(ops) + 1, len(before) - 1
        attentive = {n // (layers + 1) for n in _numbers(r"output_blocks\.(\d+)\.1\.transformer_blocks\.", names)} if layers > 0 else set()
    else:
        levels, layers = len(_numbers(r"down_blocks\.(\d+)\.", names)), len(_numbers(r"down_blocks\.0\.resnets\.(\d+)\.", names))
        attentive = _numbers(r"up_blocks\.(\d+)\.attentions\.", names)
    middle = ("middle_block.", "mid_block.")
    made: Places = {
        "resnet": [(f"{middle[0]}{2 * n}.", f"{middle[1]}resnets.{n}.") for n in range(2)],
        "attention": [(f"{middle[0]}1.", f"{middle[1]}attentions.0.")],
        "sampler": [],
    }
    for level in range(levels):
        for n in range(layers):
            at = f"input_blocks.{level * (layers + 1) + n + 1}."
            made["resnet"].append((f"{at}0.", f"down_blocks.{level}.resnets.{n}."))
            made["attention"].append((f"{at}1.", f"down_blocks.{level}.attentions.{n}."))
        made["sampler"].append((f"input_blocks.{(level + 1) * (layers + 1)}.0.op.", f"down_blocks.{level}.downsamplers.0."))
        for n in range(layers + 1):
            at = f"output_blocks.{level * (layers + 1) + n}."
            made["resnet"].append((f"{at}0.", f"up_blocks.{level}.resnets.{n}."))
            if level in attentive:
                made["attention"].append((f"{at}1.", f"up_blocks.{level}.attentions.{n}."))
        last = f"output_blocks.{level * (layers + 1) + layers}.{2 if level in attentive else 1}."
        made["sampler"].append((f"{last}conv.", f"up_blocks.{level}.upsamplers.0."))
    return made


def _vae(names: Sequence[str], is_single: bool) -> Places:
    """LDM numbers the levels of the decoder from the largest, diffusers from the smallest."""
    level, layer = (r"\.(?:down|up)\.(\d+)\.", r"\.block\.(\d+)\.") if is_single else (r"\.(?:down|up)_blocks\.(\d+)\.", r"\.resnets\.(\d+)\.")
    levels, layers = len(_numbers(level, names)), len(_numbers(layer, names))
    made: Places = {"resnet": [], "attention": [], "sampler": []}
    for side in ("encoder", "decoder"):
        made["resnet"] += [(f"{side}.mid.block_{n + 1}.", f"{side}.mid_block.resnets.{n}.") for n in range(2)]
        made["attention"].append((f"{side}.mid.attn_1.", f"{side}.mid_block.attentions.0."))
    for n in range(levels):
        down, up = ("encoder.down.{}.", "encoder.down_blocks.{}."), ("decoder.up.{}.", "decoder.up_blocks.{}.")
        for (here, there), at, kind in ((down, n, "down"), (up, levels - 1 - n, "up")):
            made["resnet"] += [(f"{here.format(at)}block.{k}.", f"{there.format(n)}resnets.{k}.") for k in range(layers)]
            made["sampler"].append((f"{here.format(at)}{kind}sample.", f"{there.format(n)}{kind}samplers.0."))
    return made


def _numbers(pattern: str, names: Sequence[str]) -> set[int]:
    found = (re.search(pattern, name) if pattern.startswith(r"\.") else re.match(pattern, name) for name in names)
    return {int(one[1]) for one in found if one}
