"""Pictures that say how they were made: settings written into PNG, JPEG and WebP, read back, and file names that are safe.

Every picture carries three things. The `parameters` text of AUTOMATIC1111's web UI, which other tools read (PNG text chunk, EXIF UserComment).
Our own JSON twin of the Generation, which is never ambiguous and which alone we read (PNG chunk `jpgen`, XMP property `jpgen:settings`).
And XMP that says: made by a trained model (IPTC DigitalSourceType), with what, under which licence.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import struct
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PureWindowsPath
from typing import Any, get_args, get_origin, get_type_hints
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from PIL import Image, PngImagePlugin

from jpgen.errors import MetadataError, OutputError
from jpgen.types import MAX_SIDE, NO_INPUTS, AdapterInfo, Generation, Inputs, ModelInfo, Prompt, SamplingConfig, plain_data, require_seed

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
SAMPLERS = {"dpm++2m": "DPM++ 2M", "dpm++2m_sde": "DPM++ 2M SDE", "ddim": "DDIM", "unipc": "UniPC"}  # as A1111 calls them
TWIN_VERSION = 1
NAMESPACE = "https://jpgen.dev/ns/1.0/"
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
MAX_NAME = 255  # bytes of a file name
MAX_TEXT = 1 << 20  # bytes of a piece of metadata, written or read: Pillow's own limit
MAX_PIXELS = (2 * MAX_SIDE) ** 2  # of a picture that is read; Pillow warns of a few more
MAX_SEGMENT = 65533 - len(b"http://ns.adobe.com/xap/1.0/\0")  # bytes of one in a JPEG
UNENCODABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # what UTF-8, XML or other tools cannot carry
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')  # a `Key: value` of the last line, as A1111 reads it
NEGATIVE = "Negative prompt:"
DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]|conin\$|conout\$)(\.|$)", re.IGNORECASE)  # names that Windows keeps
REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "空きがありません。空きを作ってください / the disk is full: free some space or save elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "書き込めない場所です。別の場所にしてください / not writable: save elsewhere"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "途中にフォルダーでないものがあります / something on the way is not a folder: correct the path"),
    errno.EISDIR: "フォルダーです。ship.png のようなファイル名まで書いてください / it is a folder: add a file name such as ship.png",
    errno.ENAMETOOLONG: "名前が長すぎます。短くしてください / the name is too long: shorten it",
}


@dataclass(frozen=True)
class Settings:
    """What a picture says of how it was made: everything that repeats it."""

    prompt: Prompt
    config: SamplingConfig
    seed: int
    model: str
    revision: str
    license: str
    weights_hash: str
    encoder: str
    route: str
    adapters: tuple[AdapterInfo, ...] = ()
    inputs: Inputs = NO_INPUTS

    @property
    def source(self) -> str:
        """The prompt as it was typed."""
        return self.prompt.source

    @property
    def negative(self) -> str:
        """What must not appear."""
        return self.prompt.negative


def jpgen_version() -> str:
    """The installed version of jpgen, or "0.1.0+source" when it runs from a folder without being installed."""
    try:
        return version("jpgen")
    except PackageNotFoundError:
        return "0.1.0+source"


def save_picture(generation: Generation, path: Path) -> Path:
    """Write PNG (also without a suffix), JPEG or WebP with the settings inside; returns where it is.

    Makes parent folders; the name becomes NFC and at most 255 bytes. Raises OutputError: why, what to do; an old file is then still whole.
    """
    data = encode_picture(generation, _format(path.suffix or ".png"))
    with _temporary(path) as (target, temporary):
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    return target


def require_writable(path: Path) -> None:
    """Raise the OutputError that saving to `path` would raise, before any work is done for it; makes parent folders."""
    _format(path.suffix or ".png")
    with _temporary(path) as (_, temporary):
        temporary.touch(exist_ok=False)


@contextmanager
def _temporary(path: Path) -> Iterator[tuple[Path, Path]]:
    """Where a picture will be and a name for a temporary file beside it, removed at the end; OSErrors come out as OutputError."""
    try:
        if path.name in ("", "..") or os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, "")
        target = path.with_name(_fitting(unicodedata.normalize("NFC", path.stem), path.suffix or ".png"))
        target.parent.mkdir(parents=True, exist_ok=True)
        # The random part lets other threads, and what a killed process left, be.
        temporary = target.with_name(_fitting(f".{target.name}", f".{os.getpid()}.{os.urandom(4).hex()}.tmp"))
        try:
            yield target, temporary
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        why = REASONS.get(getattr(error, "errno", None) or 0, f"{_brief(error)}。別の場所か名前にしてください / try another place or name")
        raise OutputError(f"{str(path)!r} に保存できません: {why}") from error


def encode_picture(generation: Generation, format: str) -> bytes:
    """The bytes of a "PNG", "JPEG" (95, 4:4:4) or "WEBP" (lossless); raises OutputError for other formats and settings too long for one."""
    parameters, twin = parameters_text(generation), _twin(generation)
    how: dict[str, Any]
    match format := format.upper():
        case "PNG":
            chunks = PngImagePlugin.PngInfo()
            chunks.add_text("parameters", parameters)
            chunks.add_itxt("jpgen", twin)
            chunks.add_itxt("XML:com.adobe.xmp", _xmp(generation))
            how, longest, limit = {"pnginfo": chunks}, max(len(parameters.encode()), len(twin.encode())), MAX_TEXT
        case "JPEG" | "WEBP":
            comment = b"UNICODE\0" + parameters.encode("utf-16-be")
            # All big-endian, for readers that go by either; by hand, as Pillow writes a UserComment of a type that others refuse.
            exif = struct.pack(">4sLHHHLLLHHHLLL", b"MM\0*", 8, 1, 0x8769, 4, 1, 26, 0, 1, 0x9286, 7, len(comment), 44, 0) + comment
            how = {"exif": b"Exif\0\0" + exif, "xmp": _xmp(generation, twin).encode()}
            longest, limit = max(map(len, how.values())), MAX_SEGMENT if format == "JPEG" else MAX_TEXT
            how |= {"quality": 95, "subsampling": "4:4:4"} if format == "JPEG" else {"lossless": True}
        case _:
            raise OutputError(f"形式 {format!r} はありません。PNG、JPEG、WEBP から選んでください / unknown format: choose PNG, JPEG or WEBP")
    if longest > limit:
        raise OutputError(f"設定が長くて {format} に入りません。PNG で保存してください / settings do not fit ({longest} > {limit} bytes): use PNG")
    buffer = io.BytesIO()
    # A copy: Pillow keeps the settings of a save on the image, where another thread would find them.
    (generation.image.convert("RGB") if format == "JPEG" else generation.image.copy()).save(buffer, format, **how)
    return buffer.getvalue()


def file_name(generation: Generation, suffix: str = ".png") -> str:
    """A file name from prompt and seed, safe on every system: `夕焼けの海に浮かぶ赤い船-7.png`; raises OutputError for an unknown suffix."""
    return picture_name(generation.prompt.source, generation.seed, suffix)


def picture_name(source: str, seed: int, suffix: str = ".png") -> str:
    """As `file_name`, of a prompt as it was typed and a seed."""
    _format(suffix)
    kept = ("_" if c in '<>:"/\\|?*' or unicodedata.category(c)[0] in "CZ" else c for c in source)
    stem = unicodedata.normalize("NFC", re.sub("_+", "_", "".join(kept)).strip("._-~")) or "picture"
    return _fitting(f"_{stem}" if DEVICE.match(stem) else stem, f"-{seed}{suffix}")


def inside(folder: Path, name: str) -> Path:
    """`folder / name`; raises OutputError unless that is inside the folder, links followed (`..`, absolute, drive letters, UNC are not)."""
    parts = PureWindowsPath(name)  # knows both kinds of slash
    try:
        within = not (parts.drive or parts.root or ".." in parts.parts) and folder.resolve() in (folder / name).resolve().parents
    except (OSError, ValueError, RuntimeError):  # what no path can hold, links in a circle
        within = False
    if not within:
        raise OutputError(f"{name!r} は保存先のフォルダーの外です。ファイル名だけにしてください / outside the folder: use a plain file name")
    return folder / name


def parameters_text(generation: Generation) -> str:
    """The settings as A1111's `parameters` text: prompt, negative prompt, and one last line of `Key: value` pairs."""
    config, model = generation.config, generation.model
    pairs = {
        "Steps": config.steps,
        "Sampler": SAMPLERS.get(config.scheduler, config.scheduler),
        "Schedule type": "Automatic",  # the model's own spacing
        "CFG scale": f"{config.guidance_scale:g}",
        "Seed": generation.seed,
        "Size": f"{config.width}x{config.height}",
        "Model hash": model.weights_hash,
        "Model": model.name,
        **({"Clip skip": config.clip_skip} if config.clip_skip else {}),
        **_hashes(generation.adapters),
        **_input_pairs(generation.inputs),
        "RNG": "CPU",
        **_unusual(config),
        "Version": f"jpgen {jpgen_version()}",
    }
    negative = f"\n{NEGATIVE} {_printable(generation.prompt.negative)}" if generation.prompt.negative else ""
    last = ", ".join(f"{key}: {_quoted(_printable(str(value)))}" for key, value in pairs.items())
    return f"{_printable(generation.prompt.written or generation.prompt.source)}{negative}\n{last}"


def _hashes(adapters: tuple[AdapterInfo, ...]) -> dict[str, str]:
    """The hashes of adapters as A1111 writes them: `Lora hashes: "name: hash, …"`, `TI hashes: …`."""
    kinds = {"Lora hashes": "lora", "TI hashes": "embedding"}
    told = {key: ", ".join(f"{one.name}: {one.hash}" for one in adapters if one.kind == kind) for key, kind in kinds.items()}
    return {key: value for key, value in told.items() if value}


def _input_pairs(inputs: Inputs) -> dict[str, str]:
    """What was used besides words, as A1111 and its ControlNet extension write it."""
    large = inputs.upscale != 1
    told = {
        "Denoising strength": f"{inputs.strength if inputs.picture else inputs.upscale_strength:g}" if inputs.picture or large else "",
        "Hires upscale": f"{inputs.upscale:g}" if large else "",
        "Hires upscaler": "Lanczos" if large else "",
        "Tiling": "True" if inputs.tile else "",
        "VAE hash": inputs.vae,
    }
    for i, one in enumerate(inputs.controls):
        told[f"ControlNet {i}"] = (
            f"Module: none, Model: {one.net} [{one.net_hash[:8]}], Weight: {one.scale:g}, Resize Mode: Crop and Resize, "
            f"Guidance Start: {one.start:g}, Guidance End: {one.end:g}"
        )
    return {key: value for key, value in told.items() if value}


def _unusual(config: SamplingConfig) -> dict[str, str]:
    """What is told only where it is not as always."""
    interval = f"{config.guidance_start:g}:{config.guidance_stop:g}"
    return {key: value for key, value, usual in (("Guidance interval", interval, "0:1"), ("Step cache", config.cache, "none")) if value != usual}


def parse_parameters(text: str) -> tuple[str, str, dict[str, str]]:
    """Prompt, negative prompt and pairs of a `parameters` text by A1111's rule: the last line counts if it holds three pairs or more."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    texts: tuple[list[str], list[str]] = [], []
    negative = False
    for line in map(str.strip, lines):
        negative = negative or line.startswith(NEGATIVE)
        texts[negative].append(line.removeprefix(NEGATIVE).strip() if negative else line)
    prompt, unwanted = ("\n".join(text).lstrip("\n") for text in texts)
    return prompt, unwanted, {key: _unquoted(value) for key, value in pairs}


def read_settings(picture: Path | bytes) -> Settings:
    """The settings inside a PNG, JPEG or WebP that jpgen saved, a file or its bytes; no pixel is decoded.

    Raises MetadataError if there is no such picture, it holds no settings of jpgen, or they are damaged, forged or of a newer jpgen.
    """
    named = "画像 / the picture" if isinstance(picture, bytes) else repr(str(picture))
    try:
        if not isinstance(picture, bytes) and not picture.is_file():
            raise MetadataError("ファイルがありません。場所を確かめてください / no such file: check the path")
        with Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture, formats=("PNG", "JPEG", "WEBP")) as image:
            info = image.info
        twin, xmp = info.get("jpgen", ""), info.get("xmp", b"")
        if max(len(twin), len(xmp)) > MAX_TEXT or image.width * image.height > MAX_PIXELS:
            raise ValueError("too large")
        if twin := twin or _twin_in_xmp(xmp.decode()):
            return _settings(json.loads(twin))
        lack = "parameters だけで、jpgen の設定がありません" if "parameters" in info else "jpgen の設定がありません"
        raise MetadataError(f"{lack}。jpgen が保存した元の画像を使ってください / no settings of jpgen: use the file it saved")
    except MetadataError as error:
        raise MetadataError(f"{named}: {error}") from error.__cause__
    except Exception as error:  # hostile bytes make Pillow raise nearly anything
        damaged = f"画像として読めないか、設定が壊れています（{_brief(error)}）。元のファイルを使ってください"
        raise MetadataError(f"{named}: {damaged} / no picture, or damaged settings: use the file that jpgen saved") from error


def _settings(data: Any) -> Settings:
    """Settings of a twin; raises MetadataError for another version, LookupError, TypeError or ValueError for what is missing or wrong."""
    if (version := _typed(int, data["version"])) != TWIN_VERSION:
        raise MetadataError(f"設定の形式 {version} は読めません。jpgen を新しくしてください / settings of unknown version {version}: update jpgen")
    model = _typed(ModelInfo, data["model"])
    return Settings(
        _typed(Prompt, data["prompt"]),
        _typed(SamplingConfig, data["config"]).validated(1),
        require_seed(data["seed"]),
        *(model.name, model.revision, model.license, model.weights_hash),
        encoder=_typed(str, data["encoder"]),
        route=_typed(str, data["route"]),
        adapters=_typed(tuple[AdapterInfo, ...], data.get("adapters", [])),
        inputs=_typed(Inputs, data.get("inputs", {})),
    )


def _typed(kind: Any, value: Any) -> Any:
    """JSON data as a value of this kind: a dataclass, a tuple, str, int or float."""
    if isinstance(kind, type) and is_dataclass(kind) and isinstance(value, dict):
        return kind(**{name: _typed(hint, value[name]) for name, hint in get_type_hints(kind).items() if name in value})
    if get_origin(kind) is tuple and isinstance(value, list):
        first, *rest = get_args(kind)
        return tuple(_typed(*pair) for pair in zip([first] * len(value) if rest == [...] else [first, *rest], value, strict=True))
    value = float(value) if kind is float and type(value) is int else value
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise ValueError(f"{value!r:.40} for {kind}")
    return value


def _twin(generation: Generation) -> str:
    """The Generation as JSON, UTF-8 where that can carry it (escapes are twice as long); two surrogates in a row come back as their character."""
    data = {"version": TWIN_VERSION, "software": f"jpgen {jpgen_version()}", **plain_data(generation)}
    return UNENCODABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(data, ensure_ascii=False, separators=(",", ":")))


def _twin_in_xmp(packet: str) -> str:
    """The twin in an XMP packet, "" if there is none; raises ValueError or SyntaxError for XML that is damaged or may declare entities."""
    if "<!DOCTYPE" in packet:
        raise ValueError("XMP with a DOCTYPE")
    name = f"{{{NAMESPACE}}}settings"
    elements = ElementTree.fromstring(packet.strip("\0\ufeff \n")).iter() if packet else ()
    return next((text for e in elements if (text := e.text if e.tag == name else e.get(name))), "")


def _xmp(generation: Generation, twin: str = "") -> str:
    settings = f"\n<jpgen:settings>{escape(twin)}</jpgen:settings>" if twin else ""
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/"
 xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:jpgen="{NAMESPACE}">
<Iptc4xmpExt:DigitalSourceType>{DIGITAL_SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
<xmp:CreatorTool>jpgen {jpgen_version()}</xmp:CreatorTool>
<dc:rights><rdf:Alt><rdf:li xml:lang="x-default">{escape(_printable(generation.model.license))}</rdf:li></rdf:Alt></dc:rights>{settings}
</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def _printable(text: str) -> str:
    return UNENCODABLE.sub("\ufffd", re.sub("\r\n?", "\n", text))


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,\n:]", value) else value


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value[:1] == value[-1:] == '"' else value
    except ValueError:
        return value


def _brief(value: object) -> str:
    return " ".join(_printable(str(value)).split())[:160]


def _format(suffix: str) -> str:
    if suffix.lower() not in FORMATS:
        raise OutputError(f"拡張子 {suffix!r} では保存できません。.png、.jpg、.webp から選んでください / unknown suffix: choose .png, .jpg or .webp")
    return FORMATS[suffix.lower()]


def _fitting(stem: str, rest: str) -> str:
    """`stem` + `rest`, the stem cut at a character so that the name has at most MAX_NAME bytes."""
    encoded, room = stem.encode("utf-8", "surrogateescape"), MAX_NAME - len(rest.encode("utf-8", "surrogateescape"))
    return (stem if len(encoded) <= room else encoded[:room].decode(errors="ignore")) + rest
