"""くらべる: the same seed read in several ways, side by side; and a grid over any two settings."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st

import jpgen
from demo import axes, choosing, reading, results, running
from demo.engine import Desk
from demo.notices import notice
from demo.results import Made, keep
from demo.scores import likeness, scorable
from demo.studio import gallery, studio
from demo.words import say

PAGE = "compare"
WAYS, GRID = "ways", "grid"
JAPANESE, ENGLISH, TRANSLATED, RAW = "japanese", "english", "translated", "raw"


@dataclass(frozen=True)
class Drawn:
    """One picture of a comparison: under which heading, the picture, how well it fits its own words (None: nobody can say)."""

    heading: str
    made: Made
    text: str
    score: float | None = None


def show() -> None:
    """The page."""
    mode = st.segmented_control(
        say("compare.mode"), [WAYS, GRID], default=WAYS, format_func=lambda one: say(f"compare.{one}"), key="compare/mode", required=True,
        label_visibility="collapsed",
    )  # fmt: skip
    with st.expander(say("settings"), icon=":material/tune:"):
        card = choosing.choose_model(PAGE)
        choosing.choose_size(PAGE, card)
    _ways() if mode == WAYS else _grid()


# ── the same words, read in several ways ───────────────────────────────────────────────────────────────────────────────────────────────────


def _ways() -> None:
    page = "ways"
    st.text(say("ways.about"))
    with st.form("ways-form", border=False, enter_to_submit=False):
        left, right = st.columns(2)
        left.text_area(say("ways.japanese"), key="ways/japanese", height=100, placeholder=say("prompt.placeholder"), persist_state="session")
        right.text_area(say("ways.english"), key="ways/english", height=100, placeholder="a red ship on a sunset sea", persist_state="session")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.number_input(say("seed"), 0, 2**53 - 1, 1, key="ways/seed", width=190, persist_state="session")
            running.submit_button("compare", icon=":material/compare:", act=_compare, key="ways-go")
    if not choosing.translators():
        notice(say("ways.no_translator"))
    if not scorable():
        notice(say("score.none"))
    if not running.follow(page, _shown):
        _shown(running.outcome(page))


def _compare() -> None:
    text, english = (str(st.session_state.get(f"ways/{key}") or "") for key in ("japanese", "english"))
    seed, translator = int(st.session_state.get("ways/seed") or 0), next(iter(choosing.translators()), "")
    try:
        prompts = {JAPANESE: reading.read(text, "", (), seed=seed), RAW: reading.plain(text, "")}
        if english.strip():
            prompts[ENGLISH] = reading.read(english, "", (), seed=seed)
    except jpgen.JpgenError as error:
        return running.refuse("ways", error)

    model, steps, kept = choosing.chosen_model(), choosing.usual_steps(), gallery()
    width, height = choosing.chosen_sides(PAGE, choosing.models()[model])

    def draw(desk: Desk) -> None:
        pipeline = desk.pipeline(model)
        config = pipeline.config(width=width, height=height, steps=steps)
        if translator:
            prompts[TRANSLATED] = translated(prompts[JAPANESE], translator)
        order = [way for way in (JAPANESE, ENGLISH, TRANSLATED, RAW) if way in prompts]
        desk.expect(len(order))
        for way in order:
            made = pipeline.generate(prompts[way], seed=seed, config=config, on_step=desk.on_step)
            desk.deliver(Drawn(way, keep(kept, made, "compare"), made.prompt.seen.text, likeness(made.image, text)))

    running.start("ways", draw, title=text)


def translated(prompt: jpgen.Prompt, translator: str) -> jpgen.Prompt:
    """The prompt in English, as a model that reads English alone would get it."""
    opened = jpgen.open_translator(translator)
    if opened is None:
        return prompt
    (text,) = opened.translate([prompt.text])
    return jpgen.Prompt(source=prompt.source, text=text, negative="", spans=((text, 1.0),))


def _shown(drawn: tuple[Drawn, ...]) -> None:
    for column, one in zip(st.columns(len(drawn)) if drawn else [], drawn, strict=True):
        with column:
            st.subheader(say(f"ways.of.{one.heading}"), anchor=False)
            results.picture(one.made)
            st.text(one.text)
            if one.score is not None:
                st.metric(say("score"), f"{one.score:.3f}")


# ── a grid over two settings ───────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _grid() -> None:
    st.text(say("grid.about", most=studio().settings.max_cells))
    across, down = st.columns(2)
    with across:
        x = axes.choose("x", default="steps")
    with down:
        y = axes.choose("y", default="guidance_scale")
    with st.form("grid-form", border=False, enter_to_submit=False):
        st.text_area(say("prompt"), key="grid/prompt", height=100, placeholder=say("prompt.placeholder"), persist_state="session")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            st.number_input(say("seed"), 0, 2**53 - 1, 1, key="grid/seed", width=190, persist_state="session")
            running.submit_button("grid.go", icon=":material/grid_view:", act=_draw_grid, args=(x, y), key="grid-go")
    if not running.follow("grid", _table):
        _table(running.outcome("grid"))


def _draw_grid(x: axes.Axis, y: axes.Axis) -> None:
    text, seed = str(st.session_state.get("grid/prompt") or ""), int(st.session_state.get("grid/seed") or 0)
    try:
        cells = axes.cells(x, y, seed, choosing.chosen_model())
        prompts = [reading.read(*cell.styled(text), (), seed=cell.seed) for cell in cells]
    except jpgen.JpgenError as error:
        return running.refuse("grid", error)

    kept, cards = gallery(), choosing.models()
    sides = {cell.model: choosing.chosen_sides(PAGE, cards[cell.model]) for cell in cells}

    def draw(desk: Desk) -> None:
        desk.expect(len(cells))
        for cell, prompt in zip(cells, prompts, strict=True):
            pipeline, (width, height) = desk.pipeline(cell.model), sides[cell.model]
            config = pipeline.config(width=width, height=height, **cell.sampling)
            made = pipeline.generate(prompt, seed=cell.seed, config=config, on_step=desk.on_step)
            desk.deliver((cell, keep(kept, made, "grid")))

    running.start("grid", draw, title=text)


def _table(drawn: tuple[tuple[axes.Cell, Made], ...]) -> None:
    pictures = {(cell.x, cell.y): made for cell, made in drawn}
    across = list(dict.fromkeys(cell.x for cell, _ in drawn))
    for row in dict.fromkeys(cell.y for cell, _ in drawn):
        st.text(axes.told(drawn[0][0].y_name, row))
        for column, value in zip(st.columns(len(across)), across, strict=True):
            if (value, row) in pictures:
                with column:
                    results.picture(pictures[value, row])
                    st.text(axes.told(drawn[0][0].x_name, value))
