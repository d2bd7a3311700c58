"""The demo's front door: `jpgen demo`, `make demo` or `streamlit run demo/app.py`. Every session runs page.py."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import streamlit as st

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if place not in (str(HERE), str(HERE.parent)))]  # `demo`, not its files, by name


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[dict[str, Any]]:
    """Begin to open the model with the server, not with the first visitor, and get the pages ready beside it; what goes wrong is told on the page."""
    import jpgen  # not above, nor what follows: Streamlit's caches want the server to be there
    from demo.studio import studio

    with suppress(jpgen.JpgenError):
        studio()
        jpgen.normalize("豆")  # reads the lexicon
    import demo.frame  # noqa: F401

    yield {}


app = st.App(HERE / "page.py", lifespan=lifespan)
