"""JP-T2I-Bench: its parts on a few prompts of the files' form, drawn by a stand-in for the model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jpgen.evaluate import bench_t2i, compare
from jpgen.evaluate.judge import Reading
from jpgen.types import Generation, ModelInfo, Prompt, SamplingConfig

COLORS = {"赤": (255, 0, 0), "緑": (0, 255, 0), "青": (0, 0, 255), "red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


TABLES = {
    "culture.tsv": [
        "ja\ten\tcategory", "赤い祭\tred festival\tfestival", "緑の茶\tgreen tea\tfood", "灰色の道\tgrey road\tplace", "青い波\tblue wave\tcraft",
    ],
    "pairs.tsv": ["ja\ten\ttags\tsplit", "赤い船\ta red ship\tcolour\theld-out", "灰色の空\ta blue sky\tcolour\theld-out", "青\tblue\tcolour\tdev"],
    "mame_eval.tsv": [
        "id\tkind\tja\ten\tfirst\tsecond\tcolor\tcount\tlayout\tbackground\tstyle",
        "1\tone\t赤い船\ta red ship\t⛵\t\tred\t\t\t\t", "2\tone\t灰色の猫\ta blue cat\t🐈\t\tblue\t\t\t\t",
    ],
    "messy.tsv": ["ja\tclean\tnegative\ten\ttags", "赤い船を描いて\t赤い船\t\ta red ship\trequest", "緑を描いて\t緑\t\ta green tree\trequest"],
}  # fmt: skip


def color_of(text: str) -> tuple[int, int, int]:
    return next((color for word, color in COLORS.items() if word in text), (90, 90, 90))


class Painter:
    """Paints the colour it reads; what is typed with 描いて it does not understand."""

    info = ModelInfo("painter", "1", "none", "abc")
    translator = None

    def __init__(self, model: str, *, translator: str | None = None) -> None:
        self.model = model

    def config(self, *, steps: int | None, guidance_scale: float | None) -> SamplingConfig:
        return SamplingConfig(8, 8, steps or 4, guidance_scale or 1.0)

    def generate(self, text: str, *, seed: int, config: SamplingConfig, normalize: bool) -> Generation:
        color = (90, 90, 90) if "描いて" in text and not normalize else color_of(text)
        return Generation(Image.new("RGB", (8, 8), color), Prompt(text, text, written=text), config, seed, self.info, "p", "native", 0.1)


@dataclass(frozen=True)
class Eye:
    name: str = "eye"
    scale: float = 10.0

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        return F.normalize(torch.stack([torch.from_numpy(np.asarray(image, np.float32).mean((0, 1))) for image in images]), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        return F.normalize(torch.tensor([color_of(text) for text in texts], dtype=torch.float32), dim=-1)


class ColorJudge:
    """Reads the colour alone; whatever it sees is a ship."""

    @classmethod
    def load(cls) -> "ColorJudge":
        return cls()

    def read(self, images: Sequence[Image.Image]) -> list[Reading]:
        names = {(255, 0, 0): "red", (0, 0, 255): "blue"}
        return [Reading("⛵", None, names.get(image.convert("RGB").getpixel((0, 0)), ""), 1, "one", "", "", ("⛵",)) for image in images]


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (compare, bench_t2i):
        monkeypatch.setattr(module, "Pipeline", Painter)
    monkeypatch.setattr(bench_t2i, "open_scorer", lambda name: Eye())
    monkeypatch.setattr(bench_t2i, "Judge", ColorJudge)
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, rows in TABLES.items():
        (folder / name).write_text("\n".join(rows) + "\n", "utf-8")
    return folder


def test_every_part_is_the_figure_it_says(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    parts = [word for part in bench_t2i.PARTS for word in ("--part", part)]
    arguments = ["--model", "painter", "--prompts", str(prompts), "--seeds", "2", "--output", str(out), *parts]
    assert bench_t2i.main(arguments) == 0
    result = json.loads((out / "result.json").read_text("utf-8"))
    figures = result["parts"]["composition"]["figures"]
    assert (figures["color"]["n"], figures["color"]["ja"], figures["color"]["en"], figures["object"]["ja"]) == (2, 0.5, 1.0, 0.5)
    culture = result["parts"]["culture"]
    assert (culture["classes"], culture["n"], culture["top1"]) == (4, 8, 1.0)
    assert culture["categories"]["food"] == {"n": 2, "top1": 1.0, "top5": 1.0}
    gap = result["parts"]["gap"]
    assert gap["difference"]["prompts"] == 2  # the held-out rows alone
    assert gap["means"]["ja"] == pytest.approx((100 + _mean_grey()) / 2, abs=0.01)
    effect = result["parts"]["normalizer"]["difference"]
    assert effect["low"] > 0 and effect["wins"] == 1
    assert result["versions"]["jpgen"] and len(result["prompts"]["pairs.tsv"]) == 64 and result["peak_memory_bytes"] > 1e7
    row = (out / "row.md").read_text("utf-8")
    assert row.count("\n") == 3 and "painter@1" in row and "100.0 %" in row
    assert row.strip() in capsys.readouterr().out


def test_an_interrupted_run_draws_nothing_twice(prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    paint = Painter.generate

    def counting(self: Painter, text: str, **more: Any) -> Generation:
        drawn.append(text)
        if len(drawn) == 20:
            raise KeyboardInterrupt
        return paint(self, text, **more)

    monkeypatch.setattr(Painter, "generate", counting)
    arguments = ["--prompts", str(prompts), "--output", str(tmp_path / "out")]
    with pytest.raises(KeyboardInterrupt):
        bench_t2i.main(arguments)
    assert bench_t2i.main(arguments) == 0
    whole = 2 * 2 + 4 * 2 + 2 * 2 * 2 + 2 * 2 * 2  # composition has one seed, the others two
    assert len(drawn) == whole + 1  # the one it was stopped in
    assert bench_t2i.main(arguments) == 0 and len(drawn) == whole + 1


def _mean_grey() -> float:
    """A grey picture against a grey word and a blue one."""
    return 100 * (1 + 1 / np.sqrt(3)) / 2


def test_bad_input_is_told(prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prompts / "messy.tsv").unlink()
    assert bench_t2i.main(["--prompts", str(prompts), "--output", str(tmp_path / "out"), "--part", "normalizer"]) == 2
    assert "cannot read the prompts" in capsys.readouterr().err
