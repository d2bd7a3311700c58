"""Texts that hold what a person or a file said: shown letter for letter, never as Markdown or HTML."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import streamlit as st

from demo.words import one_language

NOTHING = "∅"


def notice(text: str, *, kind: str = "info") -> None:
    """A line of a `kind` ("info", "good", "bad"); what is bad is read out at once by screen readers."""
    role = "alert" if kind == "bad" else "status"
    st.html(f'<div class="jp-notice jp-{kind}" role="{role}">{_lines(text)}</div>')


def failure(error: Exception | str) -> None:
    """What went wrong, in the language of the interface."""
    notice(one_language(str(error)), kind="bad")


def labelled(rows: Mapping[str, object]) -> None:
    """A table of names and values; empty values are left out."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{_lines(str(value))}</dd>" for name, value in rows.items() if str(value))
    st.html(f'<dl class="jp-facts">{cells}</dl>')


def chip(title: str, before: str, after: str | None) -> None:
    """One rewrite: what stood there, what stands there now; without the latter one that is left out."""
    change = escape(before) if after is None else f"<del>{escape(before) or NOTHING}</del> → <ins>{escape(after) or NOTHING}</ins>"
    st.html(f'<span class="jp-chip{" jp-off" if after is None else ""}"><b>{escape(title)}</b> {change}</span>', width="content")


def wipe(pieces: Iterable[tuple[str, str]]) -> None:
    """A text with what went ("out") and what came ("in")."""
    marks = {"out": "<del>{}</del>", "in": "<ins>{}</ins>"}
    st.html(f'<p class="jp-wipe">{"".join(marks.get(kind, "{}").format(_lines(text)) for kind, text in pieces)}</p>')


def _lines(text: str) -> str:
    return escape(text).replace("\n", "<br>")
