"""What all sessions share: the one engine, the gallery, the settings. Opened once a process."""

from __future__ import annotations

import gc
import secrets
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import streamlit as st

import jpgen
from demo.brake import Brake
from demo.engine import Desk, Engine
from demo.gallery import Gallery
from demo.settings import Settings, load_settings

open_pipeline: Callable[..., Any] | None = None
"""What opens a model in the place of jpgen.Pipeline; tests set it before the first session comes."""


@dataclass(frozen=True)
class Studio:
    """The shared things."""

    engine: Engine
    pictures: Gallery
    settings: Settings
    brake: Brake = field(default_factory=Brake)


def _open(model: str, *, vae: str | None = None) -> Any:
    """A pipeline whose objects, and those of the libraries it brought, are left out of all garbage collections until it is dropped."""
    gc.collect()  # what the pages have left behind is not to be kept with it; before anything is open that takes a tenth of a second
    with _short_turns(), _for_good():
        return (open_pipeline or jpgen.Pipeline)(model, vae=vae)


@contextmanager
def _for_good() -> Iterator[None]:
    """Collect no garbage meanwhile, and look at nothing later that is there then: a collection takes half a second where torch is loaded."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _short_turns() -> Iterator[None]:
    """Let threads hand on the interpreter every millisecond: the imports of a model would keep it for 5 each time a page asks for anything."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(0.001)
    try:
        yield
    finally:
        sys.setswitchinterval(usual)


def _prepare(desk: Desk, model: str) -> None:
    """Open the model and jpgen's lexicon before anybody asks for a picture."""
    desk.pipeline(model)
    jpgen.normalize("豆")


@st.cache_resource(show_spinner=False, on_release=lambda opened: opened.engine.close())
def studio() -> Studio:
    """The studio of this process; raises SettingsError or GalleryError, which the frame tells."""
    settings = load_settings()
    pictures = Gallery(settings.gallery)
    engine = Engine(
        capacity=settings.capacity, per_session=settings.per_session, idle_seconds=settings.idle_seconds, away_seconds=settings.away_seconds,
        open_pipeline=_open,
    )  # fmt: skip
    engine.submit("", lambda desk: _prepare(desk, settings.model))
    return Studio(engine, pictures, settings)


def session() -> str:
    """The secret name of this session; the engine gives a job's pictures to nobody else."""
    return str(st.session_state.setdefault("session", secrets.token_urlsafe(16)))


def gallery() -> Gallery:
    """The pictures this session sees: all of this computer, or in public its own. To be asked for in a page, not in a worker."""
    opened = studio()
    return opened.pictures.of(session()) if opened.settings.public else opened.pictures
