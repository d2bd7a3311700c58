"""「こう読み取りました」: what jpgen understood of a prompt, every rewrite of it with a way back."""

from __future__ import annotations

from collections.abc import Callable

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

import jpgen
from demo.notices import chip, failure, labelled, notice
from demo.studio import studio
from demo.words import one_language, say, table

UNDIVIDED = ("lora", "width_of_syntax", "comments", "variants", "syntax")
"""Rules that are undone as a whole."""


def read(text: str, negative: str, off: tuple[str, ...], *, seed: int = 0) -> jpgen.Prompt:
    """The prompt without these rules; raises jpgen.PromptError for what is empty, too long or no text."""
    most = studio().settings.prompt_characters
    for what in (text, negative):
        if len(what) > most:
            raise jpgen.PromptError(
                f"長すぎます（{len(what)} 文字、上限 {most}）。短くしてください / {len(what)} characters, at most {most}: shorten it"
            )
        if any("\ud800" <= character <= "\udfff" for character in what):
            raise jpgen.PromptError("壊れた文字があります。入力し直してください / a broken character (lone surrogate): type it again")
    if not text.strip():
        raise jpgen.PromptError("描きたいものを書いてください（例: 夕焼けの海に浮かぶ赤い船） / say what to draw (e.g. a red ship on a sunset sea)")
    prompt = jpgen.normalize(text, negative=negative, off=off, seed=seed)
    if not prompt.text.strip() and not prompt.loras:
        raise jpgen.PromptError(
            "描くものが読み取れません。描きたいものを書くか、「書いたまま」を選んでください / "
            'nothing to draw is left: say what to draw, or choose "as written"'
        )
    return prompt


def plain(text: str, negative: str) -> jpgen.Prompt:
    """The prompt exactly as written; raises jpgen.PromptError as `read` does."""
    read(text, negative, ())
    return jpgen.Prompt(source=text, text=text, negative=negative, spans=((text, 1.0),))


def changes(text: str) -> bool:
    """Whether reading would change the text."""
    try:
        return jpgen.normalize(text).text != text
    except jpgen.JpgenError:
        return False


def typed_negative(settings: jpgen.Settings) -> str:
    """What was typed as the negative prompt of a picture: without that which reading finds in its prompt again."""
    try:
        found = jpgen.normalize(settings.source, seed=settings.seed).negative
    except jpgen.JpgenError:
        found = ""
    return settings.negative.removesuffix(found).rstrip("、") if found else settings.negative


def show(prompt: jpgen.Prompt, *, page: str) -> None:
    """The reading of a prompt; a chip undoes its rewrite (and brings it back), for this page's next picture."""
    off = undone(page)
    rows = {say("reading.text"): prompt.text, say("reading.negative"): prompt.negative}
    if weights := [f"{text.strip()} ×{weight:g}" for text, weight in prompt.spans if weight not in (1.0, -1.0) and text.strip()]:
        rows[say("reading.weights")] = "、".join(weights)
    if prompt.loras:
        rows["LoRA"] = "、".join(f"{name} ×{weight:g}" for name, weight in prompt.loras)
    rows[say("reading.english")] = prompt.translation.text or say("reading.native")
    labelled(rows)
    if prompt.edits or off:
        with st.container(horizontal=True, vertical_alignment="center", key=f"{page}-edits"):
            for place, edit in enumerate(prompt.edits):
                with _pair():
                    chip(rule_name(edit.rule), edit.before, edit.after)
                    _small_button("reading.undo", f"{page}-undo-{place}", ":material/undo:", _undo, page, _left_out(edit))
            for place, one in enumerate(off):
                rule, _, before = one.partition(":")
                with _pair():
                    chip(rule_name(rule), before, None)
                    _small_button("reading.redo", f"{page}-redo-{place}", ":material/redo:", _redo, page, one)
    elif prompt.source:
        notice(say("reading.as_it_was"))
    for note in prompt.notes:
        notice(one_language(note))


def _pair() -> DeltaGenerator:
    return st.container(horizontal=True, vertical_alignment="center", width="content", gap="xsmall")


def _small_button(name: str, key: str, icon: str, act: Callable[[str, str], None], *args: str) -> None:
    st.button(say(name), key=key, type="tertiary", icon=icon, on_click=act, args=args)


def show_typed(text: str, negative: str, *, page: str) -> None:
    """How what was typed would be read."""
    try:
        show(read(text, negative, undone(page)), page=page)
    except jpgen.JpgenError as error:
        failure(error)


def rule_name(rule: str) -> str:
    """What a rule is called in the language of the interface."""
    return say(f"rule.{rule}") if f"rule.{rule}" in table() else rule


def undone(page: str) -> tuple[str, ...]:
    """The rewrites, and rules, that the page leaves out, as the `off` of jpgen.normalize takes them."""
    return tuple(st.session_state.get(f"{page}/off", ()))


def renew(page: str, text: str) -> None:
    """Begin with all rules again if the text is another than the last time."""
    if st.session_state.get(f"{page}/off-of") != text:
        st.session_state[f"{page}/off-of"], st.session_state[f"{page}/off"] = text, ()


def _left_out(edit: jpgen.Edit) -> str:
    """What `off` of jpgen.normalize calls this rewrite."""
    return edit.rule if edit.rule in UNDIVIDED else f"{edit.rule}:{edit.before}"


def _undo(page: str, one: str) -> None:
    st.session_state[f"{page}/off"] = (*undone(page), one)


def _redo(page: str, one: str) -> None:
    st.session_state[f"{page}/off"] = tuple(other for other in undone(page) if other != one)
