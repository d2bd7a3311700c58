"""Layouts are told by JSON files and the headers of safetensors alone."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jpgen.errors import WeightsError
from jpgen.layout import Layout, recognise
from tests.toys import stable_diffusion as toys


def told(layout: Layout) -> tuple[str, str, str, str]:
    return layout.kind, layout.variant, layout.family, layout.encoder


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (toys.rinna, ("folder", "sd1", "sd", "clip")),
        (toys.jsdxl, ("folder", "jsdxl", "sdxl", "jsdxl")),
        (toys.tohoku, ("folder", "sdxl", "sdxl", "sdxl")),
    ],
)
def test_folders(build: object, wanted: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path / "m")
    found = recognise(tmp_path / "m")
    assert told(found) == wanted and found.is_model
    assert (found.default.width, found.default.height) == (64, 64)  # sample_size 8


@pytest.mark.parametrize(
    ("build", "wanted"),
    [
        (toys.single_sd1, ("file", "sd1", "sd", "clip")),
        (toys.single_sd2, ("file", "sd2", "sd", "clip")),
        (toys.single_sdxl, ("file", "sdxl", "sdxl", "sdxl")),
    ],
)
def test_single_files(build: object, wanted: tuple[str, ...], tmp_path: Path) -> None:
    build(tmp_path / "m.safetensors")
    assert told(recognise(tmp_path / "m.safetensors")) == wanted


def test_mame() -> None:
    from importlib.resources import files

    assert told(recognise(Path(str(files("jpgen") / "mame")))) == ("folder", "mame", "pixart", "bert")


def written(tmp_path: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


KOHYA_XL = "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q"


@pytest.mark.parametrize(
    ("shapes", "kind", "variant"),
    [
        ({f"{KOHYA_XL}.lora_down.weight": (4, 640), f"{KOHYA_XL}.alpha": ()}, "lora", "sdxl"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 1280)}, "lora", "sdxl"),
        ({"unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k.lora_A.weight": (4, 2048)}, "lora", "sdxl"),
        ({"lora_unet_mid_block_attentions_0_transformer_blocks_3_attn1_to_q.hada_w1_a": (4, 4)}, "lora", "sdxl"),
        ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)}, "lora", "sd1"),
        ({"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 1024)}, "lora", "sd2"),
        ({"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q.lokr_w1": (4, 4)}, "lora", "sd1"),
        ({"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 64)}, "lora", "flux"),
        ({"transformer.transformer_blocks.7.attn1.to_q.lora_A.weight": (4, 64)}, "lora", "dit"),
        ({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": (4, 64)}, "lora", "flux"),
        ({"decoder.up.0.block.0.conv1.weight": (1,), "encoder.down.0.block.0.conv1.weight": (1,)}, "vae", "vae"),
        ({"first_stage_model.decoder.up.0.block.0.conv1.weight": (1,)}, "vae", "vae"),
        ({"decoder.up_blocks.0.resnets.0.conv1.weight": (1,)}, "vae", "vae"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,), "add_embedding.linear_1.weight": (1, 1)}, "unet", "sdxl"),
        ({"model.diffusion_model.input_blocks.0.0.weight": (1,), "model.diffusion_model.label_emb.0.0.weight": (1, 1)}, "unet", "sdxl"),
        ({"input_blocks.0.0.weight": (1,), "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (1, 768)}, "unet", "sd1"),
        ({"double_blocks.0.img_attn.qkv.weight": (1,)}, "transformer", "flux"),
        ({"adaln_single.linear.weight": (1,)}, "transformer", "pixart"),
        ({"control_model.input_blocks.0.0.weight": (1,)}, "controlnet", "sd1"),
        ({"emb_params": (1, 768)}, "embedding", "embedding"),
        ({"clip_l": (1, 768), "clip_g": (1, 1280)}, "embedding", "embedding"),
    ],
)
def test_parts_by_their_keys(shapes: dict[str, tuple[int, ...]], kind: str, variant: str, tmp_path: Path) -> None:
    found = recognise(written(tmp_path, shapes))
    assert (found.kind, found.variant) == (kind, variant)
    assert not found.is_model and found.default is None


def config(folder: Path, **values: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_roots_of_one_model(tmp_path: Path) -> None:
    commonart = recognise(config(tmp_path / "a", _class_name="Transformer2DModel", norm_type="ada_norm_single", sample_size=64))
    assert told(commonart) == ("folder", "pixart", "pixart", "llm") and commonart.default.width == 512
    assert recognise(config(tmp_path / "b", _class_name="AutoencoderKL")).kind == "vae"
    assert recognise(config(tmp_path / "c", _class_name="UNet2DConditionModel", addition_embed_type="text_time")).variant == "sdxl"
    for class_name, norm in (("Transformer2DModel", "ada_norm_zero"), ("LlamaForCausalLM", "ada_norm_single")):
        with pytest.raises(WeightsError, match="unknown class"):
            recognise(config(tmp_path / "d", _class_name=class_name, norm_type=norm))


@pytest.mark.parametrize(
    ("name", "variant"),
    [("FluxPipeline", "flux"), ("PixArtSigmaPipeline", "pixart-t5"), ("QwenImagePipeline", "diffusers"), ("KolorsPipeline", "diffusers")],
)
def test_other_pipelines_of_diffusers(name: str, variant: str, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": name}))
    if name == "KolorsPipeline":  # SDXL's U-Net, but no CLIP
        config(tmp_path / "unet", _class_name="UNet2DConditionModel", addition_embed_type="text_time")
        config(tmp_path / "text_encoder", model_type="chatglm")
    assert recognise(tmp_path).variant == variant


def test_code_of_the_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": ["pipeline_likes_base_unet", "MitsuaLikesPipeline"]}))
    with pytest.raises(WeightsError, match=r"MitsuaLikesPipeline.*never runs"):
        recognise(tmp_path)


def test_the_unknown_names_its_first_keys(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="first keys are apple, pear"):
        recognise(written(tmp_path, {"pear": (1,), "apple": (1,)}))
    (tmp_path / "readme.txt").write_text("")
    with pytest.raises(WeightsError, match=r"unknown layout, it holds readme\.txt"):
        recognise(tmp_path)


def test_what_cannot_be_read_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weight file"):
        recognise(tmp_path / "nothing.safetensors")
    (tmp_path / "m.ckpt").write_bytes(b"PK")
    with pytest.raises(WeightsError, match="pickle"):
        recognise(tmp_path / "m.ckpt")
