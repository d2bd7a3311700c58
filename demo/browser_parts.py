"""Two small things Streamlit has no widget for: the language of the document (and of what Streamlit says), and a mask painted on a picture."""

from __future__ import annotations

import base64
import io
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image

from demo.words import language, say

HERE = Path(__file__).with_name("browser")


def mark_language() -> None:
    """Tell the browser which language the page is in, and what Streamlit's own words are in it."""
    _language()(key="html-lang", data={"lang": language(), "words": streamlit_words() if language() == "ja" else []}, height=1)


@cache
def streamlit_words() -> list[list[str]]:
    """What Streamlit says by itself, in English and in Japanese; `{}` stands for whatever is there."""
    lines = (HERE / "streamlit_words.tsv").read_text("utf-8").splitlines()
    return [line.split("\t") for line in lines[1:]]


def paint_mask(address: str, size: tuple[int, int], *, identity: str, alt: str, key: str) -> Image.Image | None:
    """The picture at an address with a brush over it; returns the mask (mode L, white where painted, of this size), None while nothing is painted.

    `identity` tells pictures apart: another one begins with an empty mask.
    """
    words = {name: say(f"mask.{name}") for name in ("paint", "erase", "undo", "clear", "all", "size", "hint", "canvas")}
    data = {
        "id": identity, "alt": alt, "words": words, "width": size[0], "height": size[1], "picture": address,
    }  # fmt: skip
    painted = _mask()(key=key, data=data, default={"mask": None}, on_mask_change=_nothing).mask
    return _read(painted, identity, size)


def _read(painted: Any, identity: str, size: tuple[int, int]) -> Image.Image | None:
    """The mask of what the browser sent; None for nothing, for another picture's and for what is no mask of this size."""
    if not isinstance(painted, dict) or painted.get("picture") != identity:
        return None
    try:
        mask = Image.open(io.BytesIO(base64.b64decode(str(painted.get("png")), validate=True)), formats=["PNG"])
        return mask.convert("L") if mask.size == size else None
    except (ValueError, OSError, Image.DecompressionBombError):
        return None


def _nothing() -> None:
    """A callback is wanted for every state with a default."""


@cache
def _language() -> Any:
    return st.components.v2.component("jpgen.language", js=(HERE / "language.js").read_text("utf-8"))


@cache
def _mask() -> Any:
    html, css, js = ((HERE / f"mask.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    return st.components.v2.component("jpgen.mask", html=html, css=css, js=js)
