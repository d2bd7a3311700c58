"""Weights laid out once as oneDNN wants them, where eager torch would lay them out again on every call: the fewer the pixels, the more that costs.

The operations are torch's own for compiled code (`torch.ops.mkldnn`), and private: they are probed, their first result is compared with what the
module gives, and without them, or where they differ, everything runs as before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from jpgen.backbones.forwards import Forward, replaced
from jpgen.compute import has_amx, has_avx512_bf16, memory_available

log = logging.getLogger("jpgen")

MOST_POSITIONS: Mapping[torch.dtype, tuple[int, int]] = {torch.float32: (0, 512), torch.bfloat16: (1024, 1024)}
"""Up to how many positions (rows of a linear layer; pixels out of a convolution, batch and all) packing pays, for linear layers and convolutions.

fp32, measured on AVX2: convolutions of 1,280 channels 3.4 times as fast at 8×8, 1.7–1.9 at 16×16, of 640 at 16×16 1.15, from 1,024 positions on no
gain; linear layers none at all, as MKL multiplies them from the plain layout. bf16, measured with AMX: SDXL's U-Net 1.5 times as fast at 256×256,
1.15 at 512×512, with two rows no gain.
"""

LEAST = 2**18
"""Weights smaller than this many numbers are laid out in no time."""

SHARE = 0.25
"""The part of the free memory that packed copies may take."""

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""How far a result may be from the module's own, as a part of its largest number."""


@dataclass
class Packing:
    """Packed copies of one model's weights, made when a layer first runs at a size where it pays and kept for the next picture."""

    budget: int
    used: int = 0
    checked: bool = False
    works: bool = True
    kept: dict[nn.Module, tuple[Any, Tensor]] = field(default_factory=dict)

    @contextmanager
    def over(self, model: nn.Module) -> Iterator[None]:
        """Within, the model's layers run on packed weights where that pays."""
        with ExitStack() as stack:
            for layer in model.modules():
                if self.works and _packs(layer):
                    stack.enter_context(replaced(layer, partial(self._running, layer)))
            yield

    def _running(self, layer: Any, forward: Forward) -> Forward:
        mark = _mark(layer.weight)  # an adapter may have been fused since the last picture

        def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if args or kwargs or not self.works or not pays(layer, x):
                return forward(x, *args, **kwargs)
            weight = self._packed(layer, x, mark)
            if weight is None:
                return forward(x)
            made = _apply(layer, x, weight)
            if not self.checked:
                self.checked = True
                self.works = _agree(made, wanted := forward(x))
                return made if self.works else wanted
            return made

        return run

    def _packed(self, layer: Any, x: Tensor, mark: Any) -> Tensor | None:
        key = (mark, tuple(x.shape[1:]) if isinstance(layer, nn.Conv2d) else None)
        if layer in self.kept and self.kept[layer][0] == key:
            return self.kept[layer][1]
        size = layer.weight.numel() * layer.weight.element_size()
        if layer not in self.kept:
            if self.used + size > self.budget:
                return None
            self.used += size
        packed = _pack(layer, x)
        self.kept[layer] = key, packed
        return packed


def packing(dtype: torch.dtype) -> Packing:
    """What to pack a model's weights with; it does nothing where that would not be faster: a number type or a torch it does not pay with."""
    native = dtype == torch.float32 or (dtype == torch.bfloat16 and (has_amx() or has_avx512_bf16()))
    return Packing(int(SHARE * memory_available()), works=native and supported(dtype))


@lru_cache(maxsize=4)
def supported(dtype: torch.dtype) -> bool:
    """Whether this torch has the private operations, and they give what the public ones give."""
    if not torch.backends.mkldnn.is_available() or dtype not in MOST_POSITIONS:
        return False
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        layers = [nn.Conv2d(32, 48, 3, stride=2, padding=1), nn.Linear(32, 48)]
        inputs = [torch.randn(2, 32, 9, 9, generator=generator), torch.randn(2, 9, 32, generator=generator)]
        try:
            return all(_agree(_apply(layer.to(dtype), x.to(dtype), _pack(layer, x.to(dtype))), layer(x.to(dtype)))
                       for layer, x in zip(layers, inputs, strict=True))  # fmt: skip
        except (AttributeError, RuntimeError, TypeError, NotImplementedError) as error:
            log.info("oneDNN の重みの並べ替えは使いません / packed weights are off: %s", error)
            return False


def pays(layer: Any, x: Tensor) -> bool:
    """Whether a packed weight is faster than the plain one for this input, by `MOST_POSITIONS`."""
    linear, convolution = MOST_POSITIONS.get(x.dtype, (0, 0))
    if x.dtype != layer.weight.dtype or x.device.type != "cpu" or torch.is_grad_enabled():
        return False
    if isinstance(layer, nn.Linear):
        return 0 < x.numel() // x.shape[-1] <= linear
    rows, columns = (side // stride for side, stride in zip(x.shape[-2:], layer.stride, strict=True))
    return x.ndim == 4 and 0 < len(x) * rows * columns <= convolution


def _packs(layer: nn.Module) -> bool:
    if type(layer) is nn.Linear:
        return layer.weight.numel() >= LEAST and MOST_POSITIONS.get(layer.weight.dtype, (0, 0))[0] > 0
    if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str) or layer.groups != 1:
        return False
    return layer.weight.numel() >= LEAST and layer.weight.dtype in MOST_POSITIONS


def _mark(weight: Tensor) -> Any:
    """Tells whether a weight is still what it was: where it lies, and 64 numbers from all over it."""
    flat = weight.detach().as_strided((weight.numel(),), (1,), weight.storage_offset())  # in the order of memory
    step = max(1, weight.numel() // 64)
    return weight.data_ptr(), tuple(flat[::step][:64].tolist())


def _pack(layer: Any, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return torch.ops.mkldnn._reorder_linear_weight(layer.weight, x.numel() // x.shape[-1])
    return torch.ops.mkldnn._reorder_convolution_weight(
        layer.weight, list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups, list(x.shape)
    )


def _apply(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return torch.ops.mkldnn._linear_pointwise(x, weight, layer.bias, "none", [], "")
    return torch.ops.mkldnn._convolution_pointwise(
        x, weight, layer.bias, list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups, "none", [], ""
    )


def _agree(made: Tensor, wanted: Tensor) -> bool:
    same = made.shape == wanted.shape and made.dtype == wanted.dtype
    return same and bool((made - wanted).abs().max() <= TOLERANCE[wanted.dtype] * wanted.abs().max().clamp_min(1e-6))
