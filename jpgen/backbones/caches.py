"""Step caches: neighbouring steps of a sampler think nearly the same, so a part of the denoiser answers with what it said before. Lossy, opt-in.

diffusers has caches for models with its CacheMixin (FLUX and later); U-Nets and PixArt have none, and get theirs here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from diffusers import CacheMixin, FirstBlockCacheConfig, PixArtTransformer2DModel, UNet2DConditionModel
from torch import Tensor

from jpgen.backbones.forwards import Forward, chosen, replaced
from jpgen.errors import IncompatibleError, UnknownNameError

NONE = "none"

EVERY = 3
"""Steps that DeepCache's authors make one full forward last in their examples for Stable Diffusion."""

THRESHOLD = 0.05
"""Relative change of the first block's work below which the rest is not run again: diffusers' default for its own first-block cache."""


@contextmanager
def deepcache(unet: Any, *, every: int = EVERY) -> Iterator[None]:
    """DeepCache (Ma et al. 2023, arXiv 2312.00858): on one step of `every` the whole U-Net runs, on the others its outermost blocks alone.

    The deep features, all that comes between the first block down and the last block up, are those of the last whole forward. Where the rows change
    (a guidance interval begins or ends) everything runs again. Raises IncompatibleError for what is no U-Net of two blocks or more.
    """
    if not isinstance(unet, UNet2DConditionModel) or len(unet.down_blocks) < 2:
        raise IncompatibleError(f"deepcache は U-Net 用です / deepcache is for U-Nets, this is a {type(unet).__name__}: use another cache or none")
    age, shape, whole = 0, torch.Size(), True

    def at_start(forward: Forward) -> Forward:
        def run(sample: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal age, shape, whole
            whole = sample.shape != shape or age >= every
            age, shape = 1 if whole else age + 1, sample.shape
            return forward(sample, *args, **kwargs)

        return run

    def remembering(forward: Forward) -> Forward:
        said: Any = None

        def run(*args: Any, **kwargs: Any) -> Any:
            nonlocal said
            if whole:
                said = forward(*args, **kwargs)
            return said

        return run

    deep = [*unet.down_blocks[1:], *([unet.mid_block] if unet.mid_block is not None else []), *unet.up_blocks[:-1]]
    with ExitStack() as stack:
        for block in deep:
            stack.enter_context(replaced(block, remembering))
        stack.enter_context(replaced(unet, at_start))
        yield


@contextmanager
def first_block(transformer: Any, *, threshold: float = THRESHOLD) -> Iterator[None]:
    """First-block cache (ParaAttention): where the first block changes a row nearly as it did before, what the others added then is added again.

    Each row is judged alone, so that no picture depends on its company. For PixArt; models with diffusers' CacheMixin use diffusers' own cache,
    which judges a batch as a whole. Raises IncompatibleError for other models.
    """
    if isinstance(transformer, CacheMixin):
        transformer.enable_cache(FirstBlockCacheConfig(threshold=threshold))
        try:
            yield
        finally:
            transformer.disable_cache()
        return
    if not isinstance(transformer, PixArtTransformer2DModel) or len(transformer.transformer_blocks) < 2:
        kind = type(transformer).__name__
        raise IncompatibleError(f"firstblock は Transformer 用です / firstblock is for transformers, this is a {kind}: use another cache or none")
    first, *rest = transformer.transformer_blocks
    forwards = [block.forward for block in rest]
    change, added = torch.empty(0), torch.empty(0)

    def head(forward: Forward) -> Forward:
        def run(states: Tensor, **kwargs: Any) -> Tensor:
            nonlocal change, added
            made: Tensor = forward(states, **kwargs)
            now = made - states
            if change.shape != now.shape:
                change, added = torch.zeros_like(now), torch.zeros_like(now)
                stale = torch.ones(len(now), dtype=torch.bool, device=now.device)
            else:
                stale = (now - change).abs().mean(dim=(1, 2)) > threshold * change.abs().mean(dim=(1, 2))
            if not stale.any():
                return made + added
            part = made[stale]
            given = chosen(kwargs, len(made), lambda tensor: tensor[stale])
            for block in forwards:
                part = block(part, **given)
            change[stale], added[stale] = now[stale], part - made[stale]
            result = made + added
            result[stale] = part
            return result

        return run

    with ExitStack() as stack:
        for block in rest:
            stack.enter_context(replaced(block, lambda _: lambda states, **_kwargs: states))
        stack.enter_context(replaced(first, head))
        yield


CACHES: Mapping[str, Callable[[Any], AbstractContextManager[None]]] = {
    NONE: lambda _: nullcontext(),
    "deepcache": deepcache,
    "firstblock": first_block,
}
"""The step caches by name: each is on within the context it makes of a denoiser."""


def cached(denoiser: Any, name: str) -> AbstractContextManager[None]:
    """The cache of this name on the denoiser, within; raises UnknownNameError, or on entering IncompatibleError for a model it is not made for."""
    if name not in CACHES:
        raise UnknownNameError.of("キャッシュ / cache", name, CACHES)
    return CACHES[name](denoiser)
