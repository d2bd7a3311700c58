"""The road, end to end: Japanese text in, a picture out."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from jpgen.adapters import Adapters, Loras, total_weights
from jpgen.backbones import load_backbone
from jpgen.emphasis import SpanEncoder, TokenEncoder
from jpgen.encoders import load_encoder
from jpgen.encoders.adapted import load_adapted
from jpgen.encoders.pairing import read_spec, require_backbone
from jpgen.encoders.remembered import Asked, Remembered
from jpgen.english import in_english, open_english
from jpgen.errors import IncompatibleError, SettingError
from jpgen.lora import Adapter
from jpgen.merged import open_model
from jpgen.models import weights_hash, with_vae
from jpgen.pictures import NO_SOURCES, UPSCALE_STRENGTH, Sources, counted, enlarged, file_hash
from jpgen.prompt.reading import read_prompt
from jpgen.prompt.syntax import parse_attention, without_weights
from jpgen.protocols import Backbone, TextBackbone, TextEncoder, Translator
from jpgen.routes import choose_route
from jpgen.safety import sha256_of
from jpgen.types import (
    NO_INPUTS,
    AdapterInfo,
    Conditioning,
    Control,
    Generation,
    InitImage,
    Inputs,
    ModelInfo,
    Prompt,
    SamplingConfig,
    StepCallback,
    Translation,
    require_seed,
)

log = logging.getLogger("jpgen")

DEFAULT_MODEL = "mame"
PAIRING = "pairing"
"""The kind of the adapter behind an encoder, beside LoRAs and embeddings."""

MAX_COUNT = 10_000
RANDOM_SEEDS = 2**32


class Pipeline:
    """An encoder and a backbone that fit, opened once and used many times.

    `batch_size` pictures are sampled together; with 1 a picture never depends on its company, with more it may differ by rounding (a few of 255
    levels in bf16). Threads take turns. With a `translator`, prompts reach the encoder in English (route "translate"); a model of English alone has
    the small built-in one unless told otherwise, with translator="" it gets them as they are (route "raw").

        >>> from jpgen import Pipeline
        >>> pipeline = Pipeline()
        >>> pipeline.generate("猫", seed=1, config=pipeline.config(steps=1)).seed
        1
    """

    vae_hash = ""
    """The hash of an autoencoder in the place of the model's own."""

    pairing: AdapterInfo | None = None
    """The adapter behind the encoder, on the route "adapter"."""

    def __init__(
        self, model: str | Path = DEFAULT_MODEL, *, batch_size: int = 1, vae: str | Path | None = None,
        translator: str | Path | Translator | None = None, adapter: str | Path | None = None, route: str = "auto", optimize: bool = False,
        lora_folder: Path | None = None, embedding_folder: Path | None = None,
    ) -> None:  # fmt: skip
        """Open a model of the catalogue, a local folder or a local `.safetensors` file; `optimize` compiles what CUDA gains from (nothing elsewhere).

        `vae` (a folder or file) takes the place of its autoencoder; `translator` (a name, a folder or an open one) that of the one its row names;
        `adapter` (a file of `jpgen train adapter`; else its part `pairing`) pairs another encoder with it. `route` is one of `jpgen.routes.ROUTES`.
        Names of LoRAs and embeddings are looked up in their folders (else $JPGEN_LORAS and $JPGEN_EMBEDDINGS, else folders in $XDG_DATA_HOME/jpgen).

        Raises UnknownNameError, LicenseError (terms not accepted yet: see `jpgen models accept`), WeightsError or IncompatibleError.
        """
        entry = open_model(model)
        info = ModelInfo(entry.name, entry.revision, entry.license, weights_hash(entry), entry.commercial)
        if vae is not None:
            entry, self.vae_hash = with_vae(entry, vae), file_hash(Path(vae))
        backbone = load_backbone(entry, optimize=optimize)
        if adapter is None and "pairing" in entry.parts:
            adapter = entry.folder / str(entry.parts["pairing"])
        wish = translator if translator is not None else str(entry.parts["translator"]) if "translator" in entry.parts else None
        builtin = wish is None and (entry.route != "native" or route == "translate")
        chosen = choose_route(route, entry.route, entry.name, adapter=adapter is not None, translator=builtin or bool(wish))
        encoder: TextEncoder | None = None
        if chosen == "adapter" and adapter is not None:
            encoder, self.pairing = self._paired(Path(adapter), backbone)
        elif entry.encoder:
            encoder = load_encoder(entry.encoder, entry.place, **entry.parts)
        untranslated = ("native" if entry.route == "native" else "raw") if chosen == "translate" else chosen
        self._set(encoder, backbone, info, untranslated, batch_size, open_english(wish) if chosen == "translate" else None)
        self._adapters = Adapters(info.name, encoder, backbone, loras=lora_folder, embeddings=embedding_folder)

    @staticmethod
    def _paired(adapter: Path, backbone: Backbone | TextBackbone) -> tuple[TextEncoder, AdapterInfo]:
        """The encoder that an adapter file names, behind it the adapter, and what a picture says of it."""
        if isinstance(backbone, TextBackbone):
            raise IncompatibleError(f"{backbone.name} は文をそのまま読みます / {backbone.name} reads texts itself: no adapter fits it")
        require_backbone(read_spec(adapter)[0], backbone.spec, backbone.name)
        return load_adapted(adapter), AdapterInfo(PAIRING, adapter.stem, sha256_of(adapter)[:10])

    @classmethod
    def from_parts(
        cls, encoder: TextEncoder | None, backbone: Backbone | TextBackbone, info: ModelInfo, *, route: str = "native", batch_size: int = 1,
        translator: Translator | None = None,
    ) -> Pipeline:  # fmt: skip
        """A pipeline of parts that are already open (no encoder for a TextBackbone); raises IncompatibleError if they do not fit."""
        pipeline = cls.__new__(cls)
        pipeline._set(encoder, backbone, info, route, batch_size, translator)
        return pipeline

    def with_translator(self, translator: str | Path | Translator) -> Pipeline:
        """This pipeline with another translator: a name of the catalogue, a local folder or an open one. Its parts are shared, not opened again."""
        pipeline = copy.copy(self)
        pipeline.translator = open_english(translator)
        pipeline.route = "translate" if pipeline.translator else self._untranslated
        return pipeline

    def _set(
        self, encoder: TextEncoder | None, backbone: Backbone | TextBackbone, info: ModelInfo, route: str, batch_size: int,
        translator: Translator | None,
    ) -> None:  # fmt: skip
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size!r} は 1 以上にしてください / must be at least 1")
        if isinstance(backbone, TextBackbone) != (encoder is None):
            needs = "エンコーダが要ります / wants a text encoder: give one"
            wanted = "エンコーダは要りません / reads texts itself: give no encoder" if encoder else needs
            raise IncompatibleError(f"{backbone.name}: {wanted}")
        if encoder is not None and not isinstance(backbone, TextBackbone):
            encoder.spec.require_fit(backbone.spec, encoder.name, backbone.name)
        self.encoder, self.backbone, self.info, self.translator = encoder, backbone, info, translator
        self._untranslated = "raw" if route == "translate" else route
        self.route = "translate" if translator else self._untranslated
        self.batch_size = batch_size
        self._adapters = Adapters(info.name, encoder, backbone)
        self._lock = threading.Lock()
        self._remembered = Remembered()

    def generate(
        self,
        prompt: str | Prompt,
        *,
        negative: str = "",
        seed: int | None = None,
        config: SamplingConfig | None = None,
        normalize: bool = True,
        loras: Loras | None = None,
        on_step: StepCallback | None = None,
        init: InitImage | None = None,
        controls: Sequence[Control] = (),
        tile: bool = False,
        upscale: float = 1.0,
        upscale_strength: float = UPSCALE_STRENGTH,
    ) -> Generation:
        """One picture of the prompt.

        The prompt is read by `jpgen.normalize` unless `normalize` is False or it is a Prompt already. No seed means a random one, which the
        Generation tells; no config the model's own default (see `config`). Raises PromptError, SettingError, UnknownNameError (scheduler, LoRA),
        WeightsError and IncompatibleError (a LoRA, an embedding, what the model cannot do), Cancelled (`on_step` returned False).

        `loras` are names in the LoRA folder or paths of files with their weights, beside those that the prompt names (`<lora:名前:0.8>`); they are on
        the weights for this picture alone. `init` is a picture to begin from, `controls` are pictures to follow, `tile` makes a texture without a
        seam; `upscale` draws the picture once more so many times larger, beginning from its enlargement (Lanczos), of which `upscale_strength` is
        drawn anew.
        """
        drawn = self.stream(
            [prompt], negative=negative, seed=seed, config=config, normalize=normalize, loras=loras, on_step=on_step,
            init=init, controls=controls, tile=tile, upscale=upscale, upscale_strength=upscale_strength,
        )  # fmt: skip
        return next(drawn)

    def generate_many(
        self,
        prompts: Iterable[str | Prompt],
        *,
        negative: str = "",
        seed: int | None = None,
        count: int = 1,
        config: SamplingConfig | None = None,
        normalize: bool = True,
        loras: Loras | None = None,
        on_step: StepCallback | None = None,
        init: InitImage | None = None,
        controls: Sequence[Control] = (),
        tile: bool = False,
        upscale: float = 1.0,
        upscale_strength: float = UPSCALE_STRENGTH,
    ) -> list[Generation]:
        """`count` pictures of each prompt, in order: all of the first prompt, then of the second …

        The n-th picture of every prompt has seed `seed` + n, and is the same picture that `generate` makes with that seed alone. Raises as
        `generate` does, before anything is sampled.
        """
        drawn = self.stream(
            prompts, negative=negative, seed=seed, count=count, config=config, normalize=normalize, loras=loras, on_step=on_step,
            init=init, controls=controls, tile=tile, upscale=upscale, upscale_strength=upscale_strength,
        )  # fmt: skip
        return list(drawn)

    def stream(
        self,
        prompts: Iterable[str | Prompt],
        *,
        negative: str = "",
        seed: int | None = None,
        count: int = 1,
        config: SamplingConfig | None = None,
        normalize: bool = True,
        loras: Loras | None = None,
        on_step: StepCallback | None = None,
        init: InitImage | None = None,
        controls: Sequence[Control] = (),
        tile: bool = False,
        upscale: float = 1.0,
        upscale_strength: float = UPSCALE_STRENGTH,
    ) -> Iterator[Generation]:
        """Like `generate_many`, handing each picture over as soon as its batch is done."""
        checked = (config or self.backbone.default).validated(self.backbone.size_multiple)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
            raise SettingError(f"count={count!r} は 1〜{MAX_COUNT} にしてください / must be 1–{MAX_COUNT}")
        first = _seed(seed)
        require_seed(first + count - 1)
        sources = Sources(init, tuple(controls), tile, upscale, upscale_strength).checked(checked, self.backbone)
        jobs = [(read_prompt(prompt, negative, normalize=normalize, seed=first + n), first + n) for prompt in prompts for n in range(count)]
        read = self._translated([prompt for prompt, _ in jobs])
        adapted, adapters = self._adapters.named(read, loras or {})
        self._adapters.require(adapted, checked.clip_skip)
        jobs = [(prompt, seed) for prompt, (_, seed) in zip(adapted, jobs, strict=True)]
        return self._batches(jobs, checked, on_step, adapters, sources, sources.record(self.vae_hash))

    def _batches(
        self, jobs: list[tuple[Prompt, int]], config: SamplingConfig, on_step: StepCallback | None, adapters: Mapping[str, Adapter],
        sources: Sources, inputs: Inputs,
    ) -> Iterator[Generation]:  # fmt: skip
        for _, alike in groupby(jobs, key=lambda job: total_weights(job[0])):  # what is sampled together has the same weights
            rest = list(alike)
            for start in range(0, len(rest), self.batch_size):
                chosen = rest[start : start + self.batch_size]
                yield from self._batch([prompt for prompt, _ in chosen], config, [seed for _, seed in chosen], on_step, adapters, sources, inputs)

    def config(
        self,
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        emphasis: str | None = None,
        clip_skip: int | None = None,
        guidance_start: float | None = None,
        guidance_stop: float | None = None,
        cache: str | None = None,
    ) -> SamplingConfig:
        """The backbone's default settings with what is given in their place, checked; raises SettingError naming all that is wrong."""
        given = {
            "width": width, "height": height, "steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler, "emphasis": emphasis,
            "clip_skip": clip_skip,
            "guidance_start": guidance_start, "guidance_stop": guidance_stop, "cache": cache,
        }  # fmt: skip
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self.backbone.default, **chosen).validated(self.backbone.size_multiple)  # type: ignore[arg-type]

    def _batch(
        self, prompts: Sequence[Prompt], config: SamplingConfig, seeds: Sequence[int], on_step: StepCallback | None,
        adapters: Mapping[str, Adapter], sources: Sources = NO_SOURCES, inputs: Inputs = NO_INPUTS,
    ) -> list[Generation]:  # fmt: skip
        began = time.perf_counter()
        with self._lock, self._adapters.applied(prompts[0], adapters):
            images = self._sampled(prompts, config, seeds, counted(on_step, 0, sources.steps_again(config) * len(prompts)), sources)
            if sources.upscale != 1:
                images = self._enlarged(images, prompts, config, seeds, on_step, sources)
        seconds = (time.perf_counter() - began) / len(prompts)
        encoder = self.encoder.name if self.encoder else self.backbone.name
        return [
            Generation(image, prompt, config, seed, self.info, encoder, self._taken(prompt), seconds, self._used(prompt, adapters), inputs)
            for image, prompt, seed in zip(images, prompts, seeds, strict=True)
        ]

    def _used(self, prompt: Prompt, adapters: Mapping[str, Adapter]) -> tuple[AdapterInfo, ...]:
        """What a picture of this prompt says of LoRAs, embeddings and the adapter behind the encoder."""
        own = () if self.pairing is None else (self.pairing,)
        return (*self._adapters.infos(prompt, adapters), *own)

    def _sampled(
        self, prompts: Sequence[Prompt], config: SamplingConfig, seeds: Sequence[int], on_step: StepCallback | None, sources: Sources
    ) -> list[Image.Image]:
        generators, more = [torch.Generator().manual_seed(seed) for seed in seeds], sources.arguments()
        backbone: Any = self.backbone  # which takes what `checked` found that it takes
        if isinstance(self.backbone, TextBackbone):
            self._warn_of_weights(prompts)
            texts, negatives = [prompt.seen.text for prompt in prompts], [without_weights(prompt.seen.negative) for prompt in prompts]
            images: list[Image.Image] = backbone.sample_texts(texts, negatives, config, generators=generators, on_step=on_step, **more)
        else:
            conditioning, negative = self._encode([prompt.seen for prompt in prompts], config)
            images = backbone.sample(conditioning, negative, config, generators=generators, on_step=on_step, **more)
        return images

    def _translated(self, prompts: list[Prompt]) -> list[Prompt]:
        """The prompts with what is Japanese of them in English, each text translated once; as they are without a translator."""
        translator = self.translator
        if self.route in ("native", "adapter"):  # a prompt from another model may bring what that one saw
            return [replace(prompt, translation=Translation()) if prompt.translation.by else prompt for prompt in prompts]
        if translator is None:
            return prompts
        with self._lock:
            return in_english(translator, prompts)

    def _taken(self, prompt: Prompt) -> str:
        """The route that this prompt took: "translate" only where there was something to translate."""
        return "translate" if prompt.translation.by else self._untranslated

    def _enlarged(
        self, images: Sequence[Image.Image], prompts: Sequence[Prompt], config: SamplingConfig, seeds: Sequence[int],
        on_step: StepCallback | None, sources: Sources,
    ) -> list[Image.Image]:  # fmt: skip
        """Each picture drawn once more, larger, one after the other (each begins from its own), with the noise of its seed."""
        large, steps = enlarged(config, sources.upscale, self.backbone.size_multiple), sources.steps_again(config)
        made = []
        for row, (image, prompt, seed) in enumerate(zip(images, prompts, seeds, strict=True)):
            watched = counted(on_step, sources.steps(config) + row * steps, (len(images) - row - 1) * steps)
            made += self._sampled([prompt], large, [seed], watched, sources.again(image, large))
        return made

    def _encode(self, prompts: Sequence[Prompt], config: SamplingConfig) -> tuple[Conditioning, Conditioning]:
        """Prompts and negative prompts, encoded together; where nothing guides, the negative ones are not read, and the prompts stand for them."""
        guided = config.guidance_scale > 1 and config.guidance_start < config.guidance_stop and not getattr(self.backbone, "ignores_negative", False)
        conditioning, negative = self._encoded(prompts, config, guided)
        if guided and getattr(self.backbone, "zeros_for_empty", False):
            kept = torch.tensor([bool(prompt.negative.strip()) for prompt in prompts])
            pooled = None if negative.pooled is None else negative.pooled * kept[:, None]
            negative = Conditioning(negative.tokens * kept[:, None, None], negative.mask, pooled)
        return conditioning, negative

    def _encoded(self, prompts: Sequence[Prompt], config: SamplingConfig, guided: bool) -> tuple[Conditioning, Conditioning]:
        encoder, on = self._adapters.encoder_for(prompts, config.clip_skip), self._adapters.on
        if encoder is None:
            raise IncompatibleError(f"{self.backbone.name}: エンコーダがありません / has no text encoder: open it with one")
        if not isinstance(encoder, TokenEncoder | SpanEncoder):
            self._warn_of_weights(prompts)
        wanted = [Asked(prompt.spans or ((prompt.text, 1.0),), prompt.text, on) for prompt in prompts]
        unwanted = [Asked(tuple(parse_attention(prompt.negative)), without_weights(prompt.negative), on) for prompt in prompts] if guided else []
        both = self._remembered.encode(encoder, [*wanted, *unwanted], config.emphasis)
        first = both.rows(0, len(prompts))
        return _trimmed(first), _trimmed(both.rows(len(prompts), 2 * len(prompts)) if guided else first)

    def _warn_of_weights(self, prompts: Sequence[Prompt]) -> None:
        spans = (span for prompt in prompts for span in (*prompt.spans, *parse_attention(prompt.negative)))
        if any(weight != 1.0 for _, weight in spans):
            log.warning("%s はプロンプトの重みを使えません / cannot use attention weights", self.info.name)


def _trimmed(conditioning: Conditioning) -> Conditioning:
    """Without the tokens that are masked in every row at the end."""
    seen = conditioning.mask.any(dim=0)
    length = int((seen * torch.arange(1, len(seen) + 1, device=seen.device)).max()) or len(seen)
    return Conditioning(conditioning.tokens[:, :length], conditioning.mask[:, :length], conditioning.pooled)


def _seed(seed: int | None) -> int:
    return int(torch.randint(RANDOM_SEEDS, ()).item()) if seed is None else require_seed(seed)
