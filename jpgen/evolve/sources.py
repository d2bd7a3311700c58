"""Where the weights of a recipe's models are, read a tensor at a time: files stay mapped, so that no model is ever whole in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.merged import open_model
from jpgen.safety import sha256_of
from jpgen.weights import find_weights, load_weights


class Model(Protocol):
    """A model of a recipe: a file, a folder or a name of the catalogue; one component of it, if told."""

    @property
    def name(self) -> str:
        """A path, or a name of the catalogue."""

    @property
    def component(self) -> str | None:
        """"unet", "transformer", "text_encoder" …"""


class Sources:
    """The open weights of some models; of one that tells no component, `default` is it (the denoiser of the open pipeline).

    Keys are "<component>.<name in the module>". Raises WeightsError for what is missing or damaged.
    """

    def __init__(self, models: Sequence[Model], *, default: str, folder: Path = Path()) -> None:
        self._default = default
        self._files = {self._place(model): _files(model.name, component, folder) for model in models for component in [self._place(model)[1]]}
        self._open: dict[tuple[str, str], Mapping[str, Tensor]] = {}

    @property
    def digests(self) -> dict[str, list[str]]:
        """SHA-256 of every file, by model and component."""
        return {f"{name} ({component})": [sha256_of(path) for path in paths] for (name, component), paths in sorted(self._files.items())}

    def keys(self, model: Model) -> list[str]:
        """The floating-point tensors of a model, sorted."""
        component = self._place(model)[1]
        return sorted(f"{component}.{name}" for name, tensor in self._tensors(model).items() if tensor.is_floating_point())

    def read(self, model: Model, key: str) -> Tensor:
        """A tensor of a model, as it is stored."""
        component, _, name = key.partition(".")
        tensors = self._tensors(model) if component == self._place(model)[1] else {}
        if name not in tensors:
            raise WeightsError(f"{model.name} に {key} がありません / {model.name} has no tensor {key}: merge models of one kind")
        return tensors[name]

    def _place(self, model: Model) -> tuple[str, str]:
        return model.name, model.component or self._default

    def _tensors(self, model: Model) -> Mapping[str, Tensor]:
        place = self._place(model)
        if place not in self._open:
            paths = self._files[place]
            tensors = {name: tensor for path in paths for name, tensor in load_weights(path, None).items()}
            prefix = f"{place[1]}."
            bare = all(name.startswith(prefix) for name in tensors)
            self._open[place] = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()} if bare else tensors
        return self._open[place]


def _files(name: str, component: str, folder: Path) -> list[Path]:
    """The file or shards of a component."""
    for place in (Path(name).expanduser(), folder / name):
        if place.is_file():
            return [place]
        if place.is_dir():
            return find_weights(place / component if (place / component).is_dir() else place, dtype=None)
    entry = open_model(name)
    if entry.place.is_file():
        return [entry.place]
    return find_weights(entry.folder / component, dtype=None)
