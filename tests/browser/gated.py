"""What the tests and gated_app.py share: which colour a text is drawn in, and how its gate is opened."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page

    from tests.browser.conftest import Server

STEPS = 3


def colour(text: str) -> tuple[int, int, int]:
    """The colour of everything drawn for a text."""
    red, green, blue = hashlib.sha256(text.encode()).digest()[:3]
    return red, green, blue


def gate(folder: Path, text: str, steps: int) -> Path:
    """The file whose being there lets the text's job take so many steps."""
    return folder / "gates" / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.{steps}"


def open_gate(server: Server, text: str, steps: int = STEPS) -> None:
    """Let the job of a text take so many of its steps."""
    gate(server.folder, text, steps).touch()


def colours_of(page: Page) -> set[tuple[int, int, int]]:
    """The colour in the middle of every picture that the page shows."""
    found = page.evaluate(
        """async () => { const found = [];
        for (const image of document.querySelectorAll("[data-testid=stImage] img")) {
            await image.decode().catch(() => {});
            const canvas = document.createElement("canvas"); canvas.width = canvas.height = 1;
            const context = canvas.getContext("2d"); context.drawImage(image, image.naturalWidth / 2, image.naturalHeight / 2, 1, 1, 0, 0, 1, 1);
            found.push([...context.getImageData(0, 0, 1, 1).data].slice(0, 3)); }
        return found; }"""
    )
    return {(one[0], one[1], one[2]) for one in found}
