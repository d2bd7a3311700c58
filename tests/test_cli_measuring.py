"""`jpgen score` and `jpgen compare`: their output, and errors in one line."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from jpgen.cli import main
from jpgen.evaluate import scores
from jpgen.evaluate.scores import Guess


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (64, 64), (225, 70, 65)).save(tmp_path / "赤.png")
    return tmp_path / "赤.png"


@pytest.fixture
def guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scores, "zero_shot", lambda image, labels, **_: [Guess(label, 1 / (n + 2)) for n, label in enumerate(labels)])
    monkeypatch.setattr(scores, "clip_score", lambda images, texts, **_: [12.346])


def test_labels_with_their_probabilities(picture: Path, guesses: None) -> None:
    told = CliRunner().invoke(main, ["score", str(picture), "犬", "猫", "図", "--top", "2"])
    assert (told.exit_code, told.output) == (0, " 50.0 %\t犬\n 33.3 %\t猫\n")
    told = CliRunner().invoke(main, ["score", str(picture), "犬", "猫", "--json"])
    assert [json.loads(line) for line in told.output.splitlines()] == [{"label": "犬", "probability": 0.5}, {"label": "猫", "probability": 1 / 3}]


def test_one_label_is_a_score(picture: Path, guesses: None) -> None:
    assert CliRunner().invoke(main, ["score", str(picture), "犬"]).output == "12.35\t犬\n"


def test_errors_are_one_line(picture: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (["score", str(picture)], "no labels"),
        (["score", str(tmp_path / "none.png"), "犬", "猫"], "images[0]"),
        (["score", str(picture), "犬", "犬"], "given twice"),
        (["score", str(picture), "犬", "猫", "--model", "mame-klip"], "mame-clip"),
        (["compare", str(tmp_path / "none.tsv")], "cannot read the prompts"),
        (["compare", str(tmp_path / "none.tsv"), "--arm", "a:steps=x"], "--arm"),
    ):
        told = CliRunner().invoke(main, arguments)
        assert told.exit_code == 2 and said in told.stderr and len(told.stderr.splitlines()) == 1, told.stderr
