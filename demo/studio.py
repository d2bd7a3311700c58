"""What all sessions share: the one engine, the gallery, the settings. Opened once a process."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import streamlit as st

from demo import drawing
from demo.apart import WorkerApart
from demo.brake import Brake
from demo.engine import Engine, Runner
from demo.gallery import Gallery
from demo.settings import Settings, load_settings

new_worker: Callable[[], Runner] = WorkerApart
"""Makes what carries the jobs out; tests put another before the first session comes."""


@dataclass(frozen=True)
class Studio:
    """The shared things."""

    engine: Engine
    pictures: Gallery
    settings: Settings
    brake: Brake = field(default_factory=Brake)


@st.cache_resource(show_spinner=False, on_release=lambda opened: opened.engine.close())
def studio() -> Studio:
    """The studio of this process; raises SettingsError or GalleryError, which the frame tells."""
    settings = load_settings()
    pictures = Gallery(settings.gallery)
    engine = Engine(
        capacity=settings.capacity, per_session=settings.per_session, idle_seconds=settings.idle_seconds, away_seconds=settings.away_seconds,
        worker=new_worker(),
    )  # fmt: skip
    engine.submit("", partial(drawing.prepare, model=settings.model))
    return Studio(engine, pictures, settings)


def session() -> str:
    """The secret name of this session; the engine gives a job's pictures to nobody else."""
    return str(st.session_state.setdefault("session", secrets.token_urlsafe(16)))


def gallery() -> Gallery:
    """The pictures this session sees: all of this computer, or in public its own. To be asked for in a page, not in a worker."""
    opened = studio()
    return opened.pictures.of(session()) if opened.settings.public else opened.pictures
