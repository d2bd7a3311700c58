"""Recipes of the catalogue opened like any model: members found, their U-Nets merged once into the cache, encoders and autoencoder put beside."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jpgen import models
from jpgen.catalog import LATEST, SCORERS, TRANSLATORS, Entry, find_model, load_catalog
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.merge.reading import load_recipe
from jpgen.merge.recipe import Lora, Model, Recipe
from jpgen.models import is_recipe, require_licenses

if TYPE_CHECKING:
    from jpgen.hub import Progress
    from jpgen.merge.provenance import Terms
    from jpgen.merge.sources import Files

log = logging.getLogger("jpgen")

REVISION = 12
"""Hex digits of the merge's key that are its revision."""


def open_model(name: str | Path, *, on_progress: Progress | None = None) -> Entry:
    """As `jpgen.models.open_model`, and of a recipe its `path` is that of the base, with the merged U-Net, encoders and LoRA as its parts.

    The first time four models of 5 GB are read and one is written; afterwards it is in the cache. Raises as that does, and IncompatibleError
    (a translator), RecipeError, OutputError.
    """
    entry = load_catalog().get(str(name))
    if entry and entry.family in TRANSLATORS:
        raise IncompatibleError(f"{entry.name} は翻訳モデルで、絵は描きません / {entry.name} is a translator: give it as translator")
    if entry and entry.family in SCORERS:
        raise IncompatibleError(f"{entry.name} は採点するモデルで、絵は描きません / {entry.name} scores pictures: use jpgen.zero_shot")
    if entry is None or not is_recipe(entry):
        return models.open_model(name, on_progress=on_progress)
    recipe = load_recipe(str(entry.parts["recipe"]))
    require_licenses(*members(entry))
    files = {leaf: _files(find_model(leaf.name), leaf.file, on_progress) for leaf in recipe.leaves}
    base, text = (models.open_model(one, on_progress=on_progress) for one in (recipe.base, recipe.text_encoder))
    unet, key = _merged(entry, recipe, files)
    parts = {**base.parts, **{part: value for part, value in entry.parts.items() if part != "adapter_repo"}}
    parts |= {"unet": str(unet), "text_encoder": text.path, "text_encoder_2": base.path}
    if adapter := _adapter(entry, on_progress):
        parts["adapter"] = str(adapter)
    return replace(entry, path=base.path, encoder="sdxl", revision=key[:REVISION], parts=parts)


def members(entry: Entry) -> list[Entry]:
    """The entry and, of a recipe, every model that goes into it."""
    if not is_recipe(entry):
        return [entry]
    return [entry, *(find_model(name) for name in load_recipe(str(entry.parts["recipe"])).models)]


def merged_folder() -> Path:
    """Where merged U-Nets are kept: merged under $XDG_CACHE_HOME/jpgen (~/.cache/jpgen)."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path("~/.cache").expanduser()) / "jpgen" / "merged"


def find_input(leaf: Model | Lora) -> Files | Mapping[str, Files]:
    """The files of a recipe's input: at that path, or, of a row of the catalogue, in its folder or its repository."""
    from jpgen.merge.sources import find_files  # here: it loads torch

    if leaf.name not in load_catalog() or Path(leaf.name).expanduser().exists():
        return find_files(leaf)
    row = find_model(leaf.name)
    if leaf.file:
        return _files(row, leaf.file, None)
    return find_files(replace(leaf, name=str(models.open_model(leaf.name).place)))


def terms_of(recipe: Recipe) -> dict[str, Terms]:
    """The licences of the inputs that are rows of the catalogue."""
    from jpgen.merge.provenance import Terms

    rows = load_catalog()
    return {name: Terms(rows[name].license, rows[name].commercial) for name in recipe.models if name in rows}


def require_terms(recipe: Recipe) -> None:
    """Raise LicenseError unless the terms of all inputs of the catalogue are accepted."""
    rows = load_catalog()
    require_licenses(*(rows[name] for name in recipe.models if name in rows))


def write_merge(recipe: Recipe, output: str | Path, *, threads: int | None = None) -> Path:
    """Write what a recipe of paths and rows of the catalogue gives, with the terms of the latter inside; see `jpgen.merge.engine.merge`.

    Raises LicenseError for terms that are not accepted, beside what that raises.
    """
    from jpgen.merge.engine import merge

    require_terms(recipe)
    return merge(recipe, Path(output), find=find_input, threads=threads, terms=terms_of(recipe))


def _merged(entry: Entry, recipe: Recipe, files: Mapping[Model | Lora, list[Path]]) -> tuple[Path, str]:
    """The merged U-Net, made if it is not there yet, and the key of recipe and inputs."""
    from jpgen.merge.engine import merge
    from jpgen.merge.provenance import merge_key

    key = merge_key(recipe, files.__getitem__)
    unet = merged_folder() / key / "unet.safetensors"
    if not unet.is_file():
        if recipe.unverified:
            log.warning("%s: 未確認のところがあるレシピです / this recipe is not all verified: %s", entry.name, "; ".join(recipe.unverified))
        log.info("%s: %d 個のファイルを配合します / merging %d files into %s", entry.name, len(files), len(files), unet)
        merge(recipe, unet, find=files.__getitem__, terms=terms_of(recipe))
    return unet, key


def _files(row: Entry, file: str, on_progress: Progress | None) -> list[Path]:
    """The file of a member: in the folder of its row (there under another name or in shards, too), else fetched alone from its repository.

    The part `unet`, or `unet_repo` of another repository, is the U-Net of a row whose `repo` brings all else.
    """
    if "unet" in row.parts:
        return _local(row, (row.folder if row.path else Path()) / Path(str(row.parts["unet"])).expanduser(), file)
    if row.path:
        return _local(row, row.place, file)
    if "unet_repo" in row.parts:
        row = replace(row, repo=str(row.parts["unet_repo"]), revision=str(row.parts.get("unet_revision", LATEST)), sha256={})
    from jpgen import hub

    known = {name: digest for name, digest in row.sha256.items() if name == file}
    return [hub.fetch(row.repo, revision=row.revision, files=(file,), sha256=known, on_progress=on_progress) / file]


def _local(row: Entry, place: Path, file: str) -> list[Path]:
    name = Path(file).name
    for found in (place / file, place / name, place.parent / name if place.is_file() else place):
        if found.is_file():
            return [found]
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise WeightsError(f"{row.name}: {place} がありません / {place} is missing: correct the path of {row.name} in your catalogue")
    import torch

    from jpgen.weights import find_weights

    if file.startswith("unet/"):
        return find_weights(place / "unet" if (place / "unet").is_dir() else place, dtype=torch.float16)
    raise WeightsError(f"{row.name}: {place} に {name} がありません / {place} holds no {file}: fetch {row.name} again, or correct its path")


def _adapter(entry: Entry, on_progress: Progress | None) -> Path | None:
    """The LoRA of the part `adapter` (a file), or the only one in the repository of `adapter_repo`."""
    if told := entry.parts.get("adapter"):
        return Path(str(told)).expanduser()
    if "adapter_repo" not in entry.parts:
        return None
    from jpgen import hub

    revision = str(entry.parts.get("adapter_revision", LATEST))
    folder = hub.fetch(str(entry.parts["adapter_repo"]), revision=revision, files=(models.WEIGHTS,), on_progress=on_progress)
    found = sorted(folder.glob(models.WEIGHTS))
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "(none)"
        raise WeightsError(
            f"{entry.name}: どの LoRA か決められません / {folder} holds {names}: say which in your catalogue, [{entry.name}] parts.adapter = \"…\""
        )
    return found[0]
