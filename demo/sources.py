"""The picture a page works on: sent over from another page, chosen from the gallery, or dropped."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import streamlit as st
from PIL import Image

import jpgen
from demo import results
from demo.notices import failure, notice
from demo.studio import recent
from demo.uploads import open_picture
from demo.words import say
from jpgen.metadata import Settings

SUFFIXES = ["png", "jpg", "jpeg", "webp"]
OFFERED = 6
"""How many of the newest pictures of the gallery are offered."""


@dataclass(frozen=True)
class Source:
    """A picture, a name that tells it apart, and how it was made if it says so."""

    image: Image.Image
    identity: str
    settings: Settings | None = None


def send(page: str, path: Path) -> None:
    """Open this picture on that page; for callbacks."""
    st.session_state[f"{page}/source"] = str(path)
    st.session_state["go"] = page


def choose(page: str) -> Source | None:
    """The picker of a picture, and the chosen one; None while there is none, or if it could not be opened (which the page then says)."""
    with st.container(key=f"{page}-source"):
        dropped = st.file_uploader(say("source.file"), type=SUFFIXES, key=f"{page}/file")
        paths = recent(OFFERED)
        if paths and dropped is None:
            st.text(say("source.gallery"))
            with st.container(horizontal=True, gap="small"):
                for place, path in enumerate(paths):
                    with st.container(width=104):
                        results.picture(path, width=96)
                        st.button(say("source.use"), key=f"{page}-use-{place}", on_click=_use, args=(page, path), width="stretch")
    try:
        if dropped is not None:
            data = dropped.getvalue()
            return Source(open_picture(data, dropped.name), hashlib.sha256(data).hexdigest()[:16])
        if sent := st.session_state.get(f"{page}/source"):
            path = Path(sent)
            return Source(open_picture(path.read_bytes(), path.name), path.name, results.told(path))
    except jpgen.JpgenError as error:
        failure(error)
    except OSError:
        failure(say("picture.gone"))
    else:
        notice(say("source.none"))
    return None


def _use(page: str, path: Path) -> None:
    st.session_state[f"{page}/source"] = str(path)
