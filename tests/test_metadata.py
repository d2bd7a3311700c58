"""Settings written into pictures and read back, whatever the prompt; files that are whole or not there; names that are safe."""

import errno
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import unicodedata
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from jpgen import metadata
from jpgen.errors import MetadataError, OutputError
from jpgen.metadata import encode_picture, file_name, inside, jpgen_version, parameters_text, parse_parameters, read_settings, save_picture
from jpgen.types import Edit, Generation, ModelInfo, Prompt, SamplingConfig, plain_data

SUFFIXES = [".png", ".jpg", ".webp"]
IMAGE = Image.new("RGB", (16, 8), "tomato")
MODEL = ModelInfo("mame", "0.1.0", "Apache-2.0 (art: Apache-2.0, MIT, CC-BY-4.0) <&>", "0123abcdef")
CONFIG = SamplingConfig(256, 192, 16, 4.5)
TRAP = "画風: 水彩, 色: 青, 主題: 猫"

NASTY = "\0\t\n\r\x1b\x7f\x85\u200b\u200d\u202e\u2028\u3000\ufeff\ufffe\uffff\ud800\udfff\U0001f600\"\\<>&'/:%,-が.か\u3099"
ANY_TEXT = st.lists(st.integers(0, 0x10FFFF).map(chr) | st.sampled_from(NASTY), max_size=40).map("".join)
WORDS = st.from_regex(r"[ぁ-んァ-ヶ一-龥a-z0-9、。,:\"()]{1,12}", fullmatch=True)
WELL_FORMED = st.lists(WORDS, min_size=1, max_size=3).map("\n".join)
WEIGHTS = st.floats(allow_nan=False, allow_infinity=False)
PROPERTY = settings(deadline=None, max_examples=100, database=None)


def made(prompt: Prompt | str = "夕焼けの海に浮かぶ赤い船、水彩画風", **changes: object) -> Generation:
    prompt = Prompt(prompt, prompt) if isinstance(prompt, str) else prompt
    return replace(Generation(IMAGE, prompt, CONFIG, 7, MODEL, "bert", "native", 1.25), **changes)  # type: ignore[arg-type]


def joined(text: str) -> str:
    """Two surrogates in a row are, in JSON, the character they stand for."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")


def with_chunk(path: Path, twin: str, *, key: str = "jpgen", zipped: bool = False) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(key, twin, zip=zipped)
    IMAGE.copy().save(path, "PNG", pnginfo=chunks)  # Pillow keeps settings of a save on the image
    return path


def twin_of(generation: Generation) -> dict[str, object]:
    return {"version": 1, **plain_data(generation)}


def user_comment(data: bytes) -> str:
    """The UserComment as piexif reads it for A1111: type UNDEFINED, prefix UNICODE, UTF-16 big-endian."""
    exif = data[data.index(b"MM\0*") :]
    kind, length, place = struct.unpack(">HLL", exif[exif.index(b"\x92\x86") + 2 :][:10])
    comment = exif[place : place + length]
    assert kind == 7
    assert comment.startswith(b"UNICODE\0")
    return comment.removeprefix(b"UNICODE\0").decode("utf-16-be")


def test_what_is_unusual_is_told_to_other_tools_too(tmp_path: Path) -> None:
    usual = made()
    assert "interval" not in parameters_text(usual) and "cache" not in parameters_text(usual)
    changed = made(config=replace(CONFIG, guidance_start=0.1, guidance_stop=0.8, cache="deepcache"))
    pairs = parse_parameters(parameters_text(changed))[2]
    assert (pairs["Guidance interval"], pairs["Step cache"]) == ("0.1:0.8", "deepcache")
    for suffix in SUFFIXES:
        assert read_settings(changed.save(tmp_path / f"a{suffix}")).config == changed.config
    old = twin_of(usual)
    for later in ("guidance_start", "guidance_stop", "cache"):
        del old["config"][later]  # type: ignore[attr-defined]
    assert read_settings(with_chunk(tmp_path / "old.png", json.dumps(old))).config == CONFIG  # a picture of an older jpgen


# ── what is written is read ────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("suffix", SUFFIXES)
@PROPERTY
@given(source=ANY_TEXT, text=ANY_TEXT, negative=ANY_TEXT, weight=WEIGHTS, seed=st.integers(0, 2**63 - 1))
@example(source="\ud83d\ude00\ud83d", text=TRAP, negative="]]><x>", weight=1.1, seed=0)
@example(source="Negative prompt: a\nSteps: 1, Seed: 2, Size: 1x1", text="\\u0080\x80", negative="", weight=1, seed=1)
def test_any_prompt_survives(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, source: str, text: str, negative: str, weight: float, seed: int
) -> None:
    prompt = Prompt(source, text, negative, ((text, weight), (source, 1.0)), (Edit("nfkc", source, text),), (negative, source))
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    save_picture(made(prompt, seed=seed), path)
    found = read_settings(path)
    assert found.prompt == Prompt(
        *map(joined, (source, text, negative)),
        ((joined(text), weight), (joined(source), 1.0)),
        (Edit("nfkc", joined(source), joined(text)),),
        (joined(negative), joined(source)),
    )
    assert (found.source, found.negative) == (joined(source), joined(negative))
    assert (found.config, found.seed, found.encoder, found.route) == (CONFIG, seed, "bert", "native")
    assert (found.model, found.revision, found.license, found.weights_hash) == (MODEL.name, MODEL.revision, MODEL.license, MODEL.weights_hash)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_last_line_that_looks_like_settings(tmp_path: Path, suffix: str) -> None:
    for last in (TRAP, TRAP.replace("色", "色彩")):  # the second has three keys for A1111, which wants two characters of a key
        prompt = f"猫\n{last}"
        assert read_settings(save_picture(made(prompt), tmp_path / f"猫{suffix}")).source == prompt
        assert parse_parameters(parameters_text(made(prompt)))[0] == prompt


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_marked_as_made_by_a_model(suffix: str) -> None:
    data = encode_picture(made(), metadata.FORMATS[suffix])
    assert b"Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia<" in data
    assert f"<xmp:CreatorTool>jpgen {jpgen_version()}</xmp:CreatorTool>".encode() in data
    assert b"CC-BY-4.0) &lt;&amp;&gt;</rdf:li>" in data
    assert b'"revision":"0.1.0"' in data
    with Image.open(io.BytesIO(data)) as image:
        packet = image.info["xmp"]
    assert metadata.ElementTree.fromstring(packet.decode().strip("\ufeff")).tag == "{adobe:ns:meta/}xmpmeta"


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_pixels_are_kept(tmp_path: Path, suffix: str) -> None:
    noise = Image.frombytes("RGB", (16, 16), os.urandom(768))
    with Image.open(save_picture(made(image=noise), tmp_path / f"noise{suffix}")) as image:
        assert image.convert("RGB").tobytes() == noise.tobytes()


def test_jpeg_is_444(tmp_path: Path) -> None:
    with Image.open(made(image=IMAGE.convert("RGBA")).save(str(tmp_path / "a.jpeg"))) as image:
        assert image.format == "JPEG"
        assert {layer[1:3] for layer in image.layer} == {(1, 1)}  # type: ignore[attr-defined]


def test_settings_too_long_for_a_jpeg_name_the_way_out(tmp_path: Path) -> None:
    long = made("猫" * 20_000)
    with pytest.raises(OutputError, match=r"JPEG .*use PNG"):
        long.save(tmp_path / "a.jpg")
    assert not list(tmp_path.iterdir())
    assert read_settings(long.save(tmp_path / "a.png")).source == read_settings(long.save(tmp_path / "a.webp")).source == long.prompt.source
    with pytest.raises(OutputError, match="PNG"):
        encode_picture(made("猫" * 400_000), "PNG")


def test_longest_prompt_of_the_pipeline_fits_a_jpeg(tmp_path: Path) -> None:
    text = "鬱😀" * 1000
    prompt = Prompt(text, text, text, ((text, 1.0),), (Edit("nfkc", text[:200], text[:200]),))
    assert read_settings(made(prompt).save(tmp_path / "a.jpg")).prompt == prompt


def test_unknown_format() -> None:
    with pytest.raises(OutputError, match="PNG, JPEG or WEBP"):
        encode_picture(made(), "GIF")


def test_notebook_png() -> None:
    assert made()._repr_png_().startswith(b"\x89PNG")


# ── what other tools read ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@PROPERTY
@given(source=WELL_FORMED, negative=WELL_FORMED | st.just(""), seed=st.integers(0, 2**63 - 1), steps=st.integers(1, 1000))
def test_a1111_reads_well_formed_prompts(source: str, negative: str, seed: int, steps: int) -> None:
    generation = made(Prompt(source, "what the encoder saw", negative), seed=seed, config=replace(CONFIG, steps=steps))
    prompt, unwanted, pairs = parse_parameters(parameters_text(generation))
    assert (prompt, unwanted) == (source, negative)
    assert pairs == {
        "Steps": str(steps),
        "Sampler": "DPM++ 2M",
        "Schedule type": "Automatic",
        "CFG scale": "4.5",
        "Seed": str(seed),
        "Size": "256x192",
        "Model hash": "0123abcdef",
        "Model": "mame",
        "RNG": "CPU",
        "Version": f"jpgen {jpgen_version()}",
    }


def test_a1111_text_where_it_looks(tmp_path: Path) -> None:
    generation = made(Prompt("赤い船 (水彩:1.2)", "", "人, 文字"))
    text = parameters_text(generation)
    assert text.split("\n")[:2] == ["赤い船 (水彩:1.2)", "Negative prompt: 人, 文字"]
    with Image.open(generation.save(tmp_path / "a.png")) as image:
        assert image.info["parameters"] == text
    assert user_comment(encode_picture(generation, "JPEG")) == user_comment(encode_picture(generation, "WEBP")) == text
    with Image.open(generation.save(tmp_path / "a.jpg")) as image:
        assert image.getexif().get_ifd(0x8769)[0x9286] == b"UNICODE\0" + text.encode("utf-16-be")


def test_a1111_values_are_quoted() -> None:
    model = replace(MODEL, name='a, "b": c\r\nd')
    assert parse_parameters(parameters_text(made(model=model)))[2]["Model"] == 'a, "b": c\nd'
    assert parse_parameters('a\nX1: "\\q", Y1: , Z1: "1"') == ("a", "", {"X1": '"\\q"', "Y1": "", "Z1": "1"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("猫", ("猫", "", {})),
        ("猫\nSteps: 1, Seed: 2", ("猫\nSteps: 1, Seed: 2", "", {})),
        ("猫\nNegative prompt: 犬\n鳥\nSteps: 1, Seed: 2, Size: 8x8", ("猫", "犬\n鳥", {"Steps": "1", "Seed": "2", "Size": "8x8"})),
        ("画風： 水彩，色： 青", ("画風： 水彩，色： 青", "", {})),
        (f"猫\n{TRAP}", (f"猫\n{TRAP}", "", {})),
        (f"猫\n{TRAP.replace('色', '色彩')}", ("猫", "", {"画風": "水彩", "色彩": "青", "主題": "猫"})),
    ],
)
def test_a1111_rule(text: str, expected: tuple[str, str, dict[str, str]]) -> None:
    assert parse_parameters(text) == expected


@PROPERTY
@given(source=ANY_TEXT, negative=ANY_TEXT)
def test_parameters_can_always_be_encoded(source: str, negative: str) -> None:
    text = parameters_text(made(Prompt(source, source, negative)))
    assert text.encode("utf-8").decode() == text.encode("utf-16-be").decode("utf-16-be") == text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
    assert parse_parameters(text)[2]["Seed"] == "7"


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("given_name", "name"),
    [
        ("船", "船.png"),
        ("船.PNG", "船.PNG"),
        ("か\u3099.webp", "が.webp"),
        ("あ" * 84 + ".png", "あ" * 83 + ".png"),
        ("a" + "か\u3099" * 200 + ".jpeg", "a" + "が" * 83 + ".jpeg"),
        ("😀" * 100, "😀" * 62 + ".png"),
        ("新しい/場所/船.jpg", "新しい/場所/船.jpg"),
    ],
    ids=range(7),
)
def test_names_given(tmp_path: Path, given_name: str, name: str) -> None:
    path = made().save(str(tmp_path / given_name))
    assert path == tmp_path / name
    assert len(path.name.encode()) <= 255
    assert read_settings(path).seed == 7
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("船.gif", "choose .png, .jpg or .webp"),
        ("", "a folder"),
        (".", "a folder"),
        ("..", "a folder"),
        ("missing/..", "a folder"),
        ("folder.png", "a folder"),
        ("folder", "a folder"),
        ("folder/", "a folder"),
        ("hidden", "a folder"),
        ("file.txt/a.png", "not a folder"),
        ("file.txt/deep/a.png", "not a folder"),
        ("a" * 300 + "/a.png", "too long"),
        ("a\0.png", "null"),
        ("\ud800.png", "surrogates"),
    ],
)
def test_places_where_nothing_can_be_saved(tmp_path: Path, name: str, reason: str) -> None:
    for folder in ("folder", "folder.png", "hidden.png"):
        (tmp_path / folder).mkdir()
    (tmp_path / "file.txt").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        made().save(tmp_path / name)
    assert reason in str(caught.value)
    assert re.search("[ぁ-ん].* / .*[a-z]", str(caught.value))
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    path = made("古い").save(tmp_path / "a.png")

    def fail(*_args: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OutputError, match=r"a\.png.*(free some space|another place)"):
        made("新しい").save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert read_settings(path).source == "古い"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_full_disk_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_open = Path.open

    def onto_full_disk(self: Path, mode: str = "r", **how: object) -> io.IOBase:
        if mode != "xb":
            return true_open(self, mode, **how)
        true_open(self, mode).close()
        return open("/dev/full", "wb")

    monkeypatch.setattr(Path, "open", onto_full_disk)
    with pytest.raises(OutputError, match="disk is full"):
        made().save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_unwritable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    if not os.geteuid():  # nothing stops root: pretend

        true_open = Path.open

        def refuse(self: Path, mode: str = "r", **how: object) -> io.IOBase:
            if mode != "xb":
                return true_open(self, mode, **how)
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(Path, "open", refuse)
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match=r"書き込めない場所.* / not writable"):
            made().save(tmp_path / "a.png")
        assert not list(tmp_path.iterdir())
    finally:
        tmp_path.chmod(0o700)


def test_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_file: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        made().save(tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def test_threads_and_leftovers_are_let_be(tmp_path: Path) -> None:
    (tmp_path / f".a.png.{os.getpid()}.tmp").touch()
    failures: list[Exception] = []

    def save(seed: int) -> None:
        try:
            made(seed=seed).save(tmp_path / "a.png")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=save, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert read_settings(tmp_path / "a.png").seed in range(8)
    assert len(list(tmp_path.iterdir())) == 2


# ── names ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("夕焼けの海に浮かぶ赤い船", "夕焼けの海に浮かぶ赤い船-7.png"),
        ("か\u3099　は\u309aん", "が_ぱん-7.png"),
        ("../../etc/passwd", "etc_passwd-7.png"),
        ("--help ~x", "help_~x-7.png"),
        ("", "picture-7.png"),
        ("\0\u202e\n", "picture-7.png"),
        ("猫\u202egnp.exe\nC:\\x", "猫_gnp.exe_C_x-7.png"),
        ("CON.船", "_CON.船-7.png"),
        ("nul", "_nul-7.png"),
        ("あ" * 100, "あ" * 83 + "-7.png"),
    ],
)
def test_automatic_names(prompt: str, name: str) -> None:
    assert file_name(made(prompt)) == name


@PROPERTY
@given(prompt=ANY_TEXT | ANY_TEXT.map(lambda text: text * 20), seed=st.integers(0, 2**63 - 1), suffix=st.sampled_from(SUFFIXES))
def test_automatic_names_are_safe(tmp_path_factory: pytest.TempPathFactory, prompt: str, seed: int, suffix: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    name = file_name(made(prompt, seed=seed), suffix)
    assert len(name.encode()) <= 255
    assert name.endswith(f"-{seed}{suffix}")
    assert unicodedata.is_normalized("NFC", name)
    assert not re.search(r'[<>:"/\\|?*]', name)
    assert not {unicodedata.category(c)[0] for c in name} & {"C", "Z"}
    assert name[0] not in ".-~"
    path = inside(folder, name)
    path.touch()
    assert name in os.listdir(folder)
    path.unlink()


def test_automatic_name_with_unknown_suffix() -> None:
    with pytest.raises(OutputError):
        file_name(made(), "/../x.png")


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x",
        "a/../../x",
        "a/../x",
        "/etc/x",
        "\\x",
        "..\\x",
        "a\\..\\x",
        "C:\\x",
        "c:x",
        "\\\\host\\share\\x",
        "//host/share/x",
        "a\0",
        "\ud800",
        "out/x",
        "loop/x",
    ],
)
def test_outside_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(OutputError) as caught:
        inside(folder, name)
    assert "\n" not in str(caught.value)


def test_inside_the_folder(tmp_path: Path) -> None:
    assert inside(tmp_path, "船.png") == tmp_path / "船.png"
    assert inside(tmp_path, "一日目/船.png") == tmp_path / "一日目" / "船.png"
    assert inside(Path(), "a..b") == Path("a..b")


# ── hostile pictures ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def refused(path: Path, reason: str = "") -> None:
    with pytest.raises(MetadataError) as caught:
        read_settings(path)
    message = str(caught.value)
    assert reason in message
    assert re.search("[ぁ-ん].* / .*[a-z]", message)
    assert "\n" not in message
    assert len(message) < 600 + len(str(path))


FORGERIES: dict[str, object] = {
    "a list": [],
    "empty": {},
    "no seed": {"seed": None},
    "seed of text": {"seed": "7"},
    "seed of truth": {"seed": True},
    "negative seed": {"seed": -1},
    "huge seed": {"seed": 2**63},
    "fraction": {"seed": 7.0},
    "prompt of text": {"prompt": "猫"},
    "source of number": {"prompt": plain_data(Prompt("猫", "猫")) | {"source": 3}},
    "notes of text": {"prompt": plain_data(Prompt("猫", "猫")) | {"notes": "abc"}},
    "notes of lists": {"prompt": plain_data(Prompt("猫", "猫")) | {"notes": [["a"]]}},
    "spans of one": {"prompt": plain_data(Prompt("猫", "猫")) | {"spans": [["猫"]]}},
    "spans of nan": {"prompt": plain_data(Prompt("猫", "猫")) | {"spans": [["猫", float("nan")]]}},
    "spans too large": {"prompt": plain_data(Prompt("猫", "猫")) | {"spans": [["猫", 10**400]]}},
    "edits of text": {"prompt": plain_data(Prompt("猫", "猫")) | {"edits": [["a", "b", "c"]]}},
    "edits that lack": {"prompt": plain_data(Prompt("猫", "猫")) | {"edits": [{"rule": "a"}]}},
    "no text": {"prompt": {"source": "猫"}},
    "huge width": {"config": plain_data(CONFIG) | {"width": 10**6}},
    "impossible width": {"config": plain_data(CONFIG) | {"width": 10**400}},
    "no steps": {"config": plain_data(CONFIG) | {"steps": 0}},
    "infinite guidance": {"config": plain_data(CONFIG) | {"guidance_scale": float("inf")}},
    "scheduler of list": {"config": plain_data(CONFIG) | {"scheduler": ["ddim"]}},
    "model of text": {"model": "mame"},
    "hash of number": {"model": plain_data(MODEL) | {"weights_hash": 5}},
    "route of nothing": {"route": None},
    "version of text": {"version": "1"},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES.keys())
def test_forged_twins(tmp_path: Path, forgery: object) -> None:
    twin = twin_of(made()) | forgery if isinstance(forgery, dict) and forgery else forgery
    refused(with_chunk(tmp_path / "a.png", json.dumps(twin)), "damaged settings")


@pytest.mark.parametrize("twin", ["{", "null", "3", "[" * 500_000, '{"version": ' + "1" * 5000 + "}", '{"version":1,' * 1000, "\0", "\ufeff{}"])
def test_twins_that_are_no_json_object(tmp_path: Path, twin: str) -> None:
    refused(with_chunk(tmp_path / "a.png", twin), "damaged settings")


@pytest.mark.parametrize("version", [0, 2, 10**100])
def test_unknown_version(tmp_path: Path, version: int) -> None:
    refused(with_chunk(tmp_path / "a.png", json.dumps(twin_of(made()) | {"version": version})), "update jpgen")


@pytest.mark.parametrize("zipped", [False, True])
def test_huge_twin(tmp_path: Path, zipped: bool) -> None:
    refused(with_chunk(tmp_path / "a.png", json.dumps(twin_of(made()) | {"x": "a" * (1 << 20)}), zipped=zipped))


def test_what_a_later_jpgen_may_add_is_let_be(tmp_path: Path) -> None:
    twin = twin_of(made()) | {"more": 1, "prompt": plain_data(Prompt("猫", "猫")) | {"mood": "calm"}}
    assert read_settings(with_chunk(tmp_path / "a.png", json.dumps(twin))).prompt == Prompt("猫", "猫")


def test_pictures_of_others(tmp_path: Path) -> None:
    refused(with_chunk(tmp_path / "a.png", "猫\nSteps: 1, Seed: 2, Size: 8x8", key="parameters"), "parameters")
    for suffix in SUFFIXES:
        IMAGE.save(tmp_path / f"plain{suffix}")
        refused(tmp_path / f"plain{suffix}", "no settings of jpgen")


@pytest.mark.parametrize(
    "data", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a" + b"\0" * 99, b"<svg/>", b"%PDF-1.7", b"RIFF\0\0\0\0WEBPVP8X", b"\xff\xd8\xff\xe1\0\0"]
)
def test_no_pictures(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path / "a.png")


def test_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "none.png", tmp_path / "pipe", Path("a\0"), Path("\ud800")):
        refused(path, "no such file")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_truncated(tmp_path: Path, suffix: str) -> None:
    whole, path = made().save(tmp_path / f"a{suffix}"), tmp_path / f"cut{suffix}"
    settings, data = read_settings(whole), whole.read_bytes()
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        try:
            assert read_settings(path) == settings  # the pixels are cut, not the settings
        except MetadataError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("suffix", SUFFIXES)
@PROPERTY
@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255))
def test_one_wrong_byte(tmp_path_factory: pytest.TempPathFactory, suffix: str, place: float, value: int) -> None:
    data = bytearray(encode_picture(made(), metadata.FORMATS[suffix]))
    data[int(place * len(data))] = value
    path = tmp_path_factory.getbasetemp() / f"wrong{suffix}"
    path.write_bytes(data)
    try:
        read_settings(path)
    except MetadataError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("side", [9000, 12_000, 60_000])
def test_decompression_bomb(tmp_path: Path, side: int) -> None:
    data = bytearray(encode_picture(made(), "PNG"))
    data[16:24] = struct.pack(">LL", side, side)
    data[29:33] = struct.pack(">L", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path / "a.png")


def xmp_picture(path: Path, packet: str) -> Path:
    IMAGE.save(path, xmp=packet.encode())
    return path


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_xmp_of_others(tmp_path: Path, suffix: str) -> None:
    path, twin = tmp_path / f"a{suffix}", metadata.escape(json.dumps(twin_of(made())), {'"': "&quot;"})
    space = f'xmlns:x="{metadata.NAMESPACE}"'
    assert read_settings(xmp_picture(path, f"<r {space}><d><x:settings>{twin}</x:settings></d></r>")).seed == 7
    assert read_settings(xmp_picture(path, f'<r {space}><d x:settings="{twin}"/></r>')).seed == 7
    refused(xmp_picture(path, "<r/>"), "no settings of jpgen")
    refused(xmp_picture(path, "<r><unclosed></r>"), "damaged")
    refused(xmp_picture(path, f'<!DOCTYPE r [<!ENTITY a "{twin}">]><r {space}><x:settings>&a;</x:settings></r>'), "DOCTYPE")
    if suffix == ".webp":
        refused(xmp_picture(path, f"<r>{'<d>' * 200_000}{'</d>' * 200_000}</r>"), "too large")
        refused(xmp_picture(path, f"<r>{'<d>' * 100_000}{'</d>' * 100_000}</r>"))


# ── the module itself ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_importing_loads_no_torch() -> None:
    code = "import sys, jpgen.metadata; sys.exit(bool({'torch', 'numpy', 'diffusers', 'transformers'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_version_without_installation(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert jpgen_version() == "0.1.0+source"
