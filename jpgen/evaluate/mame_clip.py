"""mame-clip, the built-in Japanese CLIP: mame's own text encoder, locked (LiT, Zhai et al. 2022, arXiv 2111.07991), and a small image tower.

The image tower is EfficientNet-Lite0 with a pooling that looks where it must. `jpgen.train.clip` teaches the two to agree, on rendered scenes; what
mame-clip can tell apart, and how well, stands in the README.md beside its weights (`jpgen/evaluate/clip/`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from jpgen.catalog import find_model
from jpgen.encoders import bert
from jpgen.errors import WeightsError
from jpgen.evaluate.efficientnet import WIDTH, EfficientNetLite0
from jpgen.protocols import TextEncoder
from jpgen.safety import read_json
from jpgen.weights import eight_bit_matrices, load_weights, save_weights

WEIGHTS = "mame_clip.safetensors"
CONFIG = "config.json"
BATCH = 32


@dataclass(frozen=True)
class ClipConfig:
    """Sizes of mame-clip: width of a pooled text state, of what is between, of the features that are compared; side of a picture as it is seen, in
    pixels; into how many looks the trunk's channels are divided, which each pool cells of their own choice."""

    model_type: str = "mame-clip"
    text_width: int = 384
    text_hidden: int = 1024
    width: int = 384
    side: int = 160
    looks: int = 8


class ClipNetwork(nn.Module):
    """Trunk, pooling and head of the pictures, two layers over pooled text states, the scale of their cosines (Radford et al. 2021, 2103.00020)."""

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.trunk = EfficientNetLite0()
        self.look = nn.Linear(WIDTH, config.looks)
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, config.width)
        self.text = nn.Sequential(nn.Linear(config.text_width, config.text_hidden), nn.GELU(), nn.Linear(config.text_hidden, config.width))
        self.log_scale = nn.Parameter(torch.tensor(3.0))
        nn.init.zeros_(self.look.weight)  # at first everywhere alike: the mean
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def image_features(self, pixels: Tensor) -> Tensor:
        """Unit vectors fp32 [batch, width] of `pixels` uint8 [batch, 3, side, side]."""
        return self.cell_features(self.cells(pixels))

    def cells(self, pixels: Tensor) -> Tensor:
        """What the trunk sees in each cell of 32×32 of these pixels, [batch, cells, 1280]."""
        seen: Tensor = self.trunk(pixels.to(memory_format=torch.channels_last).float() / 127.5 - 1)
        return seen.flatten(2).transpose(1, 2)

    def cell_features(self, cells: Tensor) -> Tensor:
        """Unit vectors fp32 [batch, width] of the cells of pictures."""
        weights = self.look(cells).softmax(dim=1)
        pooled = torch.einsum("bcl,bclw->blw", weights, cells.unflatten(2, (weights.shape[2], -1))).flatten(1)
        return F.normalize(self.head(self.norm(pooled)), dim=-1)

    def text_features(self, pooled: Tensor) -> Tensor:
        """Unit vectors fp32 [texts, width] of pooled text states [texts, text width]."""
        return F.normalize(self.text(pooled), dim=-1)


def shrink(image: Image.Image, side: int) -> Image.Image:
    """The image as mame-clip sees it: RGB, side×side, squeezed if it is no square."""
    return image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


class MameClip:
    """The network with the text encoder it was trained on.

    >>> from jpgen.evaluate.mame_clip import MameClip
    >>> MameClip.load().text_features(["猫", "cat"]).shape
    torch.Size([2, 384])
    """

    name = "mame-clip"

    def __init__(self, network: ClipNetwork, config: ClipConfig, encoder: TextEncoder) -> None:
        """A CLIP of parts; the network is put in evaluation mode."""
        self.network, self.config, self.encoder = network.eval().requires_grad_(False), config, encoder

    @classmethod
    def load(cls, folder: Path | None = None, *, encoder: TextEncoder | None = None) -> MameClip:
        """The one inside the package, or that of `folder`, with mame's encoder unless another is given.

        Raises WeightsError if it is missing, damaged or does not fit its config.
        """
        folder = folder or Path(str(resources.files("jpgen"))) / "evaluate" / "clip"
        try:
            stored: dict[str, Any] = read_json(folder / CONFIG)
            config = ClipConfig(**stored)
            network = ClipNetwork(config)
            network.load_state_dict(load_weights(folder / WEIGHTS))
        except (TypeError, ValueError, AttributeError, RuntimeError) as error:
            if isinstance(error, WeightsError):
                raise
            raise WeightsError(f"{folder} の重みと {CONFIG} が合いません / weights and config of {folder} do not fit: {error}") from error
        return cls(network, config, encoder or bert.load(find_model("mame").place))

    def save(self, folder: Path) -> None:
        """Write config.json and the weights (matrices in 8 bits) to `folder`, making it if need be."""
        folder.mkdir(parents=True, exist_ok=True)
        save_weights(folder / WEIGHTS, self.network.state_dict(), bits=eight_bit_matrices)
        (folder / CONFIG).write_text(json.dumps(asdict(self.config), indent=1) + "\n", "utf-8")

    @property
    def scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.network.log_scale.exp())

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors fp32 [images, width]; squares suit best, others are squeezed."""
        features = [torch.empty(0, self.config.width)]
        for start in range(0, len(images), BATCH):
            pixels = np.stack([np.asarray(shrink(image, self.config.side)) for image in images[start : start + BATCH]])
            features.append(self.network.image_features(torch.from_numpy(pixels).permute(0, 3, 1, 2)))
        return torch.cat(features)

    @torch.inference_mode()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors fp32 [texts, width]."""
        return self.network.text_features(pooled(self.encoder, texts))


@torch.no_grad()
def pooled(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """The mean token state of each text, fp32 [texts, width]."""
    out = torch.empty(len(texts), encoder.spec.width)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))  # texts of a length together: less filling
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        encoded = encoder.encode([texts[i] for i in rows])
        mask = encoded.mask[..., None].float()
        out[rows] = (encoded.tokens.float() * mask).sum(1) / mask.sum(1)
    return out
