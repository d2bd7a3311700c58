"""Pictures and texts compared: a score of each pair, the likeliest of some labels, the pictures that suit a text best."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from jpgen.errors import PromptError, WeightsError
from jpgen.evaluate.scorer import DEFAULT_SCORER, ImageTextScorer, open_scorer
from jpgen.pictures import read_picture
from jpgen.translate import is_japanese
from jpgen.types import Generation

Picture = Image.Image | str | Path | Generation

TEMPLATES = {"ja": ("{}", "{}の絵"), "en": ("{}", "a picture of {}")}
"""What a label is put into when nothing else is asked for, by whether it is Japanese; its features are averaged."""

PHOTO_TEMPLATES = {"ja": ("{}の写真", "{}の画像", "{}が写っている"), "en": ("a photo of {}", "an image of {}", "a picture of {}")}
"""For photographs, with models that learnt from them."""

PERCENT = 100.0


class Guess(NamedTuple):
    """A label and its probability (0…1)."""

    label: str
    probability: float


class Match(NamedTuple):
    """`place` of a picture among the given ones (from 0) and its score (see `clip_score`)."""

    place: int
    score: float


def clip_score(images: Sequence[Picture], texts: Sequence[str], *, model: str | Path | ImageTextScorer = DEFAULT_SCORER) -> list[float]:
    """How well each picture suits the text of the same place: 100 times the cosine of their features, not below 0 (CLIPScore, arXiv 2104.08718).

    `images` are PIL images, paths or Generations; `model` is a scorer's name in the catalogue, a local folder or an open scorer. Scores of different
    models cannot be compared. Raises PromptError (an empty text, more texts than pictures), SettingError (a picture that cannot be read),
    UnknownNameError and WeightsError (the model, or features that are no numbers).

        >>> from jpgen import clip_score, generate
        >>> clip_score([generate("猫", seed=1)], ["猫"])  # doctest: +SKIP
        [27.4]
    """
    if len(images) != len(texts):
        raise PromptError(
            f"絵が {len(images)} 枚、文が {len(texts)} 個です / {len(images)} pictures and {len(texts)} texts: give one text for each picture"
        )
    said = _texts(texts, "文 / text")
    pictures = read_pictures(images)
    scorer = open_scorer(model)
    if not said:
        return []
    return _percent(finite(scorer.image_features(pictures), scorer) * finite(scorer.text_features(said), scorer))


def zero_shot(
    image: Picture, labels: Sequence[str], *, model: str | Path | ImageTextScorer = DEFAULT_SCORER, templates: Sequence[str] | None = None
) -> list[Guess]:
    """What the picture shows, of these labels: each with its probability, likeliest first (arXiv 2103.00020, §3.1).

    Labels are Japanese or English words; each is put into every one of the `templates` (texts with "{}" in them, e.g. `PHOTO_TEMPLATES["ja"]`; None:
    those of `TEMPLATES`) and their features are averaged. The probabilities of all labels add up to 1: of labels that all are wrong, one still wins.
    Raises PromptError for no labels, an empty one, one that is given twice, a template without "{}"; else as `clip_score` does.

        >>> from jpgen import generate, zero_shot
        >>> zero_shot(generate("赤い鳥居", seed=1), ["犬", "猫", "鳥居"])[0].label  # doctest: +SKIP
        '鳥居'
    """
    names = _texts(labels, "ラベル / label")
    if not names:
        raise PromptError("ラベルがありません。見分けるものの名前を渡してください（例: 犬 猫 図） / no labels: name what it may show")
    if twice := sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []:
        raise PromptError(f"同じラベルが二度あります / labels given twice: {', '.join(twice[:5])}; give each once")
    (picture,) = read_pictures([image])
    scorer = open_scorer(model)
    feature = finite(scorer.image_features([picture]), scorer)
    chances = (scorer.scale * feature @ label_features(scorer, names, templates).T).softmax(dim=1)[0]
    order = chances.argsort(descending=True, stable=True)
    return [Guess(names[i], float(chances[i])) for i in order.tolist()]


def label_features(scorer: ImageTextScorer, labels: Sequence[str], templates: Sequence[str] | None = None) -> Tensor:
    """Unit vectors fp32 [labels, width], each the mean over the templates (None: `TEMPLATES`); raises PromptError for one without "{}"."""
    if templates is not None and (not templates or not all("{}" in template for template in templates)):
        raise PromptError(f"テンプレートには {{}} が要ります / a template needs {{}} for the label, e.g. {{}}の写真: got {list(templates)!r}")
    frames = [templates or TEMPLATES["ja" if is_japanese(label) else "en"] for label in labels]
    texts = [frame.replace("{}", label) for label, of_label in zip(labels, frames, strict=True) for frame in of_label]
    features = finite(scorer.text_features(texts), scorer)
    means = [rows.mean(dim=0) for rows in features.split([len(of_label) for of_label in frames])]
    return F.normalize(torch.stack(means), dim=-1)


def retrieve(
    images: Sequence[Picture], text: str, *, model: str | Path | ImageTextScorer = DEFAULT_SCORER, top: int | None = None
) -> list[Match]:
    """The pictures that suit the text, best first: the place of each in `images` and its score (see `clip_score`, whose errors it raises).

    `top`: only so many. No pictures give an empty list.

        >>> from jpgen import retrieve
        >>> retrieve(["cat.png", "torii.png"], "鳥居", top=1)[0].place  # doctest: +SKIP
        1
    """
    if top is not None and top < 1:
        raise PromptError(f"top={top} は 1 以上にしてください / top must be at least 1, or None for all")
    said = _texts([text], "文 / text")
    pictures = read_pictures(images)
    if not pictures:
        return []
    scorer = open_scorer(model)
    scores = torch.tensor(_percent(finite(scorer.image_features(pictures), scorer) * finite(scorer.text_features(said), scorer)))
    return [Match(i, float(scores[i])) for i in scores.argsort(descending=True, stable=True).tolist()[:top]]


def _percent(products: Tensor) -> list[float]:
    return [PERCENT * max(value, 0.0) for value in products.sum(dim=1).tolist()]


def read_pictures(images: Sequence[Picture]) -> list[Image.Image]:
    """The pictures in RGB; raises SettingError naming the first that cannot be read."""
    return [read_picture(one.image if isinstance(one, Generation) else one, f"images[{n}]") for n, one in enumerate(images)]


def _texts(texts: Sequence[str], what: str) -> list[str]:
    if isinstance(texts, str):
        raise PromptError(f"{what}: 一つの文字列ではなくリストで渡してください / pass a list of texts, got one text {texts[:20]!r}")
    for n, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise PromptError(f"{what} {n + 1} 番目が空です / number {n + 1} is empty or no text ({text!r}): write what the picture may show")
    return list(texts)


def finite(features: Tensor, scorer: ImageTextScorer) -> Tensor:
    """The features; raises WeightsError if any is no number."""
    if not features.isfinite().all():
        raise WeightsError(
            f"{scorer.name} の出力が数になりません（NaN） / {scorer.name} gives features that are no numbers (NaN): "
            "its weights are damaged; fetch it again"
        )
    return features
