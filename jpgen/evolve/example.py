"""A study that runs as it is: the built-in model is taken apart into two spoilt parents, whose mixture is searched."""

from __future__ import annotations

import shutil
from importlib import resources
from pathlib import Path

import torch

from jpgen.catalog import find_model
from jpgen.errors import OutputError
from jpgen.merge.groups import ATTN, group
from jpgen.weights import load_sharded, save_weights

STUDY, PROMPTS = "study.yaml", "prompts.tsv"
SPOILT = {"no_attention.safetensors": True, "attention_alone.safetensors": False}
"""The parents: which has noise in its attention, and which in all else."""

NOISE = 1.0
"""The noise's standard deviation, in parts of each tensor's own: half of it, as in the plain average, already spoils the pictures."""

TEXT = """\
# jpgen evolve study.yaml
# 豆（mame）を二つの壊れた親に分けました。一方は注意の重みに、もう一方はそれ以外に、重みと同じ大きさの雑音があります。
# 元の豆は attn 1、other 0 にあり、単純平均（attn 0.5、other 0.5、探索の始点）には雑音が半分ずつ残ります。
# The built-in model as two spoilt parents, one with noise in its attention, one in all else, as large as the weights. It is itself at attn 1,
# other 0; in the plain average (attn 0.5, other 0.5: where the search begins) half of both noises is left.
model: mame
recipe:
  root:
    method: lerp
    inputs: [no_attention.safetensors, attention_alone.safetensors]
    t: {attn: {free: [0, 1]}, other: {free: [0, 1]}}
prompts: {file: prompts.tsv, search: 12, held_out: 48}
sampling: {steps: 4}
objectives: [judge_probability]
optimiser: {population: 8, spread: 0.3, seed: 0}
evaluations: 40
"""


def write_example(folder: Path) -> Path:
    """The study's file in `folder`, its prompts and its two parents beside it; raises OutputError for a folder that holds a study already."""
    study = folder / STUDY
    if study.exists():
        raise OutputError(f"{study} がもうあります / {study} is there already: name another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(_prompts(), folder / PROMPTS)
        weights = load_sharded(find_model("mame").folder / "transformer")
        for name, attention in SPOILT.items():
            generator = torch.Generator().manual_seed(int(attention))
            save_weights(folder / name, {key: _spoilt(key, value, attention, generator) for key, value in sorted(weights.items())})
        study.write_text(TEXT, "utf-8")
    except OSError as error:
        raise OutputError(f"{folder} に書き込めません / cannot write {folder}: {error.strerror or error}; name another folder") from error
    return study


def _spoilt(key: str, value: torch.Tensor, attention: bool, generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(value.shape, generator=generator) * NOISE * (value.std() if value.numel() > 1 else 0.0)
    return value + noise if (group(key) == ATTN) == attention else value


def _prompts() -> Path:
    """The built-in model's prompts: inside an installed jpgen, or `prompts` of a checkout."""
    package = Path(str(resources.files("jpgen")))
    installed = package / "evolve" / "mame_eval.tsv"
    return installed if installed.is_file() else package.parent / "prompts" / "mame_eval.tsv"
