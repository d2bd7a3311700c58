"""A pipeline onto its device: whole, or offloaded where memory is short; and what makes CUDA faster on request."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from jpgen.compute import memory_available, offload

log = logging.getLogger("jpgen")


def place(pipeline: Any, device: torch.device) -> str:
    """Put a diffusers pipeline onto the device as `jpgen.compute.offload` advises for its size; returns that advice. On a CPU it is there already."""
    sizes = [weight_bytes(part) for part in pipeline.components.values() if isinstance(part, nn.Module)]
    how = offload(max(sizes, default=0), sum(sizes), memory_available(device), device)
    if how == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif how == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    elif device.type != "cpu":
        pipeline.to(device)
    if how != "none":
        log.info("重みを CPU に置き、使うときだけ %s に載せます（%s） / %s offload: weights go to %s when they are used", device, how, how, device)
    return how


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def optimise(pipeline: Any, device: torch.device) -> tuple[str, ...]:
    """What pays on CUDA alone, for many pictures of one size: fused projections, channels last, repeated blocks compiled; returns what was done.

    Elsewhere nothing is done, and the log says so: on a CPU none of the three was seen to make a U-Net faster.
    """
    if device.type != "cuda":
        kind = device.type
        log.warning("optimize は CUDA だけで効きます。%s では何もしません / optimize acts on CUDA alone: nothing is done on %s", kind, kind)
        return ()
    denoiser = getattr(pipeline, "unet", None) or pipeline.transformer
    done = []
    if hasattr(denoiser, "fuse_qkv_projections"):
        denoiser.fuse_qkv_projections()
        done.append("fused projections")
    parts: tuple[Any, ...] = (denoiser, getattr(pipeline, "vae", None))
    for part in parts:
        if part is not None and any(isinstance(layer, nn.Conv2d) for layer in part.modules()):
            part.to(memory_format=torch.channels_last)
            done.append(f"channels last: {type(part).__name__}")
    if getattr(denoiser, "_repeated_blocks", None):
        denoiser.compile_repeated_blocks(fullgraph=True)
        done.append("compiled blocks")
    log.info("optimize: %s", ", ".join(done))
    return tuple(done)

