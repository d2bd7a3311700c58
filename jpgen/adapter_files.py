"""Where the files are that a prompt can name: LoRAs and embeddings, by name in a folder and nowhere else. Nothing of them is read."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

from jpgen.catalog import xdg_folder

SUFFIX = ".safetensors"

LORAS, EMBEDDINGS = ("JPGEN_LORAS", "loras"), ("JPGEN_EMBEDDINGS", "embeddings")
"""The environment variable that names the folder, and what it is called in `$XDG_DATA_HOME/jpgen` otherwise."""


def adapter_folder(kind: tuple[str, str], chosen: Path | None = None) -> Path:
    """Where files of a kind (LORAS, EMBEDDINGS) are: `chosen`, else what the environment variable says, else a folder in `$XDG_DATA_HOME/jpgen`."""
    told = chosen or os.environ.get(kind[0])
    return Path(told).expanduser() if told else xdg_folder("XDG_DATA_HOME", ".local/share") / kind[1]


def list_files(folder: Path, suffix: str = SUFFIX) -> dict[str, Path]:
    """Files of a folder and the folders in it by name: their stem, where two have the same also their path within the folder; NFC.

    A link that leads out of the folder does not count.
    """
    if not folder.is_dir():
        return {}
    root = folder.resolve()
    files = [file for file in sorted(folder.rglob(f"*{suffix}")) if file.is_file() and root in file.resolve().parents]
    stems = [nfc(file.stem) for file in files]
    named = {stem: file for stem, file in zip(stems, files, strict=True) if stems.count(stem) == 1}
    return named | {nfc(file.relative_to(folder).with_suffix("").as_posix()): file for file in files}


def list_loras() -> dict[str, Path]:
    """The LoRAs that a prompt can name (`<lora:名前:0.8>`): the files of $JPGEN_LORAS, else of loras in $XDG_DATA_HOME/jpgen."""
    return list_files(adapter_folder(LORAS))


def nfc(text: str) -> str:
    """The text as names are compared."""
    return unicodedata.normalize("NFC", text)
