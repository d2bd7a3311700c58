"""What Stable Diffusion 1, 2 and XL share: a U-Net on explicit embeddings, run by diffusers' own pipelines, and its adapters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from jpgen.backbones import controlnet, single_file
from jpgen.backbones.latents import decode, encode, to_pixels
from jpgen.backbones.loading import filled, load_autoencoder, part_folder, read_config
from jpgen.backbones.packing import packing
from jpgen.backbones.passes import is_guided, passes
from jpgen.backbones.preview import Preview, load_tiny
from jpgen.backbones.schedulers import make_scheduler
from jpgen.backbones.starting import begin, latent_mask, make_start, paste
from jpgen.backbones.tiling import seamless
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, IncompatibleError, SettingError, WeightsError
from jpgen.lora import DENOISER, read_adapter
from jpgen.lora_modules import AdaptedModules
from jpgen.pictures import Fitted
from jpgen.types import Conditioning, ConditioningSpec, Control, InitImage, SamplingConfig, Step, StepCallback

SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": "epsilon",
    "timestep_spacing": "leading", "steps_offset": 1, "clip_sample": False, "set_alpha_to_one": False, "rescale_betas_zero_snr": False,
}  # fmt: skip
"""The scheduler settings of Stable Diffusion, for a model that comes without any. An entry's parts of these names replace a model's own."""

TIME_IDS = 6
"""Numbers that tell SDXL of sizes: of the original and of the target, and where it was cut."""


class UnetBackbone:
    """A U-Net, an autoencoder and scheduler settings, run by StableDiffusionPipeline or, where sizes are embedded, StableDiffusionXLPipeline.

    `zeros_for_empty`: SDXL learnt that no negative prompt is zeros, not the states of an empty text. A U-Net that was trained to inpaint (it takes
    the mask and the masked picture beside the latents) wants an InitImage.
    """

    takes = frozenset({"init", "mask", "controls", "tile"})

    def __init__(
        self, name: str, unet: UNet2DConditionModel, vae: Any, schedule: dict[str, Any], default: SamplingConfig, *,
        zeros_for_empty: bool = True, preview_vae: AutoencoderTiny | None = None,
    ) -> None:  # fmt: skip
        self.name = name
        self.default = default
        self._schedule = schedule
        scheduler = make_scheduler(default.scheduler, schedule)
        parts = {"vae": vae.eval(), "unet": unet.eval(), "scheduler": scheduler, "text_encoder": None, "tokenizer": None}
        self._pipeline: Any
        if unet.config.addition_embed_type == "text_time":
            pooled = unet.config.projection_class_embeddings_input_dim - TIME_IDS * unet.config.addition_time_embed_dim
            self.spec = ConditioningSpec(width=unet.config.cross_attention_dim, pooled_width=pooled)
            self.zeros_for_empty = zeros_for_empty
            self._pipeline = StableDiffusionXLPipeline(**parts, text_encoder_2=None, tokenizer_2=None, add_watermarker=False)
        else:
            self.spec = ConditioningSpec(width=unet.config.cross_attention_dim)
            self.zeros_for_empty = False
            self._pipeline = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)
        self._pipeline.set_progress_bar_config(disable=True)
        self._preview, self._packing = Preview(self._pixels, vae, preview_vae), packing(unet.dtype)
        self.size_multiple = self._pipeline.vae_scale_factor
        self.family = "sd" if self.spec.pooled_width is None else "sdxl"
        self.modules = {DENOISER: unet}
        self.inpaints = unet.config.in_channels > unet.config.out_channels
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
        tile: bool = False,
    ) -> list[Image.Image]:
        """One picture a row. `negative` has the rows of `conditioning`; noise comes from the generators in fp32, so no batch changes it.

        With a guidance scale of 1 or less the U-Net does not see the negative at all. With `init` sampling begins from that picture (see
        `jpgen.backbones.starting`); `controls` are followed; with `tile` the picture continues over its edges without a seam.
        """
        nets = controlnet.nets_of(controls, self._loaded, lambda path: controlnet.load_for_unet(path, self._pipeline.unet, self.name))
        if tile:
            with seamless(self._pipeline.vae, self._pipeline.unet, *nets):
                return self.sample(conditioning, negative, config, generators=generators, on_step=on_step, init=init, controls=controls)
        pipeline = self._controlled(nets) if nets else self._pipeline
        scheduler = make_scheduler(config.scheduler, self._schedule)
        pipeline.scheduler = scheduler
        factor, total = pipeline.vae_scale_factor, config.steps
        shape = (1, pipeline.unet.config.out_channels, config.height // factor, config.width // factor)
        beside = None
        kept: Fitted | None = None
        if init is None:
            self._require_text_to_image()
            noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators])
        else:
            start = make_start(init, config, pipeline.vae, generators, factor=factor, blend=not self.inpaints)
            kept, total = start.init, start.steps
            if not total:
                return paste(self.decode(start.clean.to(pipeline.vae.device)), kept)
            beside = self._beside(kept, generators) if self.inpaints else None
            noise = begin(scheduler, start, lambda scheduler: scheduler.set_timesteps(config.steps), blend=not self.inpaints)

        def after_step(_pipeline: object, index: int, _time: Tensor, _latents: dict[str, Tensor]) -> dict[str, Tensor]:
            if on_step and on_step(Step(index + 1, total, lambda: paste(self._preview.images(scheduler.model_outputs[-1], config), kept))) is False:
                raise Cancelled(f"{index + 1}/{total} ステップで中止しました / cancelled at step {index + 1} of {total}")
            return {}

        embedded = pipeline.unet.config.time_cond_proj_dim is not None  # the U-Net is told the scale, as LCM's is
        guided = is_guided(config) and not embedded
        embeddings, mask = self._embeddings(conditioning, negative if guided else None)
        scale = float(config.guidance_scale) if guided or embedded else 1.0
        with (
            _masked(pipeline.unet, mask), _told(pipeline.unet, beside), controlnet.masked(nets, mask),
            passes(pipeline.unet, config, scheduler, guided=guided), self._packing.over(pipeline.unet),
        ):  # fmt: skip
            latents = pipeline(
                prompt=None, **embeddings, generator=list(generators), latents=noise.to(pipeline.unet.dtype), num_inference_steps=config.steps,
                guidance_scale=scale, height=config.height, width=config.width, output_type="latent",
                callback_on_step_end=after_step, **(controlnet.arguments(controls, config, "image") if nets else {}),
            ).images  # fmt: skip
        return paste(self.decode(latents), kept)

    def _require_text_to_image(self) -> None:
        if self.inpaints:
            raise IncompatibleError(
                f"{self.name} は絵を描き直すモデルです。init=InitImage(絵, mask=マスク) を渡してください / {self.name} was trained to inpaint: give "
                "it a picture and a mask, init=InitImage(…, mask=…), or choose a text-to-image model"
            )

    def _controlled(self, nets: list[Any]) -> Any:
        """The pipeline of the same parts that asks these ControlNets too."""
        kind: Any
        if self.spec.pooled_width is None:
            kind, extra = StableDiffusionControlNetPipeline, {"requires_safety_checker": False}
        else:
            kind, extra = StableDiffusionXLControlNetPipeline, {"add_watermarker": False}
        pipeline = kind(**self._pipeline.components, controlnet=nets, **extra)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _beside(self, kept: Fitted, generators: Sequence[torch.Generator]) -> Tensor:
        """What a U-Net trained to inpaint sees beside the latents: the mask and the latents of the picture where it stays, grey elsewhere."""
        mask = kept.mask or Image.new("L", kept.image.size, "white")
        around = encode(self._pipeline.vae, to_pixels(kept.image) * (1 - latent_mask(mask, 1)), generators)
        return torch.cat([latent_mask(mask, self._pipeline.vae_scale_factor).expand(len(around), -1, -1, -1), around], dim=1)

    def _embeddings(self, conditioning: Conditioning, negative: Conditioning | None) -> tuple[dict[str, Tensor], Tensor]:
        """What the pipeline is given, filled with masked zeros to one length, and the masks in the order in which it runs them."""
        both = [("", conditioning)] if negative is None else [("negative_", negative), ("", conditioning)]
        length, device = max(value.tokens.shape[1] for _, value in both), self._pipeline._execution_device
        made: dict[str, Tensor] = {}
        masks = []
        for prefix, value in both:
            if (value.pooled is None) != (self.spec.pooled_width is None):
                raise IncompatibleError(
                    f"{self.name}: プーリング状態が合いません / {self.name} wants a pooled state of width {self.spec.pooled_width}, "
                    f"got {value.spec.pooled_width}: use the model's own encoder"
                )
            short = length - value.tokens.shape[1]
            made[f"{prefix}prompt_embeds"] = pad(value.tokens, (0, 0, 0, short)).to(device, self._pipeline.unet.dtype)
            masks.append(pad(value.mask, (0, short)).to(device))
            if value.pooled is not None:
                made[f"{prefix}pooled_prompt_embeds"] = value.pooled.to(device, self._pipeline.unet.dtype)
        return made, torch.cat(masks)

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
        return decode(self._pipeline.vae, latents)


@contextmanager
def _masked(unet: UNet2DConditionModel, mask: Tensor) -> Iterator[None]:
    """Lets the U-Net attend to no token of mask 0; the pipelines, made for CLIP's full windows, have no way to say so."""
    if bool(mask.all()):
        yield
        return
    handle = unet.register_forward_pre_hook(lambda _, args, kwargs: (args, {**kwargs, "encoder_attention_mask": mask}), with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _told(unet: UNet2DConditionModel, beside: Tensor | None) -> Iterator[None]:
    """Lets the U-Net see these channels beside the latents, in every row it is asked for."""
    if beside is None:
        yield
        return

    def add(_unet: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        sample = args[0]
        return (torch.cat([sample, beside.to(sample).repeat(len(sample) // len(beside), 1, 1, 1)], dim=1), *args[1:]), kwargs

    handle = unet.register_forward_pre_hook(add, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def load_unet(entry: Entry, dtype: torch.dtype) -> UnetBackbone:
    """The backbone of an entry: a folder as diffusers lays it out, or one `.safetensors` file in the layout of stable-diffusion-webui.

    Parts: `unet` and `vae` (a folder or file in place of the model's own), `preview_vae` (see `load_tiny`), `adapter` (a LoRA file, fused into the
    U-Net) with `adapter_scale`, and what of SCHEDULE the model's own settings do not tell. Raises WeightsError, IncompatibleError.
    """
    unet_at = _part(entry, "unet")
    unet = single_file.load_unet(unet_at, dtype, entry.folder) if unet_at.is_file() else filled(UNet2DConditionModel, unet_at, dtype)
    family = "sdxl" if unet.config.addition_embed_type == "text_time" else "sd"
    if family != entry.family:
        raise WeightsError(
            f"{entry.name}: {unet_at} は {family} の U-Net です / the U-Net in {unet_at} is of the family {family}, the entry says {entry.family}: "
            f"set family = {family!r}"
        )
    channels = unet.config.out_channels
    if unet.config.in_channels not in (channels, 2 * channels + 1):  # latents; latents, mask and masked picture
        raise IncompatibleError(
            f"{entry.name}: 文から描く U-Net でも、描き直す U-Net でもありません / {unet_at} takes {unet.config.in_channels} channels (editing or "
            f"enlarging), wanted {channels} (text to image) or {2 * channels + 1} (inpainting): give another model"
        )
    if "adapter" in entry.parts:
        _fuse(unet, entry, family)
    vae_at = _part(entry, "vae")
    if vae_at.is_file():
        vae = single_file.load_vae(vae_at, dtype, family).to(memory_format=torch.channels_last)
        if vae.config.latent_channels != channels:
            raise IncompatibleError(
                f"{entry.name}: VAE {vae_at} とつながりません / the autoencoder {vae_at} has {vae.config.latent_channels} latent channels, the U-Net "
                f"{channels}: give one of {family}"
            )
    else:
        vae = load_autoencoder(entry, channels, dtype)
    index = entry.folder / "model_index.json"
    zeros = not index.is_file() or entry.place.is_file() or bool(read_config(entry.folder, index.name).get("force_zeros_for_empty_prompt", True))
    tiny = load_tiny(entry, channels, dtype)
    unet = unet.to(memory_format=torch.channels_last)
    return UnetBackbone(entry.name, unet, vae, _schedule(entry), entry.default, zeros_for_empty=zeros, preview_vae=tiny)


def _part(entry: Entry, name: str) -> Path:
    """Where the U-Net or the autoencoder is: the file or folder that the part tells, else the model's own file or folder."""
    if told := entry.parts.get(name):
        place = entry.folder / Path(str(told)).expanduser()
        return place if place.is_file() else part_folder(entry, name)
    return entry.place if entry.place.is_file() else part_folder(entry, name)


def _schedule(entry: Entry) -> dict[str, Any]:
    if entry.place.is_file():
        own = {**SCHEDULE, **single_file.prediction(entry.place)}
    elif (entry.folder / "scheduler" / "scheduler_config.json").is_file():
        own = read_config(entry.folder / "scheduler", "scheduler_config.json")
    else:
        own = dict(SCHEDULE)
    return own | {key: value for key, value in entry.parts.items() if key in SCHEDULE}


def _fuse(unet: UNet2DConditionModel, entry: Entry, family: str) -> None:
    """Add the adapter file of the part `adapter`, times `adapter_scale`, to the weights; raises WeightsError if all of it is not for this U-Net."""
    path = entry.folder / Path(str(entry.parts["adapter"])).expanduser()
    scale = entry.parts.get("adapter_scale", 1.0)
    if not isinstance(scale, int | float):
        raise SettingError(f"{entry.name}: adapter_scale={scale!r} は数にしてください / must be a number: correct it in the catalogue")
    AdaptedModules(entry.name, family, {DENOISER: unet}).fuse([(read_adapter(path), float(scale))])


def toy_vae() -> AutoencoderKL:
    """Random weights: pictures of 8 pixels a latent, as in every Stable Diffusion."""
    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=64,
    )  # fmt: skip
