"""What a file or folder of weights is, told by its JSON files and the names and shapes in safetensors headers: no tensor is read, no code is run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from jpgen.errors import WeightsError
from jpgen.safety import check_safetensors, read_json
from jpgen.types import SamplingConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Names of tensors and their shapes."""

UNET = "model.diffusion_model."
"""What the names of a U-Net's tensors begin with in the layout of stable-diffusion-webui (A1111, LDM)."""


@dataclass(frozen=True)
class Layout:
    """What was found: `kind` "folder" or "file" (a whole model), else the part it is ("unet" "transformer" "vae" "lora" "controlnet" "embedding").

    `family` and `encoder` name files of jpgen/backbones and jpgen/encoders ("": none); `variant` says which of the family ("sd1", "jsdxl" …);
    `default` are the settings it was trained for, None for parts.
    """

    kind: str
    variant: str
    family: str = ""
    encoder: str = ""
    default: SamplingConfig | None = None

    @property
    def is_model(self) -> bool:
        """Whether pictures can be made of it alone."""
        return self.kind in ("folder", "file")


FAMILIES = {
    "sd1": ("sd", "clip"), "sd2": ("sd", "clip"), "sdxl": ("sdxl", "sdxl"), "jsdxl": ("sdxl", "jsdxl"),
    "pixart": ("pixart", "llm"), "pixart-t5": ("pixart", "t5"), "mame": ("pixart", "bert"), "flux": ("flux", "flux"), "diffusers": ("diffusers", ""),
}  # fmt: skip
"""Variant -> backbone family and kind of encoder."""

DEFAULTS = {
    "sd1": SamplingConfig(512, 512, 25, 7.5), "sd2": SamplingConfig(768, 768, 25, 7.5), "sdxl": SamplingConfig(1024, 1024, 25, 5.0),
    "jsdxl": SamplingConfig(1024, 1024, 25, 7.5), "pixart": SamplingConfig(512, 512, 20, 4.5, emphasis="comfy"),
    "pixart-t5": SamplingConfig(1024, 1024, 20, 4.5, emphasis="comfy"),
    "mame": SamplingConfig(256, 256, 16, 4.0, emphasis="comfy"), "flux": SamplingConfig(1024, 1024, 28, 3.5, "own"),
    "diffusers": SamplingConfig(1024, 1024, 25, 5.0, "own"),
}  # fmt: skip
"""Variant -> settings where the files say nothing of them."""


def recognise(path: Path) -> Layout:
    """The layout of a folder or a `.safetensors` file; raises WeightsError naming what was seen if it is none of those known."""
    if path.is_dir():
        return _recognise_folder(path)
    shapes = {name: stored.shape for name, stored in check_safetensors(path).tensors.items()}
    for kind, told, variant in FILES:
        if told(shapes):
            which = variant if isinstance(variant, str) else variant(shapes)
            family, encoder = FAMILIES.get(which, ("", ""))
            return Layout(kind, which, family, encoder if kind == "file" else "", DEFAULTS.get(which) if kind == "file" else None)
    raise WeightsError(
        f"{path} は知らない形式です / {path}: unknown layout; its first keys are {', '.join(sorted(shapes)[:5]) or '(none)'}. "
        "Wanted a diffusers folder, a single file of Stable Diffusion 1, 2 or XL, a LoRA or a VAE"
    )


# ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _has(*fragments: str) -> Callable[[Shapes], bool]:
    """Whether every fragment is in the name of some tensor."""
    return lambda shapes: all(any(fragment in name for name in shapes) for fragment in fragments)


def _any(pattern: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(re.search(pattern, name) for name in shapes)


def _unet_variant(shapes: Shapes) -> str:
    """sdxl has embedded sizes; of the others, the width of the text states tells."""
    if _any(r"(^|\.)(label_emb\.0\.0|add_embedding\.linear_1)\.weight$")(shapes):
        return "sdxl"
    return _by_width(shapes, r"attn2[._]to_k\.weight$")


def _by_width(shapes: Shapes, pattern: str) -> str:
    widths = {shape[1] for name, shape in shapes.items() if re.search(pattern, name) and len(shape) > 1}
    return "sd2" if widths == {1024} else "sd1"


def _lora_variant(shapes: Shapes) -> str:
    """The family a LoRA is for: SDXL has no attention in its first block and several transformers in one, SD has them the other way round.

    "dit" is any other diffusion transformer (SD 3, PixArt without telling keys …).
    """
    rows = (
        ("flux", r"single_transformer_blocks|double_blocks|single_blocks"),
        ("pixart", r"adaln_single|caption_projection"),
        ("dit", r"(^|lora_)transformer[._]"),
        ("sdxl", r"lora_te2_|text_encoder_2\."),
        ("sdxl", r"attentions[._]\d+[._]transformer_blocks[._][1-9]|blocks?[._](\d+[._])?1[._]transformer_blocks[._][1-9]"),
        ("sd", r"down_blocks[._]0[._]attentions|up_blocks[._]3|input_blocks[._][12][._]1[._]|output_blocks[._](9|10|11)[._]|lora_te_"),
        ("sdxl", r"down_blocks[._]2[._]attentions|up_blocks[._]0[._]attentions|input_blocks[._][78][._]1[._]"),
        ("sd", r"lora_unet_|(^|\.)unet\.|(^|\.)(down|mid|up)_blocks?\."),
    )
    for variant, pattern in rows:
        if _any(pattern)(shapes):
            return _by_width(shapes, r"attn2[._]to_k.*(lora_down|lora_A|lora[._]down)") if variant == "sd" else variant
    return "unknown"


LORA = (
    r"\.lora_(down|up|A|B)\.|[._]lora[._](down|up)\.|\.lora_linear_layer\.|hada_w1_a|lokr_w[12]|"
    r"\.(alpha|dora_scale|diff|diff_b|w_norm|b_norm|oft_blocks|on_input)$"
)

FILES: tuple[tuple[str, Callable[[Shapes], bool], str | Callable[[Shapes], str]], ...] = (
    ("lora", _any(LORA), _lora_variant),
    ("controlnet", _any(r"^control_model\.|controlnet_cond_embedding|^input_hint_block"), _unet_variant),
    ("file", _has(UNET, "conditioner.embedders.1.model."), "sdxl"),
    ("unet", _has(UNET, "conditioner.embedders.0.model."), "sdxl-refiner"),
    ("file", _has(UNET, "cond_stage_model.model."), "sd2"),
    ("file", _has(UNET, "cond_stage_model.transformer."), "sd1"),
    ("transformer", _any(r"double_blocks\.0\.img_attn|single_transformer_blocks\.0\."), "flux"),
    ("transformer", _has("adaln_single.linear.weight"), "pixart"),
    ("unet", _any(r"(^|\.)input_blocks\.0\.0\.weight$|^down_blocks\.0\.resnets\."), _unet_variant),
    ("vae", _any(r"(^|\.)decoder\.up\.0\.block\.|^decoder\.up_blocks\.0\.resnets\."), "vae"),
    ("embedding", lambda shapes: 0 < len(shapes) <= 2 and bool(shapes.keys() & {"emb_params", "clip_l", "clip_g"}), "embedding"),
)
"""Kinds of single files: what they are, how they are told by their keys, which variant (or how that is told). The first that fits counts."""


# ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

PIPELINES = {"PixArtSigmaPipeline": "pixart-t5", "PixArtAlphaPipeline": "pixart-t5", "FluxPipeline": "flux"}
"""Pipeline classes of model_index.json that are not told by their parts -> variant."""

ROOTS = {"AutoencoderKL": "vae", "UNet2DConditionModel": "unet", "Transformer2DModel": "transformer", "PixArtTransformer2DModel": "transformer"}
"""Classes of a config.json at the root -> kind."""


def _recognise_folder(folder: Path) -> Layout:
    if (folder / "model_index.json").is_file():
        variant = _variant_of_pipeline(folder)
    elif (folder / "transformer" / "config.json").is_file() and (folder / "vae").is_dir():
        variant = "mame" if _class(folder / "transformer") == "PixArtTransformer2DModel" else ""
    elif (folder / "unet" / "config.json").is_file() and (folder / "vae").is_dir():
        variant = _variant_of_parts(folder)
    elif (folder / "config.json").is_file():
        return _recognise_root(folder)
    else:
        variant = ""
    if not variant:
        seen = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "(nothing)"
        raise WeightsError(
            f"{folder} は知らない形式のフォルダです / {folder}: unknown layout, it holds {seen}; wanted model_index.json with unet/ or transformer/, "
            "or give the path of a .safetensors file"
        )
    return Layout("folder", variant, *FAMILIES[variant], _default_of(folder, variant))


def _recognise_root(folder: Path) -> Layout:
    """A folder of one model: CommonArt's transformer, a VAE, a U-Net."""
    config = read_json(folder / "config.json")
    kind = ROOTS.get(str(config.get("_class_name")))
    if kind is None or (kind == "transformer" and config.get("norm_type", "ada_norm_single") != "ada_norm_single"):
        raise WeightsError(f"{folder / 'config.json'}: 知らないクラスです / unknown class {config.get('_class_name')!r}; known: {', '.join(ROOTS)}")
    if kind == "transformer":
        side = int(config.get("sample_size") or 64) * 8
        return Layout("folder", "pixart", *FAMILIES["pixart"], _sized(DEFAULTS["pixart"], side))
    variant = "vae" if kind == "vae" else "sdxl" if config.get("addition_embed_type") == "text_time" else "sd1"
    return Layout(kind, variant, FAMILIES.get(variant, ("", ""))[0])


def _variant_of_pipeline(folder: Path) -> str:
    """By the class of the pipeline where it is one of diffusers' own, else by its parts: classes of one's own (a list) need code from the hub."""
    name = read_json(folder / "model_index.json").get("_class_name")
    if isinstance(name, str) and name in PIPELINES:
        return PIPELINES[name]
    if variant := _variant_of_parts(folder):
        return variant
    if isinstance(name, str) and name.endswith("Pipeline"):
        return "diffusers"
    raise WeightsError(
        f"{folder} は独自のコード（{name}）を必要とするので開きません / refused {folder}: its pipeline class {name} is code of the repository, "
        "which jpgen never runs; models of that kind that it opens without are Japanese Stable Diffusion XL and rinna's"
    )


def _variant_of_parts(folder: Path) -> str:
    """SD or SDXL where there is a stock U-Net and CLIP text encoders; "" otherwise."""
    if _class(folder / "unet") != "UNet2DConditionModel":
        return ""
    texts = [folder / name / "config.json" for name in ("text_encoder", "text_encoder_2") if (folder / name / "config.json").is_file()]
    if not texts or any(read_json(text).get("model_type", "clip_text_model") != "clip_text_model" for text in texts):
        return ""
    unet = read_json(folder / "unet" / "config.json")
    if unet.get("addition_embed_type") == "text_time":
        return "sdxl" if len(texts) == 2 else "jsdxl"
    return "sd2" if unet.get("cross_attention_dim") == 1024 else "sd1"


def _class(folder: Path) -> str:
    return str(read_json(folder / "config.json").get("_class_name")) if (folder / "config.json").is_file() else ""


def _default_of(folder: Path, variant: str) -> SamplingConfig:
    """The variant's settings at the size that the U-Net was trained for."""
    if variant not in ("sd1", "sd2", "sdxl", "jsdxl"):
        return DEFAULTS[variant]
    levels = len(read_json(folder / "vae" / "config.json").get("block_out_channels") or (0,) * 4)
    size = read_json(folder / "unet" / "config.json").get("sample_size")
    return _sized(DEFAULTS[variant], int(size) * 2 ** (levels - 1)) if isinstance(size, int) and size > 0 else DEFAULTS[variant]


def _sized(config: SamplingConfig, side: int) -> SamplingConfig:
    return replace(config, width=side, height=side)
