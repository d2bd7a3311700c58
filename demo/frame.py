"""What stands around every page: the title, the way between the pages, the language, the password."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import streamlit as st

from demo import browser_parts
from demo.gallery import GalleryError
from demo.notices import failure
from demo.settings import SettingsError
from demo.studio import studio
from demo.tabs import blend, compare, create, gallery, recognise, repair
from demo.words import LANGUAGES, language, say

TABS: dict[str, tuple[Callable[[], None], str]] = {
    "create": (create.show, ":material/brush:"),
    "compare": (compare.show, ":material/compare:"),
    "repair": (repair.show, ":material/healing:"),
    "blend": (blend.show, ":material/blender:"),
    "recognise": (recognise.show, ":material/visibility:"),
    "gallery": (gallery.show, ":material/photo_library:"),
}
"""The pages by the name in their address, in their order, with an icon each."""


def show() -> None:
    """The whole application, once a run."""
    st.set_page_config(page_title=say("title"), page_icon=str(Path(__file__).with_name("icon.png")), layout="wide")
    st.html(Path(__file__).with_name("look.css"))
    browser_parts.mark_language()
    try:
        studio()
    except (SettingsError, GalleryError) as error:
        return failure(error)
    if not _admitted():
        return
    pages = {
        name: st.Page(page, title=say(f"tab.{name}"), icon=icon, url_path=name, default=name == "create") for name, (page, icon) in TABS.items()
    }
    page = st.navigation(list(pages.values()), position="top")
    if wanted := st.session_state.pop("go", ""):
        st.switch_page(pages[wanted])
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.title(page.title, anchor=False, width="content")
        _languages()
    page.run()


def _languages() -> None:
    if "language" not in st.session_state:
        st.session_state["language"] = language()
    st.segmented_control(
        say("language"), list(LANGUAGES), format_func=LANGUAGES.__getitem__, key="language", required=True, label_visibility="collapsed",
        persist_state="session",
    )  # fmt: skip


def _admitted() -> bool:
    """Whether this session may come in: always without a password, else once it was given."""
    settings = studio().settings
    if not settings.password_hash or st.session_state.get("admitted"):
        return True
    st.title(say("title"), anchor=False)
    with st.form("password", border=False):
        given = st.text_input(say("password.label"), type="password")
        if st.form_submit_button(say("password.enter"), type="primary"):
            opens = studio().brake.attempt(lambda: settings.allows(given))
            if opens is True:
                st.session_state["admitted"] = True
                st.rerun()
            failure(say("password.wait", seconds=math.ceil(opens)) if opens else say("password.wrong"))
    return False
