"""U-Nets and autoencoders out of one file in the layout of stable-diffusion-webui (A1111, LDM): its configs are read off the tensors' shapes."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint, convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from torch import Tensor

from jpgen.backbones.loading import read_config
from jpgen.errors import WeightsError
from jpgen.layout import UNET, Shapes, recognise
from jpgen.safety import check_safetensors
from jpgen.weights import load_weights

VAE = "first_stage_model."
"""What the names of the autoencoder's tensors begin with."""

CONTROL = "control_model."
"""What the names of a ControlNet's tensors begin with, in files that were cut out of a whole model."""

LABELS = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
"""LDM's names of the layers that embed sizes, and diffusers'."""

SCALING = {"sd": 0.18215, "sdxl": 0.13025}
"""Factor between an autoencoder's latents and those of the U-Net: of the families, for no tensor tells it."""

HEAD = 64
"""Width of an attention head in SD 2 and SDXL; SD 1 has eight heads at every width."""

PREDICTION = {"epsilon": "epsilon", "eps": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def load_unet(path: Path, dtype: torch.dtype, base: Path) -> UNet2DConditionModel:
    """The U-Net of a whole model, or a file that holds only a U-Net: of LDM's names, or of diffusers' with the config of the folder `base`.

    Raises WeightsError.
    """
    found = recognise(path)
    if found.variant == "sdxl-refiner" or found.kind not in ("file", "unet"):
        raise WeightsError(f"{path} は使えません / {path} is {found.kind} of {found.variant}: wanted a model of Stable Diffusion 1, 2 or XL")
    tensors = load_weights(path, None)
    pooled = next((tensor.shape[1] for name, tensor in tensors.items() if name.endswith("embedders.1.model.text_projection")), None)
    if "down_blocks.0.resnets.0.conv1.weight" in tensors:
        return _filled(UNet2DConditionModel, read_config(base / "unet"), tensors, dtype, path)
    own = {name: tensor for name, tensor in tensors.items() if name.startswith(UNET)} or {UNET + name: tensor for name, tensor in tensors.items()}
    config = unet_config({name.removeprefix(UNET): tuple(tensor.shape) for name, tensor in own.items()}, pooled, path)
    return _filled(UNet2DConditionModel, config, convert_ldm_unet_checkpoint(own, config), dtype, path)


def load_vae(path: Path, dtype: torch.dtype, family: str) -> AutoencoderKL:
    """The autoencoder of a whole model, or a file that holds only one; raises WeightsError. One that may overflow in fp16 stays in fp32."""
    tensors = load_weights(path, None)
    own = {name.removeprefix(VAE): tensor for name, tensor in tensors.items() if name.startswith(VAE)} or tensors
    own = {name: tensor for name, tensor in own.items() if re.match(r"(encoder|decoder|quant_conv|post_quant_conv)\.", name)}
    config = vae_config({name: tuple(tensor.shape) for name, tensor in own.items()}, family, path)
    if not any(name.startswith("decoder.up_blocks.") for name in own):
        own = convert_ldm_vae_checkpoint({VAE + name: tensor for name, tensor in own.items()}, config)
    return _filled(AutoencoderKL, config, own, torch.float32 if dtype == torch.float16 else dtype, path)


def load_controlnet(path: Path, unet: UNet2DConditionModel) -> ControlNetModel:
    """The ControlNet in a file, by LDM's names or diffusers', with the settings of the U-Net that it is for; raises WeightsError."""
    own = {name.removeprefix(CONTROL): tensor for name, tensor in load_weights(path, None).items()}
    config = {name: unet.config[name] for name in inspect.signature(ControlNetModel.__init__).parameters if name in unet.config}
    config = {**config, "in_channels": unet.config.out_channels}
    state = own if "time_embedding.linear_1.weight" in own else convert_controlnet_checkpoint(own, config)
    for theirs, name in LABELS.items():  # of SDXL, which diffusers' conversion leaves behind
        state |= {f"{name}.{leaf}": own[f"{theirs}.{leaf}"] for leaf in ("weight", "bias") if f"{theirs}.{leaf}" in own}
    if gone := [name for name, tensor in state.items() if tensor is None]:
        raise WeightsError(
            "ControlNet の重みが足りません / "
            f"{path}: {len(gone)} tensors of a ControlNet are missing ({', '.join(gone[:5])}): cut off, or not a ControlNet"
        )
    hint = re.compile(r"controlnet_cond_embedding\.(conv_in|blocks\.\d*[13579])\.weight")
    widths = {name: tensor.shape[0] for name, tensor in state.items() if hint.fullmatch(name)}
    order = sorted(widths, key=lambda name: -1 if "conv_in" in name else int(name.split(".")[2]))
    return _filled(ControlNetModel, {**config, "conditioning_embedding_out_channels": [widths[name] for name in order]}, state, unet.dtype, path)


def prediction(path: Path) -> dict[str, Any]:
    """Scheduler settings that a file tells, by its metadata or the keys `v_pred` and `ztsnr`; a U-Net of SD 2 predicts v if the file is silent."""
    header = check_safetensors(path)
    told = PREDICTION.get(header.metadata.get("modelspec.prediction_type", "").lower().replace("-", "_"))
    by_v = "v_pred" in header.tensors or (told is None and recognise(path).variant == "sd2")
    settings: dict[str, Any] = {"prediction_type": "v_prediction" if by_v else told or "epsilon"}
    return settings | ({"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if "ztsnr" in header.tensors else {})


def unet_config(shapes: Shapes, pooled: int | None, path: Path) -> dict[str, Any]:
    """diffusers' config of a U-Net whose tensors, named as in LDM, have these shapes; `pooled` is the width of the pooled state, if it is known."""
    levels: list[tuple[int, int]] = [(0, 0)]  # width and transformers of each
    layers = [0]
    blocks = len({name.split(".")[1] for name in shapes if name.startswith("input_blocks.")})
    for i in range(1, blocks):
        if f"input_blocks.{i}.0.op.weight" in shapes:
            levels.append((0, 0))
            layers.append(0)
        else:
            depth = len({name.split(".")[4] for name in shapes if name.startswith(f"input_blocks.{i}.1.transformer_blocks.")})
            levels[-1] = (_shape(shapes, f"input_blocks.{i}.0.out_layers.3.weight", path)[0], depth)
            layers[-1] += 1
    widths, depths = [width for width, _ in levels], [depth for _, depth in levels]
    cross = next((shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")), 0)
    if len(set(layers)) != 1 or not cross:
        raise WeightsError(
            f"{path} の U-Net の形が分かりません / {path}: a U-Net of levels {levels} (width, depth) and layers {layers} "
            "is none of Stable Diffusion's; give a diffusers folder of it"
        )
    linear = next(len(shape) == 2 for name, shape in shapes.items() if name.endswith(".1.proj_in.weight"))
    config: dict[str, Any] = {
        "in_channels": _shape(shapes, "input_blocks.0.0.weight", path)[1],
        "out_channels": _shape(shapes, "out.2.weight", path)[0],
        "block_out_channels": widths,
        "layers_per_block": layers[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths],
        "up_block_types": ["CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)],
        "transformer_layers_per_block": [depth or 1 for depth in depths],
        "cross_attention_dim": cross,
        "attention_head_dim": [max(1, width // HEAD) for width in widths] if linear else 8,
        "use_linear_projection": linear,
    }
    if not depths[-1]:  # SD: the middle has a transformer though the last level has none
        config["transformer_layers_per_block"][-1] = len({n.split(".")[3] for n in shapes if n.startswith("middle_block.1.transformer_blocks.")}) or 1
    if "label_emb.0.0.weight" in shapes:
        total = shapes["label_emb.0.0.weight"][1]
        times = (total - pooled) // 6 if pooled else 256
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": times, "projection_class_embeddings_input_dim": total}
    elif linear:
        config["upcast_attention"] = True  # Stable Diffusion 2 overflows in fp16 without
    return config


def vae_config(shapes: Shapes, family: str, path: Path) -> dict[str, Any]:
    """diffusers' config of an autoencoder whose tensors have these shapes, of LDM's or diffusers' names."""
    diffusers = any(name.startswith("decoder.up_blocks.") for name in shapes)
    conv = "encoder.down_blocks.{}.resnets.0.conv1.weight" if diffusers else "encoder.down.{}.block.0.conv1.weight"
    levels = 0
    while conv.format(levels) in shapes:
        levels += 1
    if not levels:
        raise WeightsError(f"{path} に VAE がありません / {path} holds no autoencoder: name one (a file or folder) in parts.vae")
    layer = re.compile(conv.format(0).replace(".0.conv1", r".\d+.conv1"))
    return {
        "block_out_channels": [shapes[conv.format(i)][0] for i in range(levels)],
        "layers_per_block": sum(1 for name in shapes if layer.fullmatch(name)),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "latent_channels": _shape(shapes, "decoder.conv_in.weight", path)[1],
        "scaling_factor": SCALING[family],
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }


def _shape(shapes: Shapes, name: str, path: Path) -> tuple[int, ...]:
    if name not in shapes:
        raise WeightsError(f"{path} に {name} がありません / {path} lacks {name}: cut off, or not a model of Stable Diffusion")
    return shapes[name]


def _filled(kind: Any, config: dict[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> Any:
    """A frozen module of this config holding these tensors."""
    with init_empty_weights(include_buffers=False):
        model = kind.from_config(config)
    if wrong := sorted(set(model.state_dict()) ^ state.keys()):
        raise WeightsError(
            "重みが設定と合いません / "
            f"{path}: {kind.__name__}: {len(wrong)} missing or unexpected tensors ({', '.join(wrong[:5])}): none of a known model"
        )
    try:
        model.load_state_dict({name: tensor.to(dtype) for name, tensor in state.items()}, assign=True)
    except RuntimeError as error:
        raise WeightsError(f"{path}: 形が合いません / {path}: {kind.__name__} does not fit its shapes: {' '.join(str(error).split())}") from error
    return model.requires_grad_(False).eval()
