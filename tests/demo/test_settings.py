"""The settings file: what is refused, and why."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from demo import settings
from demo.settings import BESIDE, Settings, SettingsError, check_password, hash_password, load_settings


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_shipped_file_changes_nothing_and_shows_every_setting_as_it_is(tmp_path: Path) -> None:
    assert load_settings(BESIDE) == load_settings(written(tmp_path, ""))
    shown = re.sub(r"(?m)^# (\w+ = )", r"\1", BESIDE.read_text(encoding="utf-8"))
    assert load_settings(written(tmp_path, shown)) == load_settings(BESIDE)
    assert set(re.findall(r"(?m)^(\w+) = ", shown)) == {one.name for one in fields(Settings)}


def test_alone_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(settings.VARIABLE, raising=False)
    made = load_settings()
    assert (made.public, made.address, made.password_hash) == (False, "127.0.0.1", "")
    assert made.gallery == Path("~/.local/share/jpgen/gallery").expanduser()
    assert made.allows("") and made.allows("anything")


def test_the_environment_names_a_file_and_its_folders_count_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(settings.VARIABLE, str(written(tmp_path, 'gallery = "絵"\nmodels = ["mame", "jsdxl"]\nidle_seconds = 5')))
    made = load_settings()
    assert (made.gallery, made.models, made.idle_seconds) == (tmp_path / "絵", ("mame", "jsdxl"), 5.0)
    monkeypatch.setenv(settings.VARIABLE, str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="がありません"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("per_sesion = 3", "'per_sesion' という設定はありません"),
        ("port = 0", "port = 0 は 1〜65535"),
        ("port = true", "port = True は int"),
        ("max_side = 8192", "max_side = 8192 は 64〜4096"),
        ("idle_seconds = nan", "idle_seconds = nan は"),
        ("capacity = '16'", "capacity = '16' は int"),
        ("models = [1]", "models は文字列の並び"),
        ("public = true", "password_hash が要ります"),
        ("address = '0.0.0.0'", "ほかの人からも見えます"),
        ("address = 'example.com'", "ほかの人からも見えます"),
        ("password_hash = 'secret'", "password_hash が正しい形ではありません"),
        ("password_hash = 'scrypt$AAAA$AAAA'", "password_hash が正しい形ではありません"),
        ("models = ['jsdxl']", "model = 'mame' が models にありません"),
        ("a = ", "TOML として読めません"),
        ("port = 0\nmax_count = 0", "max_count = 0 は"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(written(tmp_path, text))
    assert told in str(caught.value)
    assert str(tmp_path / "mine.toml") in str(caught.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"port.*max_count.*nonsense"):
        load_settings(written(tmp_path, "port = 0\nmax_count = 0\nnonsense = 1"))


def test_a_password_opens_and_no_other_does(tmp_path: Path) -> None:
    hashed = hash_password("ひらけごま")
    assert hashed != hash_password("ひらけごま"), "salted"
    assert "ひらけごま" not in hashed
    made = load_settings(written(tmp_path, f'public = true\naddress = "0.0.0.0"\npassword_hash = "{hashed}"'))
    assert made.allows("ひらけごま")
    assert not any(made.allows(wrong) for wrong in ("", "ひらけごま ", "開けごま", "\ud800", "x" * 10_000))
    assert check_password("ひらけごま", hashed)
