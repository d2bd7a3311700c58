"""A module's forward replaced for a while, and rows taken out of what it is given: what passes, caches, lean and packing are made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

Forward = Callable[..., Any]


@contextmanager
def replaced(module: nn.Module, make: Callable[[Forward], Forward]) -> Iterator[None]:
    """Within, `module.forward` is what `make` makes of it; afterwards it is exactly what it was."""
    own = vars(module).get("forward")  # accelerate's offloading has put one there
    module.forward = make(module.forward)
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def chosen(value: Any, rows: int, take: Callable[[Tensor], Tensor]) -> Any:
    """`take` of every tensor that has `rows` rows, in tuples, lists and dicts too; all else as it is."""
    if isinstance(value, Tensor):
        return take(value) if value.ndim and len(value) == rows else value
    if isinstance(value, dict):
        return {name: chosen(one, rows, take) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(chosen(one, rows, take) for one in value)
    return value
