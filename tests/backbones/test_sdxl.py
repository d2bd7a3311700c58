"""Stable Diffusion XL: every layout opens right, and pictures are those of plain diffusers."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file, save_file

from jpgen.backbones import load_backbone, sdxl
from jpgen.backbones.single_file import unet_config
from jpgen.backbones.unet import SCHEDULE
from jpgen.catalog import Entry
from jpgen.encoders import clip, load_encoder
from jpgen.encoders.tokenizers import clip_tokenizer
from jpgen.errors import IncompatibleError, WeightsError
from jpgen.layout import UNET
from jpgen.pipeline import Pipeline
from jpgen.types import Conditioning, ModelInfo, SamplingConfig
from tests.toys import stable_diffusion as toys

CONFIG = SamplingConfig(width=64, height=64, steps=2, guidance_scale=3.0)
INFO = ModelInfo("toy", "0", "Apache-2.0", "0000000000")
States = tuple[torch.Tensor, torch.Tensor]
"""Token states [1, 77, width] and pooled [1, pooled width]."""


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "best_dtype", lambda *_device: torch.float32)


def entry(path: Path, **parts: str | float) -> Entry:
    return Entry("toy", "sdxl", encoder="sdxl", path=str(path), default=CONFIG, parts=parts)


def plain(unet: Any, vae: Any, one: States, other: States, **config: Any) -> np.ndarray:
    """The picture of diffusers alone, with the same embeddings and noise; it adds sizes and pooled states itself."""
    scheduler = DPMSolverMultistepScheduler.from_config(SCHEDULE, algorithm_type="dpmsolver++", solver_order=2)
    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet, scheduler=scheduler, add_watermarker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    settings = {"width": 64, "height": 64, "guidance_scale": 3.0, **config}
    noise = torch.randn(1, 4, settings["height"] // 8, settings["width"] // 8, generator=torch.Generator().manual_seed(7))
    made = pipeline(
        prompt_embeds=one[0], pooled_prompt_embeds=one[1], negative_prompt_embeds=other[0], negative_pooled_prompt_embeds=other[1], latents=noise,
        num_inference_steps=2, **settings,
    )  # fmt: skip
    return np.asarray(made.images[0], int)


def conditioning(seed: int) -> Conditioning:
    generator = torch.Generator().manual_seed(seed)
    tokens, pooled = torch.randn(1, 77, 64, generator=generator), torch.randn(1, 24, generator=generator)
    return Conditioning(tokens, torch.ones(1, 77, dtype=torch.int64), pooled)


@pytest.mark.parametrize("changes", [{}, {"guidance_scale": 1.0}, {"width": 96, "height": 64}])
def test_the_picture_is_that_of_plain_diffusers(changes: dict[str, Any]) -> None:
    toy = sdxl.toy()
    one, other = conditioning(3), conditioning(4)
    made = toy.sample(one, other, replace(CONFIG, **changes), generators=[torch.Generator().manual_seed(7)])[0]
    wanted = plain(toy._pipeline.unet, toy._pipeline.vae, (one.tokens, one.pooled), (other.tokens, other.pooled), **changes)
    np.testing.assert_allclose(np.asarray(made, int), wanted, atol=1)
    assert wanted.std() > 5


def test_without_guidance_the_negative_is_not_computed() -> None:
    toy, seen = sdxl.toy(), []
    toy._pipeline.unet.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    toy.sample(conditioning(3), conditioning(4), replace(CONFIG, guidance_scale=0.0), generators=[torch.Generator()])
    assert seen == [1, 1]


def test_a_pooled_state_is_wanted() -> None:
    toy, made = sdxl.toy(), conditioning(3)
    assert toy.spec.pooled_width == 24
    with pytest.raises(IncompatibleError, match="wants a pooled state of width 24, got None"):
        toy.sample(replace(made, pooled=None), made, CONFIG, generators=[torch.Generator()])


def run(text: Any, ids: list[int]) -> Any:
    with torch.inference_mode():
        return text(torch.tensor([ids]), output_hidden_states=True)


def filled(ids: list[int], pad: int) -> list[int]:
    return [*ids, *[pad] * (77 - len(ids))]


def check(encoder: Any, path: Path, toy: toys.Parts, text: str, states: Callable[[str], States]) -> None:
    """Embeddings are the wanted ones, and the whole road gives the picture of plain diffusers with them; no negative prompt is zeros."""
    made, one = encoder.encode([text]), states(text)
    torch.testing.assert_close(made.tokens, one[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.pooled, one[1], atol=1e-6, rtol=1e-5)
    backbone = load_backbone(entry(path), torch.float32)
    pipeline = Pipeline.from_parts(encoder, backbone, INFO)
    for negative, other in (("青い船", states("青い船")), ("", (torch.zeros_like(one[0]), torch.zeros_like(one[1])))):
        picture = pipeline.generate(text, negative=negative, seed=7, config=CONFIG, normalize=False).image
        np.testing.assert_allclose(np.asarray(picture, int), plain(toy.unet, toy.vae, one, other), atol=1)


def test_jsdxls_layout_is_penultimate_states_beside_zeros(tmp_path: Path) -> None:
    toy = toys.jsdxl(tmp_path / "m")
    text = "赤い鬱の猫"  # 鬱: unknown

    def states(text: str) -> States:
        hidden = run(toy.texts[0], filled([*toy.pieces.encode(text), 2], 3)).hidden_states[-2]
        return torch.cat([hidden, torch.zeros(1, 77, 20)], -1), torch.zeros(1, 20)

    check(load_encoder("jsdxl", toy.path), toy.path, toy, text, states)


def tohoku_states(toy: toys.Parts, text: str) -> States:
    ids = filled([*toy.pieces.encode(text.lower()), 2], 3)
    one, other = (run(model, ids) for model in toy.texts)
    return torch.cat([one.hidden_states[-2], other.hidden_states[-2]], -1), other.text_embeds


def test_tohokus_layout_is_both_encoders_of_japanese(tmp_path: Path) -> None:
    toy = toys.tohoku(tmp_path / "m")
    text = "赤い猫 CAT"
    check(load_encoder("sdxl", toy.path), toy.path, toy, text, partial(tohoku_states, toy))


def test_tohokus_encoders_go_under_any_unet(tmp_path: Path) -> None:
    toy = toys.tohoku(tmp_path / "tohoku")
    unet = toys.sdxl_unet(32, 20)
    torch.nn.init.normal_(unet.conv_out.weight)
    other = tmp_path / "other.safetensors"
    toys._write_file(other, toys.ldm_unet(unet), toys.ldm_vae(toy.vae), {"conditioner.embedders.1.model.text_projection": torch.zeros(20, 20)})
    encoder = load_encoder("sdxl", other, text_encoder="tohoku")
    text = "青い船"
    check(encoder, other, replace(toy, unet=unet), text, partial(tohoku_states, toy))


def single_states(toy: toys.Parts, text: str) -> States:
    ids = [49406, *clip_tokenizer().encode(text), 49407]
    one, other = run(toy.texts[0], filled(ids, 49407)), run(toy.texts[1], filled(ids, 0))
    return torch.cat([one.hidden_states[-2], other.hidden_states[-2]], -1), other.text_embeds


def test_a_single_file_generates_with_the_right_embeddings(tmp_path: Path) -> None:
    toy = toys.single_sdxl(tmp_path / "model.safetensors")
    text = "赤い a red cat!"
    check(load_encoder("sdxl", toy.path), toy.path, toy, text, partial(single_states, toy))
    backbone = load_backbone(entry(toy.path), torch.float32)
    config = backbone._pipeline.unet.config
    assert backbone._pipeline.vae.config.scaling_factor == 0.13025
    assert [*config.attention_head_dim] == [1, 1, 2] and [*config.transformer_layers_per_block] == [1, 1, 2]
    assert (config.addition_time_embed_dim, config.projection_class_embeddings_input_dim) == (8, 64)


def test_evos_pairing_is_jsdxls_encoder_beside_the_english_one(tmp_path: Path) -> None:
    """Slot 1 was saved with a projection, and still the pooled state is that of slot 2."""
    japanese, english = toys.jsdxl(tmp_path / "jsdxl"), toys.single_sdxl(tmp_path / "model.safetensors")
    encoder = load_encoder("sdxl", english.path, text_encoder="jsdxl", text_encoder_2="model.safetensors")
    text = "赤い猫"
    one = run(japanese.texts[0], filled([*japanese.pieces.encode(text), 2], 3)).hidden_states[-2]
    other = run(english.texts[1], filled([49406, *clip_tokenizer().encode(text), 49407], 0))
    made = encoder.encode([text])
    torch.testing.assert_close(made.tokens, torch.cat([one, other.hidden_states[-2]], -1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.pooled, other.text_embeds, atol=1e-6, rtol=1e-5)


def test_a_lightning_like_adapter_is_fused_with_its_sampler(tmp_path: Path) -> None:
    toy = toys.single_sdxl(tmp_path / "model.safetensors")
    name = "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k"
    up, down = torch.ones(128, 2), torch.full((2, 32), 0.01)
    key = f"lora_unet_{name.replace('.', '_')}"
    adapter = "sdxl_lightning_4step_lora.safetensors"
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(8.0)}, tmp_path / adapter)
    fast = replace(entry(toy.path, adapter=adapter), default=replace(CONFIG, guidance_scale=0.0, scheduler="euler_trailing"))
    backbone = load_backbone(fast, torch.float32)
    torch.testing.assert_close(backbone._pipeline.unet.state_dict()[f"{name}.weight"], toy.unet.state_dict()[f"{name}.weight"] + 4 * up @ down)
    assert backbone.sample(conditioning_of(backbone), conditioning_of(backbone), fast.default, generators=[torch.Generator()])
    assert backbone._pipeline.scheduler.config.timestep_spacing == "trailing"


def conditioning_of(backbone: Any) -> Conditioning:
    return Conditioning(torch.zeros(1, 77, backbone.spec.width), torch.ones(1, 77).long(), torch.zeros(1, backbone.spec.pooled_width))


@pytest.mark.parametrize(
    ("key", "width", "message"),
    [
        (
            "unet_down_blocks_2_attentions_0_transformer_blocks_1_attn1_to_q", 64,
            r"does not fit toy: 1 do not suit theirs: .*attn1_to_q \[64, 64\] for a weight \[128, 128\]",
        ),
        ("unet_down_blocks_2_attentions_0_transformer_blocks_9_attn1_to_q", 128, r"1 of its 1 modules are not there: down_blocks_2_.*_9_attn1_to_q"),
        ("te2_text_model_encoder_layers_0_mlp_fc1", 20, r"not there: text_encoder_2\.text_model_encoder_layers_0_mlp_fc1"),
    ],
)
def test_an_adapter_that_does_not_fit_is_explained_in_a_line(key: str, width: int, message: str, tmp_path: Path) -> None:
    toy = toys.single_sdxl(tmp_path / "model.safetensors")
    save_file({f"lora_{key}.lora_up.weight": torch.ones(width, 2), f"lora_{key}.lora_down.weight": torch.ones(2, width)}, tmp_path / "l.safetensors")
    with pytest.raises(WeightsError, match=message) as caught:
        load_backbone(entry(toy.path, adapter="l.safetensors"), torch.float32)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("input_blocks_7_1", "down_blocks.2.attentions.0"),
        ("output_blocks_0_1", "up_blocks.0.attentions.0"),
        ("middle_block_1", "mid_block.attentions.0"),
    ],
)
def test_an_adapter_of_webuis_names_is_fused(theirs: str, ours: str, tmp_path: Path) -> None:
    toy = toys.single_sdxl(tmp_path / "model.safetensors")
    key = f"lora_unet_{theirs}_transformer_blocks_1_attn1_to_q"
    tensors = {f"{key}.lora_up.weight": torch.ones(128, 2), f"{key}.lora_down.weight": torch.ones(2, 128), f"{key}.alpha": torch.tensor(2.0)}
    save_file(tensors, tmp_path / "l.safetensors")
    state = load_backbone(entry(toy.path, adapter="l.safetensors"), torch.float32)._pipeline.unet.state_dict()
    changed = [name for name, tensor in toy.unet.state_dict().items() if not torch.equal(tensor, state[name])]
    assert changed == [f"{ours}.transformer_blocks.1.attn1.to_q.weight"]


def test_another_unet_can_take_its_place(tmp_path: Path) -> None:
    """SDXL-Lightning's whole U-Net: one file of diffusers' names, whose config is the base's."""
    toy = toys.tohoku(tmp_path)
    unet = toys.sdxl_unet(32, 20)
    torch.nn.init.normal_(unet.conv_out.weight)
    save_file(unet.state_dict(), tmp_path / "lightning.safetensors")
    state = load_backbone(entry(toy.path, unet="lightning.safetensors"), torch.float32)._pipeline.unet.state_dict()
    assert all(torch.equal(tensor, unet.state_dict()[name]) for name, tensor in state.items())


def test_a_refiner_is_refused(tmp_path: Path) -> None:
    toy = toys.single_sdxl(tmp_path / "model.safetensors")
    tensors = {name.replace("embedders.1", "embedders.0"): tensor for name, tensor in load_file(toy.path).items()}
    save_file(tensors, toy.path)
    with pytest.raises(WeightsError, match="sdxl-refiner"):
        load_backbone(entry(toy.path), torch.float32)


@pytest.mark.parametrize("build", [toys.rinna, toys.jsdxl, toys.tohoku, toys.single_sd1, toys.single_sd2, toys.single_sdxl])
def test_every_layout_opens_by_its_path_alone(build: Any, tmp_path: Path) -> None:
    """Recognised, opened, asked with weights and in more than one window."""
    pipeline = Pipeline(build(tmp_path / ("m.safetensors" if "single" in build.__name__ else "m")).path)
    config = pipeline.config(width=64, height=64, steps=1)
    one, other = (pipeline.generate(text, negative="雨", seed=1, config=config) for text in ("(赤い:1.3)猫", "赤い猫" + "、青い海" * 40))
    assert one.image.size == (64, 64) and one.image.tobytes() != other.image.tobytes()


REAL: dict[str, tuple[dict[str, Any], int | None]] = {
    "sd1": ({"cross_attention_dim": 768, "attention_head_dim": 8}, None),
    "sd2": ({"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}, None),
    "sdxl": (
        {
            "block_out_channels": [320, 640, 1280], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"], "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
        },
        1280,
    ),
}  # fmt: skip
"""What the configs of the real U-Nets say that is not diffusers' default; width of the pooled state."""


@pytest.mark.parametrize("name", REAL)
def test_the_configs_of_the_real_unets_are_read_off_their_shapes(name: str) -> None:
    config, pooled = REAL[name]
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
    named = toys.ldm_unet(unet)
    made = unet_config({key.removeprefix(UNET): tuple(tensor.shape) for key, tensor in named.items()}, pooled, Path("m"))
    with torch.device("meta"):
        again = UNet2DConditionModel.from_config(made)
    shapes = {key: tensor.shape for key, tensor in unet.state_dict().items()}
    assert {key: tensor.shape for key, tensor in again.state_dict().items()} == shapes
    assert {key: tensor.shape for key, tensor in convert_ldm_unet_checkpoint(named, made).items()} == shapes
    heads = [[block.heads for block in one.modules() if isinstance(block, Attention)] for one in (unet, again)]
    assert heads[0] == heads[1] and {*heads[0]} == ({8} if name == "sd1" else {5, 10, 20} if name == "sd2" else {10, 20})
