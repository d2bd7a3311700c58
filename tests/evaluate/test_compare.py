"""compare: the same pictures for the same call, only what is new for a larger one, and a page on which prompts are text."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jpgen.errors import OutputError, PromptError, SettingError, UnknownNameError
from jpgen.evaluate import compare as module
from jpgen.evaluate.cases import Arm, Case, cases_of, evenly, read_cases
from jpgen.evaluate.compare import compare
from jpgen.evaluate.comparison import Comparison
from jpgen.types import Generation, ModelInfo, Prompt, SamplingConfig

ARMS = (Arm("日本語"), Arm("English", language="en"))
PROMPTS = [Case("赤い船", "a red ship", tags=("colour",)), Case("青い海<script>alert(1)</script>", "a blue sea", tags=("colour", "place"))]


@dataclass(frozen=True)
class Redness:
    """How red a picture is, whatever the text says of it."""

    name: str = "redness"
    scale: float = 1.0

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return F.normalize(torch.stack([torch.from_numpy(np.asarray(image, np.float32).mean((0, 1)) + 1) for image in images]), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(texts), 1)


class FakePipeline:
    """Draws one colour: redder in English, redder with the seed; counts what it draws and may be told to stop."""

    info = ModelInfo("fake", "1", "none", "hash-1")
    translator = None
    drawn = 0
    stop_at = 10**9

    def __init__(self, model: str, *, translator: str | None = None) -> None:
        self.model = model

    def config(self, *, steps: int | None, guidance_scale: float | None) -> SamplingConfig:
        return SamplingConfig(8, 8, steps or 4, guidance_scale or 1.0)

    def generate(self, text: str, *, seed: int, config: SamplingConfig, normalize: bool) -> Generation:
        if FakePipeline.drawn >= FakePipeline.stop_at:
            raise KeyboardInterrupt
        if "空" in text:
            raise PromptError("空です / empty <b>")
        FakePipeline.drawn += 1
        red = 60 + 10 * seed + (80 if text.isascii() else 0) + (20 if normalize else 0)
        return Generation(Image.new("RGB", (8, 8), (red, 60, 60)), Prompt(text, text, written=text), config, seed, self.info, "fake", "native", 0.5)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "Pipeline", FakePipeline)
    monkeypatch.setattr(FakePipeline, "drawn", 0)
    monkeypatch.setattr(FakePipeline, "stop_at", 10**9)
    yield


def run(folder: Path, **changes: Any) -> Comparison:
    given: dict[str, Any] = {"prompts": PROMPTS, "arms": ARMS, "seeds": [1, 2, 3], "model": Redness(), "output": folder} | changes
    return compare(given.pop("prompts"), **given)


def test_scores_are_those_of_the_pictures(tmp_path: Path) -> None:
    found = run(tmp_path)
    for one in found.outcomes:
        with Image.open(tmp_path / "pictures" / one.file) as picture:
            feature = Redness().image_features([picture.convert("RGB")])
        assert one.score == pytest.approx(100 * float(feature[0, 0]), abs=1e-3)
    gap = found.difference("English", "日本語")
    assert gap.clear and gap.wins == 1 and (gap.prompts, gap.pairs) == (2, 6)
    by_hand = (found.values("English") - found.values("日本語")).mean()
    assert gap.mean == pytest.approx(by_hand)
    assert found.table.loc["English", "difference"] == pytest.approx(by_hand, abs=1e-4)
    assert found.difference("English", "日本語", tag="place").prompts == 1
    assert found.tags == ("colour", "place")


def test_the_same_call_draws_nothing_and_gives_the_same_table(tmp_path: Path) -> None:
    first = run(tmp_path)
    assert FakePipeline.drawn == 12
    again = run(tmp_path)
    assert FakePipeline.drawn == 12
    pandas.testing.assert_frame_equal(first.table, again.table, check_exact=True)
    pandas.testing.assert_frame_equal(first.scores, again.scores, check_exact=True)


def test_a_larger_call_draws_only_what_is_new(tmp_path: Path) -> None:
    run(tmp_path)
    run(tmp_path, seeds=[1, 2, 3, 4], arms=(*ARMS, Arm("as typed", normalize=False)))
    assert FakePipeline.drawn == 2 * 4 * 3
    other = FakePipeline.info
    FakePipeline.info = replace(other, weights_hash="hash-2")
    try:
        run(tmp_path)
    finally:
        FakePipeline.info = other
    assert FakePipeline.drawn == 24 + 12  # other weights, other pictures


def test_other_rules_of_reading_draw_other_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = (Arm("read"), Arm("as typed", normalize=False))
    run(tmp_path, arms=arms)
    real = module.normalize

    def with_other_rules(text: str, *, seed: int) -> Prompt:
        read = real(text, seed=seed)
        return replace(read, written=f"{read.written}、絵") if "赤い" in text else read

    monkeypatch.setattr(module, "normalize", with_other_rules)
    run(tmp_path, arms=arms)
    assert FakePipeline.drawn == 12 + 3  # the one prompt that is read otherwise, in the one arm that reads


def test_an_interrupted_run_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tmp_path / "whole")
    monkeypatch.setattr(FakePipeline, "drawn", 0)
    monkeypatch.setattr(FakePipeline, "stop_at", 5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts")
    with (tmp_path / "parts" / "journal.jsonl").open("a") as file:
        file.write('{"key": "cut sho')
    monkeypatch.setattr(FakePipeline, "stop_at", 10**9)
    parts = run(tmp_path / "parts")
    assert FakePipeline.drawn == 12
    assert parts.outcomes == tuple(replace(one, seconds=one.seconds) for one in whole.outcomes)


def test_a_lost_picture_is_drawn_again(tmp_path: Path) -> None:
    found = run(tmp_path)
    (tmp_path / "pictures" / found.outcomes[0].file).unlink()
    assert run(tmp_path).outcomes == found.outcomes and FakePipeline.drawn == 13


def test_a_prompt_that_cannot_be_read_counts_as_not_drawn(tmp_path: Path) -> None:
    found = run(tmp_path, prompts=[*PROMPTS, Case("空", "sky")])
    assert found.table.loc["日本語", "undrawn"] == 3 and found.table.loc["English", "undrawn"] == 0
    assert found.difference("English", "日本語").prompts == 2
    assert "empty &lt;b&gt;" in (tmp_path / "report.html").read_text("utf-8")
    nothing = run(tmp_path, prompts=[Case("空", "sky")], arms=(Arm("only"),))
    assert np.isnan(nothing.table.loc["only", "mean"])


def test_the_page_stands_alone_and_prompts_are_text(tmp_path: Path) -> None:
    run(tmp_path, arms=(Arm("<i>arm</i>"), Arm("$en_", language="en")))
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<script>" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<i>" not in page
    assert page.count("data:image/jpeg;base64,") == 2 * 2 * 2  # prompts, arms, seeds shown
    assert page.count("data:image/png;base64,") == 1
    assert "http://" not in page and "https://" not in page


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"prompts": []}, PromptError, "no prompts"),
        ({"prompts": ["猫", " "]}, PromptError, "no prompts"),
        ({"prompts": "猫"}, PromptError, "list of prompts"),
        ({"prompts": ["猫"]}, PromptError, "no English"),
        ({"seeds": []}, SettingError, "one seed or more"),
        ({"seeds": [1, 1]}, SettingError, "each once"),
        ({"seeds": [-1]}, SettingError, "seed"),
        ({"arms": ()}, SettingError, "one arm or more"),
        ({"arms": (Arm("a"), Arm("a", steps=1))}, SettingError, "name of its own"),
        ({"arms": (Arm("a", language="fr"),)}, SettingError, "one of ja, en"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(tmp_path: Path, changes: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        run(tmp_path, **changes)
    assert FakePipeline.drawn == 0


def test_an_arm_that_is_not_there_and_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    found = run(tmp_path)
    with pytest.raises(UnknownNameError, match="English"):
        found.values("Englisch")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        run(tmp_path / "file")


def test_arms_of_the_command_line() -> None:
    assert Arm.parse("raw:normalize=off,steps=8,language=en") == Arm("raw", normalize=False, steps=8, language="en")
    assert Arm.parse("plain") == Arm("plain")
    for wrong in ("a:colour=red", "a:steps", "a:steps=many", "a:normalize=no"):
        with pytest.raises(SettingError, match="--arm"):
            Arm.parse(wrong)


def test_cases_of_a_file(tmp_path: Path) -> None:
    table = tmp_path / "pairs.tsv"
    rows = ["ja\ten\ttags\tsplit", "猫\ta cat\tobject style\tdev", "犬\ta dog\tobject\theld-out", *(f"船{n}\t\t\tdev" for n in range(8))]
    table.write_text("\n".join(rows) + "\n", "utf-8")
    assert read_cases(table)[0] == Case("猫", "a cat", "", ("object", "style"))
    assert [case.ja for case in read_cases(table, split="held-out")] == ["犬"]
    assert [case.ja for case in read_cases(table, limit=5)] == ["猫", "船0", "船2", "船4", "船6"]
    assert cases_of(table) == read_cases(table)
    assert Case("messy", "a cat", clean="猫").wanted == ("猫", "a cat") and Case("猫").wanted == ("猫",)
    for bad in ("name\n猫\n", "", "ja\ten\n"):
        table.write_text(bad, "utf-8")
        with pytest.raises(PromptError):
            read_cases(table)
    with pytest.raises(PromptError, match="cannot read"):
        read_cases(tmp_path / "none.tsv")


@pytest.mark.parametrize(
    ("limit", "kept"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (5, [0, 1, 2, 3, 4]), (2, [0, 2]), (3, [0, 1, 3]), (1, [0]), (0, [0])]
)
def test_a_few_come_evenly_from_the_whole(limit: int | None, kept: list[int]) -> None:
    assert list(evenly(range(5), limit)) == kept


def test_rows_of_the_journal_tell_what_was_read(tmp_path: Path) -> None:
    run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text("utf-8").splitlines()]
    assert {row["read"] for row in rows if "read" in row} == {text for case in PROMPTS for text in (case.ja, case.en)}
