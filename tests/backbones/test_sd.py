"""Stable Diffusion 1 and 2: folders and single files open right, and pictures are those of plain diffusers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from jpgen.backbones import load_backbone, sd
from jpgen.backbones.unet import SCHEDULE, UnetBackbone
from jpgen.catalog import Entry
from jpgen.encoders import clip, load_encoder
from jpgen.encoders.tokenizers import clip_tokenizer
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.pipeline import Pipeline
from jpgen.types import Conditioning, ModelInfo, SamplingConfig
from tests.toys import stable_diffusion as toys

CONFIG = SamplingConfig(width=64, height=64, steps=2, guidance_scale=3.0)
INFO = ModelInfo("toy", "0", "Apache-2.0", "0000000000")


def entry(path: Path, **parts: str | float) -> Entry:
    return Entry("toy", "sd", encoder="clip", path=str(path), default=CONFIG, parts=parts)


def conditioning(backbone: UnetBackbone, seed: int, length: int = 77) -> Conditioning:
    tokens = torch.randn(1, length, backbone.spec.width, generator=torch.Generator().manual_seed(seed))
    return Conditioning(tokens, torch.ones(1, length, dtype=torch.int64))


def sampled(backbone: UnetBackbone, config: SamplingConfig = CONFIG, length: int = 77) -> np.ndarray:
    one, other = conditioning(backbone, 3, length), conditioning(backbone, 4, length)
    return np.asarray(backbone.sample(one, other, config, generators=[torch.Generator().manual_seed(7)])[0], int)


def plain(unet: object, vae: object, one: torch.Tensor, other: torch.Tensor, schedule: dict[str, object] = SCHEDULE, **config: object) -> np.ndarray:
    """The picture of diffusers alone, with the same embeddings and noise."""
    scheduler = DPMSolverMultistepScheduler.from_config(schedule, algorithm_type="dpmsolver++", solver_order=2)
    pipeline = StableDiffusionPipeline(
        vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt_embeds=one, negative_prompt_embeds=other, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)),
        width=64, height=64, num_inference_steps=2, **{"guidance_scale": 3.0, **config},
    )  # fmt: skip
    return np.asarray(made.images[0], int)


@pytest.mark.parametrize("guidance_scale", [3.0, 1.0])
def test_the_picture_is_that_of_plain_diffusers(guidance_scale: float) -> None:
    toy = sd.toy()
    wanted = plain(
        toy._pipeline.unet, toy._pipeline.vae, conditioning(toy, 3).tokens, conditioning(toy, 4).tokens, guidance_scale=guidance_scale
    )
    np.testing.assert_allclose(sampled(toy, replace(CONFIG, guidance_scale=guidance_scale)), wanted, atol=1)
    assert wanted.std() > 5


@pytest.mark.parametrize(("guidance_scale", "rows"), [(2.0, [2, 2]), (1.0, [1, 1]), (0.0, [1, 1])])
def test_without_guidance_the_negative_is_not_computed(guidance_scale: float, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    toy, seen = sd.toy(), []
    toy._pipeline.unet.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    sampled(toy, replace(CONFIG, guidance_scale=guidance_scale))
    assert seen == rows


def test_tokens_of_mask_0_are_not_there_row_by_row() -> None:
    toy = sd.toy()
    both = [conditioning(toy, 3, 5), conditioning(toy, 5, 9)]
    nothing = conditioning(toy, 4, 2)
    alone = [toy.sample(c, nothing, CONFIG, generators=[torch.Generator().manual_seed(i)])[0] for i, c in enumerate(both)]
    short = torch.cat([both[0].tokens, torch.full((1, 4, 32), 9.0)], 1)
    mask = torch.tensor([[1] * 5 + [0] * 4, [1] * 9])
    batch = Conditioning(torch.cat([short, both[1].tokens]), mask)
    two = Conditioning(nothing.tokens.expand(2, -1, -1), nothing.mask.expand(2, -1))
    together = toy.sample(batch, two, CONFIG, generators=[torch.Generator().manual_seed(i) for i in range(2)])
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(np.asarray(one, int), np.asarray(other, int), atol=1)
    assert not toy._pipeline.unet._forward_pre_hooks


def test_a_pooled_state_is_not_for_it() -> None:
    toy = sd.toy()
    made = conditioning(toy, 3)
    with pytest.raises(IncompatibleError, match="pooled state of width None"):
        toy.sample(replace(made, pooled=torch.zeros(1, 8)), made, CONFIG, generators=[torch.Generator()])


def by_transformers(text: object, ids: list[int], end: int, pad: int) -> torch.Tensor:
    with torch.inference_mode():
        return text(torch.tensor([[*ids, end, *[pad] * (76 - len(ids))]])).last_hidden_state


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "best_dtype", lambda *_device: torch.float32)


def test_rinnas_layout_generates_with_the_right_embeddings(tmp_path: Path) -> None:
    toy = toys.rinna(tmp_path / "m")
    encoder, backbone = load_encoder("clip", toy.path), load_backbone(entry(toy.path), torch.float32)
    text = "赤い鬱の猫 CAT"  # 鬱: unknown
    one = by_transformers(toy.texts[0], toy.pieces.encode(text.lower()), 2, 3)
    torch.testing.assert_close(encoder.encode([text]).tokens, one, atol=1e-6, rtol=1e-5)
    made = Pipeline.from_parts(encoder, backbone, INFO).generate(text, seed=7, config=CONFIG, normalize=False)
    wanted = plain(toy.unet, toy.vae, one, by_transformers(toy.texts[0], [], 2, 3))
    np.testing.assert_allclose(np.asarray(made.image, int), wanted, atol=1)


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_a_single_file_generates_with_the_right_embeddings(kind: str, tmp_path: Path) -> None:
    toy = (toys.single_sd1 if kind == "sd1" else toys.single_sd2)(tmp_path / "model.safetensors")
    encoder, backbone = load_encoder("clip", toy.path), load_backbone(entry(toy.path), torch.float32)
    for ours, theirs in ((backbone._pipeline.unet, toy.unet), (backbone._pipeline.vae, toy.vae)):
        state = theirs.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in ours.state_dict().items())
        wanted = {key: value for key, value in theirs.config.items() if not key.startswith("_") and key not in ("sample_size", "upcast_attention")}
        told = {key: ours.config[key] for key in wanted}
        assert _plain(told) == _plain(wanted)
    tokenizer, text = clip_tokenizer(), "赤い a red cat"
    if kind == "sd1":
        def states(text: str) -> torch.Tensor:
            return by_transformers(toy.texts[0], [49406, *tokenizer.encode(text)], 49407, 49407)
    else:
        def states(text: str) -> torch.Tensor:
            ids = [49406, *tokenizer.encode(text), 49407]
            with torch.inference_mode():
                hidden = toy.texts[0](torch.tensor([[*ids, *[0] * (77 - len(ids))]]), output_hidden_states=True).hidden_states[-2]
                return toy.texts[0].text_model.final_layer_norm(hidden)
    one, other = states(text), states("")
    torch.testing.assert_close(encoder.encode([text]).tokens, one, atol=1e-6, rtol=1e-5)
    made = Pipeline.from_parts(encoder, backbone, INFO).generate(text, seed=7, config=CONFIG, normalize=False)
    schedule = {**SCHEDULE, "prediction_type": "epsilon" if kind == "sd1" else "v_prediction"}
    np.testing.assert_allclose(np.asarray(made.image, int), plain(toy.unet, toy.vae, one, other, schedule), atol=1)


def _plain(config: dict[str, object]) -> dict[str, object]:
    def spread(key: str, value: object) -> object:
        levels = {"attention_head_dim", "transformer_layers_per_block"}
        return [value] * 4 if key in levels and isinstance(value, int) else list(value) if isinstance(value, tuple) else value

    return {key: spread(key, value) for key, value in config.items()}


def test_sharded_and_variant_files_open(tmp_path: Path) -> None:
    toy = toys.rinna(tmp_path)
    wanted = sampled(load_backbone(entry(tmp_path), torch.float32))
    (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    toy.unet.save_pretrained(tmp_path / "unet", max_shard_size="300KB")
    assert len(list((tmp_path / "unet").glob("*-of-*.safetensors"))) > 1
    vae = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    vae.rename(vae.with_name("diffusion_pytorch_model.fp16.safetensors"))
    text = tmp_path / "text_encoder" / "model.safetensors"
    text.rename(text.with_name("model.fp16.safetensors"))
    assert load_encoder("clip", tmp_path).spec.width == 16
    np.testing.assert_array_equal(sampled(load_backbone(entry(tmp_path), torch.float32)), wanted)
    next((tmp_path / "unet").glob("*00001-of-*.safetensors")).unlink()
    with pytest.raises(WeightsError, match="00001-of"):
        load_backbone(entry(tmp_path), torch.float32)


def test_another_autoencoder_can_take_its_place(tmp_path: Path) -> None:
    toy = toys.single_sd1(tmp_path / "model.safetensors")
    other = toys.autoencoder()
    torch.nn.init.normal_(other.decoder.conv_out.weight)
    (tmp_path / "other").mkdir()
    other.save_pretrained(tmp_path / "other" / "vae")
    save_file({k.removeprefix("first_stage_model."): v.contiguous() for k, v in toys.ldm_vae(other).items()}, tmp_path / "vae.safetensors")
    by_folder, by_file = (sampled(load_backbone(entry(toy.path, vae=vae), torch.float32)) for vae in ("other", "vae.safetensors"))
    np.testing.assert_array_equal(by_folder, by_file)
    assert abs(by_folder - sampled(load_backbone(entry(toy.path), torch.float32))).max() > 5


def test_an_adapter_is_fused(tmp_path: Path) -> None:
    toy = toys.single_sd1(tmp_path / "model.safetensors")
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(32, 2, generator=generator), torch.randn(2, 32, generator=generator)
    kohya = f"lora_unet_{name.replace('.', '_')}"
    save_file({f"{kohya}.lora_up.weight": up, f"{kohya}.lora_down.weight": down, f"{kohya}.alpha": torch.tensor(1.0)}, tmp_path / "kohya.safetensors")
    save_file({f"unet.{name}.lora_B.weight": up * 0.5, f"unet.{name}.lora_A.weight": down}, tmp_path / "diffusers.safetensors")
    before = toy.unet.state_dict()
    for file in ("kohya", "diffusers"):
        fused = load_backbone(entry(toy.path, adapter=f"{file}.safetensors", adapter_scale=0.8), torch.float32)._pipeline.unet.state_dict()
        changed = {key for key, tensor in fused.items() if not torch.equal(tensor, before[key])}
        assert changed == {f"{name}.weight"}
        torch.testing.assert_close(fused[f"{name}.weight"], before[f"{name}.weight"] + 0.8 * 0.5 * up @ down)


def test_an_adapter_of_another_family_is_told(tmp_path: Path) -> None:
    toy = toys.single_sd1(tmp_path / "model.safetensors")
    key = "lora_unet_down_blocks_2_attentions_0_transformer_blocks_3_attn1_to_q"
    save_file({f"{key}.lora_up.weight": torch.zeros(4, 2), f"{key}.lora_down.weight": torch.zeros(2, 4)}, tmp_path / "xl.safetensors")
    with pytest.raises(WeightsError, match="is for sdxl, the model toy is sd"):
        load_backbone(entry(toy.path, adapter="xl.safetensors"), torch.float32)
    with pytest.raises(WeightsError, match="is no LoRA but file of sd1"):
        load_backbone(entry(toy.path, adapter="model.safetensors"), torch.float32)


def test_what_a_file_predicts_is_read_or_told(tmp_path: Path) -> None:
    toy = toys.single_sd1(tmp_path / "model.safetensors")
    assert load_backbone(entry(toy.path), torch.float32)._schedule["prediction_type"] == "epsilon"
    assert load_backbone(entry(toy.path, prediction_type="v_prediction"), torch.float32)._schedule["prediction_type"] == "v_prediction"
    tensors = load_file(toy.path)
    save_file({**tensors, "v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)}, toy.path)
    schedule = load_backbone(entry(toy.path), torch.float32)._schedule
    assert (schedule["prediction_type"], schedule["rescale_betas_zero_snr"]) == ("v_prediction", True)
    save_file(tensors, toy.path, metadata={"modelspec.prediction_type": "v"})
    assert load_backbone(entry(toy.path), torch.float32)._schedule["prediction_type"] == "v_prediction"


def test_damage_is_named(tmp_path: Path) -> None:
    toy = toys.single_sd1(tmp_path / "model.safetensors")
    tensors = load_file(toy.path)
    without = {name: tensor for name, tensor in tensors.items() if "middle_block.0.in_layers.0.weight" not in name}
    save_file(without, tmp_path / "hole.safetensors")
    with pytest.raises(WeightsError, match=r"mid_block\.resnets\.0\.norm1\.weight"):
        load_backbone(entry(tmp_path / "hole.safetensors"), torch.float32)
    save_file({name: tensor for name, tensor in tensors.items() if not name.startswith("first_stage")}, tmp_path / "novae.safetensors")
    with pytest.raises(WeightsError, match=r"holds no autoencoder.*parts\.vae"):
        load_backbone(entry(tmp_path / "novae.safetensors"), torch.float32)
    toy.path.write_bytes(toy.path.read_bytes()[:-1000])
    with pytest.raises(WeightsError, match="cut off"):
        load_backbone(entry(toy.path), torch.float32)


def test_the_wrong_family_and_editing_are_told(tmp_path: Path) -> None:
    toy = toys.rinna(tmp_path)
    with pytest.raises(WeightsError, match=r"of the family sd, the entry says sdxl"):
        load_backbone(replace(entry(tmp_path), family="sdxl"), torch.float32)
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    (tmp_path / "unet" / "config.json").write_text(json.dumps({**config, "in_channels": 8}))
    state = toy.unet.state_dict()
    save_file({**state, "conv_in.weight": torch.zeros(32, 8, 3, 3)}, tmp_path / "unet" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(IncompatibleError, match="8 channels"):
        load_backbone(entry(tmp_path), torch.float32)
