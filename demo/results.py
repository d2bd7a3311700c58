"""Pictures as the pages show them: losslessly, with what they say of themselves, to be saved, varied and drawn again."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import streamlit as st
from PIL import Image

import jpgen
from demo.gallery import Gallery, Item
from demo.made import Made
from demo.notices import failure, labelled
from demo.words import say

MOST_SHOWN = 12


Action = tuple[str, str, Callable[[Made], Any]]
"""The key of its text, its icon, and what it does: a callback with the picture."""


def alt(made: Made) -> str:
    """The words for those who do not see it: its prompt."""
    return made.settings.source if made.settings else say("picture")


def picture(made: Made) -> None:
    """The very bytes of the file, PNG with its metadata; says so where the file is gone."""
    data = made.read()
    if data:
        st.image(data, width="stretch", output_format="PNG", alt=alt(made))
    else:
        failure(say("picture.gone"))


def small(kept: Gallery, item: Item, *, width: int | str = "stretch") -> None:
    """The thumbnail of a picture of the gallery, handed on as it is: bytes of WebP Streamlit would decode and encode anew in every run."""
    data = kept.thumbnail(item)
    if data:
        st.image(webp_address(data), width=width, alt=item.prompt)  # type: ignore[arg-type]
    else:
        failure(say("picture.gone"))


def webp_address(data: bytes) -> str:
    """A WebP as an address that holds it."""
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def jpeg(image: Image.Image) -> bytes:
    """A picture as JPEG, which st.image hands on as it is where it is not wider than its place."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def facts(settings: jpgen.Settings) -> None:
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


def show(pictures: tuple[Made, ...], *, page: str, actions: tuple[Action, ...] = ()) -> None:
    """Finished pictures, one large or several in two columns, each with a button to save it and the page's actions."""
    shown = pictures[:MOST_SHOWN]
    columns = [st.container()] if len(shown) == 1 else st.columns(2) if shown else []
    for place, made in enumerate(shown):
        with columns[place % len(columns)]:
            picture(made)
            if made.why:
                failure(made.why)
            with st.container(horizontal=True, gap="small", key=f"{page}-actions-{place}"):
                st.download_button(
                    say("picture.save"), made.read(), file_name=made.name, mime="image/png", key=f"{page}-save-{place}", icon=":material/download:",
                    on_click="ignore",
                )  # fmt: skip
                for name, icon, act in actions:
                    st.button(say(name), icon=icon, key=f"{page}-{name}-{place}", on_click=act, args=(made,))
            if made.settings:
                with st.expander(say("picture.how")):
                    facts(made.settings)
