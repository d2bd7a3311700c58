"""Those bench-speed compares with: stock diffusers pipelines on the same weights, and OpenVINO and stable-diffusion.cpp where they are installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from jpgen.backbones import load_backbone
from jpgen.backbones.schedulers import make_scheduler
from jpgen.catalog import Entry
from jpgen.protocols import TextEncoder
from jpgen.types import Conditioning, SamplingConfig

DIFFUSERS_TOKENS = 300
"""Tokens that PixArt's own `encode_prompt` fills every prompt with."""


class Plain:
    """diffusers as it is: its stock pipeline called with embeddings, prompt and negative prompt encoded by a call each, weights as it lays them."""

    def __init__(self, pipeline: Any, encoder: TextEncoder, schedule: dict[str, Any], *, filled: int = 0) -> None:
        """`schedule`: the model's scheduler settings; `filled`: tokens that every PixArt prompt is filled up to, 0: none."""
        self._pipeline = pipeline
        self._schedule = schedule
        self._encoder = encoder
        self._filled = filled
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def opened(cls, entry: Entry, encoder: TextEncoder, dtype: torch.dtype, *, filled: int = 0) -> Plain:
        """With weights of its own, of this number type."""
        backbone: Any = load_backbone(entry, dtype)
        for part in backbone._pipeline.components.values():
            if isinstance(part, torch.nn.Module):
                part.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        return cls(backbone._pipeline, encoder, backbone._schedule, filled=filled)

    @classmethod
    def beside(cls, backbone: Any, encoder: TextEncoder) -> Plain:
        """On the U-Net that jpgen has open, where memory is too short for two: its layout (channels last) stays; the autoencoder is a copy."""
        pipeline = backbone._pipeline
        vae = copy.deepcopy(pipeline.vae).to(memory_format=torch.contiguous_format)
        return cls(type(pipeline)(**{**pipeline.components, "vae": vae}, add_watermarker=False), encoder, backbone._schedule)

    @torch.inference_mode()
    def draw(self, text: str, seeds: Sequence[int], config: SamplingConfig) -> np.ndarray:
        """The pictures, uint8 [rows, height, width, 3]; the empty text is the negative prompt, zeros where SDXL's states stand for it."""
        pipeline, rows = self._pipeline, len(seeds)
        pipeline.scheduler = make_scheduler(config.scheduler, self._schedule)
        denoiser = pipeline.components.get("unet") or pipeline.transformer
        wanted = self._encoder.encode([text])
        unwanted = self._encoder.encode([""]) if config.guidance_scale > 1 else wanted
        side = pipeline.vae_scale_factor
        shape = (1, denoiser.config.in_channels, config.height // side, config.width // side)
        noise = torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        given = self._of_pixart(wanted, unwanted) if "transformer" in pipeline.components else _of_sdxl(wanted)
        made = pipeline(
            prompt=None, **{name: value.repeat_interleave(rows, 0).to(denoiser.dtype if value.is_floating_point() else None)
                            for name, value in given.items()},
            latents=noise.to(denoiser.dtype), num_inference_steps=config.steps, guidance_scale=float(config.guidance_scale), height=config.height,
            width=config.width, output_type="np", **({"use_resolution_binning": False, "negative_prompt": None} if len(given) == 4 else {}),
        ).images  # fmt: skip
        return np.asarray((made * 255).round().astype("uint8"))

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> np.ndarray:
        """The pictures of latents as the denoiser sees them, uint8 [rows, height, width, 3]."""
        pipeline = self._pipeline
        made = pipeline.vae.decode(latents.to(pipeline.vae.dtype) / pipeline.vae.config.scaling_factor).sample
        return np.asarray((pipeline.image_processor.postprocess(made, output_type="np") * 255).round().astype("uint8"))

    def _of_pixart(self, wanted: Conditioning, unwanted: Conditioning) -> dict[str, Tensor]:
        longest = max(self._filled, wanted.tokens.shape[1], unwanted.tokens.shape[1])
        given = {}
        for prefix, value in (("", wanted), ("negative_", unwanted)):
            short = longest - value.tokens.shape[1]
            given[f"{prefix}prompt_embeds"] = pad(value.tokens, (0, 0, 0, short))
            given[f"{prefix}prompt_attention_mask"] = pad(value.mask, (0, short))
        return given


def _of_sdxl(wanted: Conditioning) -> dict[str, Tensor]:
    given = {"prompt_embeds": wanted.tokens, "negative_prompt_embeds": torch.zeros_like(wanted.tokens)}
    if wanted.pooled is not None:
        given |= {"pooled_prompt_embeds": wanted.pooled, "negative_pooled_prompt_embeds": torch.zeros_like(wanted.pooled)}
    return given


class PixArtStep(torch.nn.Module):
    """One forward of a PixArt transformer, its tensors in the order of a call: latents, text states, mask, time."""

    def __init__(self, transformer: torch.nn.Module) -> None:
        super().__init__()
        self.inner = transformer

    def forward(self, latents: Tensor, text: Tensor, mask: Tensor, time: Tensor) -> Tensor:
        """The velocity or noise [batch, channels, height, width]."""
        given = {"encoder_hidden_states": text, "encoder_attention_mask": mask, "timestep": time, "return_dict": False}
        made: Tensor = self.inner(latents, added_cond_kwargs={"resolution": None, "aspect_ratio": None}, **given)[0]
        return made


class SdxlStep(torch.nn.Module):
    """One forward of SDXL's U-Net, its tensors in the order of a call: latents, text states, pooled state, sizes, time."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.inner = unet

    def forward(self, latents: Tensor, text: Tensor, pooled: Tensor, sizes: Tensor, time: Tensor) -> Tensor:
        """The noise [batch, channels, height, width]."""
        added = {"text_embeds": pooled, "time_ids": sizes}
        made: Tensor = self.inner(latents, time, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
        return made


def openvino_forward(step: torch.nn.Module, inputs: Sequence[Tensor]) -> Callable[[], np.ndarray] | None:
    """This step by OpenVINO on these fp32 inputs, static shapes, as many threads as torch has; None: OpenVINO is not installed.

    Weights of bf16 are read as they are and multiplied in bf16.
    """
    if importlib.util.find_spec("openvino") is None:
        return None
    import openvino
    from openvino.frontend.pytorch import patch_model

    settings: dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
    step = copy.deepcopy(step).eval()  # it is patched
    if next(step.parameters()).dtype == torch.bfloat16:
        getattr(patch_model, "__make_16bit_traceable")(step)
        settings["INFERENCE_PRECISION_HINT"] = "bf16"
    with torch.no_grad():
        model = openvino.convert_model(step, example_input=tuple(inputs), input=[tuple(one.shape) for one in inputs])
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    arrays = [one.numpy() for one in inputs]
    return lambda: np.asarray(compiled(arrays)[0])


class Cpp:
    """stable-diffusion.cpp on a single file, its weights in fp16: it draws from the noise and the sigmas that jpgen draws from."""

    def __init__(self, file: Path, schedule: dict[str, Any]) -> None:
        """`schedule`: the model's scheduler settings. Raises ImportError without the package, ValueError for a file that it cannot open."""
        from stable_diffusion_cpp import StableDiffusion

        self._schedule = schedule
        self._model = StableDiffusion(
            model_path=str(file), wtype="f16", n_threads=torch.get_num_threads(), rng_type="cpu", sampler_rng_type="cpu", vae_decode_only=True,
            verbose=False,
        )  # fmt: skip

    def draw(self, text: str, seed: int, config: SamplingConfig, *, on_step: Callable[[], None]) -> np.ndarray:
        """The picture, uint8 [height, width, 3], without guidance or with it; `on_step` is called after every step. Euler's samplers alone."""
        scheduler = make_scheduler(config.scheduler, self._schedule)
        scheduler.set_timesteps(config.steps)
        made = self._model.generate_image(
            prompt=text, width=config.width, height=config.height, cfg_scale=max(1.0, config.guidance_scale), sample_method="euler",
            sample_steps=config.steps, sigmas=", ".join(map(str, scheduler.sigmas.tolist())), seed=seed,
            progress_callback=lambda step, _steps, _seconds: on_step() if step else None,
        )  # fmt: skip
        return np.asarray(made[0].convert("RGB"))


def absent() -> list[str]:
    """The rivals that are not installed."""
    known = {"openvino": "OpenVINO", "stable_diffusion_cpp": "stable-diffusion.cpp"}
    return [title for module, title in known.items() if importlib.util.find_spec(module) is None]
