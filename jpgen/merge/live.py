"""Merging into modules that are open: no file is written, and only tensors whose numbers changed are computed again."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from jpgen.errors import WeightsError

RATIO = (0.25, 4.0)
"""How small and how large the merged weights may be beside those that were there, as norms."""


@dataclass(frozen=True)
class Formula:
    """What tensors become. `numbers(key)`: all that one depends on, so that equal numbers are the equal tensor; `tensor(key)`: it, in fp32."""

    numbers: Callable[[str], Hashable]
    tensor: Callable[[str], Tensor]


class LiveModules:
    """The parameters of open modules under `keys` ("<component>.<name in the module>"), in whose places merged ones can stand for a while.

    What was merged last is kept beside the originals (as much memory again), so that a tensor whose numbers did not change costs nothing.
    """

    def __init__(self, modules: Mapping[str, nn.Module], keys: Sequence[str]) -> None:
        """Raises WeightsError, naming some, for keys that are no parameters or floating-point buffers of the modules."""
        self._slots = {key: slot for key in keys if (slot := _slot(modules, key))}
        if missing := [key for key in keys if key not in self._slots]:
            raise WeightsError(
                f"モデルにない重みです / {len(missing)} of {len(keys)} merged tensors are nowhere in the open model: {', '.join(missing[:5])}; "
                "merge models of its kind"
            )
        self._made: dict[str, tuple[Hashable, nn.Parameter | Tensor]] = {}
        self._norms: dict[str, float] = {}
        self._whole = math.sqrt(sum(_square(slot.value) for slot in self._slots.values()))
        self.computed = 0
        """How many tensors were computed so far."""

    @property
    def keys(self) -> set[str]:
        """The tensors in whose places merged ones can stand."""
        return set(self._slots)

    @contextmanager
    def applied(self, formula: Formula, *, ratio: tuple[float, float] = RATIO) -> Iterator[None]:
        """For the time of the block the modules have the formula's weights, rounded once to their types; afterwards each is the object it was.

        Raises WeightsError before anything is changed: for a shape that does not fit, for values that are not finite (naming the tensor), for weights
        whose norm is not within `ratio` of the norm that was there.
        """
        for key, slot in self._slots.items():
            self._make(key, slot, formula)
        norm = math.sqrt(sum(self._norms.values()))
        times = norm / self._whole if self._whole else 1.0
        if not ratio[0] <= times <= ratio[1]:
            raise WeightsError(
                f"配合した重みの大きさが元の {times:.3g} 倍です / the merged weights are {times:.3g} times as large as those of the model, "
                f"wanted {ratio[0]:g}–{ratio[1]:g}: narrow the ranges of the free numbers"
            )
        try:
            for key, slot in self._slots.items():
                slot.put(self._made[key][1])
            yield
        finally:
            for slot in self._slots.values():
                slot.put(slot.value)

    @torch.no_grad()
    def _make(self, key: str, slot: _Slot, formula: Formula) -> None:
        kept, numbers = self._made.get(key), formula.numbers(key)
        if kept and kept[0] == numbers:
            return
        made = formula.tensor(key)
        if made.shape != slot.value.shape:
            raise WeightsError(f"{key} の形が合いません / {key} comes out as {list(made.shape)}, the model wants {list(slot.value.shape)}")
        self._made.pop(key, None)  # what is half made is not kept
        room = kept[1] if kept else _like(slot.value)
        room.copy_(made)
        self.computed += 1
        if not bool(torch.isfinite(room).all()):
            raise WeightsError(f"{key} に有限でない値が出ました / {key} comes out with values that are not finite: narrow the free numbers' ranges")
        self._made[key], self._norms[key] = (numbers, room), _square(room)


@dataclass(frozen=True)
class _Slot:
    """The place of a parameter or buffer, and what was there."""

    module: nn.Module
    name: str
    value: nn.Parameter | Tensor

    def put(self, value: nn.Parameter | Tensor) -> None:
        place = self.module._parameters if self.name in self.module._parameters else self.module._buffers
        place[self.name] = value  # type: ignore[assignment]  # what was there is of its own kind


def _slot(modules: Mapping[str, nn.Module], key: str) -> _Slot | None:
    component, _, name = key.partition(".")
    path, _, leaf = name.rpartition(".")
    try:
        module = modules[component].get_submodule(path)
    except (KeyError, AttributeError):
        return None
    value = module._parameters.get(leaf)
    found = module._buffers.get(leaf) if value is None else value
    return _Slot(module, leaf, found) if found is not None and found.is_floating_point() else None


def _like(value: nn.Parameter | Tensor) -> nn.Parameter | Tensor:
    """Room of the same shape, type, place and memory format."""
    room = torch.empty_like(value)
    return nn.Parameter(room, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else room


@torch.no_grad()
def _square(value: Tensor) -> float:
    return float(torch.linalg.vector_norm(value.detach(), dtype=torch.float32).double().square())
