"""Merge methods, and what their signatures say: one function a method, fp32 tensors of one shape in, one out.

Positional parameters are the models (`*models`: any number), keyword ones the numbers of a recipe with their ranges. Most methods are given tensors
in tiles, which they may write on: what they must know of whole tensors they say by `seen` (see `jpgen.merge.looks`), where a tile lies they ask by
`part`, and `generator` is what a method of chance draws from. Those of a module's ROWS are given whole rows, those of WHOLE whole tensors.
The methods are in `jpgen.merge.linear`, `deltas` and `geometry`; a new one is a function in one of them, named in its METHODS.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, get_type_hints

import jpgen.merge.deltas as deltas
import jpgen.merge.geometry as geometry
import jpgen.merge.linear as linear
from jpgen.errors import UnknownNameError
from jpgen.merge.looks import Looks
from jpgen.merge.ranges import CHANCE, PART, SEEN, Each, Range

MODULES: tuple[ModuleType, ...] = (linear, deltas, geometry)

ADD_LORA = "add_lora"
"""The method whose inputs after the first are adapters."""

METHODS: tuple[str, ...] = tuple(name for module in MODULES for name in module.METHODS)
"""The names of all methods, in the order of their kinds."""


@dataclass(frozen=True)
class Parameter:
    """A number that a method takes: its range, and whether there is one for `each` model (of `*models` if the method has those)."""

    name: str
    range: Range
    each: bool
    flag: bool
    default: float | None


@dataclass(frozen=True)
class Method:
    """A method as its signature has it: `first` models before the variadic ones, `variadic`: how many more at least (None: none may follow).

    A method that is not `whole` takes tensors in tiles, if `rows` in tiles of whole rows, and may write on its inputs, which must be its own: it then
    needs no memory but theirs. One that is `whole` leaves them as they are. `looks` are the passes it wants before it makes a value; `placed`: it
    asks where a tile lies.
    """

    name: str
    call: Any
    about: str
    first: int
    variadic: int | None
    parameters: Mapping[str, Parameter]
    chance: bool
    placed: bool
    rows: bool
    whole: bool
    looks: Looks

    @property
    def elementwise(self) -> bool:
        """Whether a value of the result comes of the values at its place alone, whatever tensor they are of."""
        return not (self.whole or self.rows or self.placed or self.looks)

    @property
    def inputs(self) -> str:
        """How many models it takes, in words."""
        return str(self.first) if self.variadic is None else f"{self.first + self.variadic} or more"

    def takes(self, count: int) -> bool:
        """Whether it takes so many models."""
        return count == self.first if self.variadic is None else count >= self.first + self.variadic

    def copies(self, values: Mapping[str, Any], count: int) -> int | None:
        """The input that the result is equal to whatever is in the others, for these numbers; None if it is no copy."""
        told = linear.COPIES.get(self.name)
        return told(values, count) if told else None


@cache
def find_method(name: str) -> Method:
    """The method of this name; raises UnknownNameError offering the nearest."""
    for module in MODULES:
        if name in module.METHODS:
            return _described(name, getattr(module, name), rows=name in module.ROWS, whole=name in module.WHOLE)
    raise UnknownNameError.of("配合の方法 / merge method", name, METHODS)


def _described(name: str, call: Any, *, rows: bool, whole: bool) -> Method:
    signature = inspect.signature(call)
    hints = get_type_hints(call, include_extras=True)
    first = sum(one.kind is one.POSITIONAL_OR_KEYWORD for one in signature.parameters.values())
    variadic = next((1 if first else 2 for one in signature.parameters.values() if one.kind is one.VAR_POSITIONAL), None)
    parameters = {}
    for key, one in signature.parameters.items():
        if one.kind is not one.KEYWORD_ONLY or key in (CHANCE, SEEN, PART):
            continue
        hint = hints[key]
        found = [Range(0.0, 1.0), *(extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Range))][-1]
        default = None if one.default is one.empty else float(one.default)
        parameters[key] = Parameter(key, found, any(extra is Each for extra in getattr(hint, "__metadata__", ())), hint is bool, default)
    about = " ".join((inspect.getdoc(call) or "").split())
    looks: Looks = next((extra for extra in getattr(hints.get(SEEN), "__metadata__", ()) if isinstance(extra, tuple)), ())
    asked = signature.parameters
    return Method(name, call, about, first, variadic, parameters, CHANCE in asked, PART in asked, rows, whole, looks)
