"""What a search wants of recipes, and a recipe at some numbers as a formula for live modules."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from jpgen.errors import StudyError
from jpgen.evolve.sources import Model, Sources
from jpgen.merge.live import Formula
from jpgen.merge.search import FreeNumber


class Recipe(Protocol):
    """A tree of models and methods with free numbers (`jpgen.merge.recipe.Recipe`)."""

    @property
    def root(self) -> Any:
        """The uppermost node."""

    def free(self) -> Mapping[str, FreeNumber]:
        """Its free numbers by path, in a stable order."""

    def fixed(self, numbers: Mapping[str, float], /) -> Recipe:
        """With these numbers in their places."""

    def to_data(self) -> dict[str, Any]:
        """As plain data."""


Read = Callable[[Any, str], Tensor]
"""A model's tensor: (model, key) -> as it is stored."""

Evaluate = Callable[[Any, str, Read], Tensor]
"""One tensor of a recipe without free numbers, fp32 (`jpgen.merge.evaluation.evaluate`)."""

Numbers = Callable[[Any, str], Hashable]
"""All of such a recipe that one tensor depends on; of equal ones the tensors are equal (`jpgen.merge.evaluation.expression`)."""


def parents(node: Any) -> list[Model]:
    """The whole models of a tree, in order, each once; raises StudyError if there is none."""
    found = list(dict.fromkeys(one for one in leaves(node) if hasattr(one, "component")))  # an adapter is for no component
    if not found:
        raise StudyError("レシピにモデルがありません / the recipe has no model")
    return found


def leaves(node: Any) -> Iterator[Any]:
    """The models and adapters of a tree, in order."""
    if not hasattr(node, "inputs"):
        yield node
        return
    for below in node.inputs:
        yield from leaves(below)


class Formulas:
    """Formulas for live modules: a recipe at some numbers, a parent as it is, the plain average of all parents."""

    def __init__(self, recipe: Recipe, sources: Sources, *, evaluate: Evaluate, numbers: Numbers) -> None:
        self._recipe, self._sources, self._evaluate, self._numbers = recipe, sources, evaluate, numbers
        self.parents = parents(recipe.root)

    @property
    def keys(self) -> list[str]:
        """The tensors that are merged: those of the first parent."""
        return self._sources.keys(self.parents[0])

    @property
    def digests(self) -> list[list[str]]:
        """SHA-256 of every file that goes in, by model."""
        return self._sources.digests

    def merged(self, numbers: Mapping[str, float]) -> Formula:
        """The recipe at these numbers."""
        fixed = self._recipe.fixed(numbers)
        return Formula(lambda key: ("recipe", self._numbers(fixed, key)), lambda key: self._evaluate(fixed, key, self._sources.read))

    def parent(self, index: int) -> Formula:
        """A parent's own weights; raises StudyError for a parent that is not there."""
        if not 0 <= index < len(self.parents):
            raise StudyError(f"親 {index} はありません / there is no parent {index}: 0…{len(self.parents) - 1}")
        model = self.parents[index]
        return Formula(lambda _: ("parent", index), lambda key: self._sources.read(model, key).float())

    def average(self) -> Formula:
        """The plain average of the parents."""

        def tensor(key: str) -> Tensor:
            return torch.stack([self._sources.read(model, key).float() for model in self.parents]).mean(dim=0)

        return Formula(lambda _: ("average",), tensor)
