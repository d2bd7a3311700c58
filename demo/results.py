"""Pictures as the pages show them: losslessly, with what they say of themselves, to be saved, varied and drawn again."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import streamlit as st
from PIL import Image

import jpgen
from demo.gallery import Gallery, GalleryError, Item
from demo.notices import failure, labelled
from demo.words import say

MOST_SHOWN = 12


@dataclass(frozen=True)
class Made:
    """A picture to be shown: a file of the gallery, or (`why` it could not be kept) bytes that only this session has."""

    name: str
    settings: jpgen.Settings | None
    path: Path | None = None
    data: bytes = b""
    why: str = ""

    def read(self) -> bytes:
        """The PNG; b"" if the file is gone."""
        try:
            return self.path.read_bytes() if self.path else self.data
        except OSError:
            return b""

    @property
    def alt(self) -> str:
        """The words for those who do not see it: its prompt."""
        return self.settings.source if self.settings else say("picture")


Action = tuple[str, str, Callable[[Made], Any]]
"""The key of its text, its icon, and what it does: a callback with the picture."""


def keep(gallery: Gallery, made: jpgen.Generation, kind: str = "create") -> Made:
    """Put a picture into the gallery as soon as it is drawn, so that no rerun loses it; what cannot be written is handed on in memory."""
    model = made.model
    settings = jpgen.Settings(
        made.prompt, made.config, made.seed, model.name, model.revision, model.license, model.weights_hash, made.encoder, made.route, made.adapters,
        made.inputs,
    )  # fmt: skip
    try:
        item = gallery.add(made, kind=kind)
    except GalleryError as error:
        return Made(jpgen.picture_name(made.prompt.source, made.seed), settings, data=made._repr_png_(), why=str(error))
    return Made(item.download_name, settings, item.path)


def of_item(item: Item) -> Made:
    """A picture of the gallery."""
    return Made(item.download_name, told(item.path), item.path)


def told(path: Path) -> jpgen.Settings | None:
    """How the picture was made, None if it does not say."""
    try:
        return jpgen.read_settings(path)
    except jpgen.JpgenError:
        return None


def picture(made: Made) -> None:
    """The very bytes of the file, PNG with its metadata; says so where the file is gone."""
    data = made.read()
    if data:
        st.image(data, width="stretch", output_format="PNG", alt=made.alt)
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
