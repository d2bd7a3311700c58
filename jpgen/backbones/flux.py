"""FLUX.1 backbones (schnell, dev): diffusers' FluxPipeline on explicit embeddings, tokens of T5 and a pooled state of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    FlowMatchEulerDiscreteScheduler,
    FluxControlNetPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift, retrieve_timesteps
from PIL import Image
from torch import Tensor

from jpgen.backbones import controlnet
from jpgen.backbones.latents import decode
from jpgen.backbones.loading import filled, load_autoencoder, part_folder, read_config
from jpgen.backbones.passes import is_guided, passes
from jpgen.backbones.preview import Preview, load_tiny
from jpgen.backbones.schedulers import OWN, make_scheduler
from jpgen.backbones.starting import begin, make_start, paste
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, IncompatibleError, SettingError
from jpgen.lora import DENOISER
from jpgen.pictures import Fitted
from jpgen.types import Conditioning, ConditioningSpec, Control, InitImage, SamplingConfig, Step, StepCallback


class FluxBackbone:
    """A FLUX.1 transformer and its autoencoder.

    A transformer with a guidance embedding (dev) is told the guidance scale; for one without (schnell) a scale above 1 is classifier-free guidance.
    """

    takes = frozenset({"init", "mask", "controls"})

    def __init__(
        self, name: str, transformer: FluxTransformer2DModel, vae: Any, schedule: dict[str, Any], default: SamplingConfig, *,
        preview_vae: AutoencoderTiny | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.default = default
        self.spec = ConditioningSpec(width=transformer.config.joint_attention_dim, pooled_width=transformer.config.pooled_projection_dim)
        self._schedule = schedule
        self.ignores_negative = bool(transformer.config.guidance_embeds)
        self._pipeline = FluxPipeline(
            scheduler=make_scheduler(OWN, schedule), vae=vae.eval(), transformer=transformer.eval(),
            text_encoder=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None,
        )  # fmt: skip
        self._pipeline.set_progress_bar_config(disable=True)
        self._preview = Preview(self._pixels, vae, preview_vae)
        self.size_multiple = 2 * self._pipeline.vae_scale_factor
        self.family = "flux"
        self.modules = {DENOISER: transformer}
        self._loaded: controlnet.Loaded = {}

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
        controls: Sequence[Control] = (),
    ) -> list[Image.Image]:
        """One picture a row, its noise from the generator in fp32. FLUX sees every token: a row cannot be masked further than the others.

        With `init` sampling begins from that picture (see `jpgen.backbones.starting`); `controls` are followed, with the scheduler "own". Raises
        IncompatibleError for rows of unlike masks, or, with classifier-free guidance, for prompts and negative ones of unlike lengths.
        """
        nets = controlnet.nets_of(controls, self._loaded, lambda path: controlnet.load_for_flux(path, self._pipeline.transformer, self.name))
        pipeline, dtype = self._controlled(nets, config) if nets else self._pipeline, self._pipeline.transformer.dtype
        total = config.steps
        scheduler = make_scheduler(config.scheduler, self._schedule)
        pipeline.scheduler = scheduler
        guided = not self.ignores_negative and is_guided(config)
        tokens, unwanted = _seen(conditioning), _seen(negative) if guided else None
        if unwanted is not None and unwanted.shape != tokens.shape:
            raise IncompatibleError(
                f"プロンプトとネガティブの長さが違います / FLUX wants negative prompts as long as the prompts, got {unwanted.shape[1]} tokens and "
                f"{tokens.shape[1]}: encode both in one call"
            )
        factor, channels = pipeline.vae_scale_factor, pipeline.transformer.config.in_channels // 4
        rows, columns = config.height // factor, config.width // factor

        def pack(latents: Tensor) -> Tensor:
            return pipeline._pack_latents(latents, len(latents), channels, rows, columns)

        kept: Fitted | None = None
        if init is None:
            noise = pack(torch.cat([torch.randn(1, channels, rows, columns, generator=generator) for generator in generators]))
        else:
            start = make_start(init, config, pipeline.vae, generators, factor=factor, pack=pack)
            kept, total = start.init, start.steps
            if not total:
                return paste(self._decode(start.clean.to(pipeline.vae.device), config), kept)
            noise = begin(scheduler, start, lambda scheduler: _set_timesteps(scheduler, config.steps, rows * columns // 4))

        def after_step(_pipeline: Any, index: int, _time: Any, _kwargs: dict[str, Any]) -> dict[str, Any]:
            if on_step and on_step(Step(index + 1, total, lambda: paste(self._previewed(scheduler.model_outputs[-1], config), kept))) is False:
                raise Cancelled(f"{index + 1}/{total} ステップで中止しました / cancelled at step {index + 1} of {total}")
            return {}

        device = pipeline._execution_device
        with passes(pipeline.transformer, config, scheduler, guided=guided, in_turn=True):
            latents = pipeline(
                prompt_embeds=tokens.to(device, dtype), pooled_prompt_embeds=_pooled(conditioning, dtype).to(device),
                negative_prompt_embeds=None if unwanted is None else unwanted.to(device, dtype),
                negative_pooled_prompt_embeds=_pooled(negative, dtype).to(device) if guided else None,
                true_cfg_scale=config.guidance_scale if guided else 1.0, guidance_scale=config.guidance_scale,
                latents=noise.to(device, dtype), generator=list(generators),
                num_inference_steps=config.steps, height=config.height, width=config.width, output_type="latent", callback_on_step_end=after_step,
                **(controlnet.arguments(controls, config, "control_image") if nets else {}),
            ).images  # fmt: skip
        return paste(self._decode(latents, config), kept)

    def _controlled(self, nets: list[Any], config: SamplingConfig) -> Any:
        """The pipeline of the same parts that asks these ControlNets too."""
        if not isinstance(make_scheduler(config.scheduler, self._schedule), FlowMatchEulerDiscreteScheduler):
            raise SettingError(
                f"FLUX の ControlNet では {config.scheduler} は使えません / with a ControlNet FLUX cannot run {config.scheduler}: use {OWN!r}"
            )
        pipeline = FluxControlNetPipeline(**self._pipeline.components, controlnet=nets)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _decode(self, latents: Tensor, config: SamplingConfig) -> list[Image.Image]:
        images: list[Image.Image] = self._pipeline.image_processor.postprocess(self._pixels(self._unpacked(latents, config)), output_type="pil")
        return images

    def _previewed(self, latents: Tensor, config: SamplingConfig) -> list[Image.Image]:
        return self._preview.images(self._unpacked(latents, config), config)

    def _unpacked(self, latents: Tensor, config: SamplingConfig) -> Tensor:
        unpacked: Tensor = self._pipeline._unpack_latents(latents, config.height, config.width, self._pipeline.vae_scale_factor)
        return unpacked

    def _pixels(self, latents: Tensor) -> Tensor:
        return decode(self._pipeline.vae, latents)


def _set_timesteps(scheduler: Any, steps: int, tokens: int) -> None:
    """Set the scheduler as FluxPipeline does for a picture of so many tokens."""
    told = scheduler.config.get
    sigmas = None if told("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
    shift = (told("base_image_seq_len", 256), told("max_image_seq_len", 4096), told("base_shift", 0.5), told("max_shift", 1.15))
    retrieve_timesteps(scheduler, steps, sigmas=sigmas, mu=calculate_shift(tokens, *shift))


def _seen(conditioning: Conditioning) -> Tensor:
    """The tokens without those masked in every row; raises IncompatibleError if more are masked."""
    kept = conditioning.mask.any(dim=0)
    if not conditioning.mask[:, kept].all():
        raise IncompatibleError(
            "FLUX はマスクを使えません / FLUX takes no masks, and the rows have unlike lengths: fill them with the encoder's own filling"
        )
    return conditioning.tokens[:, kept]


def _pooled(conditioning: Conditioning, dtype: torch.dtype) -> Tensor:
    if conditioning.pooled is None:
        raise IncompatibleError("FLUX には pooled が要ります / FLUX wants a pooled state beside the tokens: use the encoder kind 'flux'")
    return conditioning.pooled.to(dtype)


def load(entry: Entry, dtype: torch.dtype) -> FluxBackbone:
    """The backbone in the entry's folder, as diffusers lays it out; `vae` and `scheduler` may be parts. Raises WeightsError, IncompatibleError."""
    transformer = filled(FluxTransformer2DModel, part_folder(entry, "transformer"), dtype)
    vae = load_autoencoder(entry, transformer.config.in_channels // 4, dtype)
    tiny = load_tiny(entry, transformer.config.in_channels // 4, dtype)
    schedule = read_config(part_folder(entry, "scheduler"), "scheduler_config.json")
    return FluxBackbone(entry.name, transformer, vae, schedule, entry.default, preview_vae=tiny)


def toy() -> FluxBackbone:
    """One double and one single layer of random weights for conditioning of width 32, pooled 32; pictures of 64 pixels."""
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
        pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, block_out_channels=(8, 8), layers_per_block=1,
        latent_channels=4, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    schedule = {"_class_name": FlowMatchEulerDiscreteScheduler.__name__, "num_train_timesteps": 1000, "shift": 1.0, "use_dynamic_shifting": False}
    default = SamplingConfig(width=64, height=64, steps=2, guidance_scale=1.0, scheduler=OWN)
    return FluxBackbone("toy-flux", transformer, vae, schedule, default)
