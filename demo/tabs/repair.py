"""なおす: a picture drawn anew as a whole, in a part, larger, or changed by words."""

from __future__ import annotations

import streamlit as st
from PIL import Image

import jpgen
from demo import reading, results, running, sources
from demo.browser_parts import paint_mask
from demo.edits import reword
from demo.engine import Desk
from demo.notices import notice, wipe
from demo.results import Made, keep
from demo.sources import Source
from demo.studio import gallery, studio
from demo.words import one_language, say

PAGE = "repair"
WHOLE, PART, LARGER, WORDS = "whole", "part", "larger", "words"
MOST_SIDE = 1024


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
        {WORDS: _words, WHOLE: _whole, PART: _part, LARGER: _larger}[mode](source)
    with right:
        if not running.follow(PAGE):
            results.show(running.outcome(PAGE), page=PAGE, actions=(("repair.on", ":material/healing:", _go_on),))
            _difference()


def _go_on(made: Made) -> None:
    sources.send(PAGE, made)


def _config(pipeline: jpgen.Pipeline, image: Image.Image, times: float = 1.0) -> jpgen.SamplingConfig:
    """The model's settings at (about) the picture's size, or so many times larger."""
    side = max(image.size)
    scale = times * min(1.0, MOST_SIDE / (side * times))
    width, height = (max(64, round(one * scale / 32) * 32) for one in image.size)
    return pipeline.config(width=width, height=height)


def _prompt_box(source: Source, name: str) -> None:
    key = f"{PAGE}/{name}/prompt"
    if st.session_state.get(f"{key}/of") != source.identity:
        st.session_state[f"{key}/of"] = source.identity
        st.session_state[key] = source.settings.source if source.settings else ""
    st.text_area(say("prompt"), key=key, height=100, placeholder=say("prompt.placeholder"))


def _draw(source: Source, name: str, mask: Image.Image | None, times: float, strength: float) -> None:
    """Hand in the drawing over the source: the callback of the buttons."""
    try:
        prompt = reading.read(str(st.session_state.get(f"{PAGE}/{name}/prompt") or ""), "", ())
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    seed = source.settings.seed if source.settings else 1
    init, kept = jpgen.InitImage(source.image, strength, mask), gallery()

    def draw(desk: Desk) -> None:
        pipeline = desk.pipeline()
        made = pipeline.generate(prompt, seed=seed, config=_config(pipeline, source.image, times), on_step=desk.on_step, init=init)
        desk.deliver(keep(kept, made, "repair"))

    st.session_state[f"{PAGE}/difference"] = None
    running.start(PAGE, draw, title=prompt.source)


def _whole(source: Source) -> None:
    _beside(source)
    strength = st.slider(say("strength"), 0.1, 1.0, 0.6, 0.05, key=f"{PAGE}/strength", help=say("strength.help"))
    with st.form("whole-form", border=False, enter_to_submit=False):
        _prompt_box(source, WHOLE)
        st.form_submit_button(
            say("repair.whole.go"), type="primary", icon=":material/brush:", on_click=_draw, args=(source, WHOLE, None, 1.0, strength),
            key="whole-go",
        )  # fmt: skip


def _part(source: Source) -> None:
    mask = paint_mask(source.image, identity=source.identity, alt=_alt(source), key="mask")
    strength = st.slider(say("strength"), 0.1, 1.0, 1.0, 0.05, key=f"{PAGE}/part-strength", help=say("strength.help"))
    with st.form("part-form", border=False, enter_to_submit=False):
        _prompt_box(source, PART)
        st.form_submit_button(
            say("repair.part.go"), type="primary", icon=":material/brush:", on_click=_draw, args=(source, PART, mask, 1.0, strength), key="part-go",
            disabled=mask is None,
        )  # fmt: skip
    if mask is None:
        notice(say("mask.none"))


def _larger(source: Source) -> None:
    _beside(source)
    times = st.segmented_control(
        say("larger.times"), [1.5, 2.0], default=2.0, format_func=lambda one: f"{one:g}×", key=f"{PAGE}/times", required=True
    )
    strength = st.slider(say("strength"), 0.1, 0.8, 0.3, 0.05, key=f"{PAGE}/larger-strength", help=say("strength.help"))
    notice(say("larger.about"))
    with st.form("larger-form", border=False, enter_to_submit=False):
        _prompt_box(source, LARGER)
        st.form_submit_button(
            say("repair.larger.go"), type="primary", icon=":material/zoom_out_map:", on_click=_draw, args=(source, LARGER, None, times, strength),
            key="larger-go",
        )  # fmt: skip


def _words(source: Source) -> None:
    _beside(source)
    settings = source.settings
    if settings is None:
        return notice(say("words.untold"))
    st.text(say("words.about"))
    st.code(settings.source, language=None, wrap_lines=True)
    with st.form("words-form", border=False, enter_to_submit=False):
        st.text_area(say("words.instruction"), key=f"{PAGE}/instruction", height=68, placeholder=say("words.placeholder"))
        st.form_submit_button(say("words.go"), type="primary", icon=":material/edit_note:", on_click=_reword, args=(source,), key="words-go")


def _reword(source: Source) -> None:
    """Change the prompt as the words say and draw it again with the seed and the settings of the picture: the callback of the button."""
    settings, instruction = source.settings, str(st.session_state.get(f"{PAGE}/instruction") or "")
    if settings is None:
        return
    changed = reword(settings.source, instruction)
    if not changed.understood:
        return running.refuse(PAGE, changed.note)
    try:
        prompt = reading.read(changed.prompt, changed.negative, (), seed=settings.seed)
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    model, kept = settings.model or studio().settings.model, gallery()

    def draw(desk: Desk) -> None:
        pipeline = desk.pipeline(model)
        drawn = pipeline.generate(prompt, seed=settings.seed, config=settings.config, on_step=desk.on_step)
        desk.deliver(keep(kept, drawn, "repair"))

    st.session_state[f"{PAGE}/difference"] = (changed, source.image)
    running.start(PAGE, draw, title=prompt.source)


def _beside(source: Source) -> None:
    """The picture that is worked on."""
    st.image(source.image, width=256, output_format="PNG", alt=_alt(source))


def _alt(source: Source) -> str:
    return source.settings.source if source.settings else say("picture")


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
    st.image(before, width=256, output_format="PNG", alt=say("words.before"))
