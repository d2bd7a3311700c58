"""How to draw: the model with its terms, the style, and the settings, chosen once a page and handed to the engine as a frozen value."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import streamlit as st

import jpgen
from demo.drawing import Order
from demo.notices import failure, labelled, notice
from demo.results import webp_address
from demo.scores import SCORER
from demo.studio import studio
from demo.style_samples import sample_of
from demo.words import one_language, say
from jpgen import ModelCard, accept_terms, model_cards

ROUTES = ("auto", "translate", "raw")
NO_STYLE = ""
SHAPES = {"square": (1, 1), "portrait": (3, 4), "landscape": (4, 3), "large": (1.5, 1.5)}
"""Shapes of a picture as parts of the model's own sides."""

OWN = "own"
"""The shape whose sides are typed."""

MULTIPLE = 64
"""What the sides are multiples of: that is what the built-in model wants, and what the others want (8, 16) divides it."""

SEEDS = 2**31
"""Seeds are thrown below this: short enough to be read out and typed."""

MOST_SEED = 2**53 - 1
"""The largest a browser counts to exactly."""

MOST_GUIDANCE = 20.0


@dataclass(frozen=True)
class Chosen:
    """Settings of a page. `route`: "auto", "translate" (by `translator`) or "raw" (the prompt as written)."""

    model: str
    route: str
    translator: str
    style: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    count: int
    seed: int

    def order(self, prompt: jpgen.Prompt, seed: int) -> Order:
        """A picture drawn so."""
        sampling = {"width": self.width, "height": self.height, "steps": self.steps, "guidance_scale": self.guidance_scale}
        return Order(prompt, seed, self.model, sampling, self.translator)

    def styled(self, text: str, negative: str) -> tuple[str, str]:
        """Prompt and negative prompt with the words of the style."""
        style = styles().get(self.style)
        return jpgen.apply_style(style, text, negative) if style else (text, negative)


@cache
def styles() -> dict[str, jpgen.Style]:
    """The styles that come with jpgen."""
    return jpgen.load_styles()


@st.cache_resource(ttl=20, show_spinner=False)  # they are frozen: a copy for everyone who asks (cache_data) took a fifth of every run
def cards() -> dict[str, ModelCard]:
    """The cards of the catalogue, as they were at most 20 seconds ago."""
    return model_cards()


def models() -> dict[str, ModelCard]:
    """Models that draw and may be chosen, those that are on this machine first."""
    allowed = studio().settings.models
    offered = [card for card in cards().values() if card.kind == "model" and (not allowed or card.name in allowed)]
    return {card.name: card for card in sorted(offered, key=lambda card: (card.where != "builtin", not card.here))}


def translators() -> dict[str, ModelCard]:
    """Translators that are on this machine."""
    return {name: card for name, card in cards().items() if card.kind == "translator" and card.here}


def scorable() -> bool:
    """Whether the weights of the scorer are on this machine."""
    card = cards().get(SCORER)
    return card is not None and bool(card.bytes)


MODEL = "model"
"""The key of the picker of models: the choice holds on every page that has it."""


def begin_with(key: str, value: object) -> None:
    """What a widget shows at first: put where restored settings are put too, as Streamlit takes a value from one place alone."""
    if key not in st.session_state:
        st.session_state[key] = value


def choose_model(page: str) -> ModelCard:
    """The picker of models, which all pages share, and below it the card of the chosen one."""
    offered, wanted = models(), studio().settings.model
    begin_with(MODEL, wanted if wanted in offered else next(iter(offered)))
    name = st.selectbox(say("model"), list(offered), format_func=lambda one: _model_label(offered[one]), key=MODEL, persist_state="session")
    _card(offered[name], page)
    return offered[name]


def chosen_model() -> str:
    """The name of the chosen model; for callbacks of pages that have the picker."""
    return str(st.session_state[MODEL])


def usual_steps() -> int:
    """The steps at which the chosen model is at its best, as far as the settings allow them."""
    return min(studio().settings.max_steps, models()[chosen_model()].default.steps)


def _card(card: ModelCard, page: str) -> None:
    """What one has to know before using a model, with the consent that it wants."""
    terms = say(f"commercial.{card.commercial}") + (say("model.gated") if card.gated else "")
    labelled(
        {
            say("model.license"): f"{card.license}（{terms}）",
            say("model.where"): say(f"where.{card.where}"),
            say("model.memory"): say("model.memory.weights", size=_size(card.bytes)) if card.bytes else say("model.memory.unknown"),
            say("model.japanese"): say(f"route.of.{card.route}"),
            say("model.unverified"): "\n".join(one_language(line) for line in card.unverified),
        }
    )
    if card.asks and not card.accepted:
        notice(say("model.terms"))
        st.code(card.page, language=None, wrap_lines=True)
        if st.button(say("model.accept"), key=f"{page}-accept", disabled=studio().settings.public):
            try:
                accept_terms(card.name)
            except jpgen.JpgenError as error:
                return failure(error)
            cards.clear()
            st.rerun()


def _model_label(card: ModelCard) -> str:
    return f"{one_language(card.title)} · {say(f'where.{card.where}')} · {say(f'commercial.{card.commercial}')}"


def _size(size: int) -> str:
    return f"{size / 2**30:.1f} GB" if size >= 2**30 else f"{size / 2**20:.0f} MB"


def choose_style(page: str) -> None:
    """The picker of styles."""
    st.selectbox(
        say("style"), [NO_STYLE, *styles()], key=f"{page}/style", persist_state="session", format_func=_style_label, help=say("style.help")
    )


def show_samples(page: str) -> None:
    """Small pictures of styles, each with a button that chooses it: one prompt and seed, drawn by the built-in model (demo/style_samples.py)."""
    st.fragment(_samples)(page)


def _samples(page: str) -> None:
    """They are a third of what the page holds: sent when somebody opens them."""
    box = st.expander(say("style.samples"), icon=":material/palette:", key=f"{page}-style-box", on_change="rerun")
    if not box.open:
        return
    with box, st.container(horizontal=True, gap="small", key=f"{page}-samples"):
        for name, style in styles().items():
            sample = sample_of(style)
            if style.english and sample.is_file():
                with st.container(width=88):
                    st.image(_sample(sample), width=88, alt=name)
                    st.button(name, key=f"{page}-style-{style.english}", on_click=_take_style, args=(page, name), width="stretch")


@cache
def _sample(file: Path) -> str:
    """The address of a sample, read once."""
    return webp_address(file.read_bytes())


def _take_style(page: str, name: str) -> None:
    st.session_state[f"{page}/style"] = name
    st.rerun()  # the picker is outside of the fragment


def _style_label(name: str) -> str:
    if not name:
        return say("style.none")
    return f"{name} · {styles()[name].english}" if styles()[name].english else name


def choose_size(page: str, card: ModelCard) -> None:
    """Width and height, by shape or typed."""
    shape = st.radio(  # always in sight: a list closes whenever the page scrolls
        say("size"), [*SHAPES, OWN], format_func=lambda one: _shape_label(one, card), key=f"{page}/shape", persist_state="session", horizontal=True
    )
    if shape == OWN:
        for column, side, usual in zip(st.columns(2), ("width", "height"), (card.default.width, card.default.height), strict=True):
            with column:
                _choose_side(f"{page}/{side}", say(side), usual)


def _choose_side(key: str, label: str, usual: int) -> None:
    begin_with(key, fitting_side(usual))
    st.number_input(
        label, MULTIPLE, _most_side(), step=MULTIPLE, key=key, persist_state="session", on_change=_fit, args=(key,),
        help=say("size.multiple", multiple=MULTIPLE),
    )  # fmt: skip


def _fit(key: str) -> None:
    """Take the nearest side that models take: stepping gives no other, but typing does."""
    st.session_state[key] = fitting_side(st.session_state[key])


def fitting_side(side: float) -> int:
    """The side that every model takes and the settings allow, the nearest to this."""
    return min(_most_side(), max(1, round(side / MULTIPLE)) * MULTIPLE)


def _most_side() -> int:
    return studio().settings.max_side // MULTIPLE * MULTIPLE


def _shape_label(shape: str, card: ModelCard) -> str:
    return say("shape.own") if shape == OWN else "{} {}×{}".format(say(f"shape.{shape}"), *_sides(shape, card))


def _sides(shape: str, card: ModelCard) -> tuple[int, int]:
    across, down = SHAPES[shape]
    if shape in ("portrait", "landscape"):  # the longer side stays the model's own
        across, down = across / max(across, down), down / max(across, down)
    return fitting_side(card.default.width * across), fitting_side(card.default.height * down)


def chosen_sides(page: str, card: ModelCard) -> tuple[int, int]:
    """Width and height that the page's widgets say, of a shape those that this model has for it; for callbacks too."""
    shape = st.session_state.get(f"{page}/shape", next(iter(SHAPES)))
    if shape != OWN:
        return _sides(shape, card)
    usual = {"width": card.default.width, "height": card.default.height}
    width, height = (fitting_side(st.session_state.get(f"{page}/{side}", usual[side])) for side in usual)
    return width, height


def choose_steps(page: str, card: ModelCard) -> None:
    """Steps of the sampler, and guidance."""
    steps, guidance = _usual_sampling(card)
    begin_with(f"{page}/steps/{card.name}", steps)
    begin_with(f"{page}/guidance/{card.name}", guidance)
    st.slider(say("steps"), 1, studio().settings.max_steps, key=f"{page}/steps/{card.name}", persist_state="session")
    st.slider(
        say("guidance"), 0.0, MOST_GUIDANCE, step=0.1, key=f"{page}/guidance/{card.name}", persist_state="session", help=say("guidance.help")
    )


def _usual_sampling(card: ModelCard) -> tuple[int, float]:
    return min(studio().settings.max_steps, card.default.steps), min(MOST_GUIDANCE, card.default.guidance_scale)


def choose_count(page: str) -> None:
    """How many pictures at a time."""
    most = studio().settings.max_count
    if most > 1:
        st.slider(say("count"), 1, most, key=f"{page}/count", persist_state="session")


def choose_seed(page: str) -> None:
    """The seed: typed, thrown, or another one each time unless it is locked."""
    key = f"{page}/seed"
    begin_with(key, secrets.randbelow(SEEDS))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        st.number_input(say("seed"), 0, MOST_SEED, step=1, key=key, persist_state="session", width=190)
        st.button(say("seed.dice"), icon=":material/casino:", key=f"{page}-dice", on_click=throw, args=(page,))
        st.toggle(say("seed.lock"), key=f"{page}/lock", persist_state="session", help=say("seed.lock.help"))


def throw(page: str) -> None:
    """Take another seed; for callbacks."""
    st.session_state[f"{page}/seed"] = secrets.randbelow(SEEDS)


def next_seed(page: str, used: int) -> int:
    """The seed of the picture that is begun now: the one shown when it is locked or typed anew, else a fresh one, which is then shown."""
    if not st.session_state.get(f"{page}/lock") and st.session_state.get(f"{page}/seed-used") == used:
        throw(page)
        used = int(st.session_state[f"{page}/seed"])
    st.session_state[f"{page}/seed-used"] = used
    return used


def choose_route(page: str, card: ModelCard) -> None:
    """How Japanese reaches the model, and by which translator if it is translated."""
    route = st.radio(  # a few words that are always in sight: a list closes whenever the page scrolls
        say("route"), _routes(card), format_func=lambda one: say(f"route.{one}"), key=f"{page}/route", persist_state="session",
        help=say("route.help"), on_change=st.rerun,  # not the settings alone: the page also shows how words are read
    )  # fmt: skip
    if route == "translate":
        st.radio(say("translator"), list(translators()), key=f"{page}/translator", persist_state="session")


def _routes(card: ModelCard) -> list[str]:
    return [route for route in ROUTES if route != "translate" or (translators() and card.route != "native")]


def chosen(page: str) -> Chosen:
    """What the widgets of a page say; for callbacks too, which are called before the page has run with what was changed last."""
    card = models()[chosen_model()]
    steps, guidance = _usual_sampling(card)

    def told(name: str, usual: Any) -> Any:
        return st.session_state.get(f"{page}/{name}", usual)

    route = told("route", ROUTES[0])
    route = route if route in _routes(card) else ROUTES[0]  # the model may have changed with the same click
    translator = told("translator", next(iter(translators()), "")) if route == "translate" else ""
    width, height = chosen_sides(page, card)
    return Chosen(
        card.name, route, translator, told("style", NO_STYLE), width, height, told(f"steps/{card.name}", steps),
        told(f"guidance/{card.name}", guidance), told("count", 1), told("seed", 0),
    )  # fmt: skip
