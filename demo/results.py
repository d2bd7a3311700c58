"""Pictures as the pages show them: losslessly, with what they say of themselves, to be saved, varied and drawn again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import streamlit as st

import jpgen
from demo.notices import failure, labelled
from demo.words import say
from jpgen.metadata import Settings, read_settings

MOST_SHOWN = 12

Action = tuple[str, str, Callable[[Path], None]]
"""The key of its text, its icon, and what it does, as a callback with the picture's file."""


def picture(path: Path, *, width: int | str = "stretch") -> None:
    """The very bytes of the file (PNG with its metadata), its prompt as the alternative text."""
    settings = told(path)
    st.image(path.read_bytes(), width=width, output_format="PNG", alt=settings.source if settings else say("picture"))  # type: ignore[arg-type]


def told(path: Path) -> Settings | None:
    """How the picture was made, None if it does not say."""
    try:
        return read_settings(path)
    except jpgen.JpgenError:
        return None


def facts(settings: Settings) -> None:
    """The settings in a table."""
    config = settings.config
    labelled(
        {
            say("prompt"): settings.source,
            say("negative"): settings.negative,
            say("seed"): settings.seed,
            say("size"): f"{config.width}×{config.height}",
            say("steps"): config.steps,
            say("guidance"): f"{config.guidance_scale:g}",
            say("sampler"): config.scheduler,
            say("model"): f"{settings.model}@{settings.revision}",
            say("model.license"): settings.license,
            say("route"): settings.route,
        }
    )


def show(paths: tuple[Path, ...], *, page: str, actions: tuple[Action, ...] = ()) -> None:
    """Finished pictures, one large or several in a grid, each with a button to save it and the page's actions."""
    there = [path for path in paths if path.is_file()][:MOST_SHOWN]
    if len(there) < len(paths[:MOST_SHOWN]):
        failure(say("picture.gone"))
    columns = [st.container()] if len(there) == 1 else st.columns(2) if there else []
    for place, path in enumerate(there):
        with columns[place % len(columns)]:
            picture(path)
            with st.container(horizontal=True, key=f"{page}-actions-{place}"):
                st.download_button(
                    say("picture.save"), path.read_bytes(), file_name=path.name, mime="image/png", key=f"{page}-save-{place}", icon=":material/download:",
                    on_click="ignore",
                )  # fmt: skip
                for name, icon, act in actions:
                    st.button(say(name), icon=icon, key=f"{page}-{name}-{place}", on_click=act, args=(path,))
            settings = told(path)
            if settings:
                with st.expander(say("picture.how")):
                    facts(settings)
