"""Every other text-to-image pipeline of diffusers (Z-Image, Qwen-Image, Sana, Kolors, FLUX.2 …): texts go in, its own encoders read them.

Such pipelines give their embeddings in as many forms as there are pipelines; so no Conditioning passes here, and attention weights have no effect.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from jpgen.backbones.caches import cached
from jpgen.backbones.latents import decode
from jpgen.backbones.preview import Preview
from jpgen.backbones.schedulers import OWN, make_scheduler
from jpgen.backbones.starting import paste
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, IncompatibleError, SettingError, WeightsError
from jpgen.pictures import Fitted, fitted, steps_of
from jpgen.safety import check_safetensors, read_json, refuse_pickles
from jpgen.types import InitImage, SamplingConfig, Step, StepCallback

LIBRARIES = ("diffusers", "transformers")
"""Where the classes of a pipeline's parts may come from, besides the pipelines of diffusers themselves."""

DTYPE = "torch_dtype" if diffusers.__version__.startswith("0.41.") else "dtype"
"""What `from_pretrained` calls the number type."""


class DiffusersBackbone:
    """A stock pipeline of diffusers that takes prompts, asked for one picture at a time, so that none depends on its company."""

    def __init__(self, name: str, pipeline: Any, default: SamplingConfig, *, max_tokens: int | None = None) -> None:
        self.name = name
        self.default = default
        self._pipeline = pipeline
        self._max_tokens = max_tokens
        self._schedule = {"_class_name": type(pipeline.scheduler).__name__, **pipeline.scheduler.config}
        pipeline.set_progress_bar_config(disable=True)
        transformer = getattr(pipeline, "transformer", None)
        self._denoiser = transformer if transformer is not None else getattr(pipeline, "unet", None)
        self._shown = Preview(self._pixels, getattr(pipeline, "vae", None))
        patch = max(2, int(transformer.config.get("patch_size") or 2)) if transformer is not None else 1
        self.size_multiple = int(getattr(pipeline, "vae_scale_factor", 8)) * patch
        self.takes_adapters = hasattr(pipeline, "load_lora_weights") and hasattr(pipeline, "unload_lora_weights")

    @cached_property
    def takes(self) -> frozenset[str]:
        """What more it can draw from: "init", "mask", where diffusers has such a pipeline of the same parts."""
        return frozenset(self._beginning)

    @cached_property
    def _beginning(self) -> dict[str, Any]:
        """The pipelines of the same parts that begin from a picture, by diffusers' own naming: XPipeline, XImg2ImgPipeline, XInpaintPipeline.

        (AutoPipeline knows them too, but imports every pipeline there is, and `from_pipe` casts what must stay in fp32.)
        """
        found = {}
        parts = {**self._pipeline.config, **self._pipeline.components}
        for what, form, needs in (("init", "Img2Img", {"image"}), ("mask", "Inpaint", {"image", "mask_image"})):
            kind = getattr(diffusers, type(self._pipeline).__name__.replace("Pipeline", f"{form}Pipeline"), None)
            if kind is None or not needs | {"prompt", "strength"} <= inspect.signature(kind.__call__).parameters.keys():
                continue
            wanted = inspect.signature(kind.__init__).parameters
            found[what] = kind(**{name: part for name, part in parts.items() if name in wanted})
            found[what].set_progress_bar_config(disable=True)
        return found

    @torch.inference_mode()
    def sample_texts(
        self,
        texts: Sequence[str],
        negatives: Sequence[str],
        config: SamplingConfig,
        *,
        generators: Sequence[torch.Generator],
        on_step: StepCallback | None = None,
        init: InitImage | None = None,
    ) -> list[Image.Image]:
        """One picture a text, one after the other; steps are counted through all of them.

        With `init` sampling begins from that picture, in the pipeline that diffusers has for it; strength 0 is that picture.
        `preview()` is empty where latents are not what the autoencoder takes as they are (Qwen-Image, FLUX.2 …). Raises SettingError for a sampler
        that the pipeline cannot use.
        """
        if (config.guidance_start, config.guidance_stop) != (0, 1):
            raise SettingError(
                f"{self.name} では guidance_start と guidance_stop を変えられません / the pipeline of {self.name} guides on all steps: "
                "leave guidance_start at 0 and guidance_stop at 1"
            )
        images: list[Image.Image] = []
        kept, run = (None, config.steps) if init is None else (fitted(init, config.width, config.height), steps_of(config.steps, init.strength))
        if kept is not None and not run:
            return [kept.image.copy() for _ in texts]
        pipeline = self._pipeline if kept is None else self._beginning["init" if kept.mask is None else "mask"]
        for row, (text, negative, generator) in enumerate(zip(texts, negatives, generators, strict=True)):
            before, total = row * run, len(texts) * run

            def watched(index: int, before: int = before, total: int = total) -> None:
                step = Step(before + index + 1, total, lambda: self._preview(config))
                if on_step and on_step(step) is False:
                    raise Cancelled(f"{step.index}/{total} ステップで中止しました / cancelled at step {step.index} of {total}")

            self._pipeline.scheduler = pipeline.scheduler = make_scheduler(config.scheduler, self._schedule)
            takes = frozenset(inspect.signature(pipeline.__call__).parameters)
            arguments = self._arguments(text, negative, config, takes) | (_of_picture(kept, config) if kept else {})
            images.append(self._run(pipeline, arguments, takes, generator, watched, config))
        return paste(images, kept)

    @contextmanager
    def adapted(self, files: Sequence[tuple[Path, float]]) -> Iterator[None]:
        """For the time of the block the pipeline runs with these LoRAs, each times its weight, loaded by diffusers beside its own weights.

        Raises WeightsError for one that does not fit, or of which anything fits nothing.
        """
        if not files:
            yield
            return
        pipeline, names = self._pipeline, [f"adapter_{i}" for i in range(len(files))]
        try:
            for name, (path, _) in zip(names, files, strict=True):
                self._load(path, name)
            pipeline.set_adapters(names, [weight for _, weight in files])
            yield
        finally:
            pipeline.unload_lora_weights()

    def _load(self, path: Path, name: str) -> None:
        said: list[str] = []
        watch = logging.Handler(logging.WARNING)
        watch.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
        logger = logging.getLogger("diffusers")
        logger.addHandler(watch)
        try:
            self._pipeline.load_lora_weights(str(path.parent), weight_name=path.name, adapter_name=name, local_files_only=True)
        except Exception as error:  # diffusers and peft raise ValueError, RuntimeError, KeyError … as they come
            raise WeightsError(
                f"{path} を {self.name} に重ねられません / the LoRA {path} does not fit {self.name}: {' '.join(str(error).split())[:300]}; "
                "choose one made for it"
            ) from error
        finally:
            logger.removeHandler(watch)
        loaded = any(name in names for names in self._pipeline.get_list_adapters().values())
        unexpected = [text for text in said if "unexpected keys" in text]
        if unexpected or not loaded:
            why = " ".join(unexpected[0].split())[:300] if unexpected else "none of its keys is for a part of this pipeline"
            raise WeightsError(f"{path} は {self.name} に合いません / the LoRA {path} does not fit {self.name}: {why}; choose one made for it")

    def _run(
        self, pipeline: Any, arguments: dict[str, Any], takes: frozenset[str], generator: torch.Generator, watched: Any, config: SamplingConfig
    ) -> Image.Image:
        def at_end(_pipeline: Any, index: int, _time: Any, _kwargs: dict[str, Any]) -> dict[str, Any]:
            watched(index)
            return {}

        if "callback_on_step_end" in takes:
            arguments["callback_on_step_end"] = at_end
        elif "callback" in takes:
            arguments["callback"] = lambda index, _time, _latents: watched(index)
        try:
            with cached(self._denoiser, config.cache):
                image: Image.Image = pipeline(**arguments, generator=generator, output_type="pil").images[0]
        except ValueError as error:
            if "set_timesteps" not in str(error):
                raise
            raise SettingError(
                f"サンプラー {config.scheduler} は {self.name} では使えません / scheduler {config.scheduler} cannot run this pipeline: use {OWN!r}"
            ) from error
        return image

    def _arguments(self, text: str, negative: str, config: SamplingConfig, takes: frozenset[str]) -> dict[str, Any]:
        """What of the settings this pipeline takes, under its names."""
        guided = config.guidance_scale > 1
        wanted: dict[str, Any] = {
            "prompt": text, "width": config.width, "height": config.height, "num_inference_steps": config.steps,
            "use_resolution_binning": False,  # the size that was asked for
            "clean_caption": False,  # the text that was asked for
        }  # fmt: skip
        distilled = "true_cfg_scale" in takes and getattr(self._pipeline.transformer.config, "guidance_embeds", False)
        if "true_cfg_scale" in takes and not distilled:  # guidance_scale is then a distilled model's, and not this one's
            wanted |= {"true_cfg_scale": config.guidance_scale if guided else 1.0}
            negative = negative or " "  # without any it would not guide
        else:
            wanted |= {"guidance_scale": config.guidance_scale}
        if guided and negative:
            wanted |= {"negative_prompt": negative}
        if self._max_tokens:
            wanted |= {"max_sequence_length": self._max_tokens}
        return {key: value for key, value in wanted.items() if key in takes}

    def _preview(self, config: SamplingConfig) -> list[Image.Image]:
        """The guess in the autoencoder's colours; none where this family does not know how."""
        guess = self._pipeline.scheduler.model_outputs[-1]
        known = getattr(getattr(self._pipeline, "vae", None), "config", {})
        if guess is None or guess.ndim != 4 or guess.shape[1] != known.get("latent_channels") or "scaling_factor" not in known:
            return []
        return self._shown.images(guess, config)

    def _pixels(self, latents: Tensor) -> Tensor:
        return decode(self._pipeline.vae, latents)


def _of_picture(kept: Fitted, config: SamplingConfig) -> dict[str, Any]:
    """What a pipeline is told of the picture it begins from; never so little that it would run no step."""
    least = (1 + 1e-6) / config.steps
    return {"image": kept.image, "strength": min(1.0, max(kept.strength, least)), **({"mask_image": kept.mask} if kept.mask else {})}


def load(entry: Entry, dtype: torch.dtype) -> DiffusersBackbone:
    """The pipeline in the entry's folder, as diffusers lays it out; the part `max_tokens` says how much of a text it reads.

    Nothing is fetched, no code of the folder runs, no pickle is opened. Raises WeightsError, IncompatibleError (it takes no prompt).
    """
    folder = entry.folder
    kind = _require_stock(folder, read_json(folder / "model_index.json"))
    variant = _require_sound(folder)
    try:
        pipeline = kind.from_pretrained(
            str(folder), variant=variant, use_safetensors=True, local_files_only=True, trust_remote_code=False, **{DTYPE: dtype}
        )
    except Exception as error:  # diffusers and transformers raise OSError, ValueError, TypeError, RuntimeError … as they come
        raise WeightsError(f"{folder}: {kind.__name__} を開けません / cannot open this {kind.__name__} ({error}); fetch the model again") from error
    if "prompt" not in inspect.signature(pipeline.__call__).parameters:
        raise IncompatibleError(f"{entry.name}: {type(pipeline).__name__} は文を読みません / {type(pipeline).__name__} takes no prompt")
    max_tokens = entry.parts.get("max_tokens")
    return DiffusersBackbone(entry.name, pipeline, entry.default, max_tokens=int(max_tokens) if max_tokens else None)


def _require_stock(folder: Path, index: dict[str, Any]) -> Any:
    """The class of the pipeline that model_index.json names; raises WeightsError if anything in it is not diffusers' or transformers'."""
    name = index.get("_class_name")
    kind = next((getattr(diffusers, found) for found in _from_text(name) if hasattr(diffusers, found)), None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, DiffusionPipeline)):
        raise WeightsError(
            f"{folder}: パイプライン {name!r} は diffusers のものではなく、付属のプログラムは動かしません / the pipeline {name!r} is not one of "
            "diffusers' own; code that comes with a model is never run: jpgen opens Japanese SDXL, rinna, CommonArt by the families sdxl, sd, pixart"
        )
    foreign = [
        f"{part} ({value[0]}.{value[1]})" for part, value in index.items()
        if isinstance(value, list) and len(value) == 2 and value[0] not in (None, *LIBRARIES) and not hasattr(diffusers.pipelines, str(value[0]))
    ]  # fmt: skip
    if foreign:
        raise WeightsError(
            f"{folder}: 付属のプログラムを使う部品があります / parts that want code of their own, which is never run: {', '.join(foreign)}; "
            "use a version of the model whose parts are diffusers' and transformers'"
        )
    return kind


def _from_text(name: str) -> tuple[str, str]:
    """The pipeline of the same model that begins with text alone, and itself (diffusers' AutoPipeline does so, but imports every pipeline)."""
    return name.replace("Img2Img", "").replace("Inpaint", ""), name


def _require_sound(folder: Path) -> str | None:
    """The variant to ask for, where a part has no other weights; raises WeightsError for a damaged file and a part of pickles alone."""
    variant = None
    for part in sorted(path for path in folder.iterdir() if path.is_dir()):
        refuse_pickles(part)
        files = sorted(part.glob("*.safetensors"))
        for file in files:
            check_safetensors(file)
        if files and all(".fp16" in file.name for file in files):
            variant = "fp16"
    return variant


def toy() -> DiffusersBackbone:
    """A Stable Diffusion of a few random weights that reads bytes; pictures of 64 pixels."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # what diffusers' own loading would make of a folder

    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]  # CLIP's names of the 256 bytes
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=77)
    torch.manual_seed(0)
    end = len(pieces) - 1
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(pieces), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
            bos_token_id=end - 1, eos_token_id=end, pad_token_id=end,
        )
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=32, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 8, 8),
        layers_per_block=1, latent_channels=4, norm_num_groups=4,
    )  # fmt: skip
    scheduler = PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1)
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(), text_encoder=encoder.eval(), tokenizer=tokenizer, unet=unet.eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return DiffusersBackbone("toy-diffusers", pipeline, SamplingConfig(width=64, height=64, steps=2, guidance_scale=2.0, scheduler="dpm++2m"))
