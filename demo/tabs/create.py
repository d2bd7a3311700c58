"""つくる: words in, a picture out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import streamlit as st

import jpgen
from demo import choosing, reading, results, running
from demo.choosing import Chosen
from demo.engine import Desk
from demo.notices import failure, notice
from demo.studio import examples, keep, studio
from demo.uploads import restore
from demo.words import say
from jpgen.metadata import Settings

PAGE = "create"
VARIED = 0.55
"""How much of a picture is drawn anew in a variation of it."""


def show() -> None:
    """The page."""
    left, right = st.columns([5, 6], gap="large")
    with left:
        _examples()
        chosen = _settings_below(st.container())
        _drop()
    with right:
        _pictures()
        _understood(chosen)


def _examples() -> None:
    shown = examples()[:5]
    with st.container(horizontal=True, gap="small", key="examples"):
        for place, text in enumerate(shown):
            st.button(text, key=f"example-{place}", on_click=_take, args=(text,), type="tertiary", width="content")


def _take(text: str) -> None:
    st.session_state[f"{PAGE}/prompt"] = text


def _settings_below(form: Any) -> Chosen:
    """The prompt's form above and the settings below it, which are drawn first: the form's button hands in what they say."""
    with st.expander(say("settings"), icon=":material/tune:"):
        entry = choosing.choose_model(PAGE)
        route, translator = choosing.choose_route(PAGE, entry)
        width, height = choosing.choose_size(PAGE, entry)
        steps, guidance = choosing.choose_steps(PAGE, entry)
        most = studio().settings.max_count
        count = st.slider(say("count"), 1, most, key=f"{PAGE}/count", persist_state="session") if most > 1 else 1
        seed = choosing.choose_seed(PAGE)
    with form:
        style = choosing.choose_style(PAGE)
        chosen = Chosen(entry.name, route, translator, style, width, height, steps, guidance, count, seed)
        with st.form("create-form", border=False, enter_to_submit=False):
            st.text_area(say("prompt"), key=f"{PAGE}/prompt", height=120, placeholder=say("prompt.placeholder"), persist_state="session")
            st.text_area(
                say("negative"), key=f"{PAGE}/negative", height=68, placeholder=say("negative.placeholder"), persist_state="session"
            )
            with st.container(horizontal=True):
                st.form_submit_button(say("generate"), type="primary", icon=":material/brush:", on_click=_generate, args=(chosen,), key="generate")
                st.form_submit_button(say("read"), icon=":material/menu_book:", on_click=_look, key="read")
    return chosen


def _typed() -> tuple[str, str]:
    return str(st.session_state.get(f"{PAGE}/prompt") or ""), str(st.session_state.get(f"{PAGE}/negative") or "")


def _look() -> None:
    text, _ = _typed()
    reading.renew(PAGE, text)
    st.session_state[f"{PAGE}/looked"] = True


def _generate(chosen: Chosen) -> None:
    _look()
    seed = choosing.next_seed(PAGE, int(st.session_state.get(f"{PAGE}/seed", chosen.seed)))
    _begin(chosen, seed)


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

    def draw(desk: Desk) -> None:
        pipeline = chosen.pipeline(desk)
        config = chosen.config(pipeline)
        desk.expect(len(prompts))
        for n, prompt in enumerate(prompts):
            desk.deliver(keep(pipeline.generate(prompt, seed=seed + n, config=config, on_step=desk.on_step)))

    running.start(PAGE, draw, title=text)


def _pictures() -> None:
    if running.follow(PAGE, lambda paths: results.show(paths, page=f"{PAGE}-partly")):
        return
    paths = running.outcome(PAGE)
    if paths:
        actions = (("again", ":material/refresh:", _again), ("vary", ":material/shuffle:", _vary), ("restore", ":material/settings_backup_restore:", _restore))
        results.show(paths, page=PAGE, actions=actions)
    else:
        st.html(f'<div class="jp-empty">{say("create.empty")}</div>')


def _understood(chosen: Chosen) -> None:
    """The reading of the picture that is shown, or of what was typed since."""
    text, negative = _typed()
    if not st.session_state.get(f"{PAGE}/looked") or not text.strip():
        return
    st.subheader(say("reading"), anchor=False)
    if chosen.route == "raw":
        return notice(say("reading.raw"))
    settings = next((told for path in running.outcome(PAGE)[:1] if path.is_file() and (told := results.told(path))), None)
    if settings and settings.source == chosen.styled(text, negative)[0] and settings.prompt.translation.by:
        reading.show(settings.prompt, page=PAGE)
    else:
        reading.show_typed(*chosen.styled(text, negative), page=PAGE)


def _repeated(path: Path, seed: int, init: jpgen.InitImage | None = None) -> None:
    """Hand in the settings of a picture once more with this seed."""
    settings = results.told(path)
    if settings is None:
        return running.refuse(PAGE, say("picture.untold"))

    def draw(desk: Desk) -> None:
        pipeline = desk.pipeline(settings.model)
        desk.deliver(keep(pipeline.generate(settings.prompt, seed=seed, config=settings.config, on_step=desk.on_step, init=init)))

    running.start(PAGE, draw, title=settings.source)


def _fresh(path: Path) -> int:
    settings = results.told(path)
    choosing.throw(PAGE)
    locked = st.session_state.get(f"{PAGE}/lock") and settings is not None
    seed = settings.seed if locked and settings else int(st.session_state[f"{PAGE}/seed"])
    st.session_state[f"{PAGE}/seed"] = st.session_state[f"{PAGE}/seed-used"] = seed
    return seed


def _again(path: Path) -> None:
    _repeated(path, _fresh(path))


def _vary(path: Path) -> None:
    from demo.uploads import open_picture

    try:
        image = open_picture(path.read_bytes(), path.name)
    except (jpgen.JpgenError, OSError) as error:
        return running.refuse(PAGE, error)
    _repeated(path, _fresh(path), jpgen.InitImage(image, VARIED))


def _restore(path: Path) -> None:
    settings = results.told(path)
    if settings:
        put_back(settings)


def put_back(settings: Settings) -> None:
    """Set the page's widgets to the settings of a picture, as far as they go; for callbacks."""
    known, limits = choosing.models(), studio().settings
    model = settings.model if settings.model in known else next(iter(known))
    written = not settings.prompt.edits and settings.prompt.text == settings.source
    st.session_state.update(
        {
            f"{PAGE}/prompt": settings.source,
            f"{PAGE}/negative": _typed_negative(settings),
            f"{PAGE}/model": model,
            f"{PAGE}/route": "raw" if written and reading.changes(settings.source) else "auto",
            f"{PAGE}/style": choosing.NO_STYLE,
            f"{PAGE}/shape": "own",
            f"{PAGE}/width": min(limits.max_side, max(64, settings.config.width)),
            f"{PAGE}/height": min(limits.max_side, max(64, settings.config.height)),
            f"{PAGE}/steps/{model}": min(limits.max_steps, settings.config.steps),
            f"{PAGE}/guidance/{model}": min(choosing.MOST_GUIDANCE, float(settings.config.guidance_scale)),
            f"{PAGE}/count": 1,
            f"{PAGE}/seed": min(choosing.MOST_SEED, settings.seed),
            f"{PAGE}/seed-used": None,
            f"{PAGE}/looked": True,
            f"{PAGE}/restored": settings.model,
        }
    )


def _typed_negative(settings: Settings) -> str:
    """What was typed as the negative prompt: without that which reading finds in the prompt again."""
    try:
        found = jpgen.normalize(settings.source, seed=settings.seed).negative
    except jpgen.JpgenError:
        found = ""
    return settings.negative.removesuffix(found).rstrip("、") if found else settings.negative


def _drop() -> None:
    with st.expander(say("restore.drop"), icon=":material/upload_file:"):
        st.file_uploader(say("restore.file"), key=f"{PAGE}/dropped", on_change=_dropped, type=["png", "jpg", "jpeg", "webp"])
        if error := st.session_state.get(f"{PAGE}/drop-error"):
            failure(error)
        elif st.session_state.get(f"{PAGE}/restored"):
            notice(say("restore.done"), kind="good")


def _dropped() -> None:
    st.session_state[f"{PAGE}/drop-error"] = ""
    st.session_state.pop(f"{PAGE}/restored", None)
    file = st.session_state.get(f"{PAGE}/dropped")
    if file is None:
        return
    try:
        put_back(restore(file.getvalue()))
    except jpgen.JpgenError as error:
        st.session_state[f"{PAGE}/drop-error"] = str(error)
