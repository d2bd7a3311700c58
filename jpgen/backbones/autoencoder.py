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


class AutoencoderShuffle(ModelMixin, ConfigMixin):
    """A variational autoencoder that starts with PixelUnshuffle(8) and ends with PixelShuffle(8): f16, 16 latent channels.

    The interface is that of diffusers' `AutoencoderKL`: `encode(x).latent_dist`, `decode(z).sample`, `config.scaling_factor`. Pictures are
    [batch, 3, height, width] in −1…1 with sides divisible by 16; latents [batch, 16, height/16, width/16]. The latents that leave and enter
    are centred channel by channel and have unit variance in all (buffers `latent_mean` and `latent_std`), so `scaling_factor` is 1 and
    `shift_factor` 0: pipelines that know only a scaling factor (PixArt) and those that know both (SDXL and later) work alike.

    `block_out_channels` are the channels at 1, 1/2, 1/4, 1/8 and 1/16 of the side, as pipelines count them to find the factor 16; 0 means that
    the pixel shuffle skips that size.
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

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """The distribution of latents of pictures `x` [batch, 3, height, width]."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        standardised = torch.cat([(mean - self.latent_mean) / self.latent_std, log_variance - 2 * self.latent_std.log()], dim=1)
        posterior = DiagonalGaussianDistribution(standardised)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: torch.Generator | None = None) -> DecoderOutput | tuple[Tensor]:
        """The pictures of latents `z` [batch, 16, height/16, width/16]."""
        sample = self.decoder(z * self.latent_std + self.latent_mean)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: Tensor, sample_posterior: bool = True, generator: torch.Generator | None = None) -> DecoderOutput:
        """Encode and decode."""
        posterior = self.encode(sample, return_dict=False)[0]
        return self.decode(posterior.sample(generator) if sample_posterior else posterior.mode())
