"""`jpgen models`, `show`, `accept` and `jpgen doctor`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from jpgen.catalog import load_catalog
from jpgen.cli import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.delenv("JPGEN_CATALOG", raising=False)
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return lambda *args: CliRunner().invoke(main, args)


def test_models_are_listed_with_their_terms(run: Callable[..., Result]) -> None:
    lines = run("models").output.splitlines()
    assert [line.split("\t")[0] for line in lines] == list(load_catalog())
    assert lines[0].split("\t")[1] == "内蔵"
    row = next(line for line in lines if line.startswith("jsdxl"))
    assert "未取得" in row and "商用は要確認、要同意" in row


def test_models_as_json(run: Callable[..., Result]) -> None:
    rows = {row["name"]: row for row in map(json.loads, run("models", "--json").output.splitlines())}
    assert rows.keys() == load_catalog().keys()
    assert (rows["dmd2"]["commercial"], rows["dmd2"]["where"], rows["jsdxl"]["gated"]) == ("no", "absent", True)
    assert (rows["mame"]["where"], rows["evosdxl-jp"]["where"]) == ("builtin", "recipe")


@pytest.mark.parametrize("name", load_catalog())
def test_show_tells_all_and_marks_what_is_unverified(run: Callable[..., Result], name: str) -> None:
    done, entry = run("models", "show", name), load_catalog()[name]
    assert done.exit_code == 0
    marked = [line for line in done.output.splitlines() if line.startswith("  未確認 / unverified: ")]
    assert len(marked) == len(entry.unverified)
    assert all(source in done.output for source in entry.sources)
    assert entry.license in done.output
    shown = json.loads(run("models", "show", name, "--json").output)
    assert (shown["name"], shown["default"]["steps"], shown["parts"]) == (name, entry.default.steps, dict(entry.parts))


def test_a_near_name_is_offered(run: Callable[..., Result]) -> None:
    for command in (("show", "jsdx"), ("accept", "jsdx")):
        done = run("models", *command)
        assert done.exit_code == 2
        assert "'jsdxl'" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_terms_are_accepted(run: Callable[..., Result], tmp_path: Path) -> None:
    assert "未承諾" in run("models", "show", "jsdxl").output
    done = run("models", "accept", "jsdxl", "mame")
    assert done.output.splitlines()[0].startswith("jsdxl: STABILITY AI")
    assert "mame: 承諾は要りません" in done.output
    assert json.loads((tmp_path / "XDG_STATE_HOME" / "jpgen" / "licenses.json").read_text("utf-8")).keys() == {"jsdxl"}
    assert "承諾済み" in run("models", "show", "jsdxl").output
    assert json.loads(run("models", "show", "jsdxl", "--json").output)["accepted"] is True
    assert "承諾済みです" in run("models", "accept", "jsdxl").output


def test_a_broken_catalogue_is_one_line(run: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.toml").write_text("[x]\ncolour = 1\n")
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))
    done = run("models")
    assert (done.exit_code, len(done.stderr.splitlines())) == (2, 1)
    assert "[x]" in done.stderr


def test_the_doctor(run: Callable[..., Result]) -> None:
    lines = run("doctor").output.splitlines()
    assert lines[0].startswith("計算する場所 / device: ")
    found = {row["name"]: row for row in map(json.loads, run("doctor", "--json").output.splitlines())}
    assert {"device", "dtype", "cpu", "memory", "offload", "python", "libraries", "models", "catalog", "licenses"} <= found.keys()


def test_listing_models_loads_no_torch() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from jpgen.cli import main; "
        "done = [CliRunner().invoke(main, a.split()).exit_code for a in ('models', 'models show evo-ukiyoe', 'models --json')]; "
        "import jpgen.merged; "
        "print(done, [m for m in ('torch', 'diffusers', 'transformers', 'huggingface_hub', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[0, 0, 0] []"


@pytest.mark.parametrize("command", [["models"], ["models", "show"], ["models", "accept"], ["doctor"]])
def test_help_is_in_japanese_and_english(run: Callable[..., Result], command: list[str]) -> None:
    text = run(*command, "--help").output
    assert "/" in text
    assert any("\u3040" <= c <= "\u30ff" for c in text)
