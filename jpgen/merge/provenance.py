"""Where a merged file comes from, told in its own metadata; and the proof: made again of that, it is the same."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jpgen.errors import JpgenError, RecipeError, WeightsError
from jpgen.layout import recognise
from jpgen.merge.plan import Plan, plan
from jpgen.merge.reading import parse_recipe
from jpgen.merge.recipe import Lora, Model, Recipe, short_names
from jpgen.merge.sources import Files, Find, find_files
from jpgen.safety import CHUNK, check_safetensors, read_json, sha256_of

RECIPE_KEY, INPUTS_KEY, ANCESTORS_KEY, TERMS_KEY = "jpgen.recipe", "jpgen.inputs", "jpgen.ancestors", "jpgen.licenses"
"""Metadata of a merged file: the recipe, the SHA-256 of each file that went in, the same of inputs that were merged themselves, and the terms."""

PREDICTION_KEY = "modelspec.prediction_type"

A1111_RECIPE, A1111_MODELS = "sd_merge_recipe", "sd_merge_models"
"""As stable-diffusion-webui writes and shows it: https://github.com/AUTOMATIC1111/stable-diffusion-webui/pull/9312."""

COMMERCIAL = ("yes", "ask", "no")
"""From the mildest to the strictest."""

ARCHITECTURES = {
    **dict.fromkeys(("sdxl", "jsdxl"), "stable-diffusion-xl-v1-base"),
    "sd1": "stable-diffusion-v1", "sd2": "stable-diffusion-v2", "flux": "flux-1-dev", "pixart": "pixart-sigma",
}  # fmt: skip
"""modelspec's words for what `jpgen.layout` recognises."""


@dataclass(frozen=True)
class Terms:
    """The licence of a model, and whether it may be used commercially: "yes", "no" or "ask"."""

    license: str
    commercial: str = "ask"


def strictest(terms: Sequence[Terms]) -> str:
    """What the result may be used for where every part must allow it: "yes", "ask" or "no"; "ask" where nothing is known.

    >>> strictest([Terms("apache-2.0", "yes"), Terms("research only", "no")])
    'no'
    """
    known = [COMMERCIAL.index(one.commercial) if one.commercial in COMMERCIAL else 1 for one in terms]
    return COMMERCIAL[max(known)] if known else "ask"


def digests(made: Plan) -> dict[str, list[str]]:
    """The SHA-256 of every input's files, by the names of the written recipe."""
    names = short_names(made.recipe.leaves)
    return {_title(leaf, names): [sha256_of(path) for path in paths] for leaf, paths in made.files.items()}


def merge_key(recipe: Recipe, find: Find | None = None) -> str:
    """32 hex digits that name the result: of what the recipe does (not its remarks) and the SHA-256 of every input."""
    find = find or find_files
    names = short_names(recipe.leaves)
    found = {_title(leaf, names): [sha256_of(path) for path in _paths(find(leaf))] for leaf in recipe.leaves}
    return hashlib.sha256(json.dumps([recipe.digest, found], sort_keys=True).encode()).hexdigest()[:32]


def describe(made: Plan, terms: Mapping[str, Terms]) -> dict[str, str]:
    """The metadata of the result: all texts, as safetensors and stable-diffusion-webui want them."""
    recipe = made.recipe
    data, inputs = recipe.to_data(), digests(made)
    headers = {path: check_safetensors(path).metadata for paths in made.files.values() for path in paths}
    ancestors: dict[str, Any] = {}
    models: dict[str, Any] = {}
    names = short_names(recipe.leaves)
    for leaf, paths in made.files.items():
        for path in paths:
            told, digest = headers[path], sha256_of(path)
            models |= _table(told.get(A1111_MODELS))
            models[digest] = {
                "name": _title(leaf, names),
                "legacy_hash": _legacy_hash(path),
                "sd_merge_recipe": _table(told.get(A1111_RECIPE)) or None,
            }
            ancestors |= _table(told.get(ANCESTORS_KEY))
            if RECIPE_KEY in told:
                ancestors[digest] = {"recipe": _table(told[RECIPE_KEY]), "inputs": _table(told.get(INPUTS_KEY))}
    carried = {key: Terms(*one) for told in headers.values() for key, one in _table(_table(told.get(TERMS_KEY)).get("parts")).items()}
    parts = carried | {names[leaf.name]: terms.get(leaf.name, carried.get(names[leaf.name], Terms("unknown"))) for leaf in recipe.leaves}
    strict = strictest(list(parts.values()))
    licences = "; ".join(dict.fromkeys(one.license for one in parts.values()))
    predicted = _prediction(made)
    return {
        "format": "pt", RECIPE_KEY: _json(data), INPUTS_KEY: _json(inputs), ANCESTORS_KEY: _json(ancestors),
        TERMS_KEY: _json({"parts": {name: [one.license, one.commercial] for name, one in parts.items()}, "commercial": strict}),
        A1111_RECIPE: _json({"type": "jpgen", "recipe": data}), A1111_MODELS: _json(models),
        "modelspec.sai_model_spec": "1.0.1", "modelspec.title": recipe.name, "modelspec.architecture": _architecture(made),
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models", "modelspec.license": f"{licences} (commercial: {strict})",
        "modelspec.merged_from": ", ".join(inputs), **({PREDICTION_KEY: predicted} if predicted else {}),
    }  # fmt: skip


@dataclass(frozen=True)
class Verified:
    """What `verify` found: whether the file or folder is what its metadata say, and if not which tensors are not."""

    path: Path
    inputs: int
    tensors: int
    differing: tuple[str, ...]


def verify(path: Path, *, find: Find | None = None, folders: Sequence[Path] = (), threads: int | None = None) -> Verified:
    """Make a merged file, or the weights of a merged folder, again of the metadata in it, in a temporary place, and compare.

    Inputs are looked for by their names here, beside the file and in `folders`, or by `find`, and must have the SHA-256 that was written down. Raises
    WeightsError for a file that tells no recipe or whose inputs are missing or others, and what `merge` raises.
    """
    from jpgen.merge.engine import write

    weights = sorted(path.glob("*/*.safetensors")) if path.is_dir() else [path]
    if not weights:
        raise WeightsError(f"{path} に重みがありません / no weights in {path}: name a merged file, or a merged folder")
    header = check_safetensors(weights[0])
    if RECIPE_KEY not in header.metadata or INPUTS_KEY not in header.metadata:
        raise WeightsError(f"{path} にはレシピがありません / {path} tells no recipe: it was not merged by jpgen, or its metadata are gone")
    try:
        recipe = parse_recipe(header.metadata[RECIPE_KEY])
    except RecipeError as error:
        raise WeightsError(f"{path}: {error}") from error
    wanted, beside = _table(header.metadata[INPUTS_KEY]), path.absolute().parent
    made = plan(recipe, lambda leaf: _search(leaf, wanted.get(_title(leaf, {}), []), find, [Path(), beside, *folders]))
    if digests(made) != wanted:
        got = digests(made)
        other = ", ".join(name for name in wanted if got.get(name) != wanted[name])
        raise WeightsError(f"{path}: 入力が違います / {path}: these inputs are not those it was made of: {other}; give the folder of the right ones")
    with tempfile.TemporaryDirectory(prefix=".jpgen-", dir=beside) as folder:
        again = write(made, Path(folder) / "again", header.metadata, threads=threads, companions=lambda _file, _folder: None)
        differing = _differing(path, again) if path.is_file() else _differing_in_folder(path, again)
    return Verified(path, len(made.files), len(made.tensors), differing)


def _differing_in_folder(one: Path, other: Path) -> tuple[str, ...]:
    """The same of folders, with the files that only one has, and the file before each tensor."""
    first, second = ({str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")} for folder in (one, other))
    found = sorted(first ^ second)
    return (*found, *(f"{name}:{tensor}" for name in sorted(first & second) for tensor in _differing(one / name, other / name)))


def _differing(one: Path, other: Path) -> tuple[str, ...]:
    """The tensors that are not the same in both files; ("header",) if even those are others."""
    first, second = check_safetensors(one), check_safetensors(other)
    if first != second or list(first.tensors) != list(second.tensors):
        changed = {name for name in first.tensors.keys() | second.tensors.keys() if first.tensors.get(name) != second.tensors.get(name)}
        return tuple(sorted(changed)) or ("header",)
    places = sorted((stored.begin, name) for name, stored in first.tensors.items())
    found: dict[str, None] = {}
    with one.open("rb") as a, other.open("rb") as b:
        at = 0
        while block := a.read(CHUNK):
            twin = b.read(CHUNK)
            if block != twin:
                if not places or at < places[0][0]:
                    found["header"] = None
                ends = [*places[1:], (1 << 62, "")]
                found |= {name: None for (begin, name), (end, _) in zip(places, ends, strict=True) if begin < at + len(block) and end > at}
            at += len(block)
    return tuple(found)


def _search(leaf: Model | Lora, wanted: Sequence[str], find: Find | None, folders: Sequence[Path]) -> Any:
    """The files of an input of a written recipe: the first place of its name whose hashes are the wanted ones, else the first place at all."""
    tried: list[Any] = []
    if find is not None:
        with suppress(JpgenError):
            tried.append(find(leaf))
    kind = type(leaf)
    for folder in folders:
        for name in (leaf.name, Path(leaf.name).name):
            if (folder / name).exists():
                component = {"component": leaf.component} if isinstance(leaf, Model) else {}
                tried.append(find_files(kind(str(folder / name), leaf.file, **component)))
    for found in tried:
        if [sha256_of(path) for path in _paths(found)] == list(wanted):
            return found
    if not tried:
        raise WeightsError(f"入力 {leaf.name} が見つかりません / no input {leaf.name} here or beside the file: give the folder it is in")
    return tried[0]


def _paths(found: Files | Mapping[str, Files]) -> list[Path]:
    return [path for paths in found.values() for path in paths] if isinstance(found, Mapping) else list(found)


def _title(leaf: Model | Lora, names: Mapping[str, str]) -> str:
    told = [names.get(leaf.name, leaf.name), leaf.file, getattr(leaf, "component", "")]
    return "/".join(one for one in told if one)


def _architecture(made: Plan) -> str:
    try:
        variant = recognise(next(iter(made.files.values()))[0]).variant
    except WeightsError:
        return "unknown"
    return ARCHITECTURES.get(variant, variant)


def _prediction(made: Plan) -> str:
    """What the first model's U-Net predicts ("v", "epsilon"), if its file or its folder's scheduler tells it."""
    source = next(iter(made.sources.values()))
    if source.folder is None:
        return next((told for path in source.files if (told := check_safetensors(path).metadata.get(PREDICTION_KEY))), "")
    scheduler = source.folder / "scheduler" / "scheduler_config.json"
    has_unet = any(name.startswith("unet.") for name in source.tensors)
    told = read_json(scheduler).get("prediction_type") if has_unet and scheduler.is_file() else None
    return {"v_prediction": "v", "epsilon": "epsilon"}.get(str(told), "")


def _legacy_hash(path: Path) -> str:
    """The eight digits by which stable-diffusion-webui knew models first: of 64 KiB at 1 MiB."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def _table(told: Any) -> dict[str, Any]:
    """The object in a text of JSON, or the object itself; an empty one for anything else."""
    if isinstance(told, str):
        try:
            told = json.loads(told)
        except (ValueError, RecursionError):
            return {}
    return told if isinstance(told, dict) else {}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
