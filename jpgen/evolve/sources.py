"""Where the weights of a recipe's models are, read a tensor at a time: files stay mapped, so that no model is ever whole in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.merged import open_model
from jpgen.safety import sha256_of
from jpgen.weights import find_weights, load_weights


@runtime_checkable
class Model(Protocol):
    """A model of a recipe (`jpgen.merge.recipe.Model`)."""

    @property
    def name(self) -> str:
        """A path, or a name of the catalogue."""

    @property
    def file(self) -> str:
        """The file of its folder; "": that of the component."""

    @property
    def component(self) -> str:
        """"unet", "transformer", "text_encoder" …; "": the denoiser of the open pipeline."""


class Sources:
    """The open weights of some models; of one that tells no component, `default` is it (the denoiser of the open pipeline).

    Keys are "<component>.<name in the module>". Raises WeightsError for what is missing or damaged.
    """

    def __init__(self, models: Sequence[Model], *, default: str, folder: Path = Path()) -> None:
        self._default = default
        self._files = {model: _files(model, self.component(model), folder) for model in models}
        self._open: dict[Model, Mapping[str, Tensor]] = {}

    @property
    def digests(self) -> list[list[str]]:
        """SHA-256 of every file, by model."""
        return [[sha256_of(path) for path in paths] for paths in self._files.values()]

    def component(self, model: Model) -> str:
        """The component of a model that is meant."""
        return model.component or self._default

    def keys(self, model: Model) -> list[str]:
        """The floating-point tensors of a model, sorted."""
        return sorted(f"{self.component(model)}.{name}" for name, tensor in self._tensors(model).items() if tensor.is_floating_point())

    def read(self, model: Model, key: str) -> Tensor:
        """A tensor of a model, as it is stored."""
        component, _, name = key.partition(".")
        tensors = self._tensors(model) if component == self.component(model) else {}
        if name not in tensors:
            raise WeightsError(f"{model.name} に {key} がありません / {model.name} has no tensor {key}: merge models of one kind")
        return tensors[name]

    def _tensors(self, model: Model) -> Mapping[str, Tensor]:
        if model not in self._open:
            tensors = {name: tensor for path in self._files[model] for name, tensor in load_weights(path, None).items()}
            prefix = f"{self.component(model)}."
            whole = all(name.startswith(prefix) for name in tensors)
            self._open[model] = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()} if whole else tensors
        return self._open[model]


def _files(model: Model, component: str, folder: Path) -> list[Path]:
    """The file or shards of a component: of a path from here or from `folder`, else of a row of the catalogue."""
    for place in (Path(model.name).expanduser(), folder / model.name):
        if place.is_file():
            return [place]
        if place.is_dir():
            return [place / model.file] if model.file else find_weights(place / component if (place / component).is_dir() else place, dtype=None)
    entry = open_model(model.name)
    if entry.place.is_file() or model.file:
        return [entry.folder / model.file if model.file else entry.place]
    return find_weights(entry.folder / component, dtype=None)
