"""Key spaces both ways: against diffusers' own converters, on toys by value and on full-size models by every name and shape."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from jpgen.errors import WeightsError
from jpgen.merge.keys import Moved, Slice, canonical, family_of, key_space, single
from jpgen.safety import Stored
from tests.toys import stable_diffusion as sd

UNET = "model.diffusion_model."

UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"cross_attention_dim": 768, "attention_head_dim": 8},
    "sd2": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    "sdxl": {
        "block_out_channels": (320, 640, 1280), "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
        "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip

FULL_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
}  # fmt: skip

DTYPES = {"F32": torch.float32, "F16": torch.float16, "I64": torch.int64}


def headers(state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Stored]:
    names = {dtype: name for name, dtype in DTYPES.items()}
    return {prefix + name: Stored(names[tensor.dtype], tuple(tensor.shape)) for name, tensor in state.items()}


def stored(plan: Mapping[str, Moved]) -> dict[str, Stored]:
    return {name: moved.stored for name, moved in plan.items()}


def values(plan: Mapping[str, Moved], source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def read(one: Slice) -> Tensor:
        whole = source[one.source]
        return whole if one.rows is None else whole[slice(*one.rows)]

    made = {name: moved.made(read) for name, moved in plan.items()}
    assert {name: tuple(tensor.shape) for name, tensor in made.items()} == {name: moved.stored.shape for name, moved in plan.items()}
    return made


def filled(shapes: Mapping[str, Stored]) -> dict[str, Tensor]:
    """Every value of it another number."""
    made, at = {}, 0.0
    for name, one in shapes.items():
        size = torch.Size(one.shape).numel()
        made[name] = torch.arange(at, at + size, dtype=torch.float64).reshape(one.shape)
        at += size
    return made


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def there_and_back(folder: Mapping[str, Stored], family: str) -> dict[str, Stored]:
    """The single file of a folder's tensors, which is told for what it is and gives the folder again."""
    assert family_of(folder) == family
    file = stored(single(folder))
    assert key_space(file).family == family
    assert stored(canonical(file)) == dict(folder)
    assert stored(single(stored(canonical(file)))) == file
    return file


# ── U-Nets, autoencoders, text encoders at full size ───────────────────────────────────────────────────────────────────────────────────────


def empty(kind: Any, **config: Any) -> dict[str, Tensor]:
    with init_empty_weights():
        return dict(kind(**config).state_dict())


@pytest.mark.parametrize(("family", "count"), [("sd1", 686), ("sd2", 686), ("sdxl", 1680)])
def test_every_name_of_the_full_unets_and_autoencoder_is_that_of_diffusers_converter(family: str, count: int) -> None:
    unet, vae = empty(UNet2DConditionModel, **UNETS[family]), empty(AutoencoderKL, **FULL_VAE)
    assert len(unet) == count
    file = there_and_back(headers(unet, "unet.") | headers(vae, "vae."), family)
    own = {name: torch.empty(one.shape, device="meta") for name, one in file.items()}
    layers = {"layers_per_block": 2, "class_embed_type": None, "addition_embed_type": None, "num_class_embeds": None, **UNETS[family]}
    theirs = convert_ldm_unet_checkpoint({name: tensor for name, tensor in own.items() if name.startswith(UNET)}, layers)
    assert headers(theirs) == headers(unet)
    theirs = convert_ldm_vae_checkpoint({name: tensor for name, tensor in own.items() if name.startswith("first_stage_model.")}, FULL_VAE)
    assert {name: tuple(t.shape) for name, t in theirs.items()} == {name: tuple(t.shape) for name, t in vae.items()}


def test_names_of_the_full_file_of_sdxl_are_stabilitys() -> None:
    """Some that scripts look for, by hand, from the published file."""
    file = single(headers(empty(UNet2DConditionModel, **UNETS["sdxl"]), "unet.") | headers(empty(AutoencoderKL, **FULL_VAE), "vae."))
    for name in (
        "input_blocks.0.0.weight", "input_blocks.3.0.op.weight", "input_blocks.4.1.proj_in.weight", "input_blocks.7.0.skip_connection.weight",
        "input_blocks.8.1.transformer_blocks.9.attn2.to_k.weight", "middle_block.1.transformer_blocks.9.norm3.bias",
        "middle_block.2.out_layers.3.bias",
        "output_blocks.2.2.conv.weight", "output_blocks.5.2.conv.bias", "output_blocks.8.0.emb_layers.1.weight", "label_emb.0.2.bias", "out.2.weight",
    ):  # fmt: skip
        assert UNET + name in file
    for name in ("decoder.up.3.block.2.conv1.weight", "decoder.up.1.upsample.conv.bias", "encoder.down.2.downsample.conv.weight"):
        assert f"first_stage_model.{name}" in file
    assert file["first_stage_model.encoder.mid.attn_1.proj_out.weight"].stored.shape == (512, 512, 1, 1)


@pytest.mark.parametrize(("width", "layers", "projection"), [(1280, 32, 1280), (1024, 24, 1024)])
def test_every_name_of_the_full_openclip_encoders_is_that_of_diffusers_converter(width: int, layers: int, projection: int) -> None:
    sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers, "projection_dim": projection}
    config = CLIPTextConfig(num_attention_heads=16, **sizes)
    with init_empty_weights():
        model = CLIPTextModelWithProjection(config)
    state = dict(model.state_dict())
    unet = headers(empty(UNet2DConditionModel, **UNETS["sdxl"]), "unet.")
    clip = {name: one for name, one in headers(state, "text_encoder.").items() if not name.endswith("text_projection.weight")}
    file = there_and_back({**unet, **clip, **headers(state, "text_encoder_2.")}, "sdxl")
    place = "conditioner.embedders.1.model."
    own = {name: torch.empty(one.shape, device="meta") for name, one in file.items() if name.startswith(place)}
    theirs = convert_open_clip_checkpoint(model, own, prefix=place)
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert file["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"].shape == (49408, width)


# ── by value ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_values_of_toys_are_those_of_the_modules_and_come_back(family: str) -> None:
    unet = sd.sdxl_unet(32, 16) if family == "sdxl" else sd.sd_unet(24, linear=family == "sd2")
    vae, clip, big = sd.autoencoder(), sd.text_model(60, 12), sd.text_model(60, 24, projection=16, act="gelu")
    file = {**sd.ldm_unet(unet), **sd.ldm_vae(vae)}
    wanted = {f"unet.{name}": tensor for name, tensor in unet.state_dict().items()} | {f"vae.{name}": t for name, t in vae.state_dict().items()}
    position = {"text_encoder.text_model.embeddings.position_ids": torch.arange(77)[None]}

    def text(component: str, model: Any) -> dict[str, Tensor]:
        return {re.sub(r"^(\w+)\.(?!text_)", r"\1.text_model.", f"{component}.{name}"): tensor for name, tensor in model.state_dict().items()}

    if family == "sd1":
        file |= sd.ldm_clip(clip, "cond_stage_model.")
        wanted |= text("text_encoder", clip) | position
    elif family == "sd2":
        file |= sd.open_clip(big, "cond_stage_model.")
        wanted |= {name: t for name, t in text("text_encoder", big).items() if ".layers.2." not in name and "text_projection" not in name}
    else:
        file |= sd.ldm_clip(clip, "conditioner.embedders.0.") | sd.open_clip(big, "conditioner.embedders.1.")
        wanted |= text("text_encoder", clip) | text("text_encoder_2", big) | position
    plan = canonical(headers(file))
    made = values(plan, file)
    assert equal({name: t for name, t in made.items() if not name.startswith("extra.")}, wanted)
    aside = {name.removeprefix("extra.").rsplit("model.", 1)[-1].partition(".resblocks.2")[0] for name in made if name.startswith("extra.")}
    assert aside == {"sd1": set(), "sd2": {"logit_scale", "text_projection", "transformer"}, "sdxl": {"logit_scale"}}[family]
    assert equal(values(single(stored(plan)), made), file)


def flux_file() -> dict[str, Tensor]:
    """BFL's names, FLUX's height (diffusers' converter knows no other), two columns."""
    wide = 3072
    shapes = {"img_in.weight": (wide, 2), "img_in.bias": (wide,), "txt_in.weight": (wide, 2), "txt_in.bias": (wide,)}
    for name in (f"{part}_in.{side}_layer" for part in ("time", "vector", "guidance") for side in ("in", "out")):
        shapes |= {f"{name}.weight": (wide, 2), f"{name}.bias": (wide,)}
    for n in range(2):
        for side in ("img", "txt"):
            for name, rows in (("mod.lin", 6), ("attn.qkv", 3), ("attn.proj", 1), ("mlp.0", 4), ("mlp.2", 1)):
                shapes |= {f"double_blocks.{n}.{side}_{name}.weight": (rows * wide, 2), f"double_blocks.{n}.{side}_{name}.bias": (rows * wide,)}
            shapes |= {f"double_blocks.{n}.{side}_attn.norm.{one}_norm.scale": (128,) for one in ("query", "key")}
        for name, rows in (("modulation.lin", 3), ("linear1", 7), ("linear2", 1)):
            shapes |= {f"single_blocks.{n}.{name}.weight": (rows * wide, 2), f"single_blocks.{n}.{name}.bias": (rows * wide,)}
        shapes |= {f"single_blocks.{n}.norm.{one}_norm.scale": (128,) for one in ("query", "key")}
    for name, rows in (("final_layer.linear", 64), ("final_layer.adaLN_modulation.1", 2 * wide)):
        shapes |= {f"{name}.weight": (rows, 2), f"{name}.bias": (rows,)}
    return filled({name: Stored("F32", shape) for name, shape in shapes.items()})


@pytest.mark.parametrize("prefix", ["", UNET])
def test_flux_is_that_of_diffusers_converter_and_comes_back(prefix: str) -> None:
    file = {prefix + name: tensor for name, tensor in flux_file().items()}
    shapes = {name: Stored("F32", tuple(tensor.shape)) for name, tensor in file.items()}
    plan = canonical(shapes)
    made = values(plan, file)
    theirs = convert_flux_transformer_checkpoint_to_diffusers(dict(file))
    assert equal(made, {f"transformer.{name}": tensor for name, tensor in theirs.items()})
    assert equal(values(single(stored(plan), key_space(shapes).family), made), file)


def test_every_name_of_the_full_flux() -> None:
    state = empty(FluxTransformer2DModel, guidance_embeds=True)
    file = there_and_back(headers(state, "transformer."), "flux")
    assert len([name for name in file if re.fullmatch(r"single_blocks\.\d+\.linear1\.weight", name)]) == 38
    theirs = convert_flux_transformer_checkpoint_to_diffusers({name: torch.empty(one.shape, device="meta") for name, one in file.items()})
    assert headers(theirs) == headers(state)


def pixart_reference(file: Mapping[str, Tensor], blocks: int) -> dict[str, Tensor]:
    """PixArt's names by hand, after diffusers' script for its files."""
    made: dict[str, Tensor] = {"scale_shift_table": file["final_layer.scale_shift_table"]}
    pairs = {
        "x_embedder.proj": "pos_embed.proj", "y_embedder.y_proj.fc1": "caption_projection.linear_1", "t_block.1": "adaln_single.linear",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2", "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2", "final_layer.linear": "proj_out",
    }  # fmt: skip
    for n in range(blocks):
        one, other = f"blocks.{n}.", f"transformer_blocks.{n}."
        made[f"{other}scale_shift_table"] = file[f"{one}scale_shift_table"]
        pairs |= {
            f"{one}attn.proj": f"{other}attn1.to_out.0", f"{one}mlp.fc1": f"{other}ff.net.0.proj", f"{one}mlp.fc2": f"{other}ff.net.2",
            f"{one}cross_attn.q_linear": f"{other}attn2.to_q", f"{one}cross_attn.proj": f"{other}attn2.to_out.0",
        }  # fmt: skip
        for leaf in ("weight", "bias"):
            for part, piece in zip("qkv", file[f"{one}attn.qkv.{leaf}"].chunk(3), strict=True):
                made[f"{other}attn1.to_{part}.{leaf}"] = piece
            for part, piece in zip("kv", file[f"{one}cross_attn.kv_linear.{leaf}"].chunk(2), strict=True):
                made[f"{other}attn2.to_{part}.{leaf}"] = piece
    return made | {f"{there}.{leaf}": file[f"{here}.{leaf}"] for here, there in pairs.items() for leaf in ("weight", "bias")}


def test_pixart_by_value_and_every_name_of_the_full_one() -> None:
    with init_empty_weights():
        full = PixArtTransformer2DModel(caption_channels=4096, interpolation_scale=2, use_additional_conditions=False)
    file = there_and_back(headers(full.state_dict(), "transformer."), "pixart")
    assert sum(name.startswith("blocks.27.") for name in file) == 15
    toy = filled({name: Stored("F32", tuple(3 if side == 3456 else side % 7 + 6 for side in one.shape)) for name, one in file.items()})
    fitted = {name: torch.arange(float(6 * (1 + t.dim() % 3))).reshape(6, -1) if "qkv" in name or "kv_" in name else t for name, t in toy.items()}
    aside = {"pos_embed": torch.ones(1, 4, 2), "y_embedder.y_embedding": torch.ones(3, 2)}
    fitted |= aside
    plan = canonical({name: Stored("F32", tuple(tensor.shape)) for name, tensor in fitted.items()})
    made = values(plan, fitted)
    assert equal(made, {f"transformer.{n}": t for n, t in pixart_reference(fitted, 28).items()} | {f"extra.{n}": t for n, t in aside.items()})
    assert equal(values(single(stored(plan)), made), fitted)


# ── odds and ends ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_old_and_new_names_of_folders_are_one() -> None:
    one = Stored("F32", (4,))
    new = {"vae.decoder.mid_block.attentions.0.to_out.0.bias": one, "text_encoder.text_model.final_layer_norm.bias": one}
    old = {"vae.decoder.mid_block.attentions.0.proj_attn.bias": one, "text_encoder.final_layer_norm.bias": one}
    assert stored(canonical(old)) == stored(canonical(new)) == new


def test_components_alone_bare_or_not() -> None:
    unet, vae = headers(sd.sd_unet(24).state_dict()), headers(sd.autoencoder().state_dict())
    assert stored(canonical(unet)) == {f"unet.{name}": one for name, one in unet.items()}
    assert stored(canonical(vae)) == {f"vae.{name}": one for name, one in vae.items()}
    for bare, family in ((stored(canonical(unet)), "unet"), (stored(canonical(vae)), "vae")):
        there_and_back(bare, family)
    prefixed = headers(sd.ldm_unet(sd.sd_unet(24, linear=True)))
    assert key_space(prefixed).family == "sd2"
    assert stored(single(stored(canonical(prefixed)), "sd2")) == prefixed


def no_rows(file: dict[str, Stored]) -> dict[str, Stored]:
    name = "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight"
    return {**file, name: Stored("F32", (73, 24))}


@pytest.mark.parametrize(
    ("spoiled", "told"),
    [
        (lambda file: {**file, "model.diffusion_model.surprise.weight": Stored("F32", (1,))}, "1 keys .*surprise"),
        (lambda file: {**file, f"{UNET}input_blocks.1.0.in_layers.7.bias": Stored("F32", (1,))}, r"in_layers\.7"),
        (lambda file: {**file, **{f"strange.{n}": Stored("F32", (1,)) for n in range(9)}}, r"9 keys .*strange\.4 … \(\+4\)"),
        (no_rows, r"in_proj_weight \[73, 24\]"),
        (lambda file: {"strange": Stored("F32", (1,))}, "unknown set of keys: strange"),
        (lambda file: {}, r"unknown set of keys: \(none\)"),
    ],
)
def test_unknown_keys_and_shapes_are_named(spoiled: Callable[[dict[str, Stored]], dict[str, Stored]], told: str) -> None:
    big = sd.text_model(60, 24, projection=24, act="gelu")
    file = headers({**sd.ldm_unet(sd.sd_unet(24, linear=True)), **sd.open_clip(big, "cond_stage_model.")})
    canonical(file)
    with pytest.raises(WeightsError, match=told):
        canonical(spoiled(file))


def test_what_has_no_place_in_a_single_file_is_named() -> None:
    folder = stored(canonical(headers(sd.ldm_unet(sd.sd_unet(24)) | sd.ldm_vae(sd.autoencoder()))))
    single(folder)
    for extra, told in (("unet.surprise.weight", "surprise"), ("text_encoder_2.text_model.final_layer_norm.bias", "final_layer_norm")):
        with pytest.raises(WeightsError, match=told):
            single({**folder, extra: Stored("F32", (1,))})
    flux = {**stored(canonical({n: Stored("F32", tuple(t.shape)) for n, t in flux_file().items()}))}
    del flux["transformer.transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(WeightsError, match=r"2 tensors .*blocks\.1\.attn\.to_q\.weight"):
        single(flux)
    with pytest.raises(WeightsError, match="make up no single file"):
        single({"text_encoder.text_model.final_layer_norm.bias": Stored("F32", (1,))})
