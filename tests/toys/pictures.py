"""Pictures to begin from, and masks: random but smooth, so that an autoencoder has something to keep."""

import numpy as np
from PIL import Image


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def mask(width: int = 64, height: int = 64) -> Image.Image:
    """White in the middle; its edges on the grid of 16 pixels, where latents of every toy begin."""
    made = Image.new("L", (width, height))
    made.paste(255, (16, 16, width - 16, height - 16))
    return made
