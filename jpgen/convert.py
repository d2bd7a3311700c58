"""Models from one layout into the other: a single file (A1111, LDM, BFL …) into a diffusers folder with its configs, and back, tensor by tensor."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jpgen.backbones import single_file
from jpgen.backbones.configs import flux_config, pixart_config
from jpgen.backbones.unet import SCHEDULE
from jpgen.encoders.single_file import clip_config
from jpgen.errors import OutputError, SettingError, WeightsError
from jpgen.merge.files import Tensors, joined, require_space, standard_order, write_tensors
from jpgen.merge.keys import FAMILIES, Headers, KeySpace, Moved, canonical, key_space, single
from jpgen.merge.names import is_aside
from jpgen.merge.sources import ONLY_SINGLE
from jpgen.safety import check_safetensors, read_json

LAYOUTS = ("diffusers", "single")

NOTE = "jpgen.single_file"
"""Metadata in a folder's ONLY_SINGLE: what the single file had of its own (metadata, order, family), as JSON."""

CLASSES = {
    "unet": "UNet2DConditionModel", "vae": "AutoencoderKL", "flux": "FluxTransformer2DModel", "pixart": "PixArtTransformer2DModel",
}  # fmt: skip


SAMPLES = {"sd1": (64, 64), "sd2": (64, 96), "sdxl": (128, 128)}
"""Side of the latents that a family was trained for, of models that predict noise and of those that predict v; no tensor tells it."""


def convert(source: Path, output: Path, *, layout: str = "") -> Path:
    """Write the model `source` (a `.safetensors` file or a diffusers folder) to `output` in the other layout, or in `layout`; returns `output`.

    Tensors keep their bytes and types, one at a time is in memory; metadata are kept, and a single file that became a folder becomes the same file
    again. Nothing is there before all is. Raises WeightsError for unknown or left-over tensors (listing them), SettingError and OutputError.

        >>> convert(Path("model.safetensors"), Path("model"))  # doctest: +SKIP
        PosixPath('model')
    """
    layout = layout or ("single" if output.suffix == ".safetensors" else "diffusers")
    if layout not in LAYOUTS:
        raise SettingError(f"layout {layout!r} はありません / there is no layout {layout!r}: {' or '.join(LAYOUTS)}")
    if (layout == "single") != (output.suffix == ".safetensors"):
        wanted = "a .safetensors file" if layout == "single" else "a folder"
        raise SettingError(f"{output}: 出力先が形式と合いません / the layout {layout} is {wanted}: name one, or another --layout")
    if source.resolve() == output.resolve():
        raise SettingError(f"{output}: 入力と出力が同じです / the output is the input: name another")
    with Tensors.of_folder(source) if source.is_dir() else Tensors.of_file(source) as tensors:
        space = key_space(tensors.headers)
        plan = canonical(tensors.headers)
        if layout == "single":
            return _write_single(source, output, tensors, plan, space)
        return _write_folder(source, output, tensors, plan, space)


# ── into a single file ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_single(source: Path, output: Path, tensors: Tensors, plan: Mapping[str, Moved], space: KeySpace) -> Path:
    if space.layout == "single":
        raise SettingError(f"{source}: 変換ずみの形式です / is named as single files are already: nothing to convert")
    metadata = joined(kept for path, kept in tensors.metadata.items() if path.name != ONLY_SINGLE)
    note = _note(check_safetensors(source / ONLY_SINGLE).metadata if (source / ONLY_SINGLE).is_file() else {})
    metadata = {**note.get("metadata", {}), **{key: value for key, value in metadata.items() if not (note and key == "format")}}
    scheduler = source / "scheduler" / "scheduler_config.json"
    if not note and scheduler.is_file() and read_json(scheduler).get("prediction_type") == "v_prediction":
        metadata.setdefault("modelspec.prediction_type", "v")
    made = single({name: moved.stored for name, moved in plan.items()}, note.get("family", ""))
    # of a folder, canonical tensors are those of its files by other names at most
    named = {name: tuple(replace(one, source=plan[one.source].slices[0].source) for one in moved.slices) for name, moved in made.items()}
    composed = {name: replace(moved, slices=named[name]) for name, moved in made.items()}
    order = note.get("order")
    return write_tensors(output, composed, tensors.read, metadata=metadata, order=order if order and sorted(order) == sorted(composed) else None)


def _note(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a folder notes of the single file that it was; nothing if it is not as it was written."""
    try:
        note = json.loads(metadata.get(NOTE, "{}"))
    except (ValueError, RecursionError):
        return {}
    told, order = (note.get("metadata"), note.get("order", [])) if isinstance(note, dict) else (None, None)
    fits = isinstance(told, dict) and all(isinstance(value, str) for value in told.values()) and note.get("family") in FAMILIES
    return note if fits and isinstance(order, list) and all(isinstance(name, str) for name in order) else {}


# ── into a folder ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _write_folder(source: Path, output: Path, tensors: Tensors, plan: Mapping[str, Moved], space: KeySpace) -> Path:
    if space.layout == "diffusers":
        raise SettingError(f"{source}: 変換ずみの形式です / is named as in diffusers already: nothing to convert")
    if (output.is_dir() and any(output.iterdir())) or output.is_file():
        raise OutputError(f"{output} は空ではありません / {output} is there and not empty: name a new folder")
    parts, kept = _parts(plan)
    configs = _configs(source, tensors.headers, parts, space.family)
    (metadata,) = tensors.metadata.values()
    note: dict[str, Any] = {"metadata": dict(metadata), "family": space.family}
    order = list(tensors.headers)
    partial = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        partial.mkdir(parents=True)
        require_space(partial, source.stat().st_size)
        for component, own in parts.items():
            file = "model" if component.startswith("text_encoder") else "diffusion_pytorch_model"
            write_tensors(partial / component / f"{file}.safetensors", own, tensors.read, metadata={"format": "pt"})
        if order != standard_order(tensors.headers):
            note["order"] = order
        if kept or "order" in note or metadata != {"format": "pt"} or space.family.endswith("-prefixed"):
            write_tensors(partial / ONLY_SINGLE, kept, tensors.read, metadata={"format": "pt", NOTE: json.dumps(note, ensure_ascii=False)})
        _write_beside(source, partial, parts, configs, space.family)
        os.replace(partial, output)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{output} に書き込めません / cannot write {output}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output


def furnish(source: Path, folder: Path) -> None:
    """Write what the single file `source` needs as a folder into one that has weights of it: configs, a scheduler's settings, tokenizers.

    Where components of the file are not there, neither are configs of the whole. Raises WeightsError for a file that no configs can be told of.
    """
    headers = check_safetensors(source).tensors
    space = key_space(headers)
    parts, _ = _parts(canonical(headers))
    there = {component: own for component, own in parts.items() if (folder / component).is_dir()}
    configs = {
        place: config
        for place, config in _configs(source, headers, parts, space.family).items()
        if len(there) == len(parts) or place.partition("/")[0] in there
    }
    _write_beside(source, folder, there, configs, space.family)


def _parts(plan: Mapping[str, Moved]) -> tuple[dict[str, dict[str, Moved]], dict[str, Moved]]:
    """The tensors of each component by their names in it, and those that only the single file has."""
    parts: dict[str, dict[str, Moved]] = {}
    kept: dict[str, Moved] = {}
    for name, moved in plan.items():
        component, _, inner = name.partition(".")
        if is_aside(name):
            kept[name] = moved
        else:
            parts.setdefault(component, {})[inner] = moved
    return parts, kept


def _write_beside(
    source: Path, folder: Path, parts: Mapping[str, Mapping[str, Moved]], configs: Mapping[str, Mapping[str, Any]], family: str
) -> None:
    for place, config in configs.items():
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", "utf-8")
    for component in parts:
        if component.startswith("text_encoder"):
            tokenizer = _text(source, parts[component], component, family)[1]
            tokenizer.inner.save_pretrained(folder / component.replace("text_encoder", "tokenizer"))


def _configs(source: Path, headers: Headers, parts: Mapping[str, Mapping[str, Moved]], family: str) -> dict[str, dict[str, Any]]:
    """The JSON files of the folder, told by the shapes of its tensors."""
    if family == "sdxl-refiner":
        raise WeightsError(f"{source}: refiner はフォルダにできません / SDXL's refiner cannot become a folder here: use the file as it is")
    shapes = {name: stored.shape for name, stored in headers.items()}
    made: dict[str, dict[str, Any]] = {}
    if "transformer" in parts:
        kind = family.removesuffix("-prefixed")
        own = {name: moved.stored.shape for name, moved in parts["transformer"].items()}
        position = next((stored.shape for name, stored in headers.items() if name.endswith("pos_embed")), None)
        config = flux_config(own) if kind == "flux" else pixart_config(own, position)
        return {"transformer/config.json": {"_class_name": CLASSES[kind], **config}}
    if "unet" in parts:
        prefix = FAMILIES[family]["unet"][0]
        inside = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        pooled = parts.get("text_encoder_2", {}).get("text_projection.weight")
        config = single_file.unet_config(inside, pooled.stored.shape[0] if pooled else None, source)
        by_v = single_file.prediction(source)["prediction_type"] == "v_prediction" if family in SAMPLES else False
        side = {"sample_size": SAMPLES[family][by_v]} if family in SAMPLES else {}
        made["unet/config.json"] = {"_class_name": CLASSES["unet"], **config, **side}
    if "vae" in parts:
        own = {name: moved.stored.shape for name, moved in parts["vae"].items()}
        config = single_file.vae_config(own, "sdxl" if family == "sdxl" else "sd", source)
        made["vae/config.json"] = {"_class_name": CLASSES["vae"], **config}
    texts = [component for component in ("text_encoder", "text_encoder_2") if component in parts]
    for component in texts:
        kind = "CLIPTextModelWithProjection" if "text_projection.weight" in parts[component] else "CLIPTextModel"
        text = _text(source, parts[component], component, family)[0].to_diff_dict()
        made[f"{component}/config.json"] = {**text, "architectures": [kind]}
    if {"unet", "vae", "text_encoder"} <= parts.keys():
        made |= _pipeline(source, family, made)
    return made


def _text(source: Path, own: Mapping[str, Moved], component: str, family: str) -> Any:
    """Config and tokenizer of a text encoder."""
    shapes = {name.removeprefix("text_model."): moved.stored.shape for name, moved in own.items()}
    return clip_config(shapes, source, is_open=FAMILIES[family][component][1] == "openclip")


def _pipeline(source: Path, family: str, parts: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    scheduler = {"_class_name": "DDIMScheduler", **SCHEDULE, **single_file.prediction(source)}
    index: dict[str, Any] = {"_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "unet": ["diffusers", CLASSES["unet"]], "vae": ["diffusers", CLASSES["vae"]]}
    for place, config in parts.items():
        component = place.partition("/")[0]
        if component.startswith("text_encoder"):
            index[component] = ["transformers", config["architectures"][0]]
            index[component.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if family == "sdxl":
        index["force_zeros_for_empty_prompt"] = True
    else:
        index |= {"safety_checker": [None, None], "feature_extractor": [None, None], "requires_safety_checker": False}
    return {"scheduler/scheduler_config.json": scheduler, "model_index.json": index}


__all__ = ["LAYOUTS", "convert", "furnish"]
