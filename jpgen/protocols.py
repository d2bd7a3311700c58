"""What the parts of the road must be able to do: an encoder, a backbone, a translator, and what some of them can do besides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from jpgen.types import Conditioning, ConditioningSpec, SamplingConfig, StepCallback

if TYPE_CHECKING:
    import torch
    from PIL import Image


@runtime_checkable
class TextEncoder(Protocol):
    """Turns texts into conditioning."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def spec(self) -> ConditioningSpec:
        """The shape of what it gives."""

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Conditioning of the texts, one row each; a text of more tokens than one pass takes is encoded in chunks, nothing is cut off."""


@runtime_checkable
class Adaptable(Protocol):
    """An encoder or a backbone whose modules adapters may change."""

    @property
    def modules(self) -> Mapping[str, torch.nn.Module]:
        """Its modules by the part they are: "denoiser", "text_encoder", "text_encoder_2"."""


@runtime_checkable
class AdaptableBackbone(Adaptable, Protocol):
    """A backbone whose modules adapters may change."""

    @property
    def family(self) -> str:
        """The family of adapters for it: "sd", "sdxl", "pixart", "flux"."""


@runtime_checkable
class AdaptingBackbone(Protocol):
    """A backbone that loads adapters by itself."""

    @property
    def takes_adapters(self) -> bool:
        """Whether its pipeline can."""

    def adapted(self, files: Sequence[tuple[Path, float]]) -> AbstractContextManager[None]:
        """For the time of the block it is changed by these files, each times its weight."""


@runtime_checkable
class LayeredEncoder(Protocol):
    """An encoder that may be read at a layer before its last."""

    def with_clip_skip(self, clip_skip: int) -> TextEncoder:
        """The same encoder, read so many layers from its end (1: the last)."""


@runtime_checkable
class EmbeddableEncoder(Protocol):
    """An encoder that takes vectors for words."""

    def with_embeddings(self, embeddings: Sequence[Any]) -> TextEncoder:
        """The same encoder that knows these embeddings (see `jpgen.encoders.embeddings`)."""


@runtime_checkable
class Backbone(Protocol):
    """Turns conditioning and noise into pictures."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def spec(self) -> ConditioningSpec:
        """The conditioning it wants."""

    @property
    def default(self) -> SamplingConfig:
        """Its own best settings."""

    @property
    def size_multiple(self) -> int:
        """What width and height must be divisible by."""

    def sample(
        self,
        conditioning: Conditioning,
        negative: Conditioning,
        config: SamplingConfig,
        *,
        generators: Sequence[torch.Generator],
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """One picture for each row of the conditioning, its noise drawn from the CPU generator of the same place.

        What more it takes its attribute `takes` tells, of "init" (an InitImage), "mask" (in it), "controls" (a sequence of Control), "tile" (a bool).
        """


@runtime_checkable
class TextBackbone(Protocol):
    """Turns texts into pictures by text encoders of its own: no Conditioning goes in, no other encoder fits."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def default(self) -> SamplingConfig:
        """Its own best settings."""

    @property
    def size_multiple(self) -> int:
        """What width and height must be divisible by."""

    def sample_texts(
        self,
        texts: Sequence[str],
        negatives: Sequence[str],
        config: SamplingConfig,
        *,
        generators: Sequence[torch.Generator],
        on_step: StepCallback | None = None,
    ) -> list[Image.Image]:
        """One picture for each text, its noise drawn from the CPU generator of the same place; attention weights have no effect.

        What more it takes its attribute `takes` tells, as of a Backbone.
        """


@runtime_checkable
class Translator(Protocol):
    """Turns Japanese texts into English ones."""

    @property
    def name(self) -> str:
        """Its name."""

    def translate(self, texts: Sequence[str]) -> list[str]:
        """The English of each text."""
