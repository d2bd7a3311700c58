"""PixArt backbones (Chen et al. 2023, arXiv 2310.00426): mame, and every model with a PixArt transformer and an outside text encoder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import PixArtSigmaPipeline, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.backbones.schedulers import make_scheduler
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, WeightsError
from jpgen.types import Conditioning, ConditioningSpec, SamplingConfig, Step, StepCallback
from jpgen.weights import WEIGHTS, load_weights

AUTOENCODERS = {"AutoencoderShuffle": AutoencoderShuffle}
"""Autoencoder classes by the `_class_name` of their config."""


class PixArtBackbone:
    """A PixArt transformer, an autoencoder and scheduler settings, run by diffusers' PixArtSigmaPipeline on explicit embeddings."""

    def __init__(self, name: str, transformer: PixArtTransformer2DModel, vae: Any, schedule: dict[str, Any], default: SamplingConfig) -> None:
        self.name = name
        self.default = default
        self.spec = ConditioningSpec(width=transformer.config.caption_channels)
        self._schedule = schedule
        self._pipeline = PixArtSigmaPipeline(
            tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=transformer.eval(), scheduler=make_scheduler(default.scheduler, schedule)
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self.size_multiple = self._pipeline.vae_scale_factor * transformer.config.patch_size

    @torch.inference_mode()
    def sample(
        self,
        conditioning: Conditioning,
        negative: Conditioning,
        config: SamplingConfig,
        *,
        generators: Sequence[torch.Generator],
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """One picture a row. `negative` has the rows of `conditioning`; noise comes from the generators in fp32, so no batch changes it."""
        pipeline = self._pipeline
        scheduler = make_scheduler(config.scheduler, self._schedule)
        pipeline.scheduler = scheduler
        dtype, factor = pipeline.transformer.dtype, pipeline.vae_scale_factor
        shape = (1, pipeline.transformer.config.in_channels, config.height // factor, config.width // factor)
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        tokens, mask, negative_tokens, negative_mask = _same_length(conditioning, negative)

        def after_step(index: int, _time: Tensor, _latents: Tensor) -> None:
            if on_step and on_step(Step(index + 1, config.steps, lambda: self._decode(scheduler.model_outputs[-1]))) is False:
                raise Cancelled(f"{index + 1}/{config.steps} ステップで中止しました / cancelled at step {index + 1} of {config.steps}")

        latents = pipeline(
            prompt=None, negative_prompt=None,
            prompt_embeds=tokens.to(dtype), prompt_attention_mask=mask,
            negative_prompt_embeds=negative_tokens.to(dtype), negative_prompt_attention_mask=negative_mask,
            latents=noise.to(dtype), num_inference_steps=config.steps, guidance_scale=config.guidance_scale,
            height=config.height, width=config.width, use_resolution_binning=False, output_type="latent", callback=after_step,
        ).images
        return self._decode(latents)

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        vae = self._pipeline.vae
        pictures = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor).sample
        images: list[Image.Image] = self._pipeline.image_processor.postprocess(pictures.float(), output_type="pil")
        return images


def _same_length(one: Conditioning, other: Conditioning) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens and masks of both, padded with masked zeros to the longer one."""
    length = max(one.tokens.shape[1], other.tokens.shape[1])

    def padded(value: Conditioning) -> tuple[Tensor, Tensor]:
        short = length - value.tokens.shape[1]
        return nn.functional.pad(value.tokens, (0, 0, 0, short)), nn.functional.pad(value.mask, (0, short))

    return (*padded(one), *padded(other))


def load(entry: Entry, dtype: torch.dtype) -> PixArtBackbone:
    """The backbone in the entry's folder: `transformer/`, `vae/`, `scheduler/`, as diffusers lays them out; raises WeightsError."""
    folder = entry.folder
    transformer = _filled(PixArtTransformer2DModel, folder / "transformer", dtype)
    vae_class = AUTOENCODERS.get(str(_config(folder / "vae").get("_class_name")))
    if vae_class is None:
        raise WeightsError(f"{folder / 'vae'}: unknown autoencoder; known: {', '.join(AUTOENCODERS)}")
    vae = _filled(vae_class, folder / "vae", dtype).to(memory_format=torch.channels_last)
    return PixArtBackbone(entry.name, transformer, vae, _config(folder / "scheduler", "scheduler_config.json"), entry.default)


def _config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / name).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{folder / name} を読めません / cannot read {folder / name} ({error}); fetch the model again") from error
    return found


def _filled(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    """A module of this class by the folder's config, holding the folder's weights."""
    model = kind.from_config(_config(folder))
    for buffer in model.buffers():
        buffer.data = buffer.data.to(dtype)
    state = load_weights(folder / WEIGHTS, dtype)
    wanted = set(model.state_dict())
    if wrong := sorted(wanted ^ state.keys()):
        raise WeightsError(f"{folder / WEIGHTS}: {len(wrong)} missing or unexpected tensors ({', '.join(wrong[:5])}): not the weights of this config")
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{folder / WEIGHTS} does not match its config: {error}") from error
    return model.requires_grad_(False)


def toy() -> PixArtBackbone:
    """Two layers of random weights for conditioning of width 32; pictures of 64 pixels."""
    torch.manual_seed(0)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, cross_attention_dim=32, caption_channels=32, in_channels=16, out_channels=16,
        sample_size=4, patch_size=2, norm_type="ada_norm_single", use_additional_conditions=False,
    )
    vae = AutoencoderShuffle(block_out_channels=(4, 0, 0, 16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1))
    default = SamplingConfig(width=64, height=64, steps=2, guidance_scale=2.0)
    schedule = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 1.0}
    return PixArtBackbone("toy-pixart", transformer, vae, schedule, default)
