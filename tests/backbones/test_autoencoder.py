"""The autoencoder behaves as diffusers expects of one."""

from pathlib import Path

import torch

from jpgen.backbones.autoencoder import AutoencoderShuffle, Grain, speckles


def test_it_saves_and_loads_as_diffusers_models_do(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderShuffle(block_out_channels=(4, 0, 0, 16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1)).eval()
    model.latent_mean.fill_(0.5)
    model.save_pretrained(tmp_path)
    again = AutoencoderShuffle.from_pretrained(tmp_path)
    pictures = torch.rand(1, 3, 64, 32) * 2 - 1
    with torch.no_grad():
        latents = model.encode(pictures).latent_dist.mode()
        assert latents.shape == (1, 16, 4, 2)
        assert torch.equal(again.encode(pictures).latent_dist.mode(), latents)
        assert torch.equal(again.decode(latents).sample, model.decode(latents).sample)
        assert model.decode(latents).sample.shape == pictures.shape


def test_grain_is_as_strong_as_asked_and_the_same_for_every_picture() -> None:
    grain = Grain(16, 8, 2.0)
    with torch.no_grad():
        for weights in grain.strength.parameters():
            weights.zero_()
        grain.strength[2].bias.fill_(0.3)
        made = grain(torch.zeros(2, 16, 32, 16))
        assert made.shape == (2, 1, 256, 128)
        assert abs(made.std().item() - 0.3) < 0.01
        assert torch.equal(made[0], made[1])
        grain.strength[2].bias.fill_(-1)
        assert not grain(torch.zeros(1, 16, 4, 4)).any()


def test_opposite_edges_of_grain_meet() -> None:
    drawn = speckles(64, 96, 2.0)
    assert drawn.shape == (64, 96)
    for field in (drawn, drawn.T):
        assert (field[0] - field[-1]).abs().mean() < 1.5 * (field[1:] - field[:-1]).abs().mean()


def test_a_picture_has_the_same_grain_alone_and_in_a_batch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoencoderShuffle(block_out_channels=(4, 0, 0, 16, 16), encoder_layers=(1, 1), decoder_layers=(1, 1), grain_size=2.0).eval()
    latents = torch.randn(3, 16, 4, 4)
    with torch.no_grad():
        model.grain.strength[2].bias.fill_(0.5)
        together = model.decode(latents).sample
        torch.testing.assert_close(model.decode(latents[1:2]).sample, together[1:2])
        assert not torch.allclose(model.decoder(latents), together)
    model.save_pretrained(tmp_path)
    again = AutoencoderShuffle.from_pretrained(tmp_path)
    assert torch.equal(again.decode(latents).sample, model.decode(latents).sample)
