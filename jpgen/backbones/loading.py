"""Parts of backbones out of the folders diffusers writes: config, weights, autoencoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.catalog import Entry
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.safety import read_json
from jpgen.weights import load_sharded

AUTOENCODERS = {"AutoencoderShuffle": AutoencoderShuffle, "AutoencoderKL": AutoencoderKL}
"""Autoencoder classes by the `_class_name` of their config."""

STEM = "diffusion_pytorch_model"
"""What diffusers calls the weights of its models."""

LEFT_OVER = ("caption_projection.y_embedding", "pos_embed.pos_embed", "position_ids")
"""Ends of names of tensors that training scripts save and no model reads."""


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """The settings in `folder/name`; raises WeightsError unless they are a JSON object."""
    return read_json(folder / name)


def filled(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A frozen module of this diffusers class by the folder's config, holding the folder's weights; raises WeightsError."""
    config = read_config(folder)
    try:
        with init_empty_weights(include_buffers=False):
            model = kind.from_config(config)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise WeightsError(
            "設定ファイルが合いません / "
            f"{folder / 'config.json'} is not a config of {kind.__name__} ({error})"
        ) from error
    for buffer in model.buffers():
        buffer.data = buffer.data.to(dtype)
    state = load_sharded(folder, STEM, dtype)
    model._fix_state_dict_keys_on_load(state)  # names of old attention blocks
    wanted = set(model.state_dict())
    state = {name: tensor for name, tensor in state.items() if name in wanted or not name.endswith(LEFT_OVER)}
    if wrong := sorted(wanted ^ state.keys()):
        raise WeightsError(
            "重みが設定と合いません / "
            f"{folder}: {len(wrong)} missing or unexpected tensors ({', '.join(wrong[:5])}): not the weights of this config"
        )
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            "重みが設定と合いません / "
            f"{folder}: the weights do not match their config: {error}"
        ) from error
    return model.requires_grad_(False).eval()


def load_autoencoder(entry: Entry, channels: int, dtype: torch.dtype) -> Any:
    """The autoencoder in `vae/` of the entry's folder or, before it, in the folder its part `vae` names, for latents of this many channels.

    Raises WeightsError, IncompatibleError. One that overflows in fp16 stays in fp32.
    """
    if "vae" in entry.parts and (file := entry.folder / Path(str(entry.parts["vae"])).expanduser()).is_file():
        raise WeightsError(
            f"{entry.name}: VAE {file} は diffusers 形式のフォルダで渡してください / for {entry.family} the autoencoder must be a folder as "
            f"diffusers lays it out, {file} is a file"
        )
    folder = part_folder(entry, "vae")
    config = read_config(folder)
    kind = AUTOENCODERS.get(str(config.get("_class_name")))
    if kind is None:
        raise WeightsError(
            "知らないオートエンコーダです / "
            f"{folder}: unknown autoencoder {config.get('_class_name')!r}; known: {', '.join(AUTOENCODERS)}"
        )
    if dtype == torch.float16 and config.get("force_upcast", True):
        dtype = torch.float32
    vae = filled(kind, folder, dtype)
    if vae.config.latent_channels != channels:
        raise IncompatibleError(
            f"{entry.name}: オートエンコーダ {folder} とつながりません / the autoencoder {folder} has {vae.config.latent_channels} latent channels, "
            f"the transformer {channels}: name the autoencoder it was trained with in parts.vae"
        )
    return vae.to(memory_format=torch.channels_last)


def part_folder(entry: Entry, name: str) -> Path:
    """Where this part is: the local folder the entry's part `name` tells (or `name/` inside it), else `name/` in the entry's own folder."""
    told = entry.parts.get(name)
    folder = entry.folder / Path(str(told)).expanduser() if told else entry.folder / name
    inside = folder / name
    folder = inside if told and inside.is_dir() else folder
    if not folder.is_dir():
        raise WeightsError(
            f"{entry.name}: {folder} がありません / there is no {name} at {folder}: fetch the model again, or name its local folder in parts.{name}"
        )
    return folder
