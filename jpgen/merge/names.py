"""Inputs of unlike layouts by the same names: those of diffusers, with their component before them, whichever files they are in."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

from jpgen.errors import WeightsError
from jpgen.merge.keys import COMPONENTS, EXTRA, KeySpace, Moved, canonical, family_of, key_space
from jpgen.merge.recipe import Lora, Model
from jpgen.merge.sources import TYPES, Place, Source
from jpgen.safety import BITS, Stored

NAMES, COMPONENT, SINGLE, FOLDER = "names", "component", "single", "diffusers"
"""How the result lies: one file by the names used here, by those of one component, by those of single files; or a folder of components."""


@dataclass(frozen=True)
class Form:
    """How the result lies, and the family of a single file ("": told by its tensors)."""

    kind: str
    family: str = ""


def in_common_names(sources: Mapping[Model, Source], layout: str) -> tuple[dict[Model, Source], Form]:
    """The inputs with their tensors by names that are the same for the same tensor, and how the result lies (`layout` "": as the first input).

    Folders that are all named alike, and models that are named in no way that is known, keep their names. Raises WeightsError for keys that are
    unknown where layouts differ or another is wanted.
    """
    known = {model: replace(source, space=_space(source)) for model, source in sources.items()}
    first = next(iter(known.values()))
    spaces = {source.space for source in known.values()}
    own = FOLDER if first.folder else SINGLE if first.space and first.space.layout == SINGLE else ""
    alike = len({frozenset(source.tensors) for source in known.values()}) == 1
    as_they_are = known, Form(FOLDER if first.folder else NAMES)
    if layout in ("", own):
        common_already = first.space == KeySpace(FOLDER, "") and not any(map(is_aside, first.tensors))
        if first.space is None or (alike and len(spaces) == 1 and common_already):
            return as_they_are
    try:
        renamed = {model: _renamed(source, label(model)) for model, source in known.items()}
    except WeightsError:
        if alike and layout in ("", own):
            return as_they_are
        raise
    return renamed, _form(first, layout)


def is_aside(name: str) -> bool:
    """Whether a tensor is no part of what is merged: what only single files have, and positions, come from the first input."""
    return name.startswith(f"{EXTRA}.") or name.endswith("position_ids")


def require_alike(sources: Mapping[Model, Source]) -> None:
    """Raise WeightsError, naming them and the layouts, if models differ in names or shapes from the first."""
    first = next(iter(sources))
    wanted, wrong = sources[first].tensors, []
    for model, source in sources.items():
        faults = _faults(wanted, source.tensors)
        if faults:
            wrong.append(f"{label(model)}{_layout(source)}: {sum(faults.values())} tensors: {', '.join(list(faults)[:5])}")
    if wrong:
        raise WeightsError(
            f"モデルの形が揃いません / these models are not of the shape of {label(first)}{_layout(sources[first])}: {'; '.join(wrong)}; "
            "name others, or take one part of each by component"
        )


def label(node: Model | Lora) -> str:
    """How messages call an input."""
    return f"{node.name} ({node.file})" if node.file else node.name


def _space(source: Source) -> KeySpace | None:
    try:
        return key_space(source.headers)
    except WeightsError:
        return None


def _form(first: Source, layout: str) -> Form:
    space = first.space
    if layout == FOLDER or (not layout and first.folder):
        return Form(FOLDER)
    if layout == SINGLE or (space and space.layout == SINGLE):
        return Form(SINGLE, space.family if space and space.layout == SINGLE else "")
    return Form(COMPONENT if space and space.family else NAMES)


def _renamed(source: Source, told: str) -> Source:
    try:
        moved = canonical(source.headers)
    except WeightsError as error:
        raise WeightsError(f"{told}: {error}") from error
    return replace(source, tensors={name: _place(source.tensors, one) for name, one in moved.items()})


def _place(tensors: Mapping[str, Place], moved: Moved) -> Place:
    """Where the tensor is: the bytes of rows are one run of the file."""
    part = moved.slices[0]
    place = tensors[part.source]
    view = "swap" if len(moved.slices) > 1 else moved.view if moved.view == "transpose" else ""
    row = math.prod(place.stored.shape[1:]) * BITS[place.stored.dtype] // 8
    skipped = part.rows[0] * row if part.rows and not view else 0
    return replace(place, stored=Stored(moved.stored.dtype, moved.stored.shape, place.stored.begin + skipped), view=view)


def _faults(wanted: Mapping[str, Place], tensors: Mapping[str, Place]) -> Counter[str]:
    """What is wrong, and with how many tensors."""
    faults = _absent("no", wanted, tensors) + _absent("extra", tensors, wanted)
    for name in sorted(wanted.keys() & tensors.keys()):
        one, other = tensors[name].stored, wanted[name].stored
        if is_aside(name):
            continue
        if one.shape != other.shape:
            faults[f"{name} {list(one.shape)} for {list(other.shape)}"] = 1
        if (one.dtype in TYPES) != (other.dtype in TYPES) or (one.dtype not in TYPES and one.dtype != other.dtype):
            faults[f"{name} {one.dtype} for {other.dtype}"] = 1
    return faults


def _absent(word: str, these: Mapping[str, Place], others: Mapping[str, Place]) -> Counter[str]:
    """The tensors that are not among the others; a component of which none is there is told as one."""
    there = {name.partition(".")[0] for name in others}
    found: Counter[str] = Counter()
    for name in sorted(name for name in these.keys() - others.keys() if not is_aside(name)):
        component = name.partition(".")[0]
        found[f"{word} {component}" if component in COMPONENTS and component not in there else f"{word} {name}"] += 1
    return found


def _layout(source: Source) -> str:
    """What the layout of an input is, for messages."""
    if source.space is None:
        return ""
    if source.space.layout == SINGLE:
        return f" (single file, {source.space.family})"
    try:
        family = family_of(source.headers)
    except WeightsError:
        family = source.space.family or "parts"
    return f" (diffusers, {family})"
