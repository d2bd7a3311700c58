"""Models that compare pictures with texts: what each must be able to do, and opening one by its name or folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from PIL import Image
from torch import Tensor

from jpgen.catalog import SCORERS, load_catalog
from jpgen.errors import IncompatibleError, UnknownNameError
from jpgen.models import open_model
from jpgen.protocols import Translator
from jpgen.safety import read_json
from jpgen.translate import is_japanese, open_translator

DEFAULT_SCORER = "mame-clip"


@runtime_checkable
class ImageTextScorer(Protocol):
    """Puts pictures and texts into one space, where those that belong together are near."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax."""

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors fp32 [images, width]."""

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors fp32 [texts, width]."""


@dataclass(frozen=True)
class TranslatingScorer:
    """A scorer of English alone that is given Japanese texts in English."""

    scorer: ImageTextScorer
    translator: Translator

    @property
    def name(self) -> str:
        """The scorer's and the translator's."""
        return f"{self.scorer.name} + {self.translator.name}"

    @property
    def scale(self) -> float:
        """The scorer's."""
        return self.scorer.scale

    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """The scorer's."""
        return self.scorer.image_features(images)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """The scorer's of the texts in English; each text is translated once, what has no Japanese in it not at all."""
        wanted = list(dict.fromkeys(text for text in texts if is_japanese(text)))
        english = dict(zip(wanted, self.translator.translate(wanted) if wanted else (), strict=True))
        return self.scorer.text_features([english.get(text, text) for text in texts])


def open_scorer(model: str | Path | ImageTextScorer = DEFAULT_SCORER, *, translator: str | Path | Translator | None = None) -> ImageTextScorer:
    """The scorer of this name in the catalogue or in this local folder (any SigLIP, CLIP or AltCLIP of transformers); an open one passes through.

    With a `translator` (a name, a folder, an open one; else the one its row names) Japanese texts reach it in English. The last two stay open.
    Raises UnknownNameError, LicenseError, WeightsError, and IncompatibleError for a model that draws.
    """
    row_translator = ""
    if isinstance(model, str | Path):
        catalog = load_catalog()
        if str(model) in catalog:
            entry = catalog[str(model)]
            if entry.family not in SCORERS:
                raise IncompatibleError(
                    f"{entry.name} は絵と文を比べるモデルではありません / {entry.name} compares no pictures with texts: name one of "
                    + ", ".join(name for name, row in catalog.items() if row.family in SCORERS)
                )
            row_translator = str(entry.parts.get("translator", ""))
            model = _load(open_model(entry.name).folder, entry.name)
        else:
            place = Path(model).expanduser()
            if not place.is_dir():
                raise UnknownNameError.of("採点モデル / scorer", str(model), [name for name, row in catalog.items() if row.family in SCORERS])
            model = _load(place.resolve(), place.name)
    chosen = open_translator(translator or row_translator)
    return TranslatingScorer(model, chosen) if chosen else model


@lru_cache(maxsize=2)
def _load(folder: Path, name: str) -> ImageTextScorer:
    if read_json(folder / "config.json").get("model_type") == DEFAULT_SCORER:
        from jpgen.evaluate.mame_clip import MameClip

        return MameClip.load(folder)
    from jpgen.evaluate import contrastive

    return contrastive.load(folder, name)
