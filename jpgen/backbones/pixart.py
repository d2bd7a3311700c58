"""PixArt backbones (Chen et al. 2023, arXiv 2310.00426): mame, PixArt-Σ, CommonArt β: a PixArt transformer with any outside text encoder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from diffusers import AutoencoderTiny, PixArtAlphaPipeline, PixArtSigmaPipeline, PixArtTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from jpgen.backbones.autoencoder import AutoencoderShuffle
from jpgen.backbones.caches import NONE
from jpgen.backbones.latents import decode, encode, to_pixels
from jpgen.backbones.lean import lean
from jpgen.backbones.loading import filled, load_autoencoder, part_folder, read_config
from jpgen.backbones.packing import packing
from jpgen.backbones.passes import is_guided, passes
from jpgen.backbones.preview import Preview, load_tiny
from jpgen.backbones.schedulers import make_scheduler
from jpgen.backbones.starting import begin, make_start, paste
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, IncompatibleError, WeightsError
from jpgen.lora import DENOISER
from jpgen.pictures import Fitted
from jpgen.types import Conditioning, ConditioningSpec, InitImage, SamplingConfig, Step, StepCallback

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon",
    "timestep_spacing": "linspace", "use_flow_sigmas": False, "flow_shift": 1.0,
}  # fmt: skip
"""The scheduler settings of PixArt, for a transformer that comes without any. An entry's parts of these names replace them."""


class PixArtBackbone:
    """A PixArt transformer, an autoencoder and scheduler settings, run by diffusers' PixArtSigmaPipeline on explicit embeddings.

    A transformer that also learned sigma gives twice the channels; the pipeline drops them. One that is told the picture's size (PixArt-α at 1,024
    pixels) runs in PixArtAlphaPipeline, which tells it.
    """

    takes = frozenset({"init", "mask"})

    def __init__(
        self, name: str, transformer: PixArtTransformer2DModel, vae: Any, schedule: dict[str, Any], default: SamplingConfig, *,
        preview_vae: AutoencoderTiny | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.default = default
        self.spec = ConditioningSpec(width=transformer.config.caption_channels)
        self._schedule = schedule
        kind = PixArtAlphaPipeline if transformer.use_additional_conditions else PixArtSigmaPipeline
        self._pipeline = kind(
            tokenizer=None, text_encoder=None, vae=vae.eval(), transformer=transformer.eval(), scheduler=make_scheduler(default.scheduler, schedule)
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._preview, self._packing = Preview(self._pixels, vae, preview_vae), packing(transformer.dtype)
        self.size_multiple = self._pipeline.vae_scale_factor * transformer.config.patch_size
        self.family = "pixart"
        self.modules = {DENOISER: transformer}

    @torch.inference_mode()
    def sample(
        self,
        conditioning: Conditioning,
        negative: Conditioning,
        config: SamplingConfig,
        *,
        generators: Sequence[torch.Generator],
        on_step: StepCallback | None = None,
        init: InitImage | None = None,
    ) -> list[Image.Image]:
        """One picture a row. `negative` has the rows of `conditioning`; noise comes from the generators in fp32, so no batch changes it.

        With `init` sampling begins from that picture (see `jpgen.backbones.starting`).
        """
        pipeline, total = self._pipeline, config.steps
        scheduler = make_scheduler(config.scheduler, self._schedule)
        pipeline.scheduler = scheduler
        dtype, factor = pipeline.transformer.dtype, pipeline.vae_scale_factor
        shape = (1, pipeline.transformer.config.in_channels, config.height // factor, config.width // factor)
        kept: Fitted | None = None
        if init is None:
            noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        else:
            start = make_start(init, config, pipeline.vae, generators, factor=factor)
            kept, total = start.init, start.steps
            if not total:
                return paste(self.decode(start.clean.to(pipeline.vae.device)), kept)
            noise = begin(scheduler, start, lambda scheduler: scheduler.set_timesteps(config.steps))
        tokens, mask, negative_tokens, negative_mask = (value.to(pipeline._execution_device) for value in _same_length(conditioning, negative))
        guided = is_guided(config)

        def after_step(index: int, _time: Tensor, _latents: Tensor) -> None:
            if on_step and on_step(Step(index + 1, total, lambda: paste(self._preview.images(scheduler.model_outputs[-1], config), kept))) is False:
                raise Cancelled(f"{index + 1}/{total} ステップで中止しました / cancelled at step {index + 1} of {total}")

        shared = lean(pipeline.transformer) if config.cache == NONE else nullcontext()  # a cache takes rows out of what blocks see
        with shared, passes(pipeline.transformer, config, scheduler, guided=guided), self._packing.over(pipeline.transformer):
            latents = pipeline(
                prompt=None, negative_prompt=None,
                prompt_embeds=tokens.to(dtype), prompt_attention_mask=mask,
                negative_prompt_embeds=negative_tokens.to(dtype), negative_prompt_attention_mask=negative_mask,
                generator=list(generators), latents=noise.to(dtype), num_inference_steps=config.steps,
                guidance_scale=config.guidance_scale if guided else 1.0,
                height=config.height, width=config.width, use_resolution_binning=False, output_type="latent", callback=after_step,
            ).images  # fmt: skip
        return paste(self.decode(latents), kept)

    @torch.inference_mode()
    def encode(self, image: Image.Image, *, seed: int = 0) -> Tensor:
        """Latents fp32 [1, channels, height, width] of a picture, as sampling scales them; `seed` is that of what the autoencoder samples."""
        return encode(self._pipeline.vae, to_pixels(image.convert("RGB")), [torch.Generator().manual_seed(seed)])

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """The pictures of latents [batch, channels, height, width] as sampling scales them."""
        images: list[Image.Image] = self._pipeline.image_processor.postprocess(self._pixels(latents), output_type="pil")
        return images

    def _pixels(self, latents: Tensor) -> Tensor:
        with self._packing.over(self._pipeline.vae):
            return decode(self._pipeline.vae, latents)


def _same_length(one: Conditioning, other: Conditioning) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens and masks of both, padded with masked zeros to the longer one."""
    length = max(one.tokens.shape[1], other.tokens.shape[1])

    def padded(value: Conditioning) -> tuple[Tensor, Tensor]:
        short = length - value.tokens.shape[1]
        return nn.functional.pad(value.tokens, (0, 0, 0, short)), nn.functional.pad(value.mask, (0, short))

    return (*padded(one), *padded(other))


def load(entry: Entry, dtype: torch.dtype) -> PixArtBackbone:
    """The backbone in the entry's folder; raises WeightsError, IncompatibleError.

    Either `transformer/`, `vae/` and `scheduler/`, as diffusers lays them out, or the bare transformer (CommonArt). What a folder lacks is in the
    local folder that the part `vae` or `scheduler` names; without any scheduler settings they are SCHEDULE with what of it is among the parts.
    """
    folder = entry.folder
    place = folder if (folder / "config.json").is_file() else folder / "transformer"
    config = read_config(place)
    if config.get("norm_type", "ada_norm_single") != "ada_norm_single":
        raise WeightsError(f"{place} は PixArt ではありません / {place} is no PixArt transformer: its norm_type is {config['norm_type']!r}")
    if config.get("caption_channels") is None:
        raise WeightsError(f"{place} は文を読みません / {place} takes no text: its config has no caption_channels")
    channels = config.get("in_channels", 4)
    if config.get("out_channels") not in (None, channels, 2 * channels):
        raise IncompatibleError(
            "チャンネル数が合いません / "
            f"{place}: {config['out_channels']} channels out of {channels} in; wanted as many, or twice as many (learned sigma)"
        )
    transformer = filled(PixArtTransformer2DModel, place, dtype)
    transformer.register_to_config(out_channels=transformer.out_channels)  # the pipeline cannot read null
    vae = load_autoencoder(entry, transformer.config.in_channels, dtype)
    if (folder / "scheduler").is_dir() or "scheduler" in entry.parts:
        schedule = read_config(part_folder(entry, "scheduler"), "scheduler_config.json")
    else:
        schedule = SCHEDULE | {key: value for key, value in entry.parts.items() if key in SCHEDULE}
    tiny = load_tiny(entry, transformer.config.in_channels, dtype)
    return PixArtBackbone(entry.name, transformer, vae, schedule, entry.default, preview_vae=tiny)


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
