"""The values that walk the road, all frozen."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jpgen.errors import IncompatibleError, SettingError

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

MAX_SEED = 2**63 - 1
MAX_STEPS = 1000
MAX_SIDE = 4096


@dataclass(frozen=True)
class Edit:
    """One rewrite of the prompt: which rule, what stood there, what stands there now."""

    rule: str
    before: str
    after: str


@dataclass(frozen=True)
class Translation:
    """What a prompt says in English, for an encoder that reads no Japanese; `spans` and `negative` are as those of Prompt.

    `by` names the translator; "": nothing was translated.
    """

    by: str = ""
    text: str = ""
    negative: str = ""
    spans: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Prompt:
    """What was typed, what an encoder sees, and what must not appear.

    `spans` are the pieces of `text` with their attention weights (1.0: as it is) and ("BREAK", -1.0) where a new window begins; `loras` are the
    adapters named in the text with their weights; `schedule` is a text whose words change between steps, as typed; `written` is the text with its
    weights, windows and adapters in the notation of stable-diffusion-webui; `notes` tell a person what stayed ambiguous; `translation` is what the
    encoder saw in place of `text`, `spans` and `negative` where they were put into English.
    """

    source: str
    text: str
    negative: str = ""
    spans: tuple[tuple[str, float], ...] = ()
    edits: tuple[Edit, ...] = ()
    notes: tuple[str, ...] = ()
    loras: tuple[tuple[str, float], ...] = ()
    schedule: str = ""
    written: str = ""
    translation: Translation = Translation()

    @property
    def seen(self) -> Prompt:
        """The prompt as an encoder sees it: itself, or with its translation in place."""
        if not self.translation.by:
            return self
        return replace(self, text=self.translation.text, negative=self.translation.negative, spans=self.translation.spans)

    def explain(self) -> str:
        """A line per edit and note, in Japanese."""
        lines = [f"{edit.rule}: 「{edit.before}」→「{edit.after}」" for edit in self.edits]
        if self.translation.by:
            lines.append(f"translate ({self.translation.by}): 「{self.text}」→「{self.translation.text}」")
        return "\n".join([*lines, *(f"注: {note}" for note in self.notes)])


@dataclass(frozen=True)
class ConditioningSpec:
    """The shape of a conditioning: width of a token state, most tokens (None: any), width of the pooled state (None: there is none)."""

    width: int
    max_length: int | None = None
    pooled_width: int | None = None

    def require_fit(self, wanted: ConditioningSpec, encoder: str, backbone: str) -> None:
        """Raise IncompatibleError unless states of this spec suit a backbone that wants `wanted`."""
        if (self.width, self.pooled_width) != (wanted.width, wanted.pooled_width):
            raise IncompatibleError(
                f"{encoder} と {backbone} はつながりません / {encoder} gives width {self.width}, pooled {self.pooled_width}; "
                f"{backbone} wants width {wanted.width}, pooled {wanted.pooled_width}: use the model's own encoder or a trained adapter"
            )


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts: `tokens` [batch, seq, width], `mask` int64 [batch, seq] (1: a token), `pooled` [batch, pooled width] or None."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor | None = None

    def rows(self, start: int, end: int) -> Conditioning:
        """Those of the prompts from `start` up to `end`."""
        return Conditioning(self.tokens[start:end], self.mask[start:end], None if self.pooled is None else self.pooled[start:end])

    @property
    def spec(self) -> ConditioningSpec:
        """The shape of this conditioning."""
        return ConditioningSpec(self.tokens.shape[-1], self.tokens.shape[1], None if self.pooled is None else self.pooled.shape[-1])


@dataclass(frozen=True)
class SamplingConfig:
    """How to sample. Sides in pixels, steps of the sampler, guidance scale (1: none), name of the sampler, how attention weights act.

    `clip_skip` as stable-diffusion-webui counts: 1 reads the encoder's last layer, 2 the penultimate …; 0 the one the model was trained for.
    Guidance acts from `guidance_start` up to `guidance_stop`, fractions of the steps; `cache` names a step cache (jpgen.backbones.caches).
    """

    width: int
    height: int
    steps: int
    guidance_scale: float
    scheduler: str = "dpm++2m"
    emphasis: str = "a1111"
    clip_skip: int = 0
    guidance_start: float = 0.0
    guidance_stop: float = 1.0
    cache: str = "none"

    def validated(self, multiple: int) -> SamplingConfig:
        """Itself, or SettingError naming every setting that is out of range; sides must be divisible by `multiple`."""
        wrong = []
        for side, name in ((self.width, "width"), (self.height, "height")):
            if not _is_integer(side) or side % multiple or not multiple <= side <= MAX_SIDE:
                near = max(multiple, int(min(side, MAX_SIDE)) // multiple * multiple) if isinstance(side, int) else multiple
                wrong.append(
                    f"{name}={reprlib.repr(side)} は {multiple} の倍数（{MAX_SIDE} まで）にしてください / "
                    f"must be a multiple of {multiple} up to {MAX_SIDE}, e.g. {near}"
                )
        if not _is_integer(self.steps) or not 1 <= self.steps <= MAX_STEPS:
            wrong.append(f"steps={reprlib.repr(self.steps)} は 1〜{MAX_STEPS} にしてください / must be 1–{MAX_STEPS}")
        if not isinstance(self.guidance_scale, int | float) or not 0 <= self.guidance_scale <= 100:
            wrong.append(f"guidance_scale={reprlib.repr(self.guidance_scale)} は 0〜100 にしてください / must be 0–100")
        if not _is_integer(self.clip_skip) or not 0 <= self.clip_skip <= MAX_STEPS:
            wrong.append(f"clip_skip={reprlib.repr(self.clip_skip)} は 1 以上の整数にしてください / must be a whole number from 1 (0: its own)")
        start, stop = self.guidance_start, self.guidance_stop
        if not all(isinstance(one, int | float) and 0 <= one <= 1 for one in (start, stop)) or start > stop:
            wrong.append(
                f"guidance_start={reprlib.repr(start)}, guidance_stop={reprlib.repr(stop)} は 0 ≤ 始め ≤ 終わり ≤ 1 にしてください / "
                "must be fractions of the steps, 0 ≤ start ≤ stop ≤ 1"
            )
        if wrong:
            raise SettingError("; ".join(wrong))
        return self


def require_seed(seed: int) -> int:
    """The seed, or SettingError unless it is an integer in 0…2⁶³−1."""
    if not _is_integer(seed) or not 0 <= seed <= MAX_SEED:
        raise SettingError(f"seed={reprlib.repr(seed)} は 0 以上 2^63 未満の整数にしてください / must be an integer from 0 to 2^63-1")
    return seed


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class InitImage:
    """A picture to begin from (PIL or a path), `strength` 0 (as it is) … 1 (drawn anew); with a `mask` only where that is white.

    It is enlarged or reduced with its aspect kept and cut at the middle to the size that is drawn; a mask of another size is stretched over it.

        >>> from jpgen import InitImage, generate
        >>> generate("青い船", init=InitImage("ship.png", 0.5)).save("blue.png")  # doctest: +SKIP
    """

    image: Image.Image | str | Path
    strength: float = 0.6
    mask: Image.Image | str | Path | None = None


@dataclass(frozen=True)
class Control:
    """A ControlNet (a folder or `.safetensors` file), the picture it follows, how strongly (`scale` 0…2), from which part of the steps to which."""

    net: str | Path
    image: Image.Image | str | Path
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0


@dataclass(frozen=True)
class ControlRecord:
    """What a Generation tells of a Control: the net's name and hash (10 digits), the picture's (`jpgen.pictures.fingerprint`), the settings."""

    net: str
    net_hash: str
    picture: str
    scale: float
    start: float
    end: float


@dataclass(frozen=True)
class Inputs:
    """What a Generation was made from besides words, enough to know it again: hashes of pictures ("": none), strengths, enlargement, tiling.

    `vae` is the hash of an autoencoder in the place of the model's own.
    """

    picture: str = ""
    mask: str = ""
    strength: float = 0.0
    controls: tuple[ControlRecord, ...] = ()
    upscale: float = 1.0
    upscale_strength: float = 0.0
    tile: bool = False
    vae: str = ""


NO_INPUTS = Inputs()
"""Words alone."""


@dataclass(frozen=True)
class ModelInfo:
    """What a picture says of the model that made it; `commercial`: whether its terms allow commercial use, "yes", "no" or "ask"."""

    name: str
    revision: str
    license: str
    weights_hash: str
    commercial: str = "yes"

    def __str__(self) -> str:
        return f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class AdapterInfo:
    """What a picture says of an adapter that took part: its `kind` ("lora", "embedding"), its name, and the hash by which its file is known."""

    kind: str
    name: str
    hash: str


@dataclass(frozen=True)
class Generation:
    """A picture and how it was made, enough to explain and repeat it."""

    image: Image.Image
    prompt: Prompt
    config: SamplingConfig
    seed: int
    model: ModelInfo
    encoder: str
    route: str
    seconds: float = field(compare=False)
    adapters: tuple[AdapterInfo, ...] = ()
    inputs: Inputs = NO_INPUTS

    def save(self, path: str | Path) -> Path:
        """Write PNG, JPEG or WebP (by suffix) with the settings inside; returns where it is. The old file or the new one is there, never half.

        Raises OutputError if the file cannot be written or the format is unknown.

            >>> from jpgen import generate
            >>> generate("夕焼けの海に浮かぶ赤い船").save("ship.png")  # doctest: +SKIP
        """
        from jpgen.metadata import save_picture

        return save_picture(self, Path(path))

    def _repr_png_(self) -> bytes:
        from jpgen.metadata import encode_picture

        return encode_picture(self, "PNG")


@dataclass(frozen=True)
class Step:
    """What a step callback sees: the step (from 1), how many there are, and `preview()`, which decodes the picture as guessed so far."""

    index: int
    total: int
    preview: Callable[[], list[Image.Image]]


StepCallback = Callable[[Step], bool | None]
"""Called after every step; returning False cancels (raises Cancelled)."""


def plain_data(value: Any) -> Any:
    """A frozen value as JSON-ready dicts and lists, pictures left out."""
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain_data(getattr(value, name)) for name in value.__dataclass_fields__ if name != "image"}
    if isinstance(value, Mapping):
        return {str(k): plain_data(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [plain_data(v) for v in value]
    return value
