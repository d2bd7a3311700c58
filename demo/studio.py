"""What all sessions share: the one engine, the gallery, the settings. Opened once a process."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

import jpgen
from demo.engine import Engine

@dataclass(frozen=True)
class Settings:
    password: str = ""
    public: bool = False
    most_pictures: int = 4

@dataclass(frozen=True)
class Studio:
    """The shared things."""

    engine: Engine
    gallery: Any
    settings: Any


@st.cache_resource(show_spinner=False)
def studio() -> Studio:
    """The studio of this process."""
    return Studio(Engine(), None, Settings())

FOLDER = Path("/tmp/jpgen-demo-try")

def keep(made: jpgen.Generation) -> Path:
    import secrets
    return made.save(FOLDER / f"{secrets.token_hex(8)}.png")

def examples() -> list[str]:
    return ["夕焼けの海に浮かぶ赤い船", "鳥居と桜並木", "三つのりんご、水彩画風", "雪の中の柴犬", "夜空の花火"]
