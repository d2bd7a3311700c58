"""The table of bench-pairing counts what the judge reads, arm by arm, and its gates open and close."""

from pathlib import Path

import pytest
from PIL import Image

from jpgen.backbones import sdxl as sdxl_backbone
from jpgen.encoders import sdxl
from jpgen.errors import PromptError
from jpgen.evaluate.bench_mame import Question, read_questions
from jpgen.evaluate.bench_pairing import ARMS, CAPTIONS, PROMPTS, Answer, drawn, fitted_judge, main, read_captions, sheet, table, tabulate, zeros
from jpgen.evaluate.journal import Journal
from jpgen.evaluate.judge import CULTURE, Facts, Reading
from jpgen.pipeline import Pipeline
from jpgen.types import ModelInfo

ROOT = Path(__file__).parents[2]
CAT = Question("object-01", "object", "赤い猫", "a red cat", Facts(first="🐈", color="red"))
TORII = Question("object-02", "object", "鳥居", "a torii gate", Facts(first="⛩"))
READS = Reading("🐈", None, "red", 1, "one", "", "", ("🐈",))


def answers(right: dict[str, tuple[bool, bool]]) -> list[Answer]:
    """Whether each arm drew the cat and the torii from each of two seeds."""
    wrong = Reading("🚗", None, "", 1, "one", "", "", ("🚗",))
    return [
        Answer(question, arm, seed, wrong if not good else READS if question is CAT else Reading("⛩", None, "", 1, "one", "", "", ("⛩",)))
        for arm, both in right.items() for question, good in zip((CAT, TORII), both, strict=True) for seed in (1, 2)
    ]  # fmt: skip


def test_shares_differences_and_gates() -> None:
    given = answers({"english": (True, True), "adapter": (True, True), "translate": (True, False), "raw": (False, False)})
    figures = {figure.name: figure for figure in tabulate(given, {"object": 0.95})}
    assert set(figures) == {"object", "color", "culture"}
    assert figures["object"].shares == {"english": 1.0, "adapter": 1.0, "translate": 0.5, "raw": 0.0} and figures["object"].pictures == 4
    assert figures["object"].difference.mean == 0 and figures["object"].passed and figures["object"].ceiling == 0.95
    assert figures["culture"].passed and figures["culture"].pictures == 2
    lines = table(list(figures.values())).splitlines()
    assert len(lines) == 5 and lines[2].startswith("| もの") and "50.0" in lines[2] and lines[2].endswith("○ |")


def test_an_adapter_that_falls_behind_does_not_pass() -> None:
    given = answers({"english": (True, True), "adapter": (False, False), "translate": (False, True), "raw": (False, False)})
    figures = {figure.name: figure for figure in tabulate(given, {})}
    assert not any(figure.passed for figure in figures.values())
    assert figures["object"].difference.mean == -1.0 and figures["color"].difference.mean == -1.0


def test_the_judge_chooses_among_what_the_prompts_name() -> None:
    questions = read_questions(ROOT / PROMPTS)
    assert len(questions) == 300 and len({question.ja for question in questions}) == 300
    judge = fitted_judge(questions)
    assert len(judge.config.things) == 60 and judge.config.styles == ("",) and judge.config.colors[0] == judge.config.backgrounds[0] == ""
    reading = judge.read([Image.new("RGB", (128, 128), "white")])[0]
    assert reading.first in judge.config.things and reading.background in judge.config.backgrounds
    assert sum(question.facts.first in CULTURE for question in questions) >= 60


def test_what_was_drawn_is_not_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelInfo("toy", "1", "MIT", "0123456789")
    own = Pipeline.from_parts(sdxl.toy(), sdxl_backbone.toy(), info, route="raw", batch_size=2)
    arms, judge = {"english": own, "raw": own}, fitted_judge([CAT, TORII])
    first = list(drawn(arms, judge, [CAT, TORII], [1], Journal(tmp_path)))
    assert [(one.arm, one.question.id) for one in first] == [(arm, question.id) for arm in arms for question in (CAT, TORII)]
    assert all(one.picture.is_file() for one in first) and len({one.picture.read_bytes() for one in first}) == 4
    monkeypatch.setattr(Pipeline, "generate_many", lambda *_args, **_kwargs: pytest.fail("drawn again"))
    assert list(drawn(arms, judge, [CAT, TORII], [1], Journal(tmp_path))) == first


def test_captions_are_read_and_no_two_say_the_same(tmp_path: Path) -> None:
    captions = read_captions(ROOT / CAPTIONS)
    assert len(captions) == len({en for _, en in captions}) == len({ja for ja, _ in captions}) == 1000
    (tmp_path / "bad.tsv").write_text("a\tb\n猫\tcat\n", "utf-8")
    with pytest.raises(PromptError, match="columns ja, en"):
        read_captions(tmp_path / "bad.tsv")


def test_what_cannot_be_read_or_written_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--prompts", str(tmp_path / "none.tsv")]) == 2
    assert main(["--prompts", str(ROOT / PROMPTS), "--json", str(tmp_path / "none" / "out.json")]) == 2
    assert capsys.readouterr().err.count("エラー / error") == 2


def test_nothing_said_is_zeros_and_the_sheet_has_a_row_an_arm() -> None:
    silent = zeros(sdxl.toy())
    assert not silent.tokens.any() and not silent.pooled.any() and silent.mask.all()
    paper = sheet({arm: [Image.new("RGB", (128, 128), "red")] * 13 for arm in ARMS}, side=16, across=12)
    assert paper.size == (12 * 16, 2 * (4 * 16 + 8)) and paper.getpixel((0, 63)) == (255, 0, 0) and paper.getpixel((20, 80)) == (255, 255, 255)
