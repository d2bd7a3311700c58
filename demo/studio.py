"""What all sessions share: the one engine, the gallery, the settings. Opened once a process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st

import jpgen
from demo.engine import Engine
from demo.settings import Settings, load_settings

open_pipeline: Callable[..., Any] | None = None
"""What opens a model in the place of jpgen.Pipeline; set by tests before the first session comes."""


@dataclass(frozen=True)
class Studio:
    """The shared things."""

    engine: Engine
    gallery: Any
    settings: Settings


@st.cache_resource(show_spinner=False, on_release=lambda opened: opened.engine.close())
def studio() -> Studio:
    """The studio of this process."""
    settings = load_settings()
    engine = Engine(
        capacity=settings.capacity, per_session=settings.per_session, idle_seconds=settings.idle_seconds, away_seconds=settings.away_seconds,
        open_pipeline=open_pipeline,
    )  # fmt: skip
    return Studio(engine, None, settings)

def keep(made: jpgen.Generation) -> Path:
    import secrets
    return made.save(studio().settings.gallery / f"{secrets.token_hex(8)}.png")

def recent(n): return sorted(studio().settings.gallery.glob("*.png"), key=lambda p: p.stat().st_mtime, reverse=True)[:n]
def searchable(): return tuple(recent(200))
def examples() -> list[str]:
    return ["夕焼けの海に浮かぶ赤い船", "鳥居と桜並木", "三つのりんご、水彩画風", "雪の中の柴犬", "夜空の花火"]
