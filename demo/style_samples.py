"""Draw the small pictures of styles that つくる shows anew, by the built-in model: python -m demo.style_samples."""

from __future__ import annotations

from pathlib import Path

import jpgen

SAMPLES = Path(__file__).with_name("styles")
"""One file a style, by its English name; a style without one has no picture."""

SIDE = 96
PROMPT, SEED = "りんご", 3


def sample_of(style: jpgen.Style) -> Path:
    """Where the picture of a style is, or would be."""
    return SAMPLES / f"{style.english.replace(' ', '-')}.webp"


def draw(prompt: str, seed: int) -> None:
    """Draw the prompt in every style that has a picture."""
    pipeline = jpgen.Pipeline()
    for style in jpgen.load_styles().values():
        if style.english and sample_of(style).is_file():
            text, negative = jpgen.apply_style(style, prompt)
            pipeline.generate(text, negative=negative, seed=seed).image.resize((SIDE, SIDE)).save(sample_of(style), quality=80)


if __name__ == "__main__":
    draw(PROMPT, SEED)
