"""FLUX.1 against plain diffusers, from the text on."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedTokenizerFast, T5EncoderModel

from jpgen.backbones import flux, load_backbone
from jpgen.catalog import Entry
from jpgen.encoders import clip, load_encoder, t5
from jpgen.encoders import flux as reading
from jpgen.errors import IncompatibleError
from jpgen.types import Conditioning, SamplingConfig
from tests.toys.diffusion_transformers import flux as flux_folder

DEFAULT = SamplingConfig(width=64, height=48, steps=3, guidance_scale=0.0, scheduler="own")
TEXT, NEGATIVE = "a red cat, the sea", "dog"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flux_folder(tmp_path_factory.mktemp("flux"))


def plain(root: Path) -> FluxPipeline:
    """As diffusers opens it."""
    pipeline = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(root / "scheduler"), vae=AutoencoderKL.from_pretrained(root / "vae").eval(),
        text_encoder=CLIPTextModel.from_pretrained(root / "text_encoder"), tokenizer=CLIPTokenizer.from_pretrained(root / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(root / "text_encoder_2"),
        tokenizer_2=PreTrainedTokenizerFast(tokenizer_file=str(root / "tokenizer_2" / "tokenizer.json"), pad_token="<pad>", eos_token="</s>"),
        transformer=FluxTransformer2DModel.from_pretrained(root / "transformer").eval(),
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_it_is_what_diffusers_draws_of_the_text(root: Path, guidance_scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (clip, t5):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)
    entry = Entry("toy", "flux", path=str(root), default=DEFAULT)
    encoder, backbone = load_encoder("flux", root, max_tokens=48), load_backbone(entry, torch.float32)
    assert encoder.spec == backbone.spec
    reference = plain(root)
    embeds, pooled, _ = reference.encode_prompt(TEXT, None, max_sequence_length=48)
    made, nothing = encoder.encode([TEXT, NEGATIVE]).rows(0, 1), encoder.encode([TEXT, NEGATIVE]).rows(1, 2)
    torch.testing.assert_close(made.tokens, embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.pooled, pooled, atol=1e-5, rtol=1e-4)
    noise = torch.randn(1, 4, 24, 32, generator=torch.Generator().manual_seed(7))
    wanted = reference(
        TEXT, negative_prompt=NEGATIVE, true_cfg_scale=guidance_scale, guidance_scale=0.0, latents=FluxPipeline._pack_latents(noise, 1, 4, 24, 32),
        num_inference_steps=3, height=48, width=64, max_sequence_length=48, output_type="np",
    ).images[0]  # fmt: skip
    picture = backbone.sample(made, nothing, replace(DEFAULT, guidance_scale=guidance_scale), generators=generators(7))[0]
    assert picture.size == (64, 48)
    np.testing.assert_allclose(np.asarray(picture) / 255, wanted, atol=1 / 255)


def test_the_pooled_state_is_of_the_whole_text_however_it_is_cut() -> None:
    from jpgen.emphasis import encode_weighted

    encoder = reading.toy()
    whole = encoder.encode(["red cat"]).pooled
    pieces = encode_weighted(encoder, [[("red ", 1.4), ("cat", 1.0)]], "comfy")
    assert torch.equal(pieces.pooled, whole)
    assert not torch.equal(encoder.encode(["red dog"]).pooled, whole)
    cut = encode_weighted(encoder, [[("red", 1.0), ("BREAK", -1.0), ("cat", 1.0)]])
    assert torch.equal(cut.pooled, whole) and cut.tokens.shape[1] == 2 * 64


def test_a_distilled_transformer_is_told_its_guidance() -> None:
    torch.manual_seed(0)
    config = {name: value for name, value in flux.toy()._pipeline.transformer.config.items() if not name.startswith("_")}
    transformer = FluxTransformer2DModel.from_config({**config, "guidance_embeds": True})
    toy = flux.toy()
    dev = flux.FluxBackbone("dev", transformer, toy._pipeline.vae, dict(toy._schedule), toy.default)
    made = reading.toy().encode(["cat"])
    short = Conditioning(made.tokens[:, :3], made.mask[:, :3], made.pooled)
    one, other = (dev.sample(made, short, replace(dev.default, guidance_scale=g), generators=generators(1))[0].tobytes() for g in (1.5, 8.0))
    assert one != other  # and what is not wanted has no pass, so may be of any length


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_other_samplers_follow_the_models_shift(dynamic: bool) -> None:
    toy = flux.toy()
    schedule = {**toy._schedule, "shift": 3.0, "use_dynamic_shifting": dynamic, "time_shift_type": "exponential"}
    backbone = flux.FluxBackbone("toy", toy._pipeline.transformer, toy._pipeline.vae, schedule, toy.default)
    made = reading.toy().encode(["cat"])
    config = replace(toy.default, scheduler="euler", steps=8)
    times = []
    backbone.sample(made, made, config, generators=generators(1), on_step=lambda _: times.append(backbone._pipeline.scheduler.sigmas[0].item()))
    shift = backbone._pipeline.scheduler.config.flow_shift
    assert shift == pytest.approx(np.exp(0.5 + (256 - 256) * (1.15 - 0.5) / (4096 - 256)) if dynamic else 3.0)
    assert len(times) == 8


def test_unlike_lengths_are_refused() -> None:
    backbone, made = flux.toy(), reading.toy().encode(["cat", "dog"])
    ragged = Conditioning(made.tokens, made.mask.clone().index_fill_(1, torch.tensor([60]), 0), made.pooled)
    assert backbone.sample(ragged, ragged, backbone.default, generators=generators(1, 2))  # masked in both rows: left out
    ragged.mask[1, 60] = 1
    with pytest.raises(IncompatibleError, match="no masks"):
        backbone.sample(ragged, ragged, backbone.default, generators=generators(1, 2))
    short = Conditioning(made.tokens[:, :3], made.mask[:, :3], made.pooled)
    with pytest.raises(IncompatibleError, match="3 tokens and 64"):
        backbone.sample(made, short, replace(backbone.default, guidance_scale=3.0), generators=generators(1, 2))
    with pytest.raises(IncompatibleError, match="pooled"):
        backbone.sample(Conditioning(made.tokens, made.mask), made, backbone.default, generators=generators(1, 2))
