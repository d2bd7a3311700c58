"""What this machine computes well: the one place that chooses a number type by capability."""

from __future__ import annotations

import torch


def best_dtype() -> torch.dtype:
    """bf16 where the CPU multiplies it natively (AMX or AVX-512 BF16), else fp32: without native support bf16 is many times slower."""
    native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32
