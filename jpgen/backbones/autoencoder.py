"""A small autoencoder for 256-pixel pictures that a CPU can train: all its work happens on 32×32 and 16×16 grids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(norm(x)))), the last convolution starting at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.conv_in = nn.Conv2d(width, width, 3, padding=1)
        self.conv_out = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)
        self.conv_out.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Pictures or features [batch, width, rows, columns], same shape out."""
        return x + self.conv_out(F.silu(self.conv_in(self.norm(x))))


PIXEL_LAYERS = 4
"""So many of the decoder's layers, the last ones, make pixels of its features."""

WEAKEST = 3 / 255
"""Of a grain, in −1…1: what is asked for below that (in pictures that may or may not have one) is none."""


class Grain(nn.Module):
    """Noise over the whole picture, as strong as its features ask: the paper of a watercolour, of which a guess of latents holds only the mean.

    Film grain synthesis as in AV1 (Norkin and Birkbeck 2018, Film Grain Synthesis for AV1 Video Codec): told is how strong, not what. The noise is
    the same in every picture of a size, so that a picture can be repeated, alone or in a batch.
    """

    def __init__(self, width: int, patch: int, size: float) -> None:
        """Of features with `width` channels, one cell for `patch`×`patch` pixels; `size` of the specks as `speckles` takes it."""
        super().__init__()
        self.patch, self.size = patch, size
        self.strength = nn.Sequential(nn.Linear(2 * width, 8), nn.SiLU(), nn.Linear(8, 1))

    def forward(self, features: Tensor) -> Tensor:
        """What to add to each pixel's lightness: features [batch, width, rows, columns] to [batch, 1, rows · patch, columns · patch]."""
        rows, columns = (side * self.patch for side in features.shape[2:])
        strength = F.threshold(self.strength(pooled(features)), WEAKEST, 0.0)
        return strength[..., None, None] * speckles(rows, columns, self.size).to(features)


def pooled(features: Tensor) -> Tensor:
    """Mean and spread of each channel: [batch, width, rows, columns] to [batch, 2 · width]."""
    return torch.cat([features.mean((2, 3)), features.std((2, 3))], dim=1)


def speckles(rows: int, columns: int, size: float) -> Tensor:
    """Always the same noise [rows, columns] blurred by a Gaussian of `size` pixels, unit variance; opposite edges meet, as in a seamless texture."""
    noise = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    frequency = torch.fft.fftfreq(rows)[:, None].square() + torch.fft.rfftfreq(columns).square()
    drawn = torch.fft.irfft2(torch.fft.rfft2(noise) * torch.exp(-2 * (torch.pi * size) ** 2 * frequency), s=(rows, columns))
    return drawn / drawn.std()


class AutoencoderShuffle(ModelMixin, ConfigMixin):
    """A variational autoencoder that starts with PixelUnshuffle(8) and ends with PixelShuffle(8): f16, 16 latent channels.

    The interface is that of diffusers' `AutoencoderKL`: `encode(x).latent_dist`, `decode(z).sample`, `config.scaling_factor`. Pictures are
    [batch, 3, height, width] in −1…1 with sides divisible by 16; latents [batch, 16, height/16, width/16]. The latents that leave and enter
    are centred channel by channel and have unit variance in all (buffers `latent_mean` and `latent_std`), so `scaling_factor` is 1 and
    `shift_factor` 0: pipelines that know only a scaling factor (PixArt) and those that know both (SDXL and later) work alike.

    `block_out_channels` are the channels at 1, 1/2, 1/4, 1/8 and 1/16 of the side, as pipelines count them to find the factor 16; 0 means that
    the pixel shuffle skips that size. `grain_size` is that of its `Grain`; 0 means that it adds none.
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 16,
        block_out_channels: Sequence[int] = (12, 0, 0, 128, 256),
        encoder_layers: Sequence[int] = (2, 2),
        decoder_layers: Sequence[int] = (4, 3),
        grain_size: float = 0.0,
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        sample_size: int = 256,
        force_upcast: bool = False,
    ) -> None:
        super().__init__()
        head, *_, fine, coarse = block_out_channels
        patch = 2 ** (len(block_out_channels) - 2)
        self.register_buffer("latent_mean", torch.zeros(1, latent_channels, 1, 1))
        self.register_buffer("latent_std", torch.ones(1, latent_channels, 1, 1))
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(patch),
            nn.Conv2d(in_channels * patch**2, fine, 3, padding=1),
            *[ResidualBlock(fine) for _ in range(encoder_layers[0])],
            nn.Conv2d(fine, coarse, 3, stride=2, padding=1),
            *[ResidualBlock(coarse) for _ in range(encoder_layers[1])],
            nn.GroupNorm(1, coarse),
            nn.Conv2d(coarse, 2 * latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, coarse, 3, padding=1),
            *[ResidualBlock(coarse) for _ in range(decoder_layers[1])],
            nn.Conv2d(coarse, fine * 4, 1),
            nn.PixelShuffle(2),
            *[ResidualBlock(fine) for _ in range(decoder_layers[0])],
            nn.Conv2d(fine, head * patch**2, 3, padding=1),
            nn.PixelShuffle(patch),
            nn.SiLU(),
            nn.Conv2d(head, in_channels, 3, padding=1),
        )
        self.grain = Grain(fine, patch, grain_size) if grain_size else None

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The distribution of latents of pictures `x` [batch, 3, height, width]."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        standardised = torch.cat([(mean - self.latent_mean) / self.latent_std, log_variance - 2 * self.latent_std.log()], dim=1)
        posterior = DiagonalGaussianDistribution(standardised)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def features(self, z: Tensor) -> Tensor:
        """What the decoder makes pixels of: latents `z` [batch, 16, height/16, width/16] to [batch, fine, height/8, width/8]."""
        features: Tensor = self.decoder[:-PIXEL_LAYERS](z * self.latent_std + self.latent_mean)
        return features

    def paint(self, features: Tensor) -> Tensor:
        """The pictures of `features`, without grain."""
        pictures: Tensor = self.decoder[-PIXEL_LAYERS:](features)
        return pictures

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> DecoderOutput | tuple[Tensor]:
        """The pictures of latents `z` [batch, 16, height/16, width/16]."""
        features = self.features(z)
        sample = self.paint(features)
        if self.grain is not None:
            sample = sample + self.grain(features)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None) -> DecoderOutput:
        """Encode and decode."""
        posterior = self.encode(sample, return_dict=False)[0]
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode())
