"""The catalogue and a user's file on top of it."""

import re
from pathlib import Path

import pytest

from jpgen.backbones.schedulers import OWN, SCHEDULERS
from jpgen.catalog import FAMILY_DEFAULT, SCORERS, TRANSLATORS, Entry, find_model, load_catalog, user_file
from jpgen.errors import UnknownNameError, WeightsError
from jpgen.types import SamplingConfig

WANTED = {
    "mame", "sdxl-base", "sdxl-lightning", "lcm-lora-sdxl", "hyper-sdxl", "dmd2", "jsdxl", "tohoku-sdxl-jp", "evosdxl-jp", "evo-ukiyoe",
    "commonart-beta", "rinna-jsd", "sd15", "sd21", "waifu-diffusion-14", "mitsua-diffusion-one", "mitsua-diffusion-cc0", "animagine-xl-4",
    "illustrious-xl", "pixart-sigma", "flux1-schnell", "flux2-klein-4b", "z-image-turbo", "qwen-image", "sana", "kolors",
    "opus-mt-ja-en", "fugumt-ja-en", "elan-mt-bt-ja-en", "mame-clip", "waon-siglip2", "siglip2", "altclip-m18", "openai-clip",
}  # fmt: skip

MINE = """
[mame.default]
steps = 30

[mine]
family = "pixart"
encoder = "bert"
path = "/x"
revision = "1"
license = "MIT"
title = "私の"
route = "native"

[mine.default]
width = 256
height = 256
steps = 8
guidance_scale = 3.0
"""


@pytest.fixture(autouse=True)
def nothing_of_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("JPGEN_CATALOG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_every_model_the_field_names_is_there() -> None:
    assert load_catalog().keys() >= WANTED


@pytest.mark.parametrize("entry", load_catalog().values(), ids=lambda entry: entry.name)
def test_every_entry_is_complete(entry: Entry) -> None:
    from jpgen.encoders import kinds

    assert load_catalog()[entry.name] == entry
    assert entry.family in ("sd", "sdxl", "pixart", "flux", "diffusers", *TRANSLATORS, *SCORERS)
    assert entry.license and entry.title and entry.revision and entry.sources
    if entry.family not in (*TRANSLATORS, *SCORERS):
        assert entry.default.validated(8) == entry.default
        assert entry.default.scheduler in (OWN, *SCHEDULERS)
    assert entry.encoder in ("", *kinds())
    assert bool(entry.repo) + bool(entry.path) + ("recipe" in entry.parts) == 1
    assert not any(name.endswith((".ckpt", ".bin", ".pt", ".pth")) for name in entry.files)
    pinned = re.fullmatch("[0-9a-f]{40}", entry.revision)
    assert entry.builtin or not entry.repo or pinned or any(fact.startswith("revision") for fact in entry.unverified)
    if "base" in entry.parts:
        base = find_model(str(entry.parts["base"]))
        assert (base.family, entry.parts["adapter"]) == (entry.family, entry.files[0])
        assert entry.default.steps <= 8 and entry.default.guidance_scale <= 1


@pytest.mark.parametrize(
    ("name", "commercial", "gated"),
    [
        ("mame", "yes", False), ("jsdxl", "ask", True), ("dmd2", "no", False), ("evosdxl-jp", "no", True),
        ("sdxl-base", "yes", False), ("rinna-jsd", "yes", True),
    ],
)  # fmt: skip
def test_terms(name: str, commercial: str, gated: bool) -> None:
    entry = find_model(name)
    assert (entry.commercial, entry.gated) == (commercial, gated)


def test_what_a_row_leaves_out_is_common_for_the_family_and_marked() -> None:
    entry = find_model("sd21")
    assert entry.default == SamplingConfig(768, 768, FAMILY_DEFAULT["sd"].steps, FAMILY_DEFAULT["sd"].guidance_scale)
    assert any("steps=25" in fact and "width" not in fact for fact in entry.unverified)
    assert find_model("mame").unverified == ()


def test_unknown_model_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'mame'"):
        find_model("mamee")


def test_a_users_file_adds_and_replaces(tmp_path: Path) -> None:
    mine = tmp_path / "catalog.toml"
    mine.write_text(MINE, "utf-8")
    catalog = load_catalog(mine)
    assert catalog["mame"].default.steps == 30
    assert catalog["mame"].default.width == 256
    with pytest.raises(WeightsError, match="missing"):
        _ = catalog["mine"].folder


def test_the_own_file_is_parsed_once_and_what_is_given_out_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_catalog()
    mine = tmp_path / "mine.toml"
    mine.write_text('[mame]\ntitle = "べつの豆"\n', "utf-8")
    assert load_catalog(mine)["mame"].title == "べつの豆"
    load_catalog().clear()
    monkeypatch.setattr("jpgen.catalog.tomllib.loads", None)
    assert load_catalog() == whole


def test_the_users_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_file() is None
    (tmp_path / "config" / "jpgen").mkdir(parents=True)
    (tmp_path / "config" / "jpgen" / "models.toml").write_text(MINE, "utf-8")
    assert load_catalog()["mine"].title == "私の"
    (tmp_path / "other.toml").write_text(MINE.replace("mine", "yours"), "utf-8")
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "other.toml"))
    assert "mine" not in load_catalog()
    assert "yours" in load_catalog()
    monkeypatch.delenv("JPGEN_CATALOG")
    monkeypatch.setenv("XDG_CONFIG_HOME", "config")  # not absolute: does not count
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_file() is None


def test_a_path_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    entry = Entry("mine", "sd", path=str(file), default=FAMILY_DEFAULT["sd"])
    assert (entry.folder, entry.place) == (tmp_path, file)
    with pytest.raises(WeightsError, match="open_model"):
        _ = find_model("sdxl-base").folder


ROW = '[x]\nfamily = "sd"\nlicense = "MIT"\ntitle = "x"\nrepo = "a/b"\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mame", "catalog.toml"),
        ('[other]\nfamily = "pixart"\n', "no license, no title, no path or repo"),
        ("[mame]\ncolour = 1\n", "unknown colour"),
        ("[mame.default]\nstep = 1\n", "default.step"),
        ("mame = 1\n", "must be a table"),
        ("[mame]\ndefault = 3\n", "default = 3"),
        (ROW.replace('"sd"', '"sdx"'), "wanted one of sd, sdxl"),
        (ROW.replace('"a/b"', '"a b"'), "owner/name"),
        (ROW + 'commercial = "maybe"\n', "yes, no, ask"),
        (ROW + 'gated = "yes"\n', "true or false"),
        (ROW + 'files = "a"\n', "a list of texts"),
        (ROW + 'sha256 = { a = "12" }\n', "64 hex"),
        (ROW + 'route = "magic"\n', "native"),
        (ROW + "parts = { a = [1] }\n", "plain values"),
        (ROW + 'default = { steps = "many" }\n', "a whole number"),
    ],
)
def test_a_broken_file_is_explained(tmp_path: Path, text: str, says: str) -> None:
    mine = tmp_path / "catalog.toml"
    mine.write_text(text, "utf-8")
    with pytest.raises(WeightsError) as caught:
        load_catalog(mine)
    assert "カタログ" in str(caught.value)
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "none.toml"))
    with pytest.raises(WeightsError, match=r"none\.toml"):
        load_catalog()
