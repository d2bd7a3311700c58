"""Pictures that go in: read whatever their mode, fitted to the size that is drawn, known again by their hash."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from jpgen.errors import IncompatibleError, MetadataError, SettingError
from jpgen.types import MAX_SIDE, Control, ControlRecord, InitImage, Inputs, SamplingConfig, Step, StepCallback

Picture = Image.Image | str | Path

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""What is opened: formats whose decoders are part of Pillow and that nothing runs in."""

MAX_PIXELS = (2 * MAX_SIDE) ** 2
"""Of a picture that is opened: the largest that could be drawn, twice as wide and high."""

MAX_SCALE = 2.0
"""Of a Control: beyond, pictures only burn."""

UPSCALE_STRENGTH = 0.4
"""How much of an enlarged picture is drawn anew, unless told: enough for fine lines, too little for another picture."""

HALF = 128
"""From this grey on a mask is white."""

TAKERS = {
    "init": "sd, sdxl, pixart (mame), flux", "mask": "sd, sdxl, pixart (mame), flux", "controls": "sd, sdxl, flux", "tile": "sd, sdxl",
}  # fmt: skip
"""The families that can always do it, by what a backbone's `takes` calls it."""

NAMES = {
    "init": "元の絵 / a picture to begin from", "mask": "マスク / a mask", "controls": "ControlNet", "tile": "つなぎ目のない絵 / seamless tiling",
}  # fmt: skip


@dataclass(frozen=True)
class Fitted:
    """An InitImage of the size that is drawn: the picture in RGB, the mask (L) black or white."""

    image: Image.Image
    strength: float
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Sources:
    """What is drawn from besides words: a picture, ControlNets, seamless tiling, and how much larger the picture is drawn again at the end."""

    init: InitImage | None = None
    controls: tuple[Control, ...] = ()
    tile: bool = False
    upscale: float = 1.0
    upscale_strength: float = UPSCALE_STRENGTH

    def checked(self, config: SamplingConfig, backbone: Any) -> Sources:
        """Itself, its pictures read.

        Raises IncompatibleError if the backbone does not take these (see `takes`), else SettingError naming all that is wrong.
        """
        wanted = {*self.arguments(), *(["init"] if self.upscale != 1 else []), *(["mask"] if getattr(self.init, "mask", None) is not None else [])}
        if wanted and (lacks := sorted(wanted - getattr(backbone, "takes", frozenset()))):
            can = "; ".join(f"{NAMES[what]}: {TAKERS[what]}" for what in lacks)
            raise IncompatibleError(f"{backbone.name} では使えません / {backbone.name} cannot do it. 使えるもの / what can: {can}")
        wrong: list[str] = []
        if not _between(self.upscale, 1, MAX_SIDE):
            wrong.append(f"upscale={self.upscale!r} は 1 以上の数にしてください / must be a number from 1 on")
        elif self.upscale != 1:
            try:
                enlarged(config, self.upscale, backbone.size_multiple)
            except SettingError as error:
                wrong.append(f"upscale={self.upscale:g}: {error}")
        if not _between(self.upscale_strength, 0, 1):
            wrong.append(f"upscale_strength={self.upscale_strength!r} は 0〜1 にしてください / must be 0–1")
        init = self.init and _checked_init(self.init, config, wrong)
        controls = tuple(_checked_control(control, i, wrong) for i, control in enumerate(self.controls))
        if wrong:
            raise SettingError("; ".join(wrong))
        return replace(self, init=init, controls=controls)

    def arguments(self) -> dict[str, Any]:
        """What of these a backbone is given when it samples: what is there at all."""
        return {
            **({"init": self.init} if self.init is not None else {}),
            **({"controls": self.controls} if self.controls else {}),
            **({"tile": True} if self.tile else {}),
        }

    def steps(self, config: SamplingConfig) -> int:
        """How many steps are run, before the picture is enlarged."""
        return config.steps if self.init is None else steps_of(config.steps, self.init.strength)

    def steps_again(self, config: SamplingConfig) -> int:
        """How many steps are run once more for each picture, enlarged."""
        return steps_of(config.steps, self.upscale_strength) if self.upscale != 1 else 0

    def again(self, image: Image.Image, config: SamplingConfig) -> Sources:
        """The sources of drawing this picture once more at the larger size of `config`; outside a mask the original shows, at that size."""
        large = fit(image, config.width, config.height)
        kept = None if self.init is None else fitted(self.init, config.width, config.height)
        if kept is None or kept.mask is None:
            return replace(self, init=InitImage(large, self.upscale_strength))
        return replace(self, init=InitImage(Image.composite(large, kept.image, kept.mask), self.upscale_strength, kept.mask))

    def record(self, vae: str = "") -> Inputs:
        """What a Generation keeps of these sources, read already or not."""
        controls = tuple(
            ControlRecord(Path(one.net).stem, file_hash(Path(one.net)), fingerprint(one.image), float(one.scale), float(one.start), float(one.end))
            for one in self.controls
        )
        large = self.upscale != 1
        strength = float(self.upscale_strength) if large else 0.0
        made = Inputs(controls=controls, upscale=float(self.upscale), upscale_strength=strength, tile=bool(self.tile), vae=vae)
        if self.init is None:
            return made
        mask = "" if self.init.mask is None else fingerprint(read_mask(self.init.mask))
        return replace(made, picture=fingerprint(self.init.image), mask=mask, strength=float(self.init.strength))

    def repeating(self, inputs: Inputs) -> Sources:
        """These pictures and nets with the settings that are recorded; raises MetadataError naming, by hash, each that is wanted and not here."""
        init = self.init and replace(self.init, strength=inputs.strength)
        controls = tuple(
            replace(one, scale=kept.scale, start=kept.start, end=kept.end) for one, kept in zip(self.controls, inputs.controls, strict=False)
        )
        strength = inputs.upscale_strength if inputs.upscale != 1 else UPSCALE_STRENGTH
        again = Sources(init, (*controls, *self.controls[len(controls) :]), inputs.tile, inputs.upscale, strength)
        given = again.record(inputs.vae)
        if given == inputs:
            return again
        told = [("init", inputs.picture, given.picture), ("mask", inputs.mask, given.mask)]
        for i in range(max(len(inputs.controls), len(given.controls))):
            had, got = (record.controls[i] if i < len(record.controls) else None for record in (inputs, given))
            told += [(f"controls[{i}].net {had.net if had else ''}".strip(), had.net_hash if had else "", got.net_hash if got else "")]
            told += [(f"controls[{i}].image", had.picture if had else "", got.picture if got else "")]
        wanted = [f"{what} {had or '(none)'}, got {got or '(none)'}" for what, had, got in told if had != got]
        raise MetadataError(
            "もとの絵が要ります。init= と controls= に同じものを渡してください / made from pictures that must be given again, the same, as init= "
            f"and controls=; by hash (jpgen.pictures.fingerprint) it wants {'; '.join(wanted)}"
        )


NO_SOURCES = Sources()
"""Words alone."""


def counted(on_step: StepCallback | None, before: int, after: int) -> StepCallback | None:
    """The callback, told of steps that are part of more: so many before these and after."""
    if on_step is None or not (before or after):
        return on_step
    return lambda step: on_step(Step(before + step.index, before + step.total + after, step.preview))


def read_picture(picture: Picture, what: str = "picture", *, ground: str = "white") -> Image.Image:
    """The picture upright (EXIF), in RGB of 8 bits, what is transparent in it laid on `ground`; of an animation the first frame.

    Raises SettingError, naming it as `what`, for a file that is missing, no picture, damaged or too large.
    """
    try:
        with _opened(picture, what) as opened:
            if not 0 < opened.width * opened.height <= MAX_PIXELS:
                raise SettingError(
                    f"{what}: {_named(picture)} は大きすぎるか空です（{opened.width}x{opened.height}） / is too large or empty "
                    f"({opened.width}x{opened.height}): at most {MAX_PIXELS} pixels; reduce it first"
                )
            opened.load()
            image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would cut them off
            image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        elif image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        elif image.mode == "F":
            raise ValueError("floating point values of unknown range")
        return image.convert("RGB")
    except SettingError:
        raise
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        why = " ".join(str(error).split())[:120]
        raise SettingError(
            f"{what}: {_named(picture)} は絵として読めません（{why}）。別のファイルにしてください / cannot be read as a picture: give another file"
        ) from error


def read_mask(mask: Picture) -> Image.Image:
    """A mask in black and white (mode L, 0 or 255); what is transparent in it is black. Raises SettingError as `read_picture` does."""
    return read_picture(mask, "mask", ground="black").convert("L").point(lambda value: 255 if value >= HALF else 0)


def fit(image: Image.Image, width: int, height: int) -> Image.Image:
    """The picture in this size: its aspect kept, cut at the middle (A1111's "crop and resize"), by Lanczos."""
    return image if image.size == (width, height) else ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def fitted(init: InitImage, width: int, height: int) -> Fitted:
    """The picture in RGB and its mask in black and white, both of this size; raises SettingError (unreadable, or nothing of the mask is white)."""
    image = read_picture(init.image, "init")
    if init.mask is None:
        return Fitted(fit(image, width, height), init.strength)
    mask = read_mask(init.mask)
    if mask.size != image.size:
        mask = mask.resize(image.size, Image.Resampling.NEAREST)
    if mask.size != (width, height):
        mask = ImageOps.fit(mask, (width, height), Image.Resampling.NEAREST)
    if mask.getbbox() is None:
        raise SettingError("mask: 白い所がありません。描き直す所を白にしてください / nothing of it is white: paint white what is to be drawn anew")
    return Fitted(fit(image, width, height), init.strength, mask)


def enlarged(config: SamplingConfig, factor: float, multiple: int) -> SamplingConfig:
    """The settings with both sides times `factor`, rounded to the multiple; raises SettingError if that is too large."""
    width, height = (max(multiple, round(side * factor / multiple) * multiple) for side in (config.width, config.height))
    return replace(config, width=width, height=height).validated(multiple)


def steps_of(steps: int, strength: float) -> int:
    """How many of the steps are run: steps times strength, cut off as diffusers does, but at least one unless the strength is 0."""
    return min(steps, max(int(steps * strength + 1e-6), int(strength > 0)))


def fingerprint(picture: Picture) -> str:
    """The SHA-256 of a picture's pixels: of "WIDTHxHEIGHT RGB" and the bytes as `read_picture` gives them, whatever file they come from."""
    image = read_picture(picture)
    return hashlib.sha256(f"{image.width}x{image.height} RGB".encode() + image.tobytes()).hexdigest()


def file_hash(path: Path) -> str:
    """The first 10 hex digits of the SHA-256 of a weight file, as A1111 gives it; of a folder that of its files in a row. "" if there is none."""
    path = path.expanduser()
    files = sorted(path.rglob("*.safetensors")) if path.is_dir() else [path] if path.is_file() else []
    return _hash_of(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=64)
def _hash_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    """Of files, which are read again when their size or time changes: a net has gigabytes, and is named with every picture."""
    digest = hashlib.sha256()
    for file, *_ in files:
        with file.open("rb") as data:
            while block := data.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:10] if files else ""


def _opened(picture: Picture, what: str) -> AbstractContextManager[Image.Image]:
    if isinstance(picture, Image.Image):
        return nullcontext(picture)
    if not isinstance(picture, str | Path):
        raise SettingError(f"{what}: 絵かファイルの場所にしてください / wanted a PIL picture or a path, got {type(picture).__name__}")
    path = Path(picture).expanduser()
    if not path.is_file():
        raise SettingError(f"{what}: {_named(picture)} がありません。場所を確かめてください / no such file: check the path")
    image: Image.Image = Image.open(path, formats=FORMATS)
    return image


def _named(picture: object) -> str:
    return repr(str(picture)) if isinstance(picture, str | Path) else "絵 / the picture"


def _checked_init(init: InitImage, config: SamplingConfig, wrong: list[str]) -> InitImage:
    if not isinstance(init, InitImage):
        wrong.append(f"init は InitImage にしてください / init must be an InitImage, got {type(init).__name__}")
        return init
    if not _between(init.strength, 0, 1):
        wrong.append(f"strength={init.strength!r} は 0〜1 にしてください / must be 0–1 (0: as it is, 1: drawn anew)")
    image = mask = None
    try:
        image = read_picture(init.image, "init")
    except SettingError as error:
        wrong.append(str(error))
    try:
        mask = None if init.mask is None else read_mask(init.mask)
    except SettingError as error:
        wrong.append(str(error))
    if wrong or image is None:
        return init
    read = replace(init, image=image, mask=mask)
    try:
        fitted(read, config.width, config.height)
    except SettingError as error:
        wrong.append(str(error))
    return read


def _checked_control(control: Control, number: int, wrong: list[str]) -> Control:
    what = f"controls[{number}]"
    if not isinstance(control, Control):
        wrong.append(f"{what} は Control にしてください / must be a Control, got {type(control).__name__}")
        return control
    if not _between(control.scale, 0, MAX_SCALE):
        wrong.append(f"{what}.scale={control.scale!r} は 0〜{MAX_SCALE:g} にしてください / must be 0–{MAX_SCALE:g}")
    if not (_between(control.start, 0, 1) and _between(control.end, 0, 1) and control.start < control.end):
        wrong.append(
            f"{what}: start={control.start!r} end={control.end!r} は 0 ≦ start < end ≦ 1 にしてください / must be parts of the steps, start first"
        )
    if not Path(control.net).expanduser().exists():
        wrong.append(f"{what}: ControlNet {str(control.net)!r} がありません / no such file or folder: check the path")
    try:
        return replace(control, image=read_picture(control.image, f"{what}.image"))
    except SettingError as error:
        wrong.append(str(error))
        return control


def _between(value: object, low: float, high: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
