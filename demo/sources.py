"""The picture a page works on: sent over from another page, chosen from the gallery, or dropped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import streamlit as st
from PIL import Image

import jpgen
from demo.notices import failure, notice
from demo.results import Made, of_item, picture
from demo.studio import gallery, studio
from demo.uploads import open_picture, restore
from demo.words import say

SUFFIXES = ["png", "jpg", "jpeg", "webp"]
OFFERED = 6
"""How many of the newest pictures of the gallery are offered."""


@dataclass(frozen=True)
class Source:
    """A picture, a name that tells it apart, and how it was made if it says so."""

    image: Image.Image
    identity: str
    settings: jpgen.Settings | None = None


def send(page: str, made: Made) -> None:
    """Open this picture on that page; for callbacks."""
    _use(page, made)
    st.session_state["go"] = page


def choose(page: str) -> Source | None:
    """The picker of a picture, and the chosen one; None while there is none, or if it could not be opened (which the page then says)."""
    chosen = st.session_state.get(f"{page}/source")
    with st.expander(say("source"), expanded=chosen is None, icon=":material/image:", key=f"{page}-source-{chosen is None}"):
        dropped = st.file_uploader(say("source.file"), type=SUFFIXES, key=f"{page}/file")
        _newest(page)
    try:
        if dropped is not None:
            data = dropped.getvalue()
            limits = studio().settings
            image = open_picture(data, dropped.name, max_bytes=limits.upload_bytes, max_pixels=limits.upload_pixels)
            return Source(image, hashlib.sha256(data).hexdigest()[:16], settings_of(data))
        if isinstance(chosen, Made):
            return Source(open_picture(chosen.read(), chosen.name), f"{chosen.path or chosen.name}", chosen.settings)
    except jpgen.JpgenError as error:
        failure(error)
    else:
        notice(say("source.none"))
    return None


def _newest(page: str) -> None:
    items = gallery().search(limit=OFFERED).items
    if not items:
        return
    st.text(say("source.gallery"))
    with st.container(horizontal=True, gap="small"):
        for place, item in enumerate(items):
            made = of_item(item)
            with st.container(width=104):
                picture(made, width=96)
                st.button(say("source.use"), key=f"{page}-use-{place}", on_click=_use, args=(page, made), width="stretch")


def settings_of(data: bytes) -> jpgen.Settings | None:
    """How a dropped picture was made, None if it does not say."""
    try:
        return restore(data)
    except jpgen.JpgenError:
        return None


def _use(page: str, made: Made) -> None:
    st.session_state[f"{page}/source"] = made
