"""SigLIP (arXiv 2303.15343), SigLIP 2 (arXiv 2502.14786), CLIP (arXiv 2103.00020) and AltCLIP (arXiv 2211.06679) as scorers, through transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from jpgen.compute import best_device, best_dtype
from jpgen.encoders import checked_variant
from jpgen.errors import WeightsError
from jpgen.safety import read_json

BATCH = 32
FIXED_LENGTH = ("siglip", "siglip2")
"""Kinds whose texts are filled to full length and in small letters, as in their training."""

KINDS = (*FIXED_LENGTH, "clip", "altclip")
SIGLIP_LENGTH = 64


class ContrastiveScorer:
    """A model of transformers with its tokenizer and its preparation of pictures; texts longer than it reads are cut off."""

    def __init__(self, name: str, model: Any, tokenizer: Any, processor: Any) -> None:
        self.name = name
        self._model = model.eval().requires_grad_(False)
        self._tokenizer, self._processor = tokenizer, processor
        self._fixed = model.config.model_type in FIXED_LENGTH
        told = getattr(model.config.text_config, "max_position_embeddings", SIGLIP_LENGTH)
        self._length = min(told, tokenizer.model_max_length)

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self._model.logit_scale.float().exp())

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors fp32 [images, width]."""
        rows = []
        for start in range(0, len(images), BATCH):
            prepared = self._processor(images=list(images[start : start + BATCH]), return_tensors="pt").to(self._model.device, self._model.dtype)
            rows.append(_unit(self._model.get_image_features(**prepared)))
        return torch.cat(rows)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors fp32 [texts, width]."""
        rows = []
        padding = "max_length" if self._fixed else True
        for start in range(0, len(texts), BATCH):
            said = [text.lower() if self._fixed else text for text in texts[start : start + BATCH]]
            ids = self._tokenizer(said, padding=padding, truncation=True, max_length=self._length, return_tensors="pt").to(self._model.device)
            if self._fixed:
                ids = {"input_ids": ids["input_ids"]}
            rows.append(_unit(self._model.get_text_features(**ids)))
        return torch.cat(rows)


def _unit(made: Any) -> Tensor:
    pooled = made if isinstance(made, Tensor) else made.pooler_output
    return F.normalize(pooled.float().cpu(), dim=-1)


def load(folder: Path, name: str = "") -> ContrastiveScorer:
    """The model in a local folder as `save_pretrained` writes it, safetensors alone; raises WeightsError."""
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in KINDS:
        raise WeightsError(
            f"{folder}: 絵と文を比べるモデルではありません / {folder} holds a model of type {kind!r}, wanted one of {', '.join(KINDS)}: "
            "name a CLIP's folder"
        )
    device = best_device()
    try:
        variant = checked_variant(folder)
        model = AutoModel.from_pretrained(folder, dtype=best_dtype(device), variant=variant, use_safetensors=True, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"{folder} を読めません / cannot read the model in {folder}: {' '.join(str(error).split())}; fetch it again") from error
    return ContrastiveScorer(name or folder.name, model.to(device), tokenizer, processor)
