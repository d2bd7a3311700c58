"""Jobs of the engine as a page shows them: handed in, followed while they run, their pictures kept in the session when they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st
from PIL import Image

from demo.engine import QueueFull, UnknownTicket
from demo.jobs import Snapshot
from demo.notices import failure, notice
from demo.results import jpeg
from demo.studio import session, studio
from demo.words import say
from demo.worker import Desk

SHORTCUT = "Ctrl+Enter"
"""What presses a page's main button, on a Mac ⌘+Enter. A plain Enter never does, nor an input method's, which browser/language.js keeps from it."""

EVERY = 0.5
"""Seconds between two looks at a job that waits or runs: every look is a run of its own, here and in the browser."""


def submit_button(name: str, *, icon: str, act: Callable[..., None], key: str, args: tuple[Any, ...] = (), disabled: bool = False) -> None:
    """The main button of a page's form, one on a page: `name` is the key of its text, `act` what it does."""
    st.form_submit_button(
        say(name), type="primary", icon=icon, on_click=act, args=args, key=key, disabled=disabled, shortcut=SHORTCUT, help=say("submit.help")
    )


def start(page: str, work: Callable[[Desk], Any], *, title: str) -> None:
    """Hand in work for this page, in the place of what it showed: a function of demo.drawing, all but its desk given."""
    refuse(page, "")
    try:
        st.session_state[f"{page}/ticket"] = studio().engine.submit(session(), work, title=title)
    except QueueFull as full:
        refuse(page, full)


def refuse(page: str, why: Exception | str) -> None:
    """Have the page say why nothing was begun."""
    st.session_state[f"{page}/refused"] = str(why)


def busy(page: str) -> bool:
    """Whether a job of this page waits or runs."""
    return f"{page}/ticket" in st.session_state


def outcome(page: str) -> tuple[Any, ...]:
    """What the last finished job of the page has delivered."""
    return tuple(st.session_state.get(f"{page}/outcome", ()))


def forget(page: str) -> None:
    """Show nothing of the last job any more."""
    st.session_state.pop(f"{page}/outcome", None)


def follow(page: str, partly: Callable[[tuple[Any, ...]], None] | None = None) -> bool:
    """The progress of the page's job while there is one, True then; `partly` shows what it has delivered so far. Else how the last one failed."""
    if refused := st.session_state.get(f"{page}/refused"):
        failure(refused)
    snapshot = _look(page)
    if snapshot is not None and not snapshot.ended:
        st.fragment(_watch, run_every=EVERY)(page, partly)
        return True
    if snapshot is not None:
        _finish(page, snapshot)
    state, error = st.session_state.get(f"{page}/ended", ("", ""))
    if state == "failed":
        failure(error)
    elif state == "cancelled":
        notice(say("job.cancelled"))
    return False


def _look(page: str) -> Snapshot | None:
    """The page's job as it stands, looked at once a run."""
    ticket = st.session_state.get(f"{page}/ticket")
    if ticket is None:
        return None
    try:
        return studio().engine.snapshot(ticket, session=session())
    except UnknownTicket as unknown:  # forgotten: what it drew is in the gallery
        del st.session_state[f"{page}/ticket"]
        refuse(page, unknown)
        return None


def _finish(page: str, snapshot: Snapshot) -> None:
    del st.session_state[f"{page}/ticket"]
    st.session_state.pop(f"{page}/preview", None)
    st.session_state[f"{page}/ended"] = (snapshot.state, snapshot.error)
    if snapshot.state == "done" or snapshot.results:
        st.session_state[f"{page}/outcome"] = snapshot.results or (() if snapshot.result is None else (snapshot.result,))


def _watch(page: str, partly: Callable[[tuple[Any, ...]], None] | None) -> None:
    snapshot = _look(page)
    if snapshot is None or snapshot.ended:
        st.rerun()
    if partly is not None and snapshot.results:
        partly(snapshot.results)
    if snapshot.preview is not None:
        st.image(_preview(page, snapshot.preview), width="stretch", alt=say("job.preview"), output_format="JPEG")
    st.progress(snapshot.fraction, text=_told(snapshot))
    st.button(
        say("job.cancel"), key=f"{page}-cancel", icon=":material/stop_circle:", on_click=studio().engine.cancel, args=(snapshot.ticket,),
        kwargs={"session": session()},
    )  # fmt: skip
    others = [one.ticket for one in studio().engine.tickets(session()) if not one.ended and one.ticket != snapshot.ticket]
    if others:
        st.text(say("job.others", count=len(others)))
        st.button(say("job.cancel_others"), key=f"{page}-cancel-others", type="tertiary", on_click=_cancel, args=(others,))


def _cancel(tickets: list[str]) -> None:
    for ticket in tickets:
        studio().engine.cancel(ticket, session=session())


def _told(snapshot: Snapshot) -> str:
    if snapshot.state == "waiting":
        return say("job.waiting", ahead=snapshot.position)
    if snapshot.opening or not snapshot.steps:
        return say("job.opening")
    pictures = say("job.part", part=snapshot.part, parts=snapshot.parts) if snapshot.parts > 1 else ""
    left = say("job.left", seconds=max(1, round(snapshot.seconds_left))) if snapshot.seconds_left is not None else ""
    return say("job.step", step=snapshot.step, steps=snapshot.steps) + pictures + left


def _preview(page: str, image: Image.Image) -> bytes:
    """The preview as JPEG, encoded once however often it is looked at before the next one."""
    kept = st.session_state.get(f"{page}/preview")
    if kept is None or kept[0] is not image:
        kept = st.session_state[f"{page}/preview"] = (image, jpeg(image))
    encoded: bytes = kept[1]
    return encoded
