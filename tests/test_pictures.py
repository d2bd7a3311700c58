"""Pictures that go in: every mode and every damage; sizes, masks, hashes."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jpgen.errors import IncompatibleError, MetadataError, SettingError
from jpgen.pictures import Sources, counted, enlarged, file_hash, fingerprint, fit, fitted, read_mask, read_picture
from jpgen.types import Control, InitImage, Inputs, SamplingConfig, Step
from tests.toys.pictures import mask, picture

CONFIG = SamplingConfig(64, 64, 4, 2.0)


class Taker:
    name = "taker"
    size_multiple = 16
    takes = frozenset({"init", "mask", "controls", "tile"})


def rgb(image: Image.Image) -> tuple[int, ...]:
    return image.getpixel((0, 0))


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (Image.new("RGB", (4, 4), (10, 20, 30)), (10, 20, 30)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 128)), (127, 127, 127)),
        (Image.new("LA", (4, 4), (0, 0)), (255, 255, 255)),
        (Image.new("L", (4, 4), 77), (77, 77, 77)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.fromarray(np.full((4, 4), 51400, np.uint16)), (200, 200, 200)),  # 200.8 · 256
        (Image.new("I", (4, 4), 51400), (200, 200, 200)),
        (Image.new("RGB", (4, 4), "red").quantize(4), (255, 0, 0)),
        (Image.new("YCbCr", (4, 4), (255, 128, 128)), (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb_of_8_bits(image: Image.Image, wanted: tuple[int, ...], tmp_path: Path) -> None:
    made = read_picture(image)
    assert (made.mode, made.size) == ("RGB", (4, 4))
    np.testing.assert_allclose(rgb(made), wanted, atol=1)
    if image.mode not in ("CMYK", "YCbCr", "I"):
        image.save(tmp_path / "a.png")
        assert read_picture(tmp_path / "a.png").tobytes() == made.tobytes()


def test_a_palette_with_a_transparent_colour_lies_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert rgb(read_picture(tmp_path / "a.png")) == (255, 255, 255)
    image.save(tmp_path / "b.png")
    assert rgb(read_picture(tmp_path / "b.png")) == (0, 0, 255)


def test_of_an_animation_the_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert rgb(read_picture(tmp_path / "a.gif")) == (255, 0, 0)


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (32, 16), "red")
    image.paste("blue", (0, 0, 16, 16))  # the left half; EXIF says: turned by 90 degrees
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    made = read_picture(tmp_path / "a.jpg")
    assert made.size == (16, 32)
    assert made.getpixel((8, 4))[2] > 200 and made.getpixel((8, 28))[0] > 200


def bomb(path: Path, side: int) -> Path:
    """A PNG that says it is huge and holds next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [9000, 12_000, 60_000])  # more than we take, than Pillow warns of, than it opens
def test_a_decompression_bomb_is_not_opened(side: int, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"too large|cannot be read"):
        read_picture(bomb(tmp_path / "bomb.png", side))


def test_what_is_no_picture(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    picture(200, 200).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:-2000])
    (tmp_path / "vector.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    for name in ("text.png", "empty.png", "cut.png", "vector.svg"):
        with pytest.raises(SettingError, match="cannot be read as a picture") as caught:
            read_picture(tmp_path / name, "init")
        assert name in str(caught.value) and "\n" not in str(caught.value) and str(caught.value).startswith("init: ")
    for missing in (tmp_path / "none.png", tmp_path, ""):
        with pytest.raises(SettingError, match="no such file"):
            read_picture(missing)
    with pytest.raises(SettingError, match="got int"):
        read_picture(5)
    with pytest.raises(SettingError, match="too large or empty"):
        read_picture(Image.new("RGB", (0, 5)))
    with pytest.raises(SettingError, match="floating point"):
        read_picture(Image.new("F", (4, 4), 0.5))


def test_one_pixel_is_a_picture() -> None:
    made = fitted(InitImage(Image.new("RGB", (1, 1), (9, 99, 199)), 0.5, Image.new("L", (1, 1), 255)), 64, 32)
    assert made.image.size == made.mask.size == (64, 32)
    assert rgb(made.image) == (9, 99, 199)


def test_a_picture_of_another_size_keeps_its_aspect_and_is_cut_at_the_middle() -> None:
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    made = np.asarray(fit(wide, 64, 64))
    assert made.shape == (64, 64, 3)
    assert (made[:, 4:60] == (0, 0, 255)).all()  # the middle third alone
    assert fit(wide, 300, 100) is wide


def test_a_mask_of_another_size_is_stretched_and_cut_as_the_picture_is() -> None:
    small = Image.new("L", (30, 10))
    small.paste(255, (10, 0, 20, 10))
    made = fitted(InitImage(Image.new("RGB", (300, 100)), 0.5, small), 64, 64)
    assert set(np.unique(np.asarray(made.mask))) == {255}
    half = Image.new("L", (64, 64), 100)
    half.paste(200, (0, 0, 32, 64))
    assert np.asarray(read_mask(half))[0].tolist() == [255] * 32 + [0] * 32
    drawn = Image.new("RGBA", (64, 64), (255, 255, 255, 0))
    drawn.paste((255, 255, 255, 255), (0, 0, 32, 64))
    assert np.asarray(read_mask(drawn))[0].tolist() == [255] * 32 + [0] * 32  # transparent: not marked
    with pytest.raises(SettingError, match="nothing of it is white"):
        fitted(InitImage(picture(), 0.5, Image.new("L", (64, 64), 90)), 64, 64)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no")
    given = Sources(
        InitImage(tmp_path / "bad.png", 1.5, tmp_path / "none.png"),
        (Control(tmp_path / "no-net", tmp_path / "no.png", 3.0, 0.9, 0.1),), upscale=0.5, upscale_strength=-1,
    )  # fmt: skip
    with pytest.raises(SettingError) as caught:
        given.checked(CONFIG, Taker())
    told = str(caught.value)
    for words in ("strength=1.5", "bad.png", "none.png", "no-net", "no.png", "scale=3.0", "start=0.9 end=0.1", "upscale=0.5", "upscale_strength=-1"):
        assert words in told
    assert "\n" not in told
    for wrong in (float("nan"), "0.5", True, None):
        with pytest.raises(SettingError, match="strength="):
            Sources(InitImage(picture(), wrong)).checked(CONFIG, Taker())
    with pytest.raises(SettingError, match="init must be an InitImage, got Image"):
        Sources(picture()).checked(CONFIG, Taker())
    with pytest.raises(SettingError, match="upscale=100"):
        Sources(upscale=100).checked(CONFIG, Taker())


def test_a_backbone_that_cannot_says_what_can() -> None:
    class Bare(Taker):
        takes = frozenset({"init"})

    for given, words in (
        (Sources(tile=True), "seamless tiling: sd, sdxl"),
        (Sources(InitImage(picture(), 0.5, mask())), r"a mask: sd, sdxl, pixart \(mame\), flux"),
        (Sources(controls=(Control("net", picture()),)), "ControlNet: sd, sdxl, flux"),
    ):
        with pytest.raises(IncompatibleError, match=words):
            given.checked(CONFIG, Bare())
    assert Sources(InitImage(picture(), 0.5)).checked(CONFIG, Bare()).init is not None


def test_sizes_of_enlargements() -> None:
    assert (enlarged(CONFIG, 1.6, 16).width, enlarged(CONFIG, 2, 16).height) == (96, 128)
    with pytest.raises(SettingError, match="4096"):
        enlarged(CONFIG, 65, 16)


def test_a_fingerprint_is_of_the_pixels(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    picture().save(tmp_path / "b.webp", lossless=True)
    assert fingerprint(tmp_path / "a.png") == fingerprint(tmp_path / "b.webp") == fingerprint(picture())
    other = picture()
    other.putpixel((0, 0), (1, 2, 3))
    assert len({fingerprint(picture()), fingerprint(other), fingerprint(picture().resize((32, 128)))}) == 3


def test_the_hash_of_a_file_is_that_of_a1111(tmp_path: Path) -> None:
    import hashlib

    (tmp_path / "vae.safetensors").write_bytes(b"abc")
    assert file_hash(tmp_path / "vae.safetensors") == file_hash(tmp_path) == hashlib.sha256(b"abc").hexdigest()[:10]
    assert file_hash(tmp_path / "none") == ""


def test_repeating_wants_the_same_pictures_by_hash() -> None:
    given = Sources(InitImage(picture(), 0.3, mask()))
    made = given.record()
    again = Sources(InitImage(picture(), 0.9, mask())).repeating(made)
    assert again.init.strength == 0.3
    with pytest.raises(MetadataError, match=f"init {made.picture}, got .none.; mask {made.mask}, got .none."):
        Sources().repeating(made)
    with pytest.raises(MetadataError, match=f"init {made.picture}, got {fingerprint(picture(seed=1))}"):
        Sources(InitImage(picture(seed=1), mask=mask())).repeating(made)
    with pytest.raises(MetadataError, match=r"init .none., got"):
        Sources(InitImage(picture())).repeating(Inputs())
    assert Sources().repeating(Inputs()) == Sources()


def test_steps_are_counted_through_all_passes() -> None:
    seen: list[tuple[int, int]] = []
    watched = counted(lambda step: seen.append((step.index, step.total)), 4, 6)
    watched(Step(2, 3, list))
    assert seen == [(6, 13)]
    assert counted(None, 1, 1) is None
