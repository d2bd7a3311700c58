"""The command line: every error one line and exit code 2, never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from jpgen.api import load_generation
from jpgen.cli import main
from jpgen.pipeline import Pipeline


@pytest.fixture
def run(toy: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs the command in an empty folder; the model is the toy, other names are looked up as usual."""
    from jpgen import api

    real = api.open_pipeline
    monkeypatch.setattr(api, "open_pipeline", lambda name="mame": toy if name in ("mame", "toy") else real(name))
    monkeypatch.chdir(tmp_path)
    return lambda *args, **kwargs: CliRunner().invoke(main, [str(a) for a in args], **kwargs)


def test_a_picture_is_written_where_asked(run: Callable[..., Result]) -> None:
    done = run("generate", "赤い船", "-o", "out/船.png", "--seed", 5, "--size", "64x96", "--steps", 1, "--guidance", 1.5)
    assert (done.exit_code, done.output.strip()) == (0, "out/船.png")
    made = load_generation("out/船.png")
    assert (made.seed, made.config.height, made.config.steps, made.config.guidance_scale) == (5, 96, 1, 1.5)
    assert made.image.size == (64, 96)


def test_the_guidance_interval_goes_in_and_comes_back(run: Callable[..., Result]) -> None:
    done = run("generate", "赤い船", "-o", "a.png", "--seed", 5, "--steps", 4, "--guidance-interval", "0.25:0.75", "--cache", "firstblock")
    assert done.exit_code == 0, done.output
    made = load_generation("a.png")
    assert (made.config.guidance_start, made.config.guidance_stop, made.config.cache) == (0.25, 0.75, "firstblock")
    assert made.image.tobytes() == Image.open("a.png").tobytes()
    assert run("generate", "赤い船", "-o", "b.png", "--seed", 5, "--guidance-interval", ":0.5").exit_code == 0
    assert load_generation("b.png").config.guidance_stop == 0.5


def test_without_output_the_name_is_made_from_the_prompt(run: Callable[..., Result]) -> None:
    assert run("generate", "猫", "--seed", 1).output.strip() == "猫-1.png"
    assert Path("猫-1.png").exists()


def test_json_and_count(run: Callable[..., Result]) -> None:
    done = run("generate", "猫", "-o", "cat.webp", "--seed", 8, "--count", 3, "--json", "--negative", "犬")
    rows = [json.loads(line) for line in done.output.splitlines()]
    assert [(row["path"], row["seed"]) for row in rows] == [("cat-1.webp", 8), ("cat-2.webp", 9), ("cat-3.webp", 10)]
    assert rows[0]["prompt"]["negative"] == "犬"
    assert all(Path(row["path"]).exists() for row in rows)


def test_prompts_from_standard_input(run: Callable[..., Result]) -> None:
    done = run("generate", "-", "--seed", 1, input="猫\n\n  赤い船 \r\n".encode())
    assert done.output.split() == ["猫-1.png", "赤い船-1.png"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["generate", ""], "空です"),
        (["generate", "あ" * 10_000], "10000 文字"),
        (["generate", "猫\ud800"], "壊れています"),
        (["generate", "猫", "--size", "250"], "倍数"),
        (["generate", "猫", "--guidance-interval", "x:1"], "0.1:0.8"),
        (["generate", "猫", "--guidance-interval", "0.8:0.1"], "guidance_start=0.8"),
        (["generate", "猫", "--cache", "deepcash"], "deepcache"),
        (["generate", "猫", "--cache", "deepcache"], "U-Net"),
        (["generate", "猫", "--size", "大"], "--size"),
        (["generate", "猫", "--size", "256x"], None),
        (["generate", "猫", "--steps", "0"], "steps=0"),
        (["generate", "猫", "--count", "0"], "count=0"),
        (["generate", "猫", "--seed", "-1"], "seed=-1"),
        (["generate", "猫", "--model", "mamee"], "'mame'"),
        (["generate", "猫", "--scheduler", "euler_a"], "unknown"),
        (["generate", "猫", "-o", "cat.gif"], ".gif"),
        (["generate", "猫", "-o", "/dev/null/cat.png"], "保存できません"),
        (["generate", "-"], "標準入力"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(run: Callable[..., Result], args: list[str], words: str | None) -> None:
    done = run(*args)
    if words is None:  # a width alone with its x is a square
        assert done.exit_code == 0
        return
    assert done.exit_code == 2
    assert isinstance(done.exception, SystemExit)
    assert len(done.output.splitlines()) == 1
    assert done.output.startswith("jpgen: ")
    assert words in done.output
    assert os.listdir() == []


def test_a_full_disk_leaves_nothing_behind(run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run("generate", "猫", "-o", "cat.png")
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert "空きがありません" in done.output
    assert os.listdir() == []


def test_models_are_listed(run: Callable[..., Result]) -> None:
    assert run("models").output.startswith("mame\t")
    assert json.loads(run("models", "--json").output.splitlines()[0])["name"] == "mame"


@pytest.mark.parametrize("command", [[], ["generate"], ["train", "mame"], ["train", "judge"], ["models"]])
def test_help_is_in_japanese_and_english(run: Callable[..., Result], command: list[str]) -> None:
    text = run(*command, "--help").output
    assert "/" in text
    assert any("\u3040" <= c <= "\u30ff" for c in text)


def test_a_surrogate_from_the_shell_is_an_error_not_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "jpgen.cli", "generate", b"\xff\xfe", "-o", "never.png"], capture_output=True, check=False)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.decode().splitlines()) == 1


def test_normalize_tells_how_a_prompt_is_read(run: Callable[..., Result]) -> None:
    done = run("normalize", "帽子をかぶっていない少年の絵を描いてください")
    assert done.exit_code == 0
    assert done.output.splitlines()[:2] == ["少年", "  ネガティブ / negative: 帽子"]
    told = run("normalize", "--json", "-", input="猫が三匹\n（（犬））\n")
    first, second = map(json.loads, told.output.splitlines())
    assert (first["text"], first["edits"]) == ("猫が3匹", [{"rule": "counts", "before": "三", "after": "3"}])
    assert second["spans"] == [["犬", pytest.approx(1.21)]]
    assert run("normalize", "--off", "counts", "猫が三匹").output == "猫が三匹\n"


@pytest.mark.parametrize(("args", "says"), [(("--off", "count", "猫"), "counts"), (("__季説__",), "季節"), (("--lexicon", "no.tsv", "猫"), "no.tsv")])
def test_normalize_explains_what_is_wrong(run: Callable[..., Result], args: tuple[str, ...], says: str) -> None:
    done = run("normalize", *args)
    assert done.exit_code == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
