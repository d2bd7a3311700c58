"""Every word of the interface in Japanese and English, from strings.tsv."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import streamlit as st

LANGUAGES = {"ja": "日本語", "en": "English"}
FILE = Path(__file__).with_name("strings.tsv")


@cache
def table() -> Mapping[str, Mapping[str, str]]:
    """The texts by key and language."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {row["key"]: {language: row[language].replace("\\n", "\n") for language in LANGUAGES} for row in rows}


def language() -> str:
    """The language chosen in this session, else Japanese unless the browser asks for another."""
    chosen = st.session_state.get("language")
    if chosen in LANGUAGES:
        return str(chosen)
    return "ja" if (st.context.locale or "ja").startswith("ja") else "en"


def say(key: str, **values: object) -> str:
    """The text of this key with its values put in. It may be shown as Markdown: put in numbers and words of ours, never what a person wrote."""
    return table()[key][language()].format(**values)


def one_language(text: str) -> str:
    """The half of a message of jpgen ("日本語 / English") that the interface speaks; all of it unless there are just two halves."""
    halves = text.split(" / ")
    return halves[language() != "ja"] if len(halves) == 2 else text
