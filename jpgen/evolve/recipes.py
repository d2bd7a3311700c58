"""What a search wants of recipes, and a recipe at some numbers as a formula for live modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


EvaluateNode = Callable[[Any, str, Callable[[Any, str], Tensor]], Tensor]
"""One tensor of a node: (node, key, read) -> fp32 tensor (`jpgen.merge.engine.evaluate`)."""


def parents(node: Any) -> list[Model]:
    """The whole models of a tree, in order, each once; raises StudyError if there is none."""
    found = list({(one.name, one.component): one for one in _leaves(node)}.values())
    if not found:
        raise StudyError("レシピにモデルがありません / the recipe has no model")
    return found


def _leaves(node: Any) -> Iterator[Model]:
    if hasattr(node, "inputs"):
        for below in node.inputs:
            yield from _leaves(below)
    elif hasattr(node, "component"):  # a LoRA is for no component
        yield node


Choose = Callable[[Mapping[str, Any], str], Any]
"""What of a parameter's numbers by group counts for a key (`jpgen.merge.groups.chosen`): (groups, key) -> number, None for none of them."""


class Formulas:
    """Formulas for live modules: a recipe at some numbers, a parent as it is, the plain average of all parents."""

    def __init__(self, recipe: Recipe, sources: Sources, *, evaluate: EvaluateNode, choose: Choose) -> None:
        self._recipe, self._sources, self._evaluate, self._choose = recipe, sources, evaluate, choose
        self.parents = parents(recipe.root)

    @property
    def keys(self) -> list[str]:
        """The tensors that are merged: those of the first parent."""
        return self._sources.keys(self.parents[0])

    @property
    def digests(self) -> dict[str, list[str]]:
        """SHA-256 of every file that goes in."""
        return self._sources.digests

    def merged(self, numbers: Mapping[str, float]) -> Formula:
        """The recipe at these numbers; a tensor depends on those of its groups alone."""
        root = self._recipe.fixed(numbers).root
        return Formula(lambda key: ("recipe", *self._numbers(root, key)), lambda key: self._evaluate(root, key, self._sources.read))

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

    def _numbers(self, node: Any, key: str) -> Iterator[object]:
        """The numbers of the tree that count for a key, always in the same order."""
        if not hasattr(node, "inputs"):
            return
        for below in node.inputs:
            yield from self._numbers(below, key)
        for name in sorted(node.params):
            value = node.params[name]
            yield self._choose(value, key) if isinstance(value, Mapping) else value
