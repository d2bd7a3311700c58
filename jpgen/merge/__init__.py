"""Merging: weight files in, a weight file out, by a recipe that is plain data.

>>> from jpgen.merge import merge, model, slerp
>>> recipe = slerp(model("a.safetensors"), model("b.safetensors"), t={"global": 0.4, "attn": 0.5})
>>> merge(recipe, "out.safetensors")  # doctest: +SKIP

Every method of `jpgen merge methods` is a function here that makes a node of the tree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jpgen.merge.recipe import Free, Lora, Merge, Model, Node, Param, Recipe, require_valid

if TYPE_CHECKING:
    from jpgen.merge.sources import Find

__all__ = ["Free", "Lora", "Merge", "Model", "Recipe", "load_recipe", "lora", "merge", "model"]


def model(name: str | Path, *, file: str = "", component: str = "") -> Model:
    """A model of a recipe: a path or a row of the catalogue."""
    return Model(str(name), file, component)


def lora(name: str | Path, *, file: str = "") -> Lora:
    """An adapter of a recipe, for `add_lora`."""
    return Lora(str(name), file)


def load_recipe(source: str | Path) -> Recipe:
    """See `jpgen.merge.reading.load_recipe`."""
    from jpgen.merge.reading import load_recipe as load

    return load(source)


def merge(recipe: Recipe | Node, output: str | Path, *, find: Find | None = None, threads: int | None = None, dtype: str = "", seed: int = 0) -> Path:
    """Write what a recipe, or a node as it stands, gives, to a `.safetensors` file or a folder; see `jpgen.merge.engine.merge`."""
    from jpgen.merge.engine import merge as run

    def furnish(file: Path, folder: Path) -> None:
        from jpgen.convert import furnish as write  # here: it loads diffusers

        write(file, folder)

    whole = recipe if isinstance(recipe, Recipe) else Recipe(recipe, dtype, seed, Path(output).stem)
    return run(whole, Path(output), find=find, threads=threads, companions=furnish)


def __getattr__(name: str) -> Callable[..., Merge]:
    if name.startswith("_"):
        raise AttributeError(name)
    from jpgen.merge.methods import METHODS

    if name not in METHODS:
        raise AttributeError(f"module 'jpgen.merge' has no attribute {name!r}")

    def node(*inputs: Node, **params: Any) -> Merge:
        """A node of the tree, checked."""
        made = Merge(name, inputs, {key: _param(value) for key, value in params.items()})
        require_valid(Recipe(made, name=name))
        return made

    node.__name__ = node.__qualname__ = name
    return node


def _param(value: Any) -> Param:
    if isinstance(value, Mapping):
        return {str(key): _numbers(one) for key, one in value.items()}
    made: Param = _numbers(value)
    return made


def _numbers(value: Any) -> Any:
    """Numbers of Python as a recipe has them; what is none is left for the check."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(map(_numbers, value))
    return float(value) if isinstance(value, int) else value
