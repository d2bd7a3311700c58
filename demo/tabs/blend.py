"""まぜる: a few models and LoRAs with sliders, drawn as they are mixed, saved as a recipe or as weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import streamlit as st

import jpgen
from demo import choosing, drawing, merging, reading, results, running
from demo.merging import BLOCKS, MOST, Part
from demo.notices import failure, notice
from demo.studio import gallery, studio
from demo.words import say

PAGE, SAVING = "blend", "blend-save"
BASE = "mame"


def models_folder() -> Path:
    """Where models that can be mixed are put, and mixed ones written."""
    return studio().settings.merges


def show() -> None:
    """The page."""
    st.text(say("blend.about"))
    left, right = st.columns(2, gap="large")
    with left:
        parts = _parts()
        text, seed, steps, live = _picture_settings(parts)
        if live:
            _follow_sliders(parts, text, seed, steps)
    with right:
        if not running.follow(PAGE):
            results.show(running.outcome(PAGE), page=PAGE)
        _saving(parts)


def _parts() -> tuple[Part, ...]:
    """The sliders of all models and LoRAs, and those of single blocks."""
    mixable = [name for name, card in choosing.models().items() if card.where == "builtin"] + list(merging.list_models(models_folder()))
    if len(mixable) < 2:
        notice(say("blend.alone"))
        if not studio().settings.public:
            st.code(_told(models_folder()), language=None, wrap_lines=True)
    choosing.begin_with(f"{PAGE}/models", [BASE])
    models = st.multiselect(
        say("blend.models"), mixable, key=f"{PAGE}/models", max_selections=MOST, placeholder=say("axis.choose"), persist_state="session"
    )
    loras = jpgen.list_loras()
    chosen = st.multiselect(
        say("blend.loras"), list(loras), key=f"{PAGE}/loras", max_selections=MOST, placeholder=say("axis.choose"), persist_state="session"
    ) if loras else []  # fmt: skip
    shares = {("model", name): _share(say("blend.share"), name, lora=False) for name in models}
    shares |= {("lora", name): _share(say("blend.scale"), name, lora=True) for name in chosen}
    with st.expander(say("blend.blocks")):
        groups = st.multiselect(
            say("blend.which_blocks"), BLOCKS, key=f"{PAGE}/groups", placeholder=say("axis.choose"), format_func=_block, persist_state="session"
        )
        by_block = {
            (kind, name, group): _share(_block(group), name, lora=kind == "lora", group=group, usual=share)
            for group in groups for (kind, name), share in shares.items()
        }  # fmt: skip
    return tuple(
        Part(name, share, {group: by_block[kind, name, group] for group in groups}, lora=kind == "lora") for (kind, name), share in shares.items()
    )


def _told(folder: Path) -> str:
    """The folder as a person writes it."""
    return str(Path("~") / folder.relative_to(Path.home()) if folder.is_relative_to(Path.home()) else folder)


def _share(label: str, name: str, *, lora: bool, group: str = "", usual: float = 1.0) -> float:
    """One slider; the name of a file stands above it letter for letter."""
    st.text(name)
    low, high = (-2.0, 2.0) if lora else (0.0, 1.0)
    key = f"{PAGE}/share/{lora}/{group}/{name}"
    choosing.begin_with(key, usual)
    return st.slider(label, low, high, step=0.05, key=key, persist_state="session")


def _block(group: str) -> str:
    return say("blend.block", number=group.partition(".")[2]) if group.startswith("block.") else say(f"blend.{group}")


def _picture_settings(parts: tuple[Part, ...]) -> tuple[str, int, int, bool]:
    live = st.toggle(say("blend.live"), key=f"{PAGE}/live", help=say("blend.live.help"), persist_state="session")
    most = min(30, studio().settings.max_steps)
    choosing.begin_with(f"{PAGE}/steps", min(8, most))
    steps = st.slider(say("steps"), 1, most, key=f"{PAGE}/steps", persist_state="session")
    choosing.begin_with(f"{PAGE}/prompt", say("examples").split("|")[0])
    with st.form("blend-form", border=False, enter_to_submit=False):
        text = st.text_area(say("prompt"), key=f"{PAGE}/prompt", height=80, persist_state="session")
        with st.container(horizontal=True, vertical_alignment="bottom"):
            seed = st.number_input(say("seed"), 0, choosing.MOST_SEED, 1, key=f"{PAGE}/seed", width=190, persist_state="session")
            running.submit_button("blend.go", icon=":material/blender:", act=_pressed, args=(parts, steps), key="blend-go")
    return text or "", seed, steps, live


def _pressed(parts: tuple[Part, ...], steps: int) -> None:
    _draw(parts, str(st.session_state.get(f"{PAGE}/prompt") or ""), int(st.session_state.get(f"{PAGE}/seed") or 0), steps)


def _follow_sliders(parts: tuple[Part, ...], text: str, seed: int, steps: int) -> None:
    """Draw what the sliders now say, as soon as the picture before it is done."""
    if st.session_state.get(f"{PAGE}/drawn") != (wanted := (repr(parts), text, seed, steps)) and not running.busy(PAGE):
        st.session_state[f"{PAGE}/drawn"] = wanted
        _draw(parts, text, seed, steps)


def _draw(parts: tuple[Part, ...], text: str, seed: int, steps: int) -> None:
    try:
        recipe = merging.recipe_of(parts, models_folder())
        prompt = reading.read(text, "", (), seed=seed)
    except jpgen.JpgenError as error:
        return running.refuse(PAGE, error)
    work = partial(drawing.mixed, recipe=recipe, prompt=prompt.source, base=BASE, seed=seed, steps=steps, kept=gallery())
    running.start(PAGE, work, title=text)


def _saving(parts: tuple[Part, ...]) -> None:
    """The recipe as a file to take along, the weights as a model of this computer."""
    st.subheader(say("blend.save"), anchor=False)
    try:
        recipe = merging.recipe_of(parts, models_folder())
    except jpgen.JpgenError as error:
        return failure(error)
    text = merging.recipe_text(recipe)
    with st.expander(say("blend.recipe")):
        st.code(text, language="yaml", wrap_lines=True)
    st.download_button(
        say("blend.recipe.save"), text, "recipe.yaml", "application/yaml", icon=":material/download:", key="blend-recipe", on_click="ignore"
    )
    if studio().settings.public:
        return
    with st.form("blend-save-form", border=False, enter_to_submit=False):
        st.text_input(say("blend.name"), key=f"{SAVING}/name", max_chars=60, persist_state="session")
        st.form_submit_button(say("blend.weights.save"), icon=":material/save:", on_click=_write, args=(parts,), key="blend-write")
    if not running.follow(SAVING):
        for name in running.outcome(SAVING):
            notice(say("blend.written") + f"\n{name}", kind="good")


def _write(parts: tuple[Part, ...]) -> None:
    name, folder = str(st.session_state.get(f"{SAVING}/name") or ""), models_folder()
    try:
        recipe = merging.recipe_of(parts, folder)
    except jpgen.JpgenError as error:
        return running.refuse(SAVING, error)
    running.start(SAVING, partial(drawing.written, recipe=recipe, folder=folder, name=name), title=name)
