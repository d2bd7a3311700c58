"""The catalogue and a user's file on top of it."""

from pathlib import Path

import pytest

from jpgen.catalog import find_model, load_catalog
from jpgen.errors import UnknownNameError, WeightsError

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


def test_every_entry_is_complete() -> None:
    for name, entry in load_catalog().items():
        assert entry.name == name
        assert entry.license and entry.revision and entry.default.steps > 0


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


@pytest.mark.parametrize("text", ["[mame", '[other]\nfamily = "pixart"\n', "[mame]\ncolour = 1\n", "[mame.default]\nstep = 1\n"])
def test_a_broken_file_is_explained(tmp_path: Path, text: str) -> None:
    mine = tmp_path / "catalog.toml"
    mine.write_text(text, "utf-8")
    with pytest.raises(WeightsError) as caught:
        load_catalog(mine)
    assert "カタログ" in str(caught.value)


def test_a_missing_file_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "none.toml"))
    with pytest.raises(WeightsError, match=r"none\.toml"):
        load_catalog()
