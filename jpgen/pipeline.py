"""The road, end to end: Japanese text in, a picture out."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from jpgen.backbones import load_backbone
from jpgen.catalog import Entry
from jpgen.emphasis import TokenEncoder
from jpgen.encoders import load_encoder
from jpgen.encoders.remembered import Asked, Remembered
from jpgen.errors import IncompatibleError, MetadataError, PromptError, SettingError
from jpgen.metadata import read_settings
from jpgen.models import open_model
from jpgen.prompt.chain import normalize as normalized
from jpgen.prompt.syntax import parse_attention
from jpgen.types import Backbone, Conditioning, Generation, ModelInfo, Prompt, SamplingConfig, StepCallback, TextBackbone, TextEncoder, require_seed

log = logging.getLogger("jpgen")

DEFAULT_MODEL = "mame"
MAX_CHARACTERS = 2000
MAX_COUNT = 10_000
RANDOM_SEEDS = 2**32


class Pipeline:
    """An encoder and a backbone that fit, opened once and used many times.

    `batch_size` pictures are sampled together; with 1 a picture never depends on its company, with more it may differ by rounding (a few of 255
    levels in bf16). Threads take turns.

        >>> from jpgen import Pipeline
        >>> pipeline = Pipeline()
        >>> pipeline.generate("猫", seed=1, config=pipeline.config(steps=1)).seed
        1
    """

    def __init__(self, model: str | Path = DEFAULT_MODEL, *, batch_size: int = 1, optimize: bool = False) -> None:
        """Open a model of the catalogue, a local folder or a local `.safetensors` file; `optimize` compiles what CUDA gains from (nothing elsewhere).

        Raises UnknownNameError, LicenseError (terms not accepted yet: see `jpgen models accept`), WeightsError or IncompatibleError.
        """
        entry = open_model(model)
        info = ModelInfo(entry.name, entry.revision, entry.license, weights_hash(entry), entry.commercial)
        backbone = load_backbone(entry, optimize=optimize)
        encoder = load_encoder(entry.encoder, entry.place, **entry.parts) if entry.encoder else None
        self._set(encoder, backbone, info, entry.route, batch_size)

    @classmethod
    def from_parts(
        cls, encoder: TextEncoder | None, backbone: Backbone | TextBackbone, info: ModelInfo, *, route: str = "native", batch_size: int = 1
    ) -> Pipeline:
        """A pipeline of parts that are already open (no encoder for a TextBackbone); raises IncompatibleError if they do not fit."""
        pipeline = cls.__new__(cls)
        pipeline._set(encoder, backbone, info, route, batch_size)
        return pipeline

    def _set(self, encoder: TextEncoder | None, backbone: Backbone | TextBackbone, info: ModelInfo, route: str, batch_size: int) -> None:
        if batch_size < 1:
            raise SettingError(f"batch_size={batch_size!r} は 1 以上にしてください / must be at least 1")
        if isinstance(backbone, TextBackbone) != (encoder is None):
            needs = "エンコーダが要ります / wants a text encoder: give one"
            wanted = "エンコーダは要りません / reads texts itself: give no encoder" if encoder else needs
            raise IncompatibleError(f"{backbone.name}: {wanted}")
        if encoder is not None and not isinstance(backbone, TextBackbone):
            encoder.spec.require_fit(backbone.spec, encoder.name, backbone.name)
        self.encoder, self.backbone, self.info, self.route = encoder, backbone, info, route
        self.batch_size = batch_size
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
        on_step: StepCallback | None = None,
    ) -> Generation:
        """One picture of the prompt.

        The prompt is read by `jpgen.normalize` unless `normalize` is False or it is a Prompt already. No seed means a random one, which the
        Generation tells; no config the model's own default (see `config`). Raises PromptError, SettingError, UnknownNameError (scheduler),
        Cancelled (`on_step` returned False).
        """
        return next(self.stream([prompt], negative=negative, seed=seed, config=config, normalize=normalize, on_step=on_step))

    def generate_many(
        self,
        prompts: Iterable[str | Prompt],
        *,
        negative: str = "",
        seed: int | None = None,
        count: int = 1,
        config: SamplingConfig | None = None,
        normalize: bool = True,
        on_step: StepCallback | None = None,
    ) -> list[Generation]:
        """`count` pictures of each prompt, in order: all of the first prompt, then of the second …

        The n-th picture of every prompt has seed `seed` + n, and is the same picture that `generate` makes with that seed alone. Raises as
        `generate` does, before anything is sampled.
        """
        return list(self.stream(prompts, negative=negative, seed=seed, count=count, config=config, normalize=normalize, on_step=on_step))

    def stream(
        self,
        prompts: Iterable[str | Prompt],
        *,
        negative: str = "",
        seed: int | None = None,
        count: int = 1,
        config: SamplingConfig | None = None,
        normalize: bool = True,
        on_step: StepCallback | None = None,
    ) -> Iterator[Generation]:
        """Like `generate_many`, handing each picture over as soon as its batch is done."""
        checked = (config or self.backbone.default).validated(self.backbone.size_multiple)
        if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MAX_COUNT:
            raise SettingError(f"count={count!r} は 1〜{MAX_COUNT} にしてください / must be 1–{MAX_COUNT}")
        first = _seed(seed)
        require_seed(first + count - 1)
        jobs = [(_prompt(prompt, negative, normalize, first + n), first + n) for prompt in prompts for n in range(count)]
        return self._batches(jobs, checked, on_step)

    def _batches(self, jobs: list[tuple[Prompt, int]], config: SamplingConfig, on_step: StepCallback | None) -> Iterator[Generation]:
        for start in range(0, len(jobs), self.batch_size):
            chosen = jobs[start : start + self.batch_size]
            yield from self._batch([prompt for prompt, _ in chosen], config, [seed for _, seed in chosen], on_step)

    def config(
        self,
        *,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        scheduler: str | None = None,
        emphasis: str | None = None,
        guidance_start: float | None = None,
        guidance_stop: float | None = None,
        cache: str | None = None,
    ) -> SamplingConfig:
        """The backbone's default settings with what is given in their place, checked; raises SettingError naming all that is wrong."""
        given = {
            "width": width, "height": height, "steps": steps, "guidance_scale": guidance_scale, "scheduler": scheduler, "emphasis": emphasis,
            "guidance_start": guidance_start, "guidance_stop": guidance_stop, "cache": cache,
        }  # fmt: skip
        chosen = {name: value for name, value in given.items() if value is not None}
        return replace(self.backbone.default, **chosen).validated(self.backbone.size_multiple)  # type: ignore[arg-type]

    def _batch(self, prompts: Sequence[Prompt], config: SamplingConfig, seeds: Sequence[int], on_step: StepCallback | None) -> list[Generation]:
        began = time.perf_counter()
        with self._lock:
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            if isinstance(self.backbone, TextBackbone):
                self._warn_of_weights(prompts)
                texts, negatives = [prompt.text for prompt in prompts], [_said(prompt.negative) for prompt in prompts]
                images = self.backbone.sample_texts(texts, negatives, config, generators=generators, on_step=on_step)
            else:
                conditioning, negative = self._encode(prompts, config)
                images = self.backbone.sample(conditioning, negative, config, generators=generators, on_step=on_step)
        seconds = (time.perf_counter() - began) / len(prompts)
        return [
            Generation(image, prompt, config, seed, self.info, self.encoder.name if self.encoder else self.backbone.name, self.route, seconds)
            for image, prompt, seed in zip(images, prompts, seeds, strict=True)
        ]


    def _encode(self, prompts: Sequence[Prompt], config: SamplingConfig) -> tuple[Conditioning, Conditioning]:
        """Prompts and negative prompts, encoded together; where nothing guides, the negative ones are not read, and the prompts stand for them."""
        guided = config.guidance_scale > 1 and config.guidance_start < config.guidance_stop and not getattr(self.backbone, "ignores_negative", False)
        conditioning, negative = self._encoded(prompts, config.emphasis, guided)
        if guided and getattr(self.backbone, "zeros_for_empty", False):
            kept = torch.tensor([bool(prompt.negative.strip()) for prompt in prompts])
            pooled = None if negative.pooled is None else negative.pooled * kept[:, None]
            negative = Conditioning(negative.tokens * kept[:, None, None], negative.mask, pooled)
        return conditioning, negative

    def _encoded(self, prompts: Sequence[Prompt], emphasis: str, guided: bool) -> tuple[Conditioning, Conditioning]:
        if self.encoder is None:
            raise IncompatibleError(f"{self.backbone.name}: エンコーダがありません / has no text encoder: open it with one")
        if not isinstance(self.encoder, TokenEncoder):
            self._warn_of_weights(prompts)
        wanted = [Asked(prompt.spans or ((prompt.text, 1.0),), prompt.text, prompt.loras) for prompt in prompts]
        unwanted = [Asked(tuple(parse_attention(prompt.negative)), _said(prompt.negative), prompt.loras) for prompt in prompts] if guided else []
        both = self._remembered.encode(self.encoder, [*wanted, *unwanted], emphasis)
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


@lru_cache(maxsize=1)
def open_pipeline(model: str | Path = DEFAULT_MODEL) -> Pipeline:
    """The pipeline of this model (a name, a folder, a file), kept open for the next call."""
    return Pipeline(model)


def generate(
    prompt: str,
    *,
    model: str | Path = DEFAULT_MODEL,
    negative: str = "",
    seed: int | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    emphasis: str | None = None,
    normalize: bool = True,
    on_step: StepCallback | None = None,
) -> Generation:
    """One picture of a Japanese (or English) prompt by a model of the catalogue; see `Pipeline.generate`.

    >>> from jpgen import generate
    >>> generate("夕焼けの海に浮かぶ赤い船", seed=1).image.size
    (256, 256)
    """
    pipeline = open_pipeline(model)
    config = pipeline.config(width=width, height=height, steps=steps, guidance_scale=guidance_scale, scheduler=scheduler, emphasis=emphasis)
    return pipeline.generate(prompt, negative=negative, seed=seed, config=config, normalize=normalize, on_step=on_step)


def generate_many(
    prompts: Iterable[str],
    *,
    model: str | Path = DEFAULT_MODEL,
    negative: str = "",
    seed: int | None = None,
    count: int = 1,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    emphasis: str | None = None,
    normalize: bool = True,
    on_step: StepCallback | None = None,
) -> list[Generation]:
    """`count` pictures of each prompt by a model of the catalogue; see `Pipeline.generate_many`.

    >>> from jpgen import generate_many
    >>> [g.seed for g in generate_many(["猫", "犬"], seed=5, count=2, steps=1)]
    [5, 6, 5, 6]
    """
    pipeline = open_pipeline(model)
    config = pipeline.config(width=width, height=height, steps=steps, guidance_scale=guidance_scale, scheduler=scheduler, emphasis=emphasis)
    return pipeline.generate_many(prompts, negative=negative, seed=seed, count=count, config=config, normalize=normalize, on_step=on_step)


def load_generation(path: str | Path, *, model: str | None = None) -> Generation:
    """Make the picture of a file again from the settings inside it, by the same model (or `model`): the very same picture.

    Raises MetadataError if the file holds no settings of jpgen, or if the model's weights are no longer those that made it.
    """
    settings = read_settings(Path(path))
    pipeline = open_pipeline(model or settings.model)
    if model is None and pipeline.info.weights_hash != settings.weights_hash:
        raise MetadataError(
            f"{path} を作った {settings.model}@{settings.revision} の重みは今のもの（@{pipeline.info.revision}）と違います。"
            f"model= で指定すると今の重みで作ります / made by other weights; pass model={settings.model!r} to use the present ones"
        )
    config = settings.config.validated(pipeline.backbone.size_multiple)
    return pipeline._batch([settings.prompt], config, [require_seed(settings.seed)], None)[0]


def weights_hash(entry: Entry) -> str:
    """The first 10 hex digits of the SHA-256 over the entry's weight files, by name: its file or folder, and its adapter."""
    place = entry.place
    files = {file.relative_to(place).as_posix(): file for file in place.rglob("*.safetensors")} if place.is_dir() else {place.name: place}
    adapter = Path(str(entry.parts.get("adapter", "")))
    if adapter.is_file():
        files[f"adapter:{adapter.name}"] = adapter
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode())
        with files[name].open("rb") as data:
            digest.update(hashlib.file_digest(data, "sha256").digest() if hasattr(hashlib, "file_digest") else hashlib.sha256(data.read()).digest())
    return digest.hexdigest()[:10]


def _said(negative: str) -> str:
    """A negative prompt without its weights."""
    return "".join(text for text, weight in parse_attention(negative) if (text, weight) != ("BREAK", -1.0))


def _seed(seed: int | None) -> int:
    return int(torch.randint(RANDOM_SEEDS, ()).item()) if seed is None else require_seed(seed)


def _prompt(prompt: str | Prompt, negative: str, normalize: bool, seed: int) -> Prompt:
    """A checked Prompt; raises PromptError for what is empty, too long or not text."""
    if isinstance(prompt, Prompt):
        return prompt
    text, negative = _clean(prompt, "プロンプト / prompt"), _clean(negative, "ネガティブ / negative")
    if not text.strip():
        raise PromptError("プロンプトが空です。描きたいものを書いてください（例: 夕焼けの海に浮かぶ赤い船） / the prompt is empty: say what to draw")
    if not normalize:
        return Prompt(source=text, text=text, negative=negative, spans=((text, 1.0),))
    read = normalized(text, negative=negative, seed=seed)
    if not read.text.strip() and not read.loras:
        raise PromptError(
            f"「{text.strip()[:40]}」から描くものが読み取れません。描きたいものを書くか、normalize=False で文のまま渡してください / "
            "nothing to draw is left: say what to draw, or pass normalize=False (--no-normalize) to take the text as it stands"
        )
    return read


def _clean(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"{what}: 文字列ではなく {type(text).__name__} です / wanted a string, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"{what}: 長すぎます（{len(text)} 文字、上限 {MAX_CHARACTERS}）。短くしてください / "
            f"{len(text)} characters, at most {MAX_CHARACTERS}: shorten it"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what}: {error.start + 1} 文字目が壊れています（サロゲートの片割れ）。入力し直してください / "
            f"character {error.start + 1} is a lone surrogate: type it again"
        ) from error
    return text
