"""What a prompt names beside words: LoRAs on the model's weights and embeddings in its vocabulary, found by name in a folder and nowhere else."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from jpgen.adapter_files import EMBEDDINGS, LORAS, SUFFIX, adapter_folder, list_files, nfc
from jpgen.encoders.embeddings import Embedding, names_pattern, read_embedding
from jpgen.errors import IncompatibleError, MetadataError, SettingError, UnknownNameError, WeightsError
from jpgen.lora import Adapter, read_adapter
from jpgen.lora_modules import AdaptedModules
from jpgen.prompt.syntax import parse_attention
from jpgen.protocols import Adaptable, AdaptableBackbone, AdaptingBackbone, Backbone, EmbeddableEncoder, LayeredEncoder, TextBackbone, TextEncoder
from jpgen.safety import PICKLES, refuse_pickle
from jpgen.types import AdapterInfo, Prompt

log = logging.getLogger("jpgen")

MAX_WEIGHT = 100.0

Loras = Mapping[str, float] | Mapping[Path, float]
"""Names in the folder, or paths of files, and their weights. A text is a path if it ends like a file of weights or begins like a path."""

Resolved = tuple[tuple[Adapter, float], ...]


class Adapters:
    """The LoRAs and embeddings of one encoder and one backbone."""

    def __init__(
        self, name: str, encoder: TextEncoder | None, backbone: Backbone | TextBackbone, *, loras: Path | None = None, embeddings: Path | None = None
    ) -> None:
        self._name, self._encoder, self._backbone = name, encoder, backbone
        self._folders = (loras, embeddings)
        own: Mapping[str, nn.Module] = encoder.modules if isinstance(encoder, Adaptable) else {}
        self._modules: AdaptedModules | None = None
        if isinstance(backbone, AdaptableBackbone):
            self._modules = AdaptedModules(name, backbone.family, {**own, **backbone.modules})
        self._read: dict[tuple[str, Path, int, int], Any] = {}
        self.on: tuple[tuple[str, float], ...] = ()
        """Hashes and weights of the LoRAs that the model is changed by now."""

    # ── LoRAs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def named(self, prompts: Sequence[Prompt], loras: Loras) -> tuple[list[Prompt], dict[str, Adapter]]:
        """The prompts with these LoRAs among theirs, and every LoRA of them by name, read and found to fit.

        Raises UnknownNameError (the nearest name is offered), SettingError (a weight), WeightsError, IncompatibleError (this model takes none).
        """
        given = {_own_name(name): (name, weight) for name, weight in loras.items()}
        if len(given) != len(loras):
            raise SettingError(f"同じ名前の LoRA があります / two LoRAs of one name among {', '.join(map(str, loras))}: rename one of the files")
        prompts = [_with_loras(prompt, {own: weight for own, (_, weight) in given.items()}) for prompt in prompts]
        found: dict[str, Adapter] = {}
        for name in dict.fromkeys(name for prompt in prompts for name, _ in prompt.loras):
            told = given[name][0] if name in given else name
            found[name] = self._adapter(Path(told).expanduser() if name in given and _is_path(told) else self._find_lora(name))
        return prompts, found

    @contextmanager
    def applied(self, prompt: Prompt, found: Mapping[str, Adapter]) -> Iterator[None]:
        """For the time of the block the model is changed by the LoRAs of the prompt; afterwards every weight is the very object it was."""
        wanted = [(found[name], weight) for name, weight in total_weights(prompt).items()]
        self.on = tuple((adapter.hash, weight) for adapter, weight in wanted)
        if isinstance(self._backbone, AdaptingBackbone):
            with self._backbone.adapted([(adapter.path, weight) for adapter, weight in wanted]):
                yield
        elif self._modules is not None:
            with self._modules.applied(wanted):
                yield
        else:
            yield

    def _find_lora(self, name: str) -> Path:
        folder = adapter_folder(LORAS, self._folders[0])
        return _found("LoRA", name, list_files(folder), folder, LORAS)

    def _adapter(self, path: Path) -> Adapter:
        if self._modules is None and not (isinstance(self._backbone, AdaptingBackbone) and self._backbone.takes_adapters):
            raise IncompatibleError(
                f"{self._name} に LoRA は使えません / {self._name} takes no LoRA: its pipeline has no way to load one; take <lora:…> out, or choose "
                "a model of the families sd, sdxl, pixart or flux"
            )
        adapter: Adapter = self._once("lora", path, read_adapter)
        if self._modules is not None:
            self._modules.require_fit(adapter)
        return adapter

    # ── embeddings ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def encoder_for(self, prompts: Sequence[Prompt], clip_skip: int) -> TextEncoder | None:
        """The encoder as these prompts want it: with the embeddings they name, and read `clip_skip` layers from its end (0: as it is).

        Raises SettingError where there are no layers to skip, IncompatibleError for an embedding of another family, WeightsError.
        """
        encoder = self._encoder
        if clip_skip:
            if not isinstance(encoder, LayeredEncoder):
                raise SettingError(
                    f"clip_skip={clip_skip}: {self._name} のエンコーダには飛ばせる層がありません / its encoder has no layers to skip: "
                    "leave clip_skip out (it is for CLIP, of Stable Diffusion 1, 2 and XL)"
                )
            encoder = encoder.with_clip_skip(clip_skip)
        names = self.embeddings_of(prompts)
        if names and isinstance(encoder, EmbeddableEncoder):
            return encoder.with_embeddings(names)
        return encoder

    def embeddings_of(self, prompts: Sequence[Prompt]) -> list[Embedding]:
        """The embeddings whose names stand in the prompts or in their negatives; none where the encoder takes none (`require` says so)."""
        if not isinstance(self._encoder, EmbeddableEncoder):
            return []
        files = list_files(adapter_folder(EMBEDDINGS, self._folders[1]))
        used = dict.fromkeys(name for prompt in dict.fromkeys(prompts) for name in _said(prompt, files))
        return [self._once("embedding", files[name], read_embedding) for name in used]

    def require(self, prompts: Sequence[Prompt], clip_skip: int) -> None:
        """Raise what `encoder_for` would, before anything is sampled, and WeightsError for an embedding that is there only as a pickle."""
        self.encoder_for(prompts, clip_skip)
        folder = adapter_folder(EMBEDDINGS, self._folders[1])
        safe = list_files(folder)
        pickles = {name: path for ending in PICKLES for name, path in list_files(folder, ending).items() if name not in safe}
        for prompt in dict.fromkeys(prompts):
            if not isinstance(self._encoder, EmbeddableEncoder):
                if used := _said(prompt, safe):
                    log.warning(
                        "%s は埋め込みを使えないので、%s はただの言葉として読みます / %s takes no embeddings: the names are read as words",
                        self._name, "、".join(used), self._name,
                    )  # fmt: skip
                continue
            for name in _said(prompt, pickles):
                refuse_pickle(pickles[name])

    # ── what was used ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────

    def infos(self, prompt: Prompt, found: Mapping[str, Adapter]) -> tuple[AdapterInfo, ...]:
        """What a picture of this prompt says of them."""
        loras = [AdapterInfo("lora", name, found[name].hash) for name in dict.fromkeys(name for name, _ in prompt.loras)]
        return (*loras, *(AdapterInfo("embedding", one.name, one.hash) for one in self.embeddings_of([prompt])))

    def require_same(self, prompt: Prompt, found: Mapping[str, Adapter], told: Sequence[AdapterInfo], picture: str | Path) -> None:
        """Raise MetadataError unless the files that the prompt names are those that a picture tells of."""
        now = set(self.infos(prompt, found))
        other = sorted(f"{one.kind} {one.name}" for one in now ^ set(told))
        if other:
            names = ", ".join(dict.fromkeys(other))
            raise MetadataError(
                f"{picture} を作った {names} は今のものと違うか、ありません。元のファイルをフォルダーに戻してください / "
                f"made with other files, or they are missing now: {names}; put back the files it was made with, or draw anew with generate()"
            )

    def _once(self, kind: str, path: Path, read: Callable[[Path], Any]) -> Any:
        """What `read` gives of a file, read again only when the file changed."""
        try:
            stat = path.stat()
        except OSError:
            return read(path)  # which says what is wrong
        key = (kind, path, stat.st_mtime_ns, stat.st_size)
        if key not in self._read:
            self._read = {old: value for old, value in self._read.items() if old[:2] != key[:2]} | {key: read(path)}
        return self._read[key]


def _said(prompt: Prompt, names: Iterable[str]) -> list[str]:
    """Those of the names of embeddings that stand in the prompt or in its negative."""
    plain = [name for name in names if "/" not in name]
    if not plain:
        return []
    seen = prompt.seen
    spans = [*(seen.spans or ((seen.text, 1.0),)), *parse_attention(seen.negative)]
    said = {found[0].lower() for text, _ in spans for found in names_pattern(plain).finditer(nfc(text))}
    return [name for name in plain if name.lower() in said]


def total_weights(prompt: Prompt) -> dict[str, float]:
    """The LoRAs of a prompt, each once: one that is named twice counts with the sum. Raises SettingError for a weight beyond ±100."""
    totals: dict[str, float] = {}
    for name, weight in prompt.loras:
        totals[name] = totals.get(name, 0.0) + _weight(name, weight)
    return totals


def _weight(name: str, weight: object) -> float:
    if not isinstance(weight, int | float) or isinstance(weight, bool) or not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise SettingError(f"LoRA {name} の重み {weight!r} は ±{MAX_WEIGHT:g} までの数にしてください / must be finite, up to ±{MAX_WEIGHT:g}")
    return float(weight)


def _with_loras(prompt: Prompt, loras: Mapping[str, float]) -> Prompt:
    """The prompt with these LoRAs too, in its list and in what is written of it; raises as `total_weights`."""
    names = tuple((nfc(name.strip()), weight) for name, weight in prompt.loras)
    new = tuple((name, _weight(name, weight)) for name, weight in loras.items())
    tags = "".join(f" <lora:{name}:{weight:g}>" for name, weight in new)
    made = replace(prompt, loras=(*names, *new), written=f"{prompt.written or prompt.source}{tags}" if tags else prompt.written)
    total_weights(made)
    return made


def _own_name(name: str | Path) -> str:
    return nfc(Path(name).stem if _is_path(name) else str(name).strip())


def _is_path(name: str | Path) -> bool:
    return isinstance(name, Path) or os.path.isabs(name) or name.startswith((".", "~")) or Path(name).suffix.lower() in (SUFFIX, *PICKLES)


def _found(kind: str, name: str, files: Mapping[str, Path], folder: Path, where: tuple[str, str]) -> Path:
    if name in files:
        return files[name]
    if len(same := [known for known in files if known.rsplit("/", 1)[-1] == name]) > 1:
        raise WeightsError(
            f"{kind} {name} が {folder} に {len(same)} 個あります / {len(same)} files of this name in {folder}: write one of {', '.join(same)}"
        )
    if not files:
        there = "にファイルがありません / holds no .safetensors files" if folder.is_dir() else "がありません / is not there"
        raise UnknownNameError(
            f"{kind} {name!r} はありません / unknown {kind} {name!r}: フォルダー {folder} {there}; put it there, or name another folder in {where[0]}"
        )
    try:
        raise UnknownNameError.of(kind, name, files)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error} ({folder})") from None


def parse_loras(texts: Iterable[str]) -> dict[str, float]:
    """`FILE` or `FILE:WEIGHT`, each; what is named twice counts with the sum. Raises as `parse_lora`."""
    totals: dict[str, float] = {}
    for name, weight in map(parse_lora, texts):
        totals[name] = totals.get(name, 0.0) + weight
    return totals


def parse_lora(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:WEIGHT`; raises SettingError if there is no file. A colon in a path that no number follows is part of it."""
    found = re.fullmatch(r"(.+?)(?::([-+]?(?:\d+\.?\d*|\.\d+|nan|inf)))?", text.strip(), re.IGNORECASE)
    if not found:
        raise SettingError(f"--lora {text!r} は FILE か FILE:0.8 のように書いてください / write FILE or FILE:0.8")
    return found[1], float(found[2] or 1)
