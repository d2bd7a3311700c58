"""clip_score, zero_shot and retrieve, with a scorer that knows colours, and with tiny models of transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jpgen.errors import IncompatibleError, PromptError, SettingError, UnknownNameError, WeightsError
from jpgen.evaluate.scorer import ImageTextScorer, TranslatingScorer, open_scorer
from jpgen.evaluate.scores import Guess, clip_score, label_features, retrieve, zero_shot

WORDS = {"赤": (1, 0, 0), "緑": (0, 1, 0), "青": (0, 0, 1), "red": (1, 0, 0), "blue": (0, 0, 1)}


@dataclass(frozen=True)
class ColorScorer:
    """Features are mean colours; of a text those of the colours it names."""

    name: str = "colors"
    scale: float = 10.0
    broken: bool = False

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        rows = [torch.from_numpy(np.asarray(image, np.float32).mean((0, 1))) for image in images]
        return F.normalize(torch.stack(rows) * (float("nan") if self.broken else 1.0), dim=-1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        rows = [sum((torch.tensor(v, dtype=torch.float32) for word, v in WORDS.items() if word in text), torch.full((3,), 1e-3)) for text in texts]
        return F.normalize(torch.stack(rows), dim=-1)


def plain(color: str) -> Image.Image:
    return Image.new("RGB", (20, 20), color)


def test_scores_are_hundred_times_the_cosine() -> None:
    scores = clip_score([plain("red"), plain("blue")], ["赤い船", "赤い船"], model=ColorScorer())
    assert scores == pytest.approx([100.0, 0.1], abs=0.1)
    assert clip_score([], [], model=ColorScorer()) == []
    with pytest.raises(PromptError, match="1 pictures and 2 texts"):
        clip_score([plain("red")], ["赤", "青"], model=ColorScorer())


def test_zero_shot_is_a_softmax_of_scaled_cosines() -> None:
    found = zero_shot(plain("blue"), ["赤", "緑", "青"], model=ColorScorer(), templates=["{}"])
    assert [guess.label for guess in found] == ["青", "赤", "緑"]
    assert sum(guess.probability for guess in found) == pytest.approx(1)
    cosines = ColorScorer().text_features(["青", "赤", "緑"]) @ torch.tensor([0.0, 0.0, 1.0])
    assert [guess.probability for guess in found] == pytest.approx((10 * cosines).softmax(0).tolist(), rel=1e-4)
    assert found[0] == Guess("青", found[0].probability)


def test_templates_are_averaged_and_chosen_by_language() -> None:
    class Noting(ColorScorer):
        def text_features(self, texts: Sequence[str]) -> Tensor:
            asked.extend(texts)
            return super().text_features(texts)

    asked: list[str] = []
    features = label_features(Noting(), ["赤", "red"])
    assert asked == ["赤", "赤の絵", "red", "a picture of red"]
    torch.testing.assert_close(features.norm(dim=-1), torch.ones(2))
    with pytest.raises(PromptError, match=r"needs \{\}"):
        label_features(ColorScorer(), ["赤"], ["の写真"])
    braces = label_features(ColorScorer(), ["{赤}"], ["{}の写真"])  # a label may hold braces
    torch.testing.assert_close(braces, label_features(ColorScorer(), ["赤"], ["{}"]))


@pytest.mark.parametrize(
    ("labels", "said"),
    [([], "no labels"), (["赤", " "], "number 2 is empty"), (["赤", "青", "赤"], "given twice: 赤"), ("赤", "pass a list")],
)
def test_labels_that_cannot_be(labels: object, said: str) -> None:
    with pytest.raises(PromptError, match=said):
        zero_shot(plain("red"), labels, model=ColorScorer())  # type: ignore[arg-type]


def test_ten_thousand_labels() -> None:
    labels = [f"緑の{n}" for n in range(9_999)] + ["赤い船"]
    found = zero_shot(plain("red"), labels, model=ColorScorer())
    assert found[0].label == "赤い船" and len(found) == 10_000
    assert sum(guess.probability for guess in found) == pytest.approx(1, abs=1e-4)


def test_retrieve_ranks_and_cuts() -> None:
    images = [plain("blue"), plain("purple"), plain("red")]
    assert [match.place for match in retrieve(images, "赤い花", model=ColorScorer())] == [2, 1, 0]
    assert [match.place for match in retrieve(images, "赤い花", model=ColorScorer(), top=1)] == [2]
    assert retrieve([], "赤", model=ColorScorer()) == []
    with pytest.raises(PromptError, match="at least 1"):
        retrieve(images, "赤", model=ColorScorer(), top=0)


def test_broken_pictures_and_numbers_are_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 50)
    with pytest.raises(SettingError, match=r"images\[1\]"):
        retrieve([plain("red"), broken], "赤", model=ColorScorer())
    with pytest.raises(WeightsError, match="NaN"):
        clip_score([plain("red")], ["赤"], model=ColorScorer(broken=True))


def test_names_of_scorers() -> None:
    with pytest.raises(UnknownNameError, match="mame-clip"):
        open_scorer("mame-clop")
    with pytest.raises(IncompatibleError, match="mame-clip"):
        open_scorer("mame")
    assert isinstance(ColorScorer(), ImageTextScorer)


def test_a_scorer_of_english_alone_is_given_english() -> None:
    class Translator:
        name = "two words"

        def translate(self, texts: Sequence[str]) -> list[str]:
            given.append(list(texts))
            return ["red" if text == "あか" else "blue" for text in texts]

    given: list[list[str]] = []
    scorer = open_scorer(ColorScorer(), translator=Translator())
    assert isinstance(scorer, TranslatingScorer) and scorer.name == "colors + two words"
    assert clip_score([plain("red")] * 3, ["あか", "red", "あか"], model=scorer) == pytest.approx([100, 100, 100], abs=0.1)
    assert given == [["あか"]]  # once, and no English
