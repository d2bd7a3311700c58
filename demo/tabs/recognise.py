"""みわける: which of several Japanese words a picture shows, and the pictures of the gallery that show what words say."""

from __future__ import annotations

from functools import partial
from html import escape

import streamlit as st

import jpgen
from demo import choosing, drawing, running, sources
from demo.choosing import scorable
from demo.notices import notice
from demo.results import alt, picture
from demo.sources import Source
from demo.studio import gallery
from demo.words import say
from jpgen.prompts import CATEGORIES, culture

PAGE, SEARCH = "recognise", "recognise-search"
MOST_LABELS = 50
MOST_LETTERS = 100
SHOWN = 8
"""Pictures of a search."""


def show() -> None:
    """The page."""
    if not scorable():
        return notice(say("recognise.none"))
    left, right = st.columns(2, gap="large")
    with left:
        source = sources.choose(PAGE)
        if source is not None:
            source.show()
            _ask(source)
    with right:
        if not running.follow(PAGE):
            for rows in running.outcome(PAGE):
                bars(rows)
    st.divider()
    _search()


def labels_of(text: str) -> tuple[str, ...]:
    """The labels of a text, one a line or between 、 and commas, each once; raises jpgen.PromptError for none, too many and too long ones."""
    parts = [part.strip() for line in text.splitlines() for part in line.replace("、", ",").replace("，", ",").split(",")]
    labels = tuple(dict.fromkeys(part for part in parts if part))
    if not 2 <= len(labels) <= MOST_LABELS:
        raise jpgen.PromptError(f"ことばを 2〜{MOST_LABELS} 書いてください（今は {len(labels)}） / write 2–{MOST_LABELS} words, got {len(labels)}")
    if any(len(label) > MOST_LETTERS for label in labels):
        raise jpgen.PromptError(f"一つのことばは {MOST_LETTERS} 文字までです / at most {MOST_LETTERS} characters a word")
    return labels


def _ask(source: Source) -> None:
    choosing.begin_with(f"{PAGE}/labels", say("recognise.examples"))
    st.selectbox(
        say("recognise.list"), ["", *CATEGORIES], key=f"{PAGE}/list", on_change=_fill,
        format_func=lambda one: CATEGORIES.get(one) or say("style.none"),
    )  # fmt: skip
    with st.form("recognise-form", border=False, enter_to_submit=False):
        st.text_area(say("recognise.labels"), key=f"{PAGE}/labels", height=110)
        st.form_submit_button(
            say("recognise.go"), type="primary", icon=":material/visibility:", on_click=_recognise, args=(source,), key="recognise-go"
        )


def _fill() -> None:
    """Put the names of a kind of Japanese things into the box."""
    if kind := st.session_state.get(f"{PAGE}/list"):
        st.session_state[f"{PAGE}/labels"] = "、".join(one.ja for one in culture(category=kind)[:MOST_LABELS])


def _recognise(source: Source) -> None:
    try:
        labels = labels_of(str(st.session_state.get(f"{PAGE}/labels") or ""))
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    running.start(PAGE, partial(drawing.recognised, image=source.image, labels=labels), title=say("tab.recognise"))


def bars(rows: list[tuple[str, float]]) -> None:
    """A bar for every label, the likeliest first; a group, not one picture, so that its words and numbers are read out too."""
    cells = "".join(
        f'<span>{escape(label)}</span><div class="bar" style="width:{100 * share:.1f}%"></div><span>{100 * share:.1f} %</span>'
        for label, share in sorted(rows, key=lambda row: -row[1])
    )
    if cells:
        st.html(f'<div class="jp-bars" role="group" aria-label="{escape(say("recognise.chart"), quote=True)}">{cells}</div>')


def _search() -> None:
    st.subheader(say("search"), anchor=False)
    with st.form("search-form", border=False, enter_to_submit=False):
        st.text_area(say("search.words"), key=f"{SEARCH}/words", height=68, placeholder=say("search.placeholder"))
        st.form_submit_button(say("search.go"), icon=":material/search:", on_click=_look_for, key="search-go")
    if not running.follow(SEARCH):
        columns = st.columns(4)
        for place, made in enumerate(one for found in running.outcome(SEARCH) for one in found):
            with columns[place % 4]:
                picture(made)
                st.text(alt(made)[:60])


def _look_for() -> None:
    words = str(st.session_state.get(f"{SEARCH}/words") or "").strip()
    if not words or len(words) > MOST_LETTERS:
        return running.refuse(SEARCH, say("search.empty"))
    running.start(SEARCH, partial(drawing.found, kept=gallery(), words=words, limit=SHOWN), title=words)
