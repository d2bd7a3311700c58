"""Text encoders: one file a kind, each with `load(folder)` and `toy()`."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jpgen.compute import best_dtype
from jpgen.errors import UnknownNameError, WeightsError
from jpgen.protocols import TextEncoder
from jpgen.safety import check_safetensors
from jpgen.weights import find_weights

if TYPE_CHECKING:
    from torch import Tensor

PARTS = frozenset({"adapted", "embeddings", "pairing", "remembered", "single_file", "tokenizers"})
"""Files here that are parts of encoders."""


def kinds() -> list[str]:
    """The kinds of encoder there are files for."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in PARTS)


def checked_variant(folder: Path) -> str | None:
    """The variant ("fp16") whose weights transformers shall read in this folder, None: the plain ones. Raises WeightsError if they are not sound."""
    files = find_weights(folder, "model", best_dtype())
    for file in files:
        check_safetensors(file)
    return next((variant for variant in ("fp16", "bf16") if f".{variant}" in files[0].name), None)


@contextmanager
def weightless() -> Iterator[None]:
    """Within, modules are built with weights on the meta device, to be filled in (see `fill`), and nothing is drawn at random for them."""
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights

    with init_empty_weights(include_buffers=False), no_init_weights():
        yield


def fill(model: Any, state: Mapping[str, Tensor], place: Path) -> None:
    """Give a module that was built `weightless` its tensors, of which more may be there than it wants; raises WeightsError."""
    names = model.state_dict().keys()
    if missing := sorted(name for name in names if name not in state):
        raise WeightsError(
            "エンコーダの重みが足りません / "
            f"{place} has no {', '.join(missing[:5])} ({len(missing)} tensors): not the weights of this config; fetch the model again"
        )
    try:
        model.load_state_dict({name: state[name] for name in names}, assign=True)
    except RuntimeError as error:
        why = " ".join(str(error).split())
        raise WeightsError(f"{place}: エンコーダの重みが合いません / the encoder's weights do not match its config: {why}") from error


def tower_of(folder: Path, text_encoder: str) -> Path:
    """Where a text tower's own folder is: `text_encoder` as a path from the model's folder (or from that of its file), else `text_encoder/`."""
    return (folder.parent if folder.is_file() else folder) / Path(text_encoder or "text_encoder").expanduser()


def read_as(kind: Any, told: Mapping[str, Any], place: Path) -> Any:
    """The config of this class of transformers from what a folder's config.json tells; raises WeightsError."""
    try:
        return kind(**told)
    except Exception as error:  # transformers' checks raise errors of their own, TypeError and ValueError
        why = " ".join(str(error).split())
        raise WeightsError(
            f"設定ファイルが合いません / {place / 'config.json'} is not a config of {kind.__name__} ({why}); fetch the model again"
        ) from error


def load_encoder(kind: str, folder: Path, **parts: str | int | float | bool) -> TextEncoder:
    """The encoder of this kind with the weights in `folder`; of an entry's parts its `load` is given those it has an argument for.

    Raises UnknownNameError, WeightsError or IncompatibleError.
    """
    if kind not in kinds():
        raise UnknownNameError.of("エンコーダ / text encoder", kind, kinds())
    load = importlib.import_module(f"jpgen.encoders.{kind}").load
    wanted = inspect.signature(load).parameters
    encoder: TextEncoder = load(folder, **{name: value for name, value in parts.items() if name in wanted and name != "folder"})
    return encoder
