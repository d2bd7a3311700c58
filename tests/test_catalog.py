"""The catalogue and a user's file on top of it."""

from pathlib import Path

import pytest

from jpgen.catalog import find_model, load_catalog
from jpgen.errors import UnknownNameError, WeightsError


def test_every_entry_is_complete() -> None:
    for name, entry in load_catalog().items():
        assert entry.name == name
        assert entry.license and entry.revision and entry.default.steps > 0


def test_unknown_model_offers_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'mame'"):
        find_model("mamee")


def test_a_users_file_adds_and_replaces(tmp_path: Path) -> None:
    mine = tmp_path / "catalog.toml"
    mine.write_text('[mame.default]\nsteps = 30\n[mine]\nfamily="pixart"\nencoder="bert"\npath="/x"\nrevision="1"\nlicense="MIT"\ntitle="私の"\nroute="native"\n[mine.default]\nwidth=256\nheight=256\nsteps=8\nguidance_scale=3.0\n', "utf-8")
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
