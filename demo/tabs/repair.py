"""なおす: a picture drawn anew as a whole, in a part, larger, or changed by words."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import streamlit as st
from PIL import Image

import jpgen
from demo import choosing, drawing, reading, results, running, sources
from demo.browser_parts import paint_mask
from demo.edits import reword
from demo.made import Made
from demo.notices import notice, wipe
from demo.sources import Source
from demo.studio import gallery, studio
from demo.words import one_language, say

PAGE = "repair"
WHOLE, PART, LARGER, WORDS = "whole", "part", "larger", "words"


@dataclass(frozen=True)
class Redrawing:
    """How a picture is drawn anew: how much of it, where (None: everywhere), how many times larger."""

    mode: str
    strength: float
    mask: Image.Image | None = None
    times: float = 1.0


def show() -> None:
    """The page."""
    left, right = st.columns(2, gap="large")
    with left:
        source = sources.choose(PAGE)
        if source is None:
            return
        mode = st.segmented_control(
            say("repair.mode"), [WORDS, WHOLE, PART, LARGER], default=WORDS, format_func=lambda one: say(f"repair.{one}"), key=f"{PAGE}/mode",
            required=True,
        )  # fmt: skip
        if mode != PART:
            source.show()
        if mode == WORDS:
            _words(source)
        else:
            _redrawing_form(source, {WHOLE: _whole, PART: _part, LARGER: _larger}[mode](source))
        with st.expander(say("settings"), icon=":material/tune:"):
            choosing.choose_model(PAGE)
            choosing.choose_seed(PAGE)
    with right:
        if not running.follow(PAGE):
            results.show(running.outcome(PAGE), page=PAGE, actions=(("repair.on", ":material/healing:", _go_on),))
            _difference()


def _go_on(made: Made) -> None:
    sources.send(PAGE, made)


# ── drawn anew ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _whole(source: Source) -> Redrawing:
    return Redrawing(WHOLE, _strength(WHOLE, 0.6, most=1.0))


def _part(source: Source) -> Redrawing:
    mask = paint_mask(source.address, source.image.size, identity=source.identity, alt=source.alt, key="mask")
    if mask is None:
        notice(say("mask.none"))
    return Redrawing(PART, _strength(PART, 1.0, most=1.0), mask)


def _larger(source: Source) -> Redrawing:
    times = st.segmented_control(
        say("larger.times"), [1.5, 2.0], default=2.0, format_func=lambda one: f"{one:g}×", key=f"{PAGE}/times", required=True
    )
    notice(say("larger.about"))
    return Redrawing(LARGER, _strength(LARGER, 0.3, most=0.8), times=times)


def _strength(mode: str, usual: float, *, most: float) -> float:
    return st.slider(say("strength"), 0.1, most, usual, 0.05, key=f"{PAGE}/{mode}/strength", help=say("strength.help"))


def _redrawing_form(source: Source, how: Redrawing) -> None:
    """The prompt and the negative prompt, at first those of the picture, and the button."""
    key, settings = f"{PAGE}/{how.mode}", source.settings
    if st.session_state.get(f"{key}/of") != source.identity:
        st.session_state[f"{key}/of"] = source.identity
        st.session_state[f"{key}/prompt"] = settings.source if settings else ""
        st.session_state[f"{key}/negative"] = reading.typed_negative(settings) if settings else ""
    with st.form(f"{how.mode}-form", border=False, enter_to_submit=False):
        st.text_area(say("prompt"), key=f"{key}/prompt", height=100, placeholder=say("prompt.placeholder"))
        st.text_area(say("negative"), key=f"{key}/negative", height=68, placeholder=say("negative.placeholder"))
        running.submit_button(
            f"repair.{how.mode}.go", icon=":material/brush:", act=_draw, args=(source, how), key=f"{how.mode}-go",
            disabled=how.mode == PART and how.mask is None,
        )  # fmt: skip


def _draw(source: Source, how: Redrawing) -> None:
    """Hand in the drawing over the source: the callback of the buttons."""
    text, negative = (str(st.session_state.get(f"{PAGE}/{how.mode}/{box}") or "") for box in ("prompt", "negative"))
    try:
        prompt = reading.read(text, negative, ())
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    seed = choosing.next_seed(PAGE, int(st.session_state[f"{PAGE}/seed"]))
    width, height = _sides(source.image, how.times)
    sampling = {"width": width, "height": height, "steps": choosing.usual_steps()}
    init = jpgen.InitImage(source.image, how.strength, how.mask)
    st.session_state[f"{PAGE}/difference"] = None
    _start(drawing.Order(prompt, seed, choosing.chosen_model(), sampling, init=init))


def _start(order: drawing.Order) -> None:
    running.start(PAGE, partial(drawing.pictures, orders=[order], kept=gallery(), kind="repair"), title=order.prompt.source)


def _sides(image: Image.Image, times: float) -> tuple[int, int]:
    """Sides that models take, as near as can be to those of the picture so many times larger; the longer one at most so long."""
    scale = min(times, studio().settings.max_side / max(image.size))
    width, height = (choosing.fitting_side(one * scale) for one in image.size)
    return width, height


# ── changed by words ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _words(source: Source) -> None:
    settings = source.settings
    if settings is None:
        return notice(say("words.untold"))
    st.text(say("words.about"))
    st.code(settings.source, language=None, wrap_lines=True)
    with st.form("words-form", border=False, enter_to_submit=False):
        st.text_area(say("words.instruction"), key=f"{PAGE}/instruction", height=68, placeholder=say("words.placeholder"))
        running.submit_button("words.go", icon=":material/edit_note:", act=_reword, args=(source,), key="words-go")


def _reword(source: Source) -> None:
    """Change the prompt as the words say and draw it again with the seed and the settings of the picture: the callback of the button."""
    settings, instruction = source.settings, str(st.session_state.get(f"{PAGE}/instruction") or "")
    if settings is None:
        return
    changed = reword(settings.source, instruction, negative=reading.typed_negative(settings))
    if not changed.understood:
        return running.refuse(PAGE, changed.note)
    try:
        prompt = reading.read(changed.prompt, changed.negative, (), seed=settings.seed)
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    model = settings.model if settings.model in choosing.models() else choosing.chosen_model()
    st.session_state[f"{PAGE}/difference"] = (changed, source.shown)
    _start(drawing.Order(prompt, settings.seed, model, settings.config))


def _difference() -> None:
    """What an edit by words changed in the prompt, and the picture as it was."""
    told = st.session_state.get(f"{PAGE}/difference")
    if not told or not running.outcome(PAGE):
        return
    changed, before = told
    st.subheader(say("words.difference"), anchor=False)
    wipe(changed.difference)
    if any(kind != "same" for kind, _ in changed.negative_difference):
        st.text(say("negative"))
        wipe(changed.negative_difference)
    if changed.note:
        notice(one_language(changed.note))
    st.text(say("words.before"))
    st.image(before, width=sources.SHOWN, output_format="JPEG", alt=say("words.before"))
