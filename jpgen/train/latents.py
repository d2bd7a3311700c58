"""Cached training data of the backbone: shards of scenes as latents and text states.

A shard is one safetensors file: `latents` fp16 [n, 16, 16, 16], `regions` int16 [n, 3, 4, 4] (see `scenes.regions`), and for each language `<lang>`
bf16 [tokens, 384] with `<lang>_ends` int64 [n], the running ends of each caption's rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import BertModel

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.compute import best_dtype
from jpgen.errors import TrainingDataError
from jpgen.train.captions import caption
from jpgen.train.scenes import Stage, concepts, plan, read_staging, regions, render
from jpgen.train.sprites import load_sprites

SHARD = 5_000
BATCH = 50
LANGUAGES = ("ja", "en")
STAGING = "mame"
BACKBONE_ART = ("noto",)
"""The drawings the backbone learns where the style asks for none: one a concept, so that what a word looks like is one thing."""


class CaptionedScenes(Dataset[tuple[Tensor, Tensor, dict[str, str]]]):
    """Scenes by seed: pictures uint8 [3, 256, 256], what each patch shows int16 [3, 4, 4], and a caption in each language."""

    def __init__(self, data: Path, seeds: Sequence[int]) -> None:
        self.sprites, drawings = load_sprites(data)
        self.stage = Stage(drawings, art=BACKBONE_ART, staging=read_staging(STAGING))
        self.seeds = seeds

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, dict[str, str]]:
        scene = plan(self.seeds[index], self.stage)
        rng = np.random.default_rng((scene.seed, 2))
        words = {language: caption(scene, language, rng) for language in LANGUAGES}
        picture = torch.from_numpy(np.array(render(scene, self.sprites))).permute(2, 0, 1)
        return picture, torch.from_numpy(regions(scene, concepts())), words


@torch.no_grad()
def cache_shard(data: Path, shard: Path, first_seed: int, vae: AutoencoderShuffle, encoder: BertModel, tokenizer: Tokenizer) -> None:
    """Render, encode and write one shard of `SHARD` scenes whose seeds start at `first_seed`."""
    scenes = CaptionedScenes(data, range(first_seed, first_seed + SHARD))
    latents: list[Tensor] = []
    where: list[Tensor] = []
    captions: dict[str, list[str]] = {language: [] for language in LANGUAGES}
    for pictures, places, words in DataLoader(scenes, BATCH, num_workers=1, collate_fn=collate, prefetch_factor=4):
        where.append(places)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=best_dtype() is torch.bfloat16):
            scaled = pictures.contiguous(memory_format=torch.channels_last).float() / 127.5 - 1
            latents.append(vae.encode(scaled, return_dict=False)[0].mode().half())
        for language in LANGUAGES:
            captions[language] += [word[language] for word in words]
    tensors = {"latents": torch.cat(latents).contiguous(), "regions": torch.cat(where)}
    for language, texts in captions.items():
        tensors[language], tensors[f"{language}_ends"] = encode_ragged(texts, encoder, tokenizer)
    partial = shard.with_suffix(".tmp")
    save_file(tensors, partial)
    partial.replace(shard)


def collate(rows: list[tuple[Tensor, Tensor, dict[str, str]]]) -> tuple[Tensor, Tensor, list[dict[str, str]]]:
    """A batch of `CaptionedScenes`."""
    pictures, places, words = zip(*rows, strict=True)
    return torch.stack(pictures), torch.stack(places), list(words)


@torch.no_grad()
def encode_ragged(texts: Sequence[str], encoder: BertModel, tokenizer: Tokenizer, batch: int = 100) -> tuple[Tensor, Tensor]:
    """Token states of many texts without padding: bf16 [tokens, width] and running ends int64 [texts]."""
    ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
    states: list[Tensor] = [torch.empty(0)] * len(ids)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = len(ids[chosen[-1]])
        padded = torch.tensor([ids[i] + [1] * (longest - len(ids[i])) for i in chosen])
        hidden = encoder(padded, attention_mask=(padded != 1).long()).last_hidden_state
        for i, row in zip(chosen, hidden, strict=True):
            states[i] = row[: len(ids[i])].bfloat16()
    return torch.cat(states), torch.tensor([len(row) for row in ids]).cumsum(0)


@dataclass(frozen=True)
class Batch:
    """Latents fp32 [batch, 16, 16, 16], text states fp32 [batch, length, 384], mask int64 [batch, length], regions int64 [batch, 3, 4, 4]."""

    latents: Tensor
    states: Tensor
    mask: Tensor
    regions: Tensor


class LatentPool:
    """All cached shards in memory; `sample` draws training batches."""

    def __init__(self, folder: Path) -> None:
        """Load every shard of `folder`; raises TrainingDataError if there is none."""
        self.folder = folder
        self.files: list[Path] = []
        self.shards: list[dict[str, Tensor]] = []
        self.refresh()
        if not self.shards:
            raise TrainingDataError(f"{folder} にシャードがありません / no shards in {folder}: make them with jpgen train mame --stage latents")

    def refresh(self) -> None:
        """Load the shards that have been written since."""
        new = [file for file in sorted(self.folder.glob("shard-*.safetensors")) if file not in self.files]
        self.files += new
        self.shards += [load_file(file) for file in new]

    def __len__(self) -> int:
        return sum(len(shard["latents"]) for shard in self.shards)

    def sample(self, batch: int, length: int, english: float, rng: np.random.Generator) -> Batch:
        """A random batch, every text padded to `length` tokens; longer ones are passed over. `english` is the share of English captions."""
        latents: list[Tensor] = []
        rows: list[Tensor] = []
        places: list[Tensor] = []
        while len(rows) < batch:
            shard = self.shards[int(rng.integers(len(self.shards)))]
            index = int(rng.integers(len(shard["latents"])))
            language = "en" if rng.random() < english else "ja"
            ends = shard[f"{language}_ends"]
            start, end = int(ends[index - 1]) if index else 0, int(ends[index])
            if end - start > length:
                continue
            rows.append(shard[language][start:end])
            latents.append(shard["latents"][index])
            places.append(shard["regions"][index])
        states = torch.zeros(batch, length, rows[0].shape[1])
        mask = torch.zeros(batch, length, dtype=torch.int64)
        for i, row in enumerate(rows):
            states[i, : len(row)], mask[i, : len(row)] = row.float(), 1
        return Batch(torch.stack(latents).float(), states, mask, torch.stack(places).long())
