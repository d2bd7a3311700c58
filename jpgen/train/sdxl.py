"""Train mame-sdxl: a small Stable Diffusion XL that learnt English captions alone, the stand-in for every English backbone.

It has SDXL's own layout, and mame's autoencoder; its pictures have 128 pixels and show what `stagings/mame-sdxl.toml` lists. Stages: `latents`,
scenes as latents; `tokenizer`, CLIP's byte-level BPE with merges of the English captions; `clip`, two text encoders, each contrastively (Radford et
al. 2021, arXiv 2103.00020) against one tower that reads latents; `unet`, the denoiser, with the two encoders frozen, on v-prediction (Salimans & Ho
2022, arXiv 2202.00512), which says more about the picture where there is much noise; `ceiling`, what the judge reads of real scenes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jpgen.backbones.loading import load_autoencoder
from jpgen.backbones.unet import SCHEDULE
from jpgen.catalog import find_model
from jpgen.compute import best_dtype
from jpgen.encoders import sdxl as sdxl_encoder
from jpgen.encoders.tokenizers import ClipShapedTokenizer, bpe_tokenizer, read_tokenizer
from jpgen.errors import TrainingDataError, UnknownNameError
from jpgen.evaluate.judge import CEILING, SIDE, Judge, score, shrink
from jpgen.train.backbone import Optimizer
from jpgen.train.captions import caption
from jpgen.train.checkpoint import Curve, load_state, save_state
from jpgen.train.judge import CEILING_SEED, asked, facts_of
from jpgen.train.latents import BACKBONE_ART, LANGUAGES
from jpgen.train.remembering import Remembering
from jpgen.train.scenes import Scene, Stage, plan, read_staging, render
from jpgen.train.sprites import load_sprites
from jpgen.types import Conditioning
from jpgen.weights import WEIGHTS, eight_bit_matrices, save_weights

STAGING = "mame-sdxl"
FIRST_SEED = 30_000_000
"""First seed of the scenes it learns from."""

SHARD = 5_000
CHANNELS, CELLS = 16, SIDE // 16
"""Channels and side of the latents of a picture of `SIDE` pixels."""

TEXT_LENGTH = 24
VOCABULARY = 1024
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What CLIP's tokenizer takes for a word."""

WIDTHS = (128, 192)
"""Of the two text encoders; the second's is also that of the pooled state."""

TEXT_LAYERS = 3
UNET: dict[str, Any] = {
    "sample_size": CELLS, "in_channels": CHANNELS, "out_channels": CHANNELS, "block_out_channels": (64, 128), "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "transformer_layers_per_block": (1, 1), "attention_head_dim": (2, 4), "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 32,
}  # fmt: skip

BETAS = {name: SCHEDULE[name] for name in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")} | {"prediction_type": "v_prediction"}
BATCH = {"clip": 128, "unet": 64}
EMPTY = 0.1
WARM_UP = 50
LEARNING_RATE = {"clip": 1e-3, "unet": 2e-3}
EMA_DECAY = 0.998
SAVE_EVERY = 100


def the_stage(data: Path) -> Stage:
    """What the scenes of mame-sdxl show; `data` holds the sprites."""
    return Stage(load_sprites(data)[1], art=BACKBONE_ART, staging=read_staging(STAGING))


@torch.no_grad()
def cache_latents(data: Path, folder: Path, shards: int) -> None:
    """Write the first `shards` shards of `SHARD` scenes as latents fp16 [SHARD, 16, 8, 8] to `folder`, skipping those already there."""
    folder.mkdir(parents=True, exist_ok=True)
    stage, sprites = the_stage(data), load_sprites(data)[0]
    vae = load_autoencoder(find_model("mame"), CHANNELS, torch.float32)
    for index in range(shards):
        file = folder / f"shard-{index:03d}.safetensors"
        if file.exists():
            continue
        first = FIRST_SEED + index * SHARD
        latents = [encoded(vae, [plan(seed, stage) for seed in range(start, min(start + 50, first + SHARD))], sprites).half()
                   for start in range(first, first + SHARD, 50)]  # fmt: skip
        save_file({"latents": torch.cat(latents).contiguous()}, file.with_suffix(".tmp"))
        file.with_suffix(".tmp").replace(file)


def encoded(vae: Any, scenes: Sequence[Scene], sprites: np.ndarray) -> Tensor:
    """Latents fp32 [scenes, 16, 8, 8] of the painted scenes at `SIDE` pixels."""
    pixels = np.stack([np.asarray(shrink(render(scene, sprites))) for scene in scenes])
    scaled = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    made: Tensor = vae.encode(scaled.contiguous(memory_format=torch.channels_last)).latent_dist.mode()
    return made


@torch.no_grad()
def measure_ceiling(data: Path, out: Path, *, count: int = 1000) -> None:
    """Write `out/ceiling.json`: what the judge reads right of fresh scenes that went through the autoencoder, choosing among what scenes can show."""
    stage, sprites = the_stage(data), load_sprites(data)[0]
    told = stage.staging
    judge = Judge.load().among(things=told.things, colors=told.colors, backgrounds=told.backgrounds)
    vae = load_autoencoder(find_model("mame"), CHANNELS, torch.float32)
    hits: dict[str, list[bool]] = {}
    for start in range(CEILING_SEED, CEILING_SEED + count, 50):
        scenes = [plan(seed, stage) for seed in range(start, min(start + 50, CEILING_SEED + count))]
        pixels = (vae.decode(encoded(vae, scenes, sprites)).sample.clamp(-1, 1) + 1) * 127.5
        images = [Image.fromarray(one) for one in pixels.round().byte().permute(0, 2, 3, 1).numpy()]
        for scene, reading in zip(scenes, judge.read(images), strict=True):
            for name, hit in score(asked(facts_of(scene)), reading).items():
                hits.setdefault(name, []).append(hit)
    figures = {"pictures": count, **{name: round(sum(said) / len(said), 4) for name, said in sorted(hits.items())}}
    (out / CEILING).write_text(json.dumps(figures, indent=1) + "\n", "utf-8")


class CaptionedLatents:
    """The cached latents with the English captions of their scenes, which the seeds tell again."""

    def __init__(self, data: Path, folder: Path) -> None:
        """Raises TrainingDataError if `folder` holds no shard."""
        files = sorted(folder.glob("shard-*.safetensors"))
        if not files:
            raise TrainingDataError(f"{folder} にシャードがありません。先に --stage latents を / no shards in {folder}: run --stage latents first")
        stage = the_stage(data)
        self.latents = torch.cat([load_file(file)["latents"] for file in files])
        seeds = [FIRST_SEED + int(file.stem.removeprefix("shard-")) * SHARD + row for file in files for row in range(SHARD)]
        self.captions = [caption(plan(seed, stage), LANGUAGES[1], np.random.default_rng((seed, 4))) for seed in seeds]

    def sample(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, list[str]]:
        """Latents fp32 [batch, 16, 8, 8] and their captions."""
        rows = rng.integers(len(self.captions), size=batch)
        return self.latents[torch.from_numpy(rows)].float(), [self.captions[int(row)] for row in rows]


class LatentTower(nn.Module):
    """Reads latents [batch, 16, 8, 8] into one vector [batch, width]."""

    def __init__(self, width: int = 256) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(CHANNELS, 128, 3, padding=1), nn.GroupNorm(8, 128), nn.SiLU(),
            nn.Conv2d(128, 192, 3, 2, 1), nn.GroupNorm(8, 192), nn.SiLU(), nn.Conv2d(192, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Flatten(), nn.Linear(width * (CELLS // 2) ** 2, width),
        )  # fmt: skip

    def forward(self, latents: Tensor) -> Tensor:
        """See the class."""
        made: Tensor = self.body(latents)
        return made


class Towers(nn.Module):
    """The two text encoders, the tower of latents, and for each encoder a projection of its vector and a temperature."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.texts = nn.ModuleList([new_text_encoder(width, vocabulary) for width in WIDTHS])
        self.tower = LatentTower()
        self.heads = nn.ModuleList([nn.Linear(256, width) for width in WIDTHS])
        self.scales = nn.Parameter(torch.full((len(WIDTHS),), float(np.log(1 / 0.07))))

    def forward(self, latents: Tensor, ids: Tensor) -> Tensor:
        """The mean symmetric contrastive loss of the two encoders."""
        seen, losses = self.tower(latents), []
        for text, head, scale in zip(self.texts, self.heads, self.scales, strict=True):
            one, other = F.normalize(head(seen), dim=1), F.normalize(text(ids).text_embeds, dim=1)
            alike = scale.exp().clamp_max(100) * one @ other.T
            own = torch.arange(len(ids))
            losses.append((F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2)
        return torch.stack(losses).mean()


def new_text_encoder(width: int, vocabulary: int) -> CLIPTextModelWithProjection:
    """An untrained CLIP text encoder over `vocabulary` pieces; start and end are its last two."""
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, projection_dim=width, intermediate_size=4 * width, num_hidden_layers=TEXT_LAYERS,
        num_attention_heads=width // 64, max_position_embeddings=TEXT_LENGTH, hidden_act="gelu", bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config)


def new_unet() -> UNet2DConditionModel:
    """An untrained U-Net: 8 × 8 latents, attention there and at 4 × 4."""
    width, pooled = sum(WIDTHS), WIDTHS[1]
    sizes = {"cross_attention_dim": width, "projection_class_embeddings_input_dim": pooled + 6 * UNET["addition_time_embed_dim"]}
    return UNet2DConditionModel(**UNET, **sizes, norm_num_groups=16)


def run_stage(stage: str, data: Path, out: Path, *, steps: int, decay: int = 0, shards: int = 4) -> None:
    """Run one stage, resuming what is in `out`. Raises UnknownNameError, TrainingDataError."""

    def scenes() -> CaptionedLatents:
        return CaptionedLatents(data, out / "latents")

    stages: dict[str, Callable[[], None]] = {
        "ceiling": lambda: measure_ceiling(data, out),
        "latents": lambda: cache_latents(data, out / "latents", shards),
        "tokenizer": lambda: train_tokenizers(scenes().captions, out),
        "clip": lambda: train_clip(scenes(), out, steps=steps, decay=decay),
        "unet": lambda: train_unet(scenes(), out, steps=steps, decay=decay),
    }
    if stage not in stages:
        raise UnknownNameError.of("学習の段階 / training stage", stage, stages)
    stages[stage]()


def train_tokenizers(captions: Sequence[str], out: Path) -> None:
    """Write `out/tokenizer` and `out/tokenizer_2`, the same merges of the captions in both."""
    learnt = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learnt.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True)
    learnt.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learnt.train_from_iterator(
        captions, trainers.BpeTrainer(vocab_size=VOCABULARY, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    )
    merges = [" ".join(merge) for merge in json.loads(learnt.to_str())["model"]["merges"]]
    tokenizer = bpe_tokenizer(merges).inner
    tokenizer.model_max_length = TEXT_LENGTH
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer.save_pretrained(out / name)


def trained_tokenizer(out: Path) -> ClipShapedTokenizer:
    """The tokenizer of the first stage; raises TrainingDataError if there is none."""
    if not (out / "tokenizer").is_dir():
        raise TrainingDataError(f"{out}/tokenizer がありません。先に --stage tokenizer を / {out}/tokenizer is missing: run --stage tokenizer first")
    return read_tokenizer(out / "tokenizer")


def filled_ids(tokenizer: ClipShapedTokenizer, texts: Sequence[str]) -> Tensor:
    """Ids int64 [texts, TEXT_LENGTH] with start, end and filling; longer texts are cut."""
    rows = [[*tokenizer.begin, *tokenizer.encode(text)[: TEXT_LENGTH - 2], *tokenizer.end] for text in texts]
    return torch.tensor([row + [tokenizer.pad] * (TEXT_LENGTH - len(row)) for row in rows])


def train_clip(scenes: CaptionedLatents, out: Path, *, steps: int, decay: int = 0) -> None:
    """Write `out/text_encoder`, `out/text_encoder_2` and, of no use to the model, `out/latent_tower.safetensors`."""
    tokenizer = trained_tokenizer(out)
    torch.manual_seed(0)
    towers = Towers(len(tokenizer))
    optimizer = torch.optim.AdamW(towers.parameters(), lr=LEARNING_RATE["clip"], betas=(0.9, 0.98), weight_decay=0.05)
    done = _resume(out / "clip.pt", {"model": towers, "optimizer": optimizer})
    curve = Curve(out / "clip.jsonl")
    for step in range(done, steps):
        latents, texts = scenes.sample(np.random.default_rng((21, step)), BATCH["clip"])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16):
            loss = towers(latents, filled_ids(tokenizer, texts))
        loss.backward()
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = LEARNING_RATE["clip"] * _pace(step, steps, decay)
        optimizer.step()
        optimizer.zero_grad()
        curve.count(BATCH["clip"])
        if (step + 1) % 20 == 0:
            curve.row(step=step + 1, loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            if step + 1 <= steps - decay:
                save_state(out / "clip.pt", {"model": towers.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
            write_text_encoders(towers, out)


def write_text_encoders(towers: Towers, out: Path) -> None:
    """Write the two text encoders in 8 bits and the tower of latents in 16."""
    texts: Any = towers.texts
    for suffix, text in zip(("", "_2"), texts, strict=True):
        folder = out / f"text_encoder{suffix}"
        folder.mkdir(parents=True, exist_ok=True)
        text.config.architectures = ["CLIPTextModelWithProjection"]
        text.config.save_pretrained(folder)
        save_weights(folder / "model.safetensors", text.state_dict(), bits=eight_bit_matrices)
    save_weights(out / "latent_tower.safetensors", {**towers.tower.state_dict(), **{f"heads.{k}": v for k, v in towers.heads.state_dict().items()}})


def train_unet(scenes: CaptionedLatents, out: Path, *, steps: int, decay: int = 0, compiled: bool = False) -> None:
    """Write `out/unet`, `out/scheduler` and `out/model_index.json`; the last `decay` steps anneal and are not kept in the checkpoint."""
    encoder = Remembering(sdxl_encoder.load(out), len(scenes.captions))
    torch.manual_seed(0)
    unet = new_unet().to(memory_format=torch.channels_last)
    average = copy.deepcopy(unet).requires_grad_(False)
    optimizer = Optimizer(unet)
    done = _resume(out / "unet.pt", {"model": unet, "average": average, "optimizer": optimizer})
    network = torch.compile(unet, dynamic=False) if compiled else unet
    noising = DDPMScheduler(**BETAS)
    curve = Curve(out / "unet.jsonl")
    for step in range(done, steps):
        rng, generator = np.random.default_rng((22, step)), torch.Generator().manual_seed(step)
        latents, texts = scenes.sample(rng, BATCH["unet"])
        read = encoder.encode(texts)
        kept = torch.from_numpy(rng.random(BATCH["unet"]) >= EMPTY).float()
        loss = velocity_loss(network, noising, latents, Conditioning(*_plain(read, kept)), generator)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step(LEARNING_RATE["unet"] * _pace(step, steps, decay))
        torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - min(EMA_DECAY, (step + 1) / (step + 10)))
        curve.count(BATCH["unet"])
        if (step + 1) % 20 == 0:
            curve.row(step=step + 1, samples=(step + 1) * BATCH["unet"], loss=loss.item())
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            if step + 1 <= steps - decay:
                state = {"model": unet.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
                save_state(out / "unet.pt", state)
            write_unet(average, out)


def _plain(read: Conditioning, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """States as gradients may pass by, zeros where `kept` is 0: SDXL's way of saying nothing."""
    if read.pooled is None:
        raise TrainingDataError("2 つ目のエンコーダに射影がありません / the second text encoder gives no pooled state: run --stage clip again")
    return read.tokens.clone() * kept[:, None, None], read.mask.clone(), read.pooled.clone() * kept[:, None]


def velocity_loss(network: Callable[..., Any], noising: DDPMScheduler, latents: Tensor, states: Conditioning, generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted velocity at uniform times."""
    noise = torch.randn(latents.shape, generator=generator)
    times = torch.randint(noising.config.num_train_timesteps, (len(latents),), generator=generator)
    side = 16.0 * latents.shape[-1]
    sizes = torch.tensor([side, side, 0.0, 0.0, side, side]).expand(len(latents), -1)
    added = {"text_embeds": states.pooled, "time_ids": sizes}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16):
        made = network(
            noising.add_noise(latents, noise, times), times, encoder_hidden_states=states.tokens, added_cond_kwargs=added, return_dict=False
        )[0]
    return F.mse_loss(made.float(), noising.get_velocity(latents, noise, times))


def write_unet(unet: UNet2DConditionModel, out: Path) -> None:
    """Write the U-Net in 8 bits, the sampler's settings, and what stock programs look for."""
    folder = out / "unet"
    folder.mkdir(parents=True, exist_ok=True)
    unet.save_config(folder)
    save_weights(folder / WEIGHTS, unet.state_dict(), bits=eight_bit_matrices)
    EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing").save_pretrained(out / "scheduler")
    index = {
        "_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"], "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
    }  # fmt: skip
    (out / "model_index.json").write_text(json.dumps(index, indent=2), "utf-8")


def _pace(step: int, steps: int, decay: int) -> float:
    return min(1.0, (step + 1) / WARM_UP, (steps - step) / max(decay, 1))


def _resume(path: Path, parts: dict[str, Any]) -> int:
    """Fill the parts from a checkpoint, if there is one; the steps it has behind it."""
    state = load_state(path)
    if not state:
        return 0
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(state["step"])
