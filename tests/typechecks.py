"""How functions are checked by their types as the tests run (--jaxtyping-packages in pyproject.toml)."""

import inspect
from collections.abc import Callable
from typing import Any

from beartype import beartype

KNOWN: dict[Any, Callable[..., Any]] = {}


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """beartype, asked once for a function that stands in another one, which is decorated at every call of that: 2 ms, more than most of them run.

    jaxtyping hands over a function that has the signature and does nothing, so that one checks for all.
    """
    if "<locals>" not in function.__qualname__:
        return beartype(function)
    place = function.__module__, function.__qualname__, inspect.signature(function)
    if place not in KNOWN:
        KNOWN[place] = beartype(function)
    return KNOWN[place]
