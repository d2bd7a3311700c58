"""Pictures that people bring: looked at before they are decoded, and nothing in them is followed, run or looked up.

Raises of both functions are `UploadError`, in Japanese and English, for everything that is too large, damaged or no picture.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from PIL import ExifTags, Image

import jpgen

FORMATS = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "WEBP": b"RIFF"}
MAX_BYTES = 10_000_000
MAX_PIXELS = 16_000_000
MAX_PARAMETERS = 100_000
"""Characters of the text that A1111 writes."""

SAMPLERS = {
    "dpm++ 2m": "dpm++2m", "dpm++ 2m karras": "dpm++2m", "dpm++ 2m sde": "dpm++2m_sde", "dpm++ 2m sde karras": "dpm++2m_sde", "ddim": "ddim",
    "unipc": "unipc", "euler": "euler", "lcm": "lcm",
}  # fmt: skip
"""A1111's names of the samplers that jpgen has."""

LORA = re.compile(r"[<＜]\s*(?:lora|lyco|ｌｏｒａ|ｌｙｃｏ)\s*[:：]\s*([^<>＜＞:：]*)[^<>＜＞]*[>＞]", re.IGNORECASE)
NUMBER = re.compile(r"-?\d{1,19}(?:\.\d{1,9})?")


class UploadError(jpgen.JpgenError, ValueError):
    """A file that cannot be used, and why."""


def open_picture(data: bytes, name: str = "", *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A PNG, JPEG or WebP upright (EXIF) in RGB, what is transparent in it on white, of an animation the first frame.

    Its size is read from its head, before a pixel is decoded. `name` is only told in the error.
    """
    with _opened(data, _shown(name), max_bytes, max_pixels) as image:
        return jpgen.read_picture(image)


def restore(
    data: bytes, *, models: Collection[str] | None = None, loras: Collection[str] | None = None, max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> jpgen.Settings:  # fmt: skip
    """The settings that a picture carries: those of jpgen, else what A1111 and its kin write as `parameters`.

    Names in it are only kept if they are among `models` and `loras` (None: the catalogue, the LoRA folder); the model is "" otherwise, and what was
    left out is told in `prompt.notes`. No path in it is ever opened.
    """
    with _opened(data, "", max_bytes, max_pixels) as image:
        size, text = image.size, _parameters(image)
    try:
        settings = jpgen.read_settings(data)
    except jpgen.MetadataError as error:
        if not text:
            raise UploadError(
                "この画像には設定が入っていません。jpgen か stable-diffusion-webui が保存した PNG を、加工せずに渡してください / "
                "this picture carries no settings: give a PNG as jpgen or stable-diffusion-webui saved it"
            ) from error
        settings = _of_a1111(text, size)
    return _without_strangers(settings, models, loras)


def _kind(data: bytes, told: str, max_bytes: int) -> str:
    """The format by the first bytes, whatever the name says; nothing is parsed yet."""
    if not data:
        raise UploadError(f"{told}空のファイルです / the file is empty")
    if len(data) > max_bytes:
        raise UploadError(
            f"{told}大きすぎます（{len(data) / 1e6:.1f} MB、上限 {max_bytes / 1e6:g} MB）。小さくして保存し直してください / "
            f"{len(data) / 1e6:.1f} MB, at most {max_bytes / 1e6:g} MB: save it smaller"
        )
    for kind, start in FORMATS.items():
        if data.startswith(start) and (kind != "WEBP" or data[8:12] == b"WEBP"):
            return kind
    raise UploadError(f"{told}PNG・JPEG・WebP の画像ではありません。画像ファイルを選んでください / not a PNG, JPEG or WebP picture: choose one")


@contextmanager
def _opened(data: bytes, told: str, max_bytes: int, max_pixels: int) -> Iterator[Image.Image]:
    """The picture with its head read and its size found to be allowed; whatever goes wrong comes out as UploadError, beginning with `told`."""
    kind = _kind(data, told, max_bytes)
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as image:
            if not 0 < image.width * image.height <= max_pixels:
                raise Image.DecompressionBombError(f"{image.width}×{image.height}")
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # Pillow's own limit lies higher, and comes first
        got = f"{error}、" if "×" in str(error) else ""
        raise UploadError(
            f"{told}画素が多すぎます（{got}上限 {max_pixels / 1e6:g} メガピクセル）。縮めてから渡してください / "
            f"too many pixels, at most {max_pixels / 1e6:g} megapixels: reduce it first"
        ) from error
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        raise UploadError(
            f"{told}壊れているか、途中で切れています。もう一度保存したものを使ってください / damaged or cut short: save it again and try that"
        ) from error


def _shown(name: str) -> str:
    """A file's name for a sentence: without folders, control characters and what is too long."""
    plain = re.sub(r"[\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", "", re.split(r"[/\\]", name)[-1]).strip()
    return f"「{plain[:40]}{'…' if len(plain) > 40 else ''}」: " if plain else ""


def _parameters(image: Image.Image) -> str:
    """A1111's text: of a PNG its chunk, of JPEG and WebP the EXIF UserComment; "" if there is none."""
    told = image.info.get("parameters", "")
    if isinstance(told, str) and told:
        return told[:MAX_PARAMETERS]
    comment = image.getexif().get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.UserComment, b"")
    if not isinstance(comment, bytes):
        return str(comment)[:MAX_PARAMETERS]
    head, body = comment[:8], comment[8:]
    if head == b"UNICODE\0":  # both byte orders are met; the right one has fewer NULs where they should not be
        order = "utf-16-be" if body[::2].count(0) >= body[1::2].count(0) else "utf-16-le"
        return body.decode(order, "replace")[:MAX_PARAMETERS]
    return body.decode("utf-8", "replace").strip("\0 ")[:MAX_PARAMETERS] if head in (b"ASCII\0\0\0", bytes(8)) else ""


def _of_a1111(text: str, size: tuple[int, int]) -> jpgen.Settings:
    """Settings of A1111's text, as far as they mean the same here."""
    prompt, negative, pairs = jpgen.parse_parameters(text)
    notes = []
    told = re.fullmatch(r"(\d{1,5})x(\d{1,5})", pairs.get("Size", ""))
    width, height = (int(told[1]), int(told[2])) if told else size
    scheduler = SAMPLERS.get(pairs.get("Sampler", "").lower(), "")
    if "Sampler" in pairs and not scheduler:
        notes.append(f"サンプラー「{pairs['Sampler'][:40]}」はありません。既定のものにします / no such sampler: the usual one is taken")
    if pairs.get("RNG", "GPU") != "CPU":
        notes.append("乱数が違うので、同じシードでも別の絵になります / its noise was another: the same seed gives another picture")
    config = jpgen.SamplingConfig(
        width, height, steps=int(_number(pairs, "Steps", 20, 1, 1000, notes)), guidance_scale=_number(pairs, "CFG scale", 7.0, 0, 100, notes),
        scheduler=scheduler or "dpm++2m", clip_skip=int(_number(pairs, "Clip skip", 0, 0, 1000, notes)),
    )  # fmt: skip
    seed = int(_number(pairs, "Seed", 0, 0, 2**63 - 1, notes))
    read = jpgen.Prompt(prompt, prompt, negative, notes=tuple(notes))
    return jpgen.Settings(read, config, seed, pairs.get("Model", ""), "", "", pairs.get("Model hash", ""), "", "")


def _number(pairs: Mapping[str, str], name: str, usual: float, low: float, high: float, notes: list[str]) -> float:
    """A number of the pairs, the usual one (and a note, if something else stood there) if it is none or out of range."""
    told = pairs.get(name)
    if told is None:
        return usual
    value: float = (float(told) if "." in told else int(told)) if NUMBER.fullmatch(told) else math.nan
    if low <= value <= high:
        return value
    notes.append(f"{name}「{told[:20]}」は使えないので {usual:g} にします / cannot be used: {usual:g} is taken")
    return usual


def _without_strangers(settings: jpgen.Settings, models: Collection[str] | None, loras: Collection[str] | None) -> jpgen.Settings:
    """The settings without models and LoRAs that are not known here, which the notes tell."""
    prompt, notes, left_out = settings.prompt, list(settings.prompt.notes), []
    named = prompt.loras or any(LORA.search(text) for text in (prompt.source, prompt.text, prompt.written, prompt.negative))
    known_loras = jpgen.list_loras() if loras is None and named else loras or ()

    def kept(found: re.Match[str]) -> str:
        if found[1].strip() in known_loras:
            return found[0]
        left_out.append(found[1].strip())
        return ""

    changed: dict[str, Any] = {one: LORA.sub(kept, getattr(prompt, one)) for one in ("source", "text", "written", "negative")}
    left_out += [name for name, _ in prompt.loras if name not in known_loras]
    if left_out:
        notes.append(f"LoRA {_listed(left_out)} は手元にないので外しました / LoRAs that are not here were left out: {_listed(left_out)}")
    model = settings.model if settings.model in (jpgen.load_catalog() if models is None else models) else ""
    if settings.model and not model:
        notes.append(f"モデル {_listed([settings.model])} はここにありません。選び直してください / this model is not here: choose another")
    if settings.inputs.picture:
        notes.append("絵をもとに描かれています。同じ絵を渡すと同じものが描けます / drawn from a picture: give the same one to repeat it")
    known = tuple(one for one in prompt.loras if one[0] in known_loras)
    return replace(settings, prompt=replace(prompt, **changed, loras=known, notes=tuple(dict.fromkeys(notes))), model=model)


def _listed(names: Collection[str]) -> str:
    """Names for a sentence: the last part of what may be a path, each once, not too many."""
    return "、".join(dict.fromkeys(_shown(name).removesuffix(": ") or "「」" for name in names).keys())[:200]
