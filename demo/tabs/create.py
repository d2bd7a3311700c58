"""つくる: words in, a picture out."""

from __future__ import annotations

import re
from functools import cache, partial

import streamlit as st

import jpgen
from demo import choosing, drawing, reading, results, running, sources
from demo.choosing import Chosen
from demo.made import Made
from demo.notices import failure, notice
from demo.studio import gallery, studio
from demo.uploads import open_picture, restore
from demo.words import language, one_language, say
from jpgen.prompts import negatives, pairs

PAGE = "create"
LONGEST_EXAMPLE = {"ja": 18, "en": 40}
PLAIN = re.compile(r"[\w 、。,.'’ー・]+")
VARIED = 0.55
"""How much of a picture is drawn anew in a variation of it."""


def show() -> None:
    """The page."""
    left, right = st.columns([5, 6], gap="large")
    with left:
        _form()
        st.fragment(_examples)()
        _words()
        st.fragment(_settings)()
        _drop()
    with right:
        _pictures()
        _understood(choosing.chosen(PAGE))


def _examples() -> None:
    """A few prompts to begin with: the first ones suit the built-in model, the next are from jpgen.prompts."""
    ours, others = say("examples").split("|"), library(language())
    turn = int(st.session_state.get(f"{PAGE}/examples", 0))
    start = (turn - 1) * len(ours) % len(others)
    with st.container(horizontal=True, gap="small", key="examples"):
        for place, text in enumerate(ours if not turn else others[start : start + len(ours)]):
            st.button(text, key=f"example-{place}", on_click=_take, args=(text,), width="content")
        st.button(say("examples.more"), key="examples-more", icon=":material/refresh:", type="tertiary", on_click=_turn, args=(turn + 1,))


@cache
def library(tongue: str) -> list[str]:
    """Short prompts of jpgen.prompts that a button can show as they are."""
    texts = [pair.ja if tongue == "ja" else pair.en for pair in pairs(split="dev")]
    return [text for text in texts if len(text) <= LONGEST_EXAMPLE[tongue] and PLAIN.fullmatch(text)]


def _turn(turn: int) -> None:
    st.session_state[f"{PAGE}/examples"] = turn


def _preset() -> None:
    """Put the chosen negative prompt into its box."""
    preset = negatives().get(str(st.session_state.get(f"{PAGE}/preset")))
    if preset:
        st.session_state[f"{PAGE}/negative"] = preset.negative


def _take(text: str) -> None:
    st.session_state[f"{PAGE}/prompt"] = text
    st.rerun()  # the box is outside of the fragment


def _settings() -> None:
    """How to draw, all but the style: a change of it runs this alone."""
    with st.expander(say("settings"), icon=":material/tune:"):
        card = choosing.choose_model(PAGE)
        choosing.choose_route(PAGE, card)
        choosing.choose_size(PAGE, card)
        choosing.choose_steps(PAGE, card)
        choosing.choose_count(PAGE)
        choosing.choose_seed(PAGE)


def _form() -> None:
    """The boxes for words, with their buttons."""
    with st.form("create-form", border=False, enter_to_submit=False):
        st.text_area(say("prompt"), key=f"{PAGE}/prompt", height=110, placeholder=say("prompt.placeholder"), persist_state="session")
        st.text_area(say("negative"), key=f"{PAGE}/negative", height=68, placeholder=say("negative.placeholder"), persist_state="session")
        with st.container(horizontal=True):
            running.submit_button("generate", icon=":material/brush:", act=_generate, key="generate")
            st.form_submit_button(say("read"), icon=":material/menu_book:", on_click=_look, key="read")


def _words() -> None:
    """What adds words: style and negative presets."""
    left, right = st.columns(2)
    with left:
        choosing.choose_style(PAGE)
    right.selectbox(
        say("preset"), ["", *negatives()], key=f"{PAGE}/preset", on_change=_preset, format_func=lambda one: one or say("style.none"),
        help=say("preset.help"),
    )  # fmt: skip
    choosing.show_samples(PAGE)


def _typed() -> tuple[str, str]:
    return str(st.session_state.get(f"{PAGE}/prompt") or ""), str(st.session_state.get(f"{PAGE}/negative") or "")


def _look() -> None:
    text, _ = _typed()
    reading.renew(PAGE, text)
    st.session_state[f"{PAGE}/looked"] = True


def _generate() -> None:
    _look()
    chosen = choosing.chosen(PAGE)
    _begin(chosen, choosing.next_seed(PAGE, chosen.seed))


def _begin(chosen: Chosen, seed: int) -> None:
    """Check the prompt and hand in the drawing of it."""
    text, negative = chosen.styled(*_typed())
    off = reading.undone(PAGE)
    try:
        prompts = [
            reading.plain(text, negative) if chosen.route == "raw" else reading.read(text, negative, off, seed=seed + n) for n in range(chosen.count)
        ]
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    orders = [chosen.order(prompt, seed + n) for n, prompt in enumerate(prompts)]
    running.start(PAGE, partial(drawing.pictures, orders=orders, kept=gallery()), title=text)


def _pictures() -> None:
    if running.follow(PAGE, lambda pictures: results.show(pictures, page=f"{PAGE}-partly")):
        return
    pictures = running.outcome(PAGE)
    if pictures:
        results.show(pictures, page=PAGE, actions=ACTIONS)
    else:
        st.html(f'<div class="jp-empty">{say("create.empty")}</div>')


def _understood(chosen: Chosen) -> None:
    """How the picture that is shown was read, or what was typed since."""
    text, negative = _typed()
    if not st.session_state.get(f"{PAGE}/looked") or not text.strip():
        return
    st.subheader(say("reading"), anchor=False)
    if chosen.route == "raw":
        return notice(say("reading.raw"))
    styled, unwanted = chosen.styled(text, negative)
    prompts = [made.settings.prompt for made in running.outcome(PAGE) if made.settings]
    drawn = next((prompt for prompt in prompts if prompt.source == styled and prompt.translation.by), None)
    if drawn:
        reading.show(drawn, page=PAGE)
    else:
        reading.show_typed(styled, unwanted, page=PAGE)


def _repeated(made: Made, kind: str, init: jpgen.InitImage | None = None) -> None:
    """Hand in the settings of a picture once more, with the seed locked or a fresh one."""
    settings = made.settings
    if settings is None:
        return running.refuse(PAGE, say("picture.untold"))
    order = drawing.Order(settings.prompt, _next(settings.seed), settings.model, settings.config, init=init)
    running.start(PAGE, partial(drawing.pictures, orders=[order], kept=gallery(), kind=kind), title=settings.source)


def _next(seed: int) -> int:
    if not st.session_state.get(f"{PAGE}/lock"):
        choosing.throw(PAGE)
        seed = int(st.session_state[f"{PAGE}/seed"])
    st.session_state[f"{PAGE}/seed"] = st.session_state[f"{PAGE}/seed-used"] = seed
    return seed


def _again(made: Made) -> None:
    _repeated(made, "create")


def _vary(made: Made) -> None:
    try:
        image = open_picture(made.read(), made.name)
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    _repeated(made, "vary", jpgen.InitImage(image, VARIED))


def _restore(made: Made) -> None:
    if made.settings:
        put_back(made.settings)
        st.toast(say("restore.done"), icon=":material/settings_backup_restore:")


def _repair(made: Made) -> None:
    sources.send("repair", made)


ACTIONS = (
    ("again", ":material/refresh:", _again),
    ("vary", ":material/shuffle:", _vary),
    ("restore", ":material/settings_backup_restore:", _restore),
    ("tab.repair", ":material/healing:", _repair),
)


def put_back(settings: jpgen.Settings) -> None:
    """Set the page's widgets to the settings of a picture, as far as they go; for callbacks."""
    known, limits = choosing.models(), studio().settings
    model = settings.model if settings.model in known else next(iter(known))
    width, height = choosing.fitting_side(settings.config.width), choosing.fitting_side(settings.config.height)
    written = not settings.prompt.edits and settings.prompt.text == settings.source
    st.session_state.update(
        {
            f"{PAGE}/prompt": settings.source,
            f"{PAGE}/negative": reading.typed_negative(settings),
            choosing.MODEL: model,
            f"{PAGE}/route": "raw" if written and reading.changes(settings.source) else "auto",
            f"{PAGE}/style": choosing.NO_STYLE,
            f"{PAGE}/shape": choosing.OWN,
            f"{PAGE}/width": width,
            f"{PAGE}/height": height,
            f"{PAGE}/steps/{model}": min(limits.max_steps, settings.config.steps),
            f"{PAGE}/guidance/{model}": min(choosing.MOST_GUIDANCE, float(settings.config.guidance_scale)),
            f"{PAGE}/count": 1,
            f"{PAGE}/seed": min(choosing.MOST_SEED, settings.seed),
            f"{PAGE}/seed-used": None,
            f"{PAGE}/looked": True,
            f"{PAGE}/restored": (*settings.prompt.notes, *_resized(settings, width, height)),
        }
    )


def _resized(settings: jpgen.Settings, width: int, height: int) -> tuple[str, ...]:
    """What is said where the sides are other than those of the picture."""
    was, now = f"{settings.config.width}×{settings.config.height}", f"{width}×{height}"
    return () if was == now else (f"大きさは選べるうちで近い {now} にしました（絵は {was}） / the size is {now}, the nearest one can choose ({was})",)


def _drop() -> None:
    with st.expander(say("restore.drop"), icon=":material/upload_file:"):
        st.file_uploader(say("restore.file"), key=f"{PAGE}/dropped", on_change=_dropped, type=["png", "jpg", "jpeg", "webp"])
        if error := st.session_state.get(f"{PAGE}/drop-error"):
            failure(error)
        elif f"{PAGE}/restored" in st.session_state:
            notice(say("restore.done"), kind="good")
            for note in st.session_state[f"{PAGE}/restored"]:
                notice(one_language(note))


def _dropped() -> None:
    st.session_state[f"{PAGE}/drop-error"] = ""
    st.session_state.pop(f"{PAGE}/restored", None)
    file = st.session_state.get(f"{PAGE}/dropped")
    if file is None:
        return
    try:
        limits = studio().settings
        put_back(restore(file.getvalue(), models=choosing.models(), max_bytes=limits.upload_bytes, max_pixels=limits.upload_pixels))
    except jpgen.JpgenError as error:
        st.session_state[f"{PAGE}/drop-error"] = str(error)
