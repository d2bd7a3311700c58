"""ギャラリー: everything made, to be found, marked, saved and thrown away."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import streamlit as st

from demo import results, sources
from demo.gallery import Gallery, GalleryError, Item
from demo.made import Made, of_item
from demo.notices import failure, notice
from demo.studio import gallery, studio
from demo.tabs import create
from demo.words import say

PAGE = "gallery"
ACROSS, AT_ONCE = 4, 12
ANY = ""
MOST_LETTERS = 200
"""Of what is searched for."""


@dataclass(frozen=True)
class Wanted:
    """What of the gallery is to be shown."""

    text: str
    favourite: bool
    deleted: bool
    model: str
    kind: str

    @property
    def missing(self) -> str:
        """The key of what is said where there is no such picture."""
        if self.text or self.favourite or self.model or self.kind:
            return "gallery.nothing"
        return "gallery.bin_empty" if self.deleted else "gallery.empty"


def show() -> None:
    """The page."""
    kept = gallery()
    if kept.notice:
        notice(kept.notice, kind="bad")
    if studio().settings.public:
        notice(say("gallery.public"))
    try:
        _page(kept)
    except GalleryError as error:
        failure(error)


def _page(kept: Gallery) -> None:
    wanted = _filters(kept)
    found = kept.search(
        wanted.text, favourite=wanted.favourite, deleted=wanted.deleted, model=wanted.model, kind=wanted.kind, limit=AT_ONCE,
        offset=AT_ONCE * (_number() - 1),
    )  # fmt: skip
    if found.total and not found.items:  # what was on the last page is gone
        st.session_state[f"{PAGE}/number"] = 1
        st.rerun()
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.text(say("gallery.count", total=found.total))
        if found.total > AT_ONCE:
            st.pagination(-(-found.total // AT_ONCE), key=f"{PAGE}/number", persist_state="session")
    if not found.items:
        st.html(f'<div class="jp-empty">{say(wanted.missing)}</div>')
        return
    with st.form("gallery-form", border=False, enter_to_submit=False):
        marked = _grid(kept, found.items)
        if wanted.deleted:
            st.checkbox(say("gallery.sure"), key=_sure())
        with st.container(horizontal=True):
            acts = [act for name, icon, act in (IN_BIN if wanted.deleted else KEPT) if st.form_submit_button(say(name), icon=icon, key=name)]
    for act in acts:
        if marked or act is _empty_bin:
            act(kept, marked)
        else:
            notice(say("gallery.mark_first"))
    _opened(found.items)


def _star(kept: Gallery, marked: list[Item]) -> None:
    for item in marked:
        kept.favourite(item.id, not item.favourite)
    _renew()


def _export(kept: Gallery, marked: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = kept.export([item.id for item in marked], Path(folder) / "jpgen.zip").read_bytes()
    told = say("gallery.zip.save", count=len(marked))
    st.download_button(told, data, "jpgen.zip", "application/zip", icon=":material/download:", on_click="ignore")


def _delete(kept: Gallery, marked: list[Item]) -> None:
    kept.delete([item.id for item in marked])
    _renew()


def _put_back(kept: Gallery, marked: list[Item]) -> None:
    kept.restore([item.id for item in marked])
    _renew()


def _empty_bin(kept: Gallery, _: list[Item]) -> None:
    if not st.session_state.get(_sure()):
        return notice(say("gallery.sure_first"))
    kept.empty_bin()
    _renew()


KEPT = (
    ("gallery.star", ":material/star:", _star),
    ("gallery.zip", ":material/folder_zip:", _export),
    ("gallery.delete", ":material/delete:", _delete),
)
IN_BIN = (
    ("gallery.restore", ":material/restore_from_trash:", _put_back),
    ("gallery.empty_bin", ":material/delete_forever:", _empty_bin),
)
"""The buttons below the pictures: the key of the text, the icon, what it does with the ticked ones."""


def _renew() -> None:
    """Show the page anew, with new boxes, none of them ticked."""
    st.session_state[f"{PAGE}/round"] = _round() + 1
    st.rerun()


def _filters(kept: Gallery) -> Wanted:
    facets = kept.facets()
    with st.form("gallery-search", border=False, enter_to_submit=False), st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_area(say("gallery.search"), key=f"{PAGE}/text", height=68, placeholder=say("search.placeholder"), persist_state="session")
        st.form_submit_button(say("search.go"), icon=":material/search:", key="gallery-search-go")
    with st.container(horizontal=True, vertical_alignment="bottom"):
        favourite = st.toggle(say("gallery.favourites"), key=f"{PAGE}/favourite", persist_state="session")
        deleted = st.toggle(say("gallery.bin"), key=f"{PAGE}/bin", persist_state="session")
        model, kind = (_choice(name, facets[name]) for name in ("model", "kind"))
    return Wanted((text or "")[:MOST_LETTERS], favourite, deleted, model, kind)


def _choice(name: str, values: list[str]) -> str:
    """One of the values that are there, ANY where there is nothing to choose."""
    if len(values) < 2:
        return ANY
    return st.selectbox(
        say(f"gallery.{name}"), [ANY, *values], key=f"{PAGE}/{name}", persist_state="session", width=190, format_func=_facet
    ) or ANY


def _facet(value: str) -> str:
    return {
        ANY: say("gallery.any"), "create": say("tab.create"), "vary": say("vary"), "compare": say("tab.compare"), "grid": say("compare.grid"),
        "repair": say("tab.repair"), "blend": say("tab.blend"),
    }.get(value, value)  # fmt: skip


def _grid(kept: Gallery, items: tuple[Item, ...]) -> list[Item]:
    """Small pictures with a box to tick each, numbered so that they can be told apart by ear; returns the ticked ones."""
    marked = []
    for first in range(0, len(items), ACROSS):
        for number, (column, item) in enumerate(zip(st.columns(ACROSS), items[first : first + ACROSS], strict=False), first + 1):
            with column:
                results.small(kept, item)
                st.text(("★ " if item.favourite else "") + item.prompt[:40])
                if st.checkbox(f"{say('gallery.pick')} {number}", key=f"{PAGE}/pick/{_round()}/{item.id}"):
                    marked.append(item)
    return marked


def _opened(items: tuple[Item, ...]) -> None:
    """One picture large, with all that can be done with it."""
    known = {item.id: item for item in items}
    chosen = st.selectbox(say("gallery.open"), [ANY, *known], key=f"{PAGE}/open", format_func=lambda id: _title(known.get(id)))
    if chosen in known:
        left, _ = st.columns([3, 2])
        with left:
            results.show((of_item(known[chosen]),), page=PAGE, actions=ACTIONS)


def _title(item: Item | None) -> str:
    return f"{item.prompt[:60]} · {item.seed}" if item else say("style.none")


def _restore(made: Made) -> None:
    if made.settings:
        create.put_back(made.settings)
        st.session_state["go"] = "create"


def _repair(made: Made) -> None:
    sources.send("repair", made)


ACTIONS = (("restore", ":material/settings_backup_restore:", _restore), ("tab.repair", ":material/healing:", _repair))


def _number() -> int:
    return int(st.session_state.get(f"{PAGE}/number") or 1)


def _sure() -> str:
    """The key of the box that says that the bin may be emptied."""
    return f"{PAGE}/sure/{_round()}"


def _round() -> int:
    return int(st.session_state.get(f"{PAGE}/round", 0))
