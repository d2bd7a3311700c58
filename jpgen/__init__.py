"""jpgen: pictures from Japanese prompts.

>>> from jpgen import generate
>>> generate("夕焼けの海に浮かぶ赤い船").save("ship.png")  # doctest: +SKIP

Names are resolved on first use: importing jpgen loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jpgen.adapter_files import list_loras
    from jpgen.api import generate, generate_many, load_generation
    from jpgen.cards import ModelCard, accept_terms, model_cards
    from jpgen.catalog import load_catalog
    from jpgen.dozing import doze
    from jpgen.errors import (
        Cancelled,
        IncompatibleError,
        JpgenError,
        LicenseError,
        MetadataError,
        MissingExtraError,
        OutputError,
        PromptError,
        RecipeError,
        SettingError,
        StudyError,
        TrainingDataError,
        UnknownNameError,
        WeightsError,
    )
    from jpgen.evaluate.cases import Arm, Case
    from jpgen.evaluate.compare import compare
    from jpgen.evaluate.scorer import ImageTextScorer, open_scorer
    from jpgen.evaluate.scores import clip_score, retrieve, zero_shot
    from jpgen.evolve.live import LiveMerge
    from jpgen.merged import write_merge
    from jpgen.metadata import Settings, file_name, parse_parameters, picture_name, read_settings
    from jpgen.pictures import read_picture
    from jpgen.pipeline import Pipeline
    from jpgen.prompt import Lexicon, Style, Wildcards, apply_style, load_lexicon, load_styles, normalize
    from jpgen.translate import open_translator
    from jpgen.types import (
        AdapterInfo,
        Conditioning,
        ConditioningSpec,
        Control,
        Edit,
        Generation,
        InitImage,
        ModelInfo,
        Prompt,
        SamplingConfig,
        Step,
    )

_HOMES = {
    "jpgen.adapter_files": ("list_loras",),
    "jpgen.api": ("generate", "generate_many", "load_generation"),
    "jpgen.cards": ("ModelCard", "accept_terms", "model_cards"),
    "jpgen.catalog": ("load_catalog",),
    "jpgen.dozing": ("doze",),
    "jpgen.errors": (
        "Cancelled", "IncompatibleError", "JpgenError", "LicenseError", "MetadataError", "MissingExtraError", "OutputError",
        "PromptError", "RecipeError", "SettingError", "StudyError", "TrainingDataError", "UnknownNameError", "WeightsError",
    ),
    "jpgen.evaluate.scorer": ("ImageTextScorer", "open_scorer"),
    "jpgen.evaluate.scores": ("clip_score", "retrieve", "zero_shot"),
    "jpgen.evolve.live": ("LiveMerge",),
    "jpgen.merged": ("write_merge",),
    "jpgen.metadata": ("Settings", "file_name", "parse_parameters", "picture_name", "read_settings"),
    "jpgen.pictures": ("read_picture",),
    "jpgen.evaluate.cases": ("Arm", "Case"),
    "jpgen.evaluate.compare": ("compare",),
    "jpgen.pipeline": ("Pipeline",),
    "jpgen.prompt": ("Lexicon", "Style", "Wildcards", "apply_style", "load_lexicon", "load_styles", "normalize"),
    "jpgen.translate": ("open_translator",),
    "jpgen.types": (
        "AdapterInfo", "Conditioning", "ConditioningSpec", "Control", "Edit", "Generation", "InitImage", "ModelInfo", "Prompt", "SamplingConfig",
        "Step",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AdapterInfo",
    "Arm",
    "Cancelled",
    "Case",
    "Conditioning",
    "ConditioningSpec",
    "Control",
    "Edit",
    "Generation",
    "ImageTextScorer",
    "IncompatibleError",
    "InitImage",
    "JpgenError",
    "Lexicon",
    "LicenseError",
    "LiveMerge",
    "MetadataError",
    "MissingExtraError",
    "ModelCard",
    "ModelInfo",
    "OutputError",
    "Pipeline",
    "Prompt",
    "PromptError",
    "RecipeError",
    "SamplingConfig",
    "SettingError",
    "Settings",
    "Step",
    "StudyError",
    "Style",
    "TrainingDataError",
    "UnknownNameError",
    "WeightsError",
    "Wildcards",
    "accept_terms",
    "apply_style",
    "clip_score",
    "compare",
    "doze",
    "file_name",
    "generate",
    "generate_many",
    "list_loras",
    "load_catalog",
    "load_generation",
    "load_lexicon",
    "load_styles",
    "model_cards",
    "normalize",
    "open_scorer",
    "open_translator",
    "parse_parameters",
    "picture_name",
    "read_picture",
    "read_settings",
    "retrieve",
    "write_merge",
    "zero_shot",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'jpgen' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
