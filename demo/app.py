"""The demo's front door: `jpgen demo`, `make demo` or `streamlit run demo/app.py`. Every session runs page.py."""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import streamlit as st

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if place not in (str(HERE), str(HERE.parent)))]  # `demo`, not its files, by name

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, CORES - 1)))  # a core is left to the pages and the browser: torch's threads wait by spinning


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[dict[str, Any]]:
    """Import the pages and begin to open the model with the server, not with the first visitor; what goes wrong is told on the page."""
    import demo.frame  # noqa: F401  not above: Streamlit's caches want the server to be there
    from demo.gallery import GalleryError
    from demo.settings import SettingsError
    from demo.studio import studio

    with suppress(SettingsError, GalleryError):
        studio()
    yield {}


app = st.App(HERE / "page.py", lifespan=lifespan)
