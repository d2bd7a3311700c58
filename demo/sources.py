"""The picture a page works on: sent over from another page, chosen from the gallery, or dropped."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import streamlit as st
from PIL import Image

import jpgen
from demo.gallery import Item
from demo.made import Made, of_item
from demo.notices import failure, notice
from demo.results import jpeg, small
from demo.studio import gallery, studio
from demo.uploads import open_picture, restore
from demo.words import say

SUFFIXES = ["png", "jpg", "jpeg", "webp"]

SHOWN = 256
"""Pixels of its width as a page shows it."""

OFFERED = 6
"""How many of the newest pictures of the gallery are offered."""


@dataclass(frozen=True)
class Source:
    """A picture, a name that tells it apart, and how it was made if it says so."""

    image: Image.Image
    identity: str
    settings: jpgen.Settings | None = None

    @cached_property
    def shown(self) -> bytes:
        """A JPEG for the page."""
        scale = min(1.0, SHOWN / self.image.width)
        return jpeg(self.image.resize((round(self.image.width * scale), max(1, round(self.image.height * scale)))))

    @cached_property
    def address(self) -> str:
        """The whole picture, losslessly, as an address that holds it."""
        buffer = io.BytesIO()
        self.image.convert("RGB").save(buffer, "PNG")
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

    @property
    def alt(self) -> str:
        """The words for those who do not see it: its prompt."""
        return self.settings.source if self.settings else say("picture")

    def show(self) -> None:
        """Show it, small."""
        st.image(self.shown, width=SHOWN, output_format="JPEG", alt=self.alt)


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
            identity = hashlib.sha256(data).hexdigest()[:16]
            return _opened(page, identity, partial(_dropped, data, dropped.name, identity))
        if isinstance(chosen, Made):
            return _opened(page, chosen, partial(_sent, chosen))
    except jpgen.JpgenError as error:
        failure(error)
    else:
        notice(say("source.none"))
    return None


def _opened(page: str, origin: object, read: Callable[[], Source]) -> Source:
    """The picture of this origin, decoded once however often the page runs."""
    kept = st.session_state.get(f"{page}/opened")
    if kept is None or kept[0] != origin:
        kept = st.session_state[f"{page}/opened"] = (origin, read())
    source: Source = kept[1]
    return source


def _dropped(data: bytes, name: str, identity: str) -> Source:
    limits = studio().settings
    return Source(open_picture(data, name, max_bytes=limits.upload_bytes, max_pixels=limits.upload_pixels), identity, settings_of(data))


def _sent(made: Made) -> Source:
    return Source(open_picture(made.read(), made.name), f"{made.path or made.name}", made.settings)


def _newest(page: str) -> None:
    kept = gallery()
    items = kept.search(limit=OFFERED).items
    if not items:
        return
    st.text(say("source.gallery"))
    with st.container(horizontal=True, gap="small"):
        for place, item in enumerate(items):
            with st.container(width=104):
                small(kept, item, width=96)
                st.button(say("source.use"), key=f"{page}-use-{place}", on_click=_use_item, args=(page, item), width="stretch")


def _use_item(page: str, item: Item) -> None:
    _use(page, of_item(item))


def settings_of(data: bytes) -> jpgen.Settings | None:
    """How a dropped picture was made, None if it does not say."""
    try:
        return restore(data)
    except jpgen.JpgenError:
        return None


def _use(page: str, made: Made) -> None:
    st.session_state[f"{page}/source"] = made
