"""PixArt against plain diffusers: CommonArt β's layout (a bare transformer, a language model and an autoencoder apart) and PixArt-Σ's folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, T5EncoderModel

from jpgen.backbones import load_backbone, pixart
from jpgen.catalog import Entry
from jpgen.encoders import llm, load_encoder, t5
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.pipeline import Pipeline
from jpgen.protocols import Backbone
from jpgen.types import ModelInfo, SamplingConfig
from tests.toys.diffusion_transformers import WEIGHTS, commonart, in_shards, pixart_sigma

DEFAULT = SamplingConfig(width=64, height=48, steps=3, guidance_scale=3.0, scheduler="dpm++2m", emphasis="comfy")
TEXT = "赤い猫とCat"


def entry(path: Path, **parts: str | int) -> Entry:
    return Entry("toy", "pixart", path=str(path), default=DEFAULT, parts=parts)


def of_commonart(root: Path, **parts: str | int) -> Entry:
    return entry(root, **{"vae": str(root.parent / "vae"), "text_encoder": str(root.parent / "llm"), "hidden_layer": -2, "max_tokens": 64, **parts})


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def noise(*seeds: int, rows: int = 6, columns: int = 8) -> torch.Tensor:
    return torch.cat([torch.randn(1, 4, rows, columns, generator=generator) for generator in generators(*seeds)])


@pytest.fixture(autouse=True)
def _in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (llm, t5):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)


@pytest.mark.parametrize("class_name", ["Transformer2DModel", "PixArtTransformer2DModel"])
def test_commonart_is_what_diffusers_makes_of_its_parts(tmp_path: Path, class_name: str) -> None:
    root = commonart(tmp_path, class_name=class_name)
    chosen = of_commonart(root)
    encoder, backbone = load_encoder("llm", chosen.folder, **chosen.parts), load_backbone(chosen, torch.float32)
    assert encoder.spec == backbone.spec
    # by hand: the language model on <s> and the text, filled on the right to 64, its last layer but one
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "llm")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "llm" / "tokenizer.json"), pad_token="<unk>")
    read = tokenizer([TEXT, ""], padding="max_length", max_length=64, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=read.input_ids, attention_mask=read.attention_mask, output_hidden_states=True).hidden_states[-2]
    made, nothing = encoder.encode([TEXT]), encoder.encode([""])
    length = int(read.attention_mask[0].sum())
    assert made.tokens.shape == (1, length, 32) and nothing.tokens.shape == (1, 1, 32)
    torch.testing.assert_close(made.tokens, states[:1, :length], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(nothing.tokens, states[1:, :1], atol=1e-5, rtol=1e-4)
    # the recipe of the model's card
    plain = PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=AutoencoderKL.from_pretrained(tmp_path / "vae").eval(),
        transformer=PixArtTransformer2DModel.from_pretrained(root).eval(), scheduler=DPMSolverMultistepScheduler(),
    )  # fmt: skip
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        prompt=None, negative_prompt=None, prompt_embeds=states[:1], prompt_attention_mask=read.attention_mask[:1],
        negative_prompt_embeds=states[1:], negative_prompt_attention_mask=read.attention_mask[1:], latents=noise(7), num_inference_steps=3,
        guidance_scale=3.0, height=48, width=64, use_resolution_binning=False, output_type="np",
    ).images[0]  # fmt: skip
    picture = backbone.sample(made, nothing, DEFAULT, generators=generators(7))[0]
    assert picture.size == (64, 48)
    np.testing.assert_allclose(np.asarray(picture) / 255, wanted, atol=1 / 255)
    other = backbone.sample(encoder.encode(["青い船"]), nothing, DEFAULT, generators=generators(7))[0]
    assert np.abs(np.asarray(picture, int) - np.asarray(other, int)).max() > 2  # the text matters


def test_commonart_walks_the_road(tmp_path: Path) -> None:
    chosen = of_commonart(commonart(tmp_path))
    encoder, backbone = load_encoder("llm", chosen.folder, **chosen.parts), load_backbone(chosen)
    pipeline = Pipeline.from_parts(encoder, backbone, ModelInfo("toy", "0", "Apache-2.0", "0000000000"))
    made = pipeline.generate("(赤い:1.3)猫", seed=3)
    assert made.image.size == (64, 48) and made.encoder == "llm"


@pytest.mark.parametrize("files", ["whole", "shards", "fp16 shards"])
def test_pixart_sigma_is_what_diffusers_draws_of_the_text(tmp_path: Path, files: str) -> None:
    root = pixart_sigma(tmp_path)
    transformer = PixArtTransformer2DModel.from_pretrained(root / "transformer").eval()
    if files == "fp16 shards":
        transformer = transformer.half().float()
        file = root / "transformer" / WEIGHTS
        save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    if files != "whole":
        in_shards(root / "transformer", variant="fp16" if "fp16" in files else "")
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(root / "tokenizer" / "tokenizer.json"), pad_token="<pad>", eos_token="</s>")
    plain = PixArtSigmaPipeline(
        tokenizer=tokenizer, text_encoder=T5EncoderModel.from_pretrained(root / "text_encoder"), transformer=transformer,
        vae=AutoencoderKL.from_pretrained(root / "vae").eval(), scheduler=DPMSolverMultistepScheduler.from_pretrained(root / "scheduler"),
    )  # fmt: skip
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        "A Red Cat", negative_prompt="", latents=noise(1, 2), num_images_per_prompt=2, num_inference_steps=3, guidance_scale=3.0, height=48, width=64,
        use_resolution_binning=False, clean_caption=False, output_type="np",
    ).images  # fmt: skip
    encoder, backbone = load_encoder("t5", root), load_backbone(entry(root), torch.float32)
    made = backbone.sample(encoder.encode(["A Red Cat"] * 2), encoder.encode([""] * 2), DEFAULT, generators=generators(1, 2))
    np.testing.assert_allclose(np.stack([np.asarray(image) for image in made]) / 255, wanted, atol=1 / 255)


def test_a_stochastic_sampler_is_repeated_by_its_seed() -> None:
    backbone = pixart.toy()
    encoded = llm.toy().encode([TEXT])
    config = replace(backbone.default, scheduler="dpm++2m_sde", steps=4)
    torch.manual_seed(0)
    one = backbone.sample(encoded, encoded, config, generators=generators(5))[0]
    torch.manual_seed(1)
    assert one.tobytes() == backbone.sample(encoded, encoded, config, generators=generators(5))[0].tobytes()


def test_an_autoencoder_of_older_names_is_read(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    one = load_backbone(of_commonart(root), torch.float32)
    file = tmp_path / "vae" / WEIGHTS
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in load_file(file).items():
        for new, old in names.items():
            name = name.replace(f".{new}.", f".{old}.")
        tensors[name] = tensor
    assert any("proj_attn" in name for name in tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    other = load_backbone(of_commonart(root), torch.float32)
    assert painted(one) == painted(other)


def painted(backbone: Backbone) -> bytes:
    encoded = llm.toy().encode([TEXT])
    return backbone.sample(encoded, encoded, DEFAULT, generators=generators(5))[0].tobytes()


def test_parts_may_stay_beside_the_transformer_or_inside_another_model(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    one = painted(load_backbone(of_commonart(root), torch.float32))
    (tmp_path / "sdxl").mkdir()
    (tmp_path / "vae").rename(tmp_path / "sdxl" / "vae")
    assert painted(load_backbone(of_commonart(root, vae="../sdxl"), torch.float32)) == one
    (tmp_path / "sdxl" / "vae").rename(root / "vae")
    assert painted(load_backbone(entry(root), torch.float32)) == one


def test_parts_replace_what_the_schedule_says(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    one = painted(load_backbone(of_commonart(root), torch.float32))
    assert painted(load_backbone(of_commonart(root, prediction_type="v_prediction"), torch.float32)) != one


def test_a_language_model_of_another_width_is_refused_before_it_is_read(tmp_path: Path) -> None:
    chosen = of_commonart(commonart(tmp_path, caption_channels=48))
    (tmp_path / "llm" / "model.safetensors").unlink()
    with pytest.raises(IncompatibleError, match="gives width 32, the transformer commonart wants 48"):
        load_encoder("llm", chosen.folder, **chosen.parts)


def test_another_autoencoder_is_refused(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=16).save_pretrained(tmp_path / "other")
    with pytest.raises(IncompatibleError, match=r"16 latent channels.*4.*parts\.vae"):
        load_backbone(of_commonart(root, vae=str(tmp_path / "other")))


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    with pytest.raises(WeightsError, match=r"parts\.vae"):
        load_backbone(entry(root))
    tensors = load_file(root / WEIGHTS)
    save_file({**{name: t for name, t in tensors.items() if "scale_shift_table" not in name}, "extra": torch.zeros(3)}, root / WEIGHTS)
    with pytest.raises(WeightsError, match=r"4 missing or unexpected tensors \(extra"):
        load_backbone(of_commonart(root))
    in_shards(root)
    (root / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match="00002-of-00002"):
        load_backbone(of_commonart(root))


def test_what_training_left_behind_is_passed_over(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    one = painted(load_backbone(of_commonart(root), torch.float32))
    save_file({**load_file(root / WEIGHTS), "caption_projection.y_embedding": torch.zeros(120, 32)}, root / WEIGHTS)
    assert painted(load_backbone(of_commonart(root), torch.float32)) == one


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [({"norm_type": "layer_norm"}, "no PixArt transformer"), ({"caption_channels": None}, "takes no text"), ({"num_layers": "two"}, "not a config")],
)
def test_another_transformer_is_refused(tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    root = commonart(tmp_path)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(WeightsError, match=complaint):
        load_backbone(of_commonart(root))


def test_weights_of_more_channels_than_learned_sigma_are_refused(tmp_path: Path) -> None:
    root = commonart(tmp_path)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "out_channels": 12}))
    with pytest.raises(IncompatibleError, match="12 channels out of 4 in"):
        load_backbone(of_commonart(root))
