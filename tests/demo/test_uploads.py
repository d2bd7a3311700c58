"""Files that people bring: what is good is read, everything else refused in Japanese before it costs anything."""

from __future__ import annotations

import io
import json
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

import jpgen
from demo.uploads import UploadError, open_picture, restore
from jpgen import Generation, ModelInfo, Prompt, SamplingConfig
from jpgen.types import Inputs, plain_data

SHIP = "夕焼けの海に浮かぶ赤い船"
GENERATION = Generation(
    Image.new("RGB", (24, 16), "tomato"), Prompt(SHIP, SHIP, "人"), SamplingConfig(256, 192, 4, 4.5), 7,
    ModelInfo("mame", "0.1.0", "Apache-2.0", "00"), "bert", "native", 0.5,
)  # fmt: skip


def encoded(image: Image.Image, format: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **how)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png(width: int, height: int, *between: bytes, rows: bytes | None = None) -> bytes:
    """A PNG of one bit a pixel."""
    body = zlib.compress(bytes((width + 7) // 8 + 1) * min(height, 64) if rows is None else rows)
    header = struct.pack(">LLBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(between) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_text(text: str, key: str = "parameters", image: Image.Image | None = None) -> bytes:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(key, text)
    return encoded(image or Image.new("RGB", (8, 8)), pnginfo=chunks)


def twin(generation: Generation, **changes: object) -> bytes:
    return with_text(json.dumps({"version": 1, **plain_data(generation), **changes}), "jpgen")


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_pictures_are_opened_in_rgb(format: str) -> None:
    image = open_picture(encoded(Image.new("RGB", (30, 20), "navy"), format), "海.png")
    assert (image.mode, image.size) == ("RGB", (30, 20))
    assert all(abs(got - wanted) < 6 for got, wanted in zip(image.getpixel((5, 5)), (0, 0, 128), strict=True))  # type: ignore[arg-type]


def test_turned_photographs_stand_upright_and_what_is_transparent_is_white() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90°
    assert open_picture(encoded(Image.new("RGB", (30, 20)), "JPEG", exif=exif)).size == (20, 30)
    assert open_picture(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0)))).getpixel((1, 1)) == (255, 255, 255)
    assert open_picture(encoded(Image.new("L", (4, 4), 77))).getpixel((1, 1)) == (77, 77, 77)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    assert open_picture(encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)).getpixel((1, 1)) == (255, 0, 0)


WHOLE = encoded(Image.effect_noise((64, 64), 50).convert("RGB"))

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "空のファイル"),
    "text": ("これは画像ではありません".encode(), "画像ではありません"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "画像ではありません"),
    "gif": (encoded(Image.new("P", (4, 4)), "GIF"), "画像ではありません"),
    "pdf": (b"%PDF-1.7 ...", "画像ではありません"),
    "zip": (b"PK\x03\x04" + bytes(100), "画像ではありません"),
    "wave": (b"RIFF\x00\x00\x00\x00WAVEfmt ", "画像ではありません"),
    "head alone": (b"\x89PNG\r\n\x1a\n", "壊れている"),
    "cut": (WHOLE[: len(WHOLE) // 2], "壊れている"),
    "cut JPEG": (encoded(Image.effect_noise((64, 64), 50), "JPEG")[:900], "壊れている"),
    "JPEG named by its first bytes alone": (b"\xff\xd8\xff" + bytes(500), "壊れている"),
    "20,000 × 20,000": (png(20_000, 20_000), "画素が多すぎます（上限"),
    "5,000 × 5,000": (png(5_000, 5_000), "画素が多すぎます（5000×5000"),
    "two thousand million wide": (png(2**31 - 1, 1), "画素が多すぎます"),
    "no pixels": (png(0, 5), "壊れている|画素"),
    "text bomb": (png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))), "壊れている"),
    "profile bomb": (png(4000, 4000, rows=b""), "壊れている"),
    "floats": (encoded(Image.new("F", (4, 4)), "TIFF"), "画像ではありません"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_good_is_refused_in_japanese(case: str) -> None:
    data, told = BAD[case]
    with pytest.raises(UploadError, match=rf"^「絵\.png」: .*({told}).* / "):
        open_picture(data, "絵.png")
    with pytest.raises(UploadError, match=" / "):
        restore(data)


def test_bombs_are_refused_before_they_are_decoded() -> None:
    bombs = [png(20_000, 20_000), png(8, 8, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))), png(4000, 4000, rows=bytes(30_000_000))]
    tracemalloc.start()
    try:
        for data in bombs[:2]:
            with pytest.raises(UploadError):
                open_picture(data)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert open_picture(bombs[2]).size == (4000, 4000), "more data than its size tells is not read"


def test_sizes_are_limited_by_the_settings_of_the_demo() -> None:
    data = encoded(Image.effect_noise((100, 100), 50))
    with pytest.raises(UploadError, match=r"大きすぎます（0\.0 MB、上限 0\.001 MB）"):
        open_picture(data, max_bytes=1000)
    with pytest.raises(UploadError, match=r"100×100、上限 0\.009 メガピクセル"):
        open_picture(data, max_pixels=9000)
    with pytest.raises(UploadError, match="メガピクセル"):
        restore(data, max_pixels=9000)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("../../etc/passwd", "「passwd」"),
        ("C:\\Users\\x\\絵.png", "「絵.png」"),
        ("a\u202egnp.exe\n\0", "「agnp.exe」"),
        ("\ud800", ""),
        ("長" * 500 + ".png", f"「{'長' * 40}…」"),
        ("![x](http://example.com/a.png).png", "「a.png).png」"),
    ],
)
def test_names_are_told_without_folders_and_tricks(name: str, told: str) -> None:
    with pytest.raises(UploadError) as caught:
        open_picture(b"text", name)
    assert str(caught.value).split(": ")[0] == told or (not told and str(caught.value).startswith("PNG"))


# ── settings ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_what_jpgen_saved_comes_back_as_it_was(tmp_path: Path, suffix: str) -> None:
    path = GENERATION.save(tmp_path / f"船{suffix}")
    settings = restore(path.read_bytes(), loras=())
    assert settings == jpgen.read_settings(path)
    assert (settings.source, settings.negative, settings.seed, settings.config) == (SHIP, "人", 7, GENERATION.config)


A1111 = """猫、(赤い首輪:1.2)
Negative prompt: 犬
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 123456789012, Size: 512x768, Model: mame, RNG: CPU"""


@pytest.mark.parametrize("how", ["png", "big", "little", "ascii"])
def test_what_a1111_wrote_comes_back_as_far_as_it_means_the_same(how: str) -> None:
    if how == "png":
        data = with_text(A1111)
    else:
        comment = {
            "big": b"UNICODE\0" + A1111.encode("utf-16-be"),
            "little": b"UNICODE\0" + A1111.encode("utf-16-le"),
            "ascii": b"ASCII\0\0\0" + A1111.encode(),
        }[how]
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        data = encoded(Image.new("RGB", (8, 8)), "JPEG", exif=exif)
    settings = restore(data)
    assert (settings.source, settings.negative, settings.model, settings.seed) == ("猫、(赤い首輪:1.2)", "犬", "mame", 123456789012)
    assert settings.config == SamplingConfig(512, 768, 28, 6.5, "dpm++2m")
    assert settings.prompt.notes == ()


def test_what_does_not_mean_the_same_is_told() -> None:
    text = "猫\nSteps: 99999999999999999999, Sampler: Restart, CFG scale: NaN, Seed: -1, Size: 12x, Model: ../../etc/passwd"
    settings = restore(with_text(text), models=["mame"])
    assert settings.config == SamplingConfig(8, 8, 20, 7.0, "dpm++2m")
    assert (settings.seed, settings.model) == (0, "")
    notes = "\n".join(settings.prompt.notes)
    for told in ("サンプラー「Restart」", "Steps「9999999", "CFG scale「NaN」", "Seed「-1」", "同じシードでも別の絵", "モデル 「passwd」"):
        assert told in notes
    assert ".." not in notes


def test_loras_are_kept_only_if_they_are_known() -> None:
    text = "猫 <lora:水彩:0.8> ＜ｌｏｒａ：../../x：1＞ <LyCo:/etc/passwd:1>\nSteps: 4, Seed: 1, Size: 8x8"
    settings = restore(with_text(text), loras=["水彩"])
    assert settings.source.split() == ["猫", "<lora:水彩:0.8>"]
    assert "LoRA 「x」、「passwd」 は手元にないので外しました" in "\n".join(settings.prompt.notes)


def test_paths_in_a_forged_twin_are_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a picture names, no file is looked at but the LoRA folder, which is listed."""
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"")
    monkeypatch.setenv("JPGEN_LORAS", str(tmp_path / "loras"))
    prompt = Prompt(f"猫<lora:{secret}:1>", "猫", loras=((str(secret), 1.0), ("../secret", 1.0)))
    forged = replace(GENERATION, prompt=prompt, model=ModelInfo(str(secret), "0", "x", "0"), inputs=Inputs(picture="00", vae="../../x"))
    opened: list[str] = []
    real = Path.open

    def watched(self: Path, *given: object, **how: object) -> object:
        opened.append(str(self))
        return real(self, *given, **how)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", watched)
    settings = restore(twin(forged))
    assert (settings.source, settings.model, settings.prompt.loras) == ("猫", "", ())
    assert str(secret) not in opened
    notes = "\n".join(settings.prompt.notes)
    assert "手元にないので外しました" in notes and "同じ絵を渡す" in notes and str(tmp_path) not in notes


@pytest.mark.parametrize(
    "data",
    [
        with_text("ただの文"),
        twin(GENERATION, version=2),
        twin(GENERATION, config={"width": 1e300}),
        with_text("[" * 100_000, "jpgen"),
        with_text("null", "jpgen"),
        encoded(Image.new("RGB", (8, 8))),
    ],
)
def test_pictures_without_settings_or_with_damaged_ones(data: bytes) -> None:
    if b"parameters" in data:
        assert restore(data).source == "ただの文"
    else:
        with pytest.raises(UploadError, match="設定が入っていません"):
            restore(data)
