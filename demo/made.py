"""A picture that was drawn, as jobs hand it over and pages show it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jpgen
from demo.gallery import Gallery, GalleryError, Item


@dataclass(frozen=True)
class Made:
    """A picture to be shown: a file of the gallery, or (`why` it could not be kept) bytes that only this session has."""

    name: str
    settings: jpgen.Settings | None
    path: Path | None = None
    data: bytes = b""
    why: str = ""

    def read(self) -> bytes:
        """The PNG; b"" if the file is gone."""
        try:
            return self.path.read_bytes() if self.path else self.data
        except OSError:
            return b""


def keep(gallery: Gallery, made: jpgen.Generation, kind: str = "create") -> Made:
    """Put a picture into the gallery as soon as it is drawn, so that no rerun loses it; what cannot be written is handed on in memory."""
    model = made.model
    settings = jpgen.Settings(
        made.prompt, made.config, made.seed, model.name, model.revision, model.license, model.weights_hash, made.encoder, made.route, made.adapters,
        made.inputs,
    )  # fmt: skip
    try:
        item = gallery.add(made, kind=kind)
    except GalleryError as error:
        return Made(jpgen.picture_name(made.prompt.source, made.seed), settings, data=made._repr_png_(), why=str(error))
    return Made(item.download_name, settings, item.path)


def of_item(item: Item) -> Made:
    """A picture of the gallery."""
    return Made(item.download_name, told(item.path), item.path)


def told(path: Path) -> jpgen.Settings | None:
    """How the picture was made, None if it does not say."""
    try:
        return jpgen.read_settings(path)
    except jpgen.JpgenError:
        return None
