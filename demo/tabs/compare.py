"""くらべる: the same seed read in several ways, side by side; and a grid over any two settings."""

from __future__ import annotations

from functools import partial

import streamlit as st

import jpgen
from demo import axes, choosing, drawing, reading, results, running
from demo.choosing import scorable
from demo.drawing import ENGLISH, JAPANESE, RAW, Cell, Drawn, Order
from demo.made import Made
from demo.notices import notice
from demo.studio import gallery, studio
from demo.words import say

PAGE = "compare"
WAYS, GRID = "ways", "grid"
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
    model = choosing.chosen_model()
    width, height = choosing.chosen_sides(PAGE, choosing.models()[model])
    sampling = {"width": width, "height": height, "steps": choosing.usual_steps()}
    orders = {way: Order(prompt, seed, model, sampling) for way, prompt in prompts.items()}
    work = partial(drawing.ways, orders=orders, translator=translator, kept=gallery(), scored=scorable())
    running.start("ways", work, title=text)


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
        prompts = [reading.read(*axes.styled(cell, text), (), seed=cell.seed) for cell in cells]
    except jpgen.JpgenError as error:
        return running.refuse("grid", error)
    ordered = [(cell, _order(cell, prompt)) for cell, prompt in zip(cells, prompts, strict=True)]
    running.start("grid", partial(drawing.grid, cells=ordered, kept=gallery()), title=text)


def _order(cell: Cell, prompt: jpgen.Prompt) -> Order:
    width, height = choosing.chosen_sides(PAGE, choosing.models()[cell.model])
    return Order(prompt, cell.seed, cell.model, {"width": width, "height": height, **cell.sampling})


def _table(drawn: tuple[tuple[Cell, Made], ...]) -> None:
    pictures = {(cell.x, cell.y): made for cell, made in drawn}
    across = list(dict.fromkeys(cell.x for cell, _ in drawn))
    for row in dict.fromkeys(cell.y for cell, _ in drawn):
        st.text(axes.told(drawn[0][0].y_name, row))
        for column, value in zip(st.columns(len(across)), across, strict=True):
            if (value, row) in pictures:
                with column:
                    results.picture(pictures[value, row])
                    st.text(axes.told(drawn[0][0].x_name, value))
