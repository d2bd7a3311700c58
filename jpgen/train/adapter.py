"""Train an adapter that pairs a Japanese text encoder with a backbone which learnt English; encoder and backbone stay as they are.

A recipe (TOML, see `jpgen/train/recipes`) says what to pair and how. A run resumes where it was stopped and then does what it would have done: every
step draws its texts and noise from its own number.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from jpgen.backbones import load_backbone
from jpgen.backbones.denoising import random_noise
from jpgen.encoders.adapted import open_source, probe
from jpgen.encoders.pairing import Pairing, PairingSpec, new_network, paired, save_pairing
from jpgen.errors import IncompatibleError, SettingError, TrainingDataError
from jpgen.lora import DENOISER
from jpgen.models import open_model
from jpgen.protocols import AdaptableBackbone, TextEncoder
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.distillation import LossWeights, distilled, position_norms
from jpgen.train.pairs import Pair, split
from jpgen.train.remembering import Remembering
from jpgen.types import Conditioning

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "adapter.safetensors"
NORM_BATCHES = 8
"""Batches of the teacher's states that its usual size at each position is measured on."""


@dataclass(frozen=True)
class Recipe:
    """What to pair and how.

    `encoder` and `backbone` are models; `kind`, `hidden`, `layers`, `length` the network (see `PairingSpec`; length 0: the teacher's). A step takes
    `batch` pairs `accumulate` times; `english` of them have English on the student's side too, `empty` of them no text. The learning rate rises
    over `warm_up` steps and falls to zero by a cosine. Latents are `latent_side` wide. `losses` see `LossWeights`; only every `noise_every`-th batch
    asks the backbone. States of up to `remember` texts a side are kept instead of computed again.
    """

    encoder: str
    backbone: str
    kind: str = "resampler"
    hidden: int = 512
    layers: int = 4
    length: int = 0
    batch: int = 32
    accumulate: int = 1
    steps: int = 2000
    warm_up: int = 100
    learning_rate: float = 3e-4
    weight_decay: float = 0.01
    english: float = 0.25
    empty: float = 0.1
    latent_side: int = 16
    noise_every: int = 1
    remember: int = 0
    save_every: int = 100
    losses: LossWeights = field(default_factory=LossWeights)


def read_recipe(place: str | Path) -> Recipe:
    """The recipe in a TOML file, or one that comes with jpgen by its name; raises SettingError naming all that is wrong."""
    packaged = resources.files("jpgen.train") / "recipes" / f"{place}.toml"
    try:
        told = tomllib.loads(packaged.read_text("utf-8") if packaged.is_file() else Path(place).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingError(f"レシピ {place} を読めません / cannot read the recipe {place}: {error}") from error
    losses = told.pop("losses", {})
    wrong = [*_wrong(Recipe, told, frozenset({"losses"})), *(_wrong(LossWeights, losses) if isinstance(losses, dict) else ["losses"])]
    if wrong:
        raise SettingError(f"レシピ {place} の {', '.join(wrong)} が正しくありません / wrong or missing in the recipe {place}: {', '.join(wrong)}")
    return Recipe(**told, losses=LossWeights(**losses))


def _wrong(kind: type, told: dict[str, Any], beside: frozenset[str] = frozenset()) -> list[str]:
    """What of a table is unknown, lacking, of another type or below 0."""
    known = {one.name: one for one in fields(kind) if one.name not in beside}
    lacking = [name for name, one in known.items() if one.default is MISSING and name not in told]
    types: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    bad = [name for name, value in told.items() if name not in known or not isinstance(value, types[str(known[name].type)])]
    return [*lacking, *bad, *(name for name, value in told.items() if name not in bad and not isinstance(value, str) and value < 0)]


class Teacher:
    """A backbone with its own English encoder, both frozen."""

    def __init__(self, model: str) -> None:
        entry = open_model(model)
        if not entry.encoder:
            raise IncompatibleError(f"{entry.name} は自前のパイプラインで文を読みます / {entry.name} reads texts itself: no adapter fits it")
        self.name = entry.name
        backbone = load_backbone(entry)
        if not isinstance(backbone, AdaptableBackbone):
            raise IncompatibleError(f"{entry.name} の中は見られません / the parts of {entry.name} cannot be reached: no adapter can learn from it")
        self.backbone: Any = backbone
        self.encoder: TextEncoder = open_source(model)
        self.backbone.modules[DENOISER].requires_grad_(False)

    def to(self, device: torch.device) -> None:
        """Move the denoiser there; text encoders stay on the CPU."""
        self.backbone.modules[DENOISER].to(device)

    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.backbone.modules[DENOISER].config.in_channels)


def states_of(encoder: TextEncoder, texts: Sequence[str], device: torch.device | str = "cpu") -> Conditioning:
    """Conditioning of the texts as plain tensors, which gradients may pass by."""
    made = encoder.encode(texts)
    return Conditioning(
        made.tokens.clone().to(device), made.mask.clone().to(device), None if made.pooled is None else made.pooled.clone().to(device)
    )


def spec_of(recipe: Recipe, encoder: TextEncoder, teacher: Teacher) -> PairingSpec:
    """The adapter's spec: widths from encoder and backbone, its length the teacher's where the recipe says none."""
    wanted = teacher.backbone.spec
    length = recipe.length or teacher.encoder.encode([""]).tokens.shape[1]
    return PairingSpec(
        recipe.kind, recipe.encoder, recipe.backbone, encoder.spec.width, wanted.width, wanted.pooled_width,
        hidden=recipe.hidden, layers=recipe.layers, length=length,
    )  # fmt: skip


def chosen(pairs: Sequence[Pair], recipe: Recipe, rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Texts of one batch: what the student reads, what the teacher reads."""
    student, teacher = [], []
    for index in rng.integers(len(pairs), size=recipe.batch):
        ja, en = pairs[int(index)]
        kind = rng.random()
        empty, english = kind < recipe.empty, kind < recipe.empty + recipe.english
        student.append("" if empty else en if english else ja)
        teacher.append("" if empty else en)
    return student, teacher


def train_adapter(recipe: Recipe, pairs: Sequence[Pair], out: Path, *, sources: Sequence[str] = (), steps: int = 0) -> Path:
    """Train on the pairs until `steps` in all (0: the recipe's) and write `out/adapter.safetensors`, the curve in `out/adapter.jsonl` beside it.

    Resumes `out/adapter.pt`. `sources` are named in the file. Pairs that `split` holds out are not seen. Raises TrainingDataError, IncompatibleError.
    """
    learnt, _ = split(pairs)
    if not learnt:
        raise TrainingDataError("対訳がありません / no pairs of texts to learn from: give --data or --scenes")
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    accelerator = Accelerator(gradient_accumulation_steps=recipe.accumulate)
    encoder, teacher = Remembering(open_source(recipe.encoder), recipe.remember), Teacher(recipe.backbone)
    teacher.encoder = Remembering(teacher.encoder, recipe.remember)
    teacher.to(accelerator.device)
    spec = spec_of(recipe, encoder, teacher)
    network = new_network(spec)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=recipe.weight_decay)
    done = 0
    if state := load_state(out / "adapter.pt"):
        require_same(state["spec"], spec, out)
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    prepared, optimizer = accelerator.prepare(network, optimizer)
    norms = teacher_norms(teacher, learnt, recipe).to(accelerator.device)
    curve = Curve(out / "adapter.jsonl")
    facts = {"sources": list(sources), "pairs": len(learnt), "batch": recipe.batch * recipe.accumulate * accelerator.num_processes}
    total = steps or recipe.steps
    for step in range(done, total):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate * schedule(step, recipe)
        for part in range(recipe.accumulate):
            with accelerator.accumulate(prepared):
                number = (step * recipe.accumulate + part) * accelerator.num_processes + accelerator.process_index
                losses = step_losses(prepared, encoder, teacher, learnt, recipe, spec, norms, number, accelerator.device)
                accelerator.backward(sum(getattr(recipe.losses, name) * loss for name, loss in losses.items()))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
        curve.count(recipe.batch * recipe.accumulate)
        curve.row(step=step + 1, **{name: loss.item() for name, loss in losses.items()})
        if accelerator.is_main_process and ((step + 1) % recipe.save_every == 0 or step + 1 == total):
            plain = accelerator.unwrap_model(prepared)
            save_state(
                out / "adapter.pt",
                {"network": plain.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1, "spec": str(spec)},
            )
            save_pairing(out / FILE, Pairing(spec, plain, probe(encoder), {**facts, "steps": step + 1}))
    return out / FILE


def step_losses(
    network: nn.Module, encoder: TextEncoder, teacher: Teacher, pairs: Sequence[Pair], recipe: Recipe, spec: PairingSpec, norms: Tensor,
    number: int, device: torch.device,
) -> dict[str, Tensor]:  # fmt: skip
    """The losses of the batch of this number."""
    read, meant = chosen(pairs, recipe, np.random.default_rng((11, number)))
    student = paired(network, spec, states_of(encoder, read, device))
    shape = (recipe.batch, teacher.channels(), recipe.latent_side, recipe.latent_side)
    noisy, times = random_noise(shape, torch.Generator().manual_seed(number))
    dtype = teacher.backbone.modules[DENOISER].dtype
    weights = recipe.losses if number % recipe.noise_every == 0 else replace(recipe.losses, noise=0.0, features=0.0)
    wanted = states_of(teacher.encoder, meant, device)
    return distilled(teacher.backbone, student, wanted, weights, norms, noisy.to(device, dtype), times.to(device))


def teacher_norms(teacher: Teacher, pairs: Sequence[Pair], recipe: Recipe) -> Tensor:
    """See `position_norms`; ones where the recipe does not compare states."""
    if not recipe.losses.hidden:
        return torch.ones(1)
    rng = np.random.default_rng(0)
    texts = [[pairs[int(i)][1] for i in rng.integers(len(pairs), size=recipe.batch)] for _ in range(NORM_BATCHES)]
    return position_norms([states_of(teacher.encoder, batch) for batch in texts])


def schedule(step: int, recipe: Recipe) -> float:
    """The share of the learning rate at a step: up over the warm-up, then down by a cosine to zero at the recipe's last step."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    passed = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return float(0.5 * (1 + np.cos(np.pi * min(1.0, passed))))


def require_same(before: str, now: PairingSpec, out: Path) -> None:
    """Raise IncompatibleError, both specs in it, if a run in `out` was for another adapter."""
    if before != str(now):
        raise IncompatibleError(
            f"{out} の続きは別のアダプタです / {out} holds a run of [{before}], the recipe says [{now}]: give another folder, or that recipe"
        )


def with_pair(recipe: Recipe, encoder: str, backbone: str) -> Recipe:
    """The recipe for another encoder or backbone ("": as it is)."""
    return replace(recipe, encoder=encoder or recipe.encoder, backbone=backbone or recipe.backbone)
