"""Results that are folders: what is in them beside weights, and how a whole one takes the place of an old one."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from jpgen.errors import OutputError, SettingError, WeightsError
from jpgen.merge.groups import COMPONENTS
from jpgen.merge.names import SINGLE, label
from jpgen.merge.plan import Plan
from jpgen.merge.provenance import RECIPE_KEY
from jpgen.merge.sources import ONLY_SINGLE
from jpgen.safety import check_safetensors, read_json

Companions = Callable[[Path, Path], None]
"""Writes what a single file (the first path) needs as a folder (the second) beside its weights: configs, a scheduler's settings, tokenizers."""

ENDINGS = (".json", ".txt", ".model", ".jinja")
"""Files of a folder that are copied; weights and code are not."""

INDEX = "model_index.json"
BESIDE = ("scheduler", "feature_extractor", "tokenizer", "tokenizer_2", "tokenizer_3", INDEX, "config.json", ONLY_SINGLE)
"""What a folder may have beside its components."""

SWAPS = {"linux": ("renameat2", (-100, -100), 2), "darwin": ("renameatx_np", (-2, -2), 2)}
"""System -> its call that lets two names change places: its name, what stands for the working folder, the flag."""


def require_companions(made: Plan, companions: Companions | None) -> None:
    """Raise SettingError if the result is a folder and there is nothing that its configs could come from."""
    if not made.folder or any(source.folder for source in made.sources.values()) or (companions and _single_file(made)):
        return
    told = ", ".join(map(label, made.sources))
    raise SettingError(
        f"フォルダに入れる設定がありません / no configs for a folder: none of the inputs is a diffusers folder or a whole single file ({told}); "
        "add one, or write layout single"
    )


def write_companions(made: Plan, folder: Path, companions: Companions | None) -> None:
    """Put configs and the like into a folder that has the weights: those of the first input that is a folder, else those that `companions` writes."""
    source = next((one.folder for one in made.sources.values() if one.folder), None)
    file = _single_file(made)
    if source is not None:
        _copy(source, folder)
    elif companions is not None and file is not None:
        companions(file, folder)


def require_replaceable(output: Path) -> None:
    """Raise OutputError unless the folder is not there, is empty, or is one that was merged and holds nothing else."""
    if not output.exists() and not output.is_symlink():
        return
    ours = False
    if output.is_dir() and not output.is_symlink():
        names = {entry.name for entry in output.iterdir()}
        ours = not names or (names <= {*COMPONENTS, *BESIDE} and _is_merged(output))
    if not ours:
        raise OutputError(
            f"{output} は空でも、配合したフォルダでもありません / {output} is there, and neither empty nor a merged folder: name a new folder"
        )


def put_in_place(partial: Path, output: Path) -> None:
    """Give a folder that is whole its name. An old one is there until that moment, and then goes.

    Where the system cannot swap two names, the old one has another (with .old) for an instant.
    """
    if not output.exists():
        os.rename(partial, output)
        return
    old = partial
    if not _swapped(partial, output):
        old = partial.with_suffix(".old")
        os.rename(output, old)
        try:
            os.rename(partial, output)
        except OSError:
            os.rename(old, output)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _swapped(one: Path, other: Path) -> bool:
    if sys.platform not in SWAPS:
        return False
    name, (here, there), flag = SWAPS[sys.platform]
    call = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    return call is not None and call(here, os.fsencode(one), there, os.fsencode(other), flag) == 0


def _is_merged(folder: Path) -> bool:
    found = sorted(folder.glob("*/*.safetensors"))
    with suppress(WeightsError):
        return bool(found) and all(RECIPE_KEY in check_safetensors(path).metadata for path in found)
    return False


def _single_file(made: Plan) -> Path | None:
    """The first input that is one whole single file."""
    files = (source.files for source in made.sources.values() if source.space and source.space.layout == SINGLE)
    return next((paths[0] for paths in files if len(paths) == 1), None)


def _copy(source: Path, folder: Path) -> None:
    """The configs of the components that are there, and what belongs to the whole model if none of its components is missing."""
    here = [name for name in COMPONENTS if (folder / name).is_dir()]
    index = read_json(source / INDEX) if (source / INDEX).is_file() else {}
    needed = {name for name in COMPONENTS if isinstance(index.get(name), list) and index[name][0]} or {
        name for name in COMPONENTS if (source / name / "config.json").is_file()
    }
    whole = needed <= set(here)
    kept = [name for name in (*here, *(BESIDE if whole else ())) if (source / name).is_dir()]
    for name in kept:
        _copy_files(source / name, folder / name)
    if whole and index:
        gone = {key for key, one in index.items() if isinstance(one, list) and not key.startswith("_") and key not in kept}
        told = {key: [None, None] if key in gone else one for key, one in index.items() if key != "_name_or_path"}
        (folder / INDEX).write_text(json.dumps(told, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _copy_files(source: Path, folder: Path) -> None:
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix in ENDINGS and ".index." not in path.name:
            folder.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / path.name)
