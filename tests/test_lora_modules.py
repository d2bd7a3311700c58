"""Adapters on real modules: the pictures of diffusers' own loading, every spelling of a module, and weights that come back as they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, PixArtSigmaPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from jpgen.backbones import flux, pixart, sd, sdxl
from jpgen.encoders import clip
from jpgen.errors import WeightsError
from jpgen.lora import DENOISER, Adapter, read_adapter
from jpgen.lora_modules import AdaptedModules
from tests.toys import stable_diffusion as toys

FAMILIES = {"sd": sd, "sdxl": sdxl, "pixart": pixart, "flux": flux}
TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.2"]


def write(path: Path, tensors: dict[str, Tensor]) -> Adapter:
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return read_adapter(path)


def trained(module: nn.Module, targets: list[str], *, rank: int = 2, dora: bool = False, prefix: str = "") -> dict[str, Tensor]:
    """A peft adapter of random weights, as diffusers saves it; the module is as it was."""
    torch.manual_seed(5)
    module.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets, init_lora_weights=False, use_dora=dora), "made")
    if dora:
        for name, parameter in module.named_parameters():
            if "lora_magnitude_vector" in name:
                parameter.data.mul_(1.3)
    state = {f"{prefix}{name}": tensor.clone() for name, tensor in get_peft_model_state_dict(module, adapter_name="made").items()}
    module.delete_adapters("made")
    for child in list(module.modules()):
        for name, inner in list(child.named_children()):
            if hasattr(inner, "base_layer"):
                setattr(child, name, inner.get_base_layer())
    return state


def kohya(state: dict[str, Tensor], prefix: str = "lora_unet_") -> dict[str, Tensor]:
    """The same by kohya's names, the factors halved and α doubled."""
    made = {}
    for name, tensor in state.items():
        module, _, factor = name.partition(".lora_")
        key = prefix + module.split(".", 1)[1].replace(".", "_")
        made[f"{key}.lora_{'down' if factor.startswith('A') else 'up'}.weight"] = tensor * (0.5 if factor.startswith("B") else 1)
        if factor.startswith("A"):
            made[f"{key}.alpha"] = torch.tensor(2.0 * len(tensor))
    return made


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])}


# ── parity with diffusers ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def fused_by_diffusers(family: str, denoiser: nn.Module, file: Path) -> dict[str, Tensor]:
    """The weights after diffusers' own load_lora_weights and fuse_lora."""
    nothing: dict[str, Any] = {"scheduler": None, "vae": None, "text_encoder": None, "tokenizer": None}
    if family == "sd":
        pipeline: Any = StableDiffusionPipeline(
            unet=denoiser, safety_checker=None, feature_extractor=None, requires_safety_checker=False, **nothing
        )  # fmt: skip
    elif family == "sdxl":
        pipeline = StableDiffusionXLPipeline(unet=denoiser, text_encoder_2=None, tokenizer_2=None, add_watermarker=False, **nothing)
    else:
        pipeline = FluxPipeline(transformer=denoiser, text_encoder_2=None, tokenizer_2=None, **nothing)
    pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    return weights(denoiser)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["sd", "sdxl", "flux"])
def test_weights_are_those_of_diffusers(family: str, dora: bool, tmp_path: Path) -> None:
    ours, theirs = (next(iter(FAMILIES[family].toy().modules.values())) for _ in range(2))
    prefix = "transformer." if family == "flux" else "unet."
    state = trained(theirs, TARGETS, dora=dora, prefix=prefix)
    adapter = write(tmp_path / "x.safetensors", state)
    before = weights(ours)
    wanted = fused_by_diffusers(family, theirs, adapter.path)
    with AdaptedModules("toy", family, {DENOISER: ours}).applied([(adapter, 1.0)]):
        assert len(changed(ours, before)) == len(adapter.changes) > 3
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, wanted[name], atol=1e-6, rtol=1e-5)
    assert not changed(ours, before)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_weights_are_those_of_peft_and_come_back(family: str, tmp_path: Path) -> None:
    """Also PixArt, for which diffusers loads no LoRA: peft's layer itself, merged."""
    toy, other = FAMILIES[family].toy(), FAMILIES[family].toy()
    module, tuned = toy.modules[DENOISER], other.modules[DENOISER]
    torch.manual_seed(5)
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=3, target_modules=TARGETS, init_lora_weights=False), tuned, "made")
    state = {f"transformer.{name}": t for name, t in get_peft_model_state_dict(tuned, adapter_name="made").items()}
    told = {f"{name.split('.lora_A')[0]}.alpha": torch.tensor(3.0) for name in state if ".lora_A" in name}
    adapter = write(tmp_path / "x.safetensors", {**state, **told})
    for layer in list(tuned.modules()):
        if hasattr(layer, "merge") and hasattr(layer, "lora_A"):
            layer.scaling["made"] *= 0.7
            layer.merge()
    wanted = {name.replace("base_layer.", ""): p for name, p in tuned.named_parameters() if ".lora_" not in name}
    objects, before = {name: id(p) for name, p in module.named_parameters()}, weights(module)
    with AdaptedModules("toy", family, {DENOISER: module}).applied([(adapter, 0.7)]):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter, wanted[name], atol=1e-6, rtol=1e-5)
    assert {name: id(p) for name, p in module.named_parameters()} == objects
    assert not changed(module, before)


# ── spellings ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_every_weight_of_a_unet_is_found_by_webuis_names(family: str, tmp_path: Path) -> None:
    """Those that the toys write single files by, made independently (`tests/toys`)."""
    unet = toys.sd_unet(24) if family == "sd" else toys.sdxl_unet(32, 16)
    place = {id(p): name for name, p in unet.named_parameters()}
    by_ldm = {theirs: place[id(parameter)] for theirs, parameter in toys.ldm_unet(_Named(unet)).items()}
    adapter = write(
        tmp_path / "x.safetensors",
        {
            f"lora_unet_{theirs.removeprefix('model.diffusion_model.').removesuffix('.weight').replace('.', '_')}.diff": torch.full_like(p, i + 1.0)
            for i, (theirs, p) in enumerate(toys.ldm_unet(_Named(unet)).items())
            if theirs.endswith(".weight")
        },
    )  # fmt: skip
    before = weights(unet)
    with AdaptedModules("toy", family, {DENOISER: unet}).applied([(adapter, 1.0)]):
        for i, (theirs, ours) in enumerate(by_ldm.items()):
            gained = unet.get_parameter(ours) - before[ours]
            torch.testing.assert_close(gained, torch.full_like(gained, i + 1.0 if theirs.endswith(".weight") else 0.0), atol=1e-3, rtol=1e-4)
    assert len(adapter.changes) > 100


class _Named:
    """A U-Net whose state is its parameters themselves."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._unet.named_parameters())


def test_kohyas_and_diffusers_spellings_are_one_lora(tmp_path: Path) -> None:
    unet = sd.toy().modules[DENOISER]
    state = trained(unet, TARGETS, prefix="unet.")
    old = {}
    for name, tensor in state.items():
        module, _, factor = name.partition(".lora_")
        head, _, leaf = module.removesuffix(".0").rpartition(".")
        if leaf in ("to_q", "to_k", "to_v", "to_out"):
            old[f"{head}.processor.{leaf}_lora.{'down' if factor.startswith('A') else 'up'}.weight"] = tensor
        else:
            old[f"{module}.lora.{'down' if factor.startswith('A') else 'up'}.weight"] = tensor
    bare = {name.removeprefix("unet."): tensor for name, tensor in state.items()}
    files = {"peft": state, "kohya": kohya(state), "old": old, "bare": bare, "sgm": {f"diffusion_model.{n}": t for n, t in bare.items()}}
    results = {}
    for name, tensors in files.items():
        adapter = write(tmp_path / f"{name}.safetensors", tensors)
        with AdaptedModules("toy", "sd", {DENOISER: unet}).applied([(adapter, 0.8)]):
            results[name] = weights(unet)
    for made in results.values():
        assert {n for n, t in made.items() if not torch.equal(t, weights(unet)[n])} and made.keys() == results["peft"].keys()
        for name, tensor in made.items():
            torch.testing.assert_close(tensor, results["peft"][name], atol=1e-6, rtol=1e-5)


def test_text_encoders_are_found_by_all_their_names(tmp_path: Path) -> None:
    model = clip.toy()._model
    up, down = torch.randn(32, 2), torch.randn(2, 32)
    spellings = [
        ("lora_te_text_model_encoder_layers_1_self_attn_q_proj.lora_{}.weight", "up", "down"),
        ("lora_te1_text_model_encoder_layers_1_self_attn_q_proj.lora_{}.weight", "up", "down"),
        ("text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_{}.weight", "B", "A"),
        ("text_encoder.encoder.layers.1.self_attn.q_proj.lora_{}.weight", "B", "A"),
        ("text_encoder.text_model.encoder.layers.1.self_attn.q_proj.lora_linear_layer.{}.weight", "up", "down"),
        ("text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.{}.weight", "up", "down"),
    ]
    before = weights(model)
    for number, (name, upper, lower) in enumerate(spellings):
        adapter = write(tmp_path / f"{number}.safetensors", {name.format(upper): up, name.format(lower): down})
        with AdaptedModules("toy", "sd", {"text_encoder": model}).applied([(adapter, 1.0)]):
            (only,) = changed(model, before)
            assert only.endswith("encoder.layers.1.self_attn.q_proj.weight")
            torch.testing.assert_close(dict(model.named_parameters())[only], before[only] + up @ down)


def test_flux_by_its_authors_names_is_split_as_diffusers_splits_it(tmp_path: Path) -> None:
    """kohya's FLUX LoRA, whose q, k and v are one, against diffusers' converter and loader."""
    width, mlp = 32, 128
    tensors = {}
    for name, rows, columns in (
        ("double_blocks_0_img_attn_qkv", 3 * width, width), ("double_blocks_0_txt_attn_qkv", 3 * width, width),
        ("double_blocks_0_img_attn_proj", width, width), ("double_blocks_0_txt_attn_proj", width, width),
        ("double_blocks_0_img_mlp_0", mlp, width), ("double_blocks_0_img_mlp_2", width, mlp), ("double_blocks_0_txt_mlp_0", mlp, width),
        ("double_blocks_0_txt_mlp_2", width, mlp), ("double_blocks_0_img_mod_lin", 6 * width, width),
        ("double_blocks_0_txt_mod_lin", 6 * width, width),
        ("single_blocks_0_linear1", 3 * width + mlp, width), ("single_blocks_0_linear2", width, width + mlp),
        ("single_blocks_0_modulation_lin", 3 * width, width),
    ):  # fmt: skip
        tensors |= {
            f"lora_unet_{name}.lora_up.weight": torch.randn(rows, 2) * 0.1, f"lora_unet_{name}.lora_down.weight": torch.randn(2, columns) * 0.1,
            f"lora_unet_{name}.alpha": torch.tensor(1.0),
        }  # fmt: skip
    adapter = write(tmp_path / "x.safetensors", tensors)
    assert adapter.family == "flux"
    ours, theirs = flux.toy().modules[DENOISER], flux.toy().modules[DENOISER]
    assert isinstance(theirs, FluxTransformer2DModel)
    one = "lora_unet_single_blocks_0_linear1"  # diffusers splits this one by the sizes of the real FLUX alone: by hand
    rows = (0.5 * tensors[f"{one}.lora_up.weight"] @ tensors[f"{one}.lora_down.weight"]).split([width, width, width, mlp])
    rest = write(tmp_path / "rest.safetensors", {name: tensor for name, tensor in tensors.items() if not name.startswith(one)})
    before, wanted = weights(ours), fused_by_diffusers("flux", theirs, rest.path)
    for target, part in zip(("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), rows, strict=True):
        wanted[f"single_transformer_blocks.0.{target}.weight"] = before[f"single_transformer_blocks.0.{target}.weight"] + part
    with AdaptedModules("toy", "flux", {DENOISER: ours}).applied([(adapter, 1.0)]):
        assert len(changed(ours, before)) == 20
        for name, parameter in ours.named_parameters():
            torch.testing.assert_close(parameter, wanted[name], atol=1e-6, rtol=1e-5)


# ── several, rescaled, unloaded ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def one(path: Path, module: str, rows: int, columns: int, seed: int) -> tuple[Adapter, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(rows, 2, generator=generator), torch.randn(2, columns, generator=generator)
    return write(path, {f"unet.{module}.lora_B.weight": up, f"unet.{module}.lora_A.weight": down}), up @ down


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_are_summed_in_fp32_and_rescaled(dtype: torch.dtype, tmp_path: Path) -> None:
    unet = sd.toy().modules[DENOISER].to(dtype)
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    (first, a), (second, b) = one(tmp_path / "a.safetensors", module, 32, 32, 1), one(tmp_path / "b.safetensors", module, 32, 32, 2)
    modules, parameter = AdaptedModules("toy", "sd", {DENOISER: unet}), unet.get_submodule(module).weight
    before = parameter.detach().clone()
    for weights_of in ((1.0, 1.0), (0.3, -0.7), (0.3, 0.0), (1.0, 1.0)):
        with modules.applied([(first, weights_of[0]), (second, weights_of[1])]):
            made = unet.get_submodule(module).weight
            wanted = (before.float() + weights_of[0] * a + weights_of[1] * b).to(dtype)
            torch.testing.assert_close(made, wanted, atol=1e-6 if dtype == torch.float32 else 0.02, rtol=1e-5 if dtype == torch.float32 else 0.01)
            assert (made.stride(), made.dtype, made.requires_grad) == (parameter.stride(), dtype, parameter.requires_grad)
        assert unet.get_submodule(module).weight is parameter
    assert torch.equal(parameter, before)


def test_what_was_made_is_kept_for_the_next_time_only(tmp_path: Path) -> None:
    unet = sd.toy().modules[DENOISER]
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter, _ = one(tmp_path / "a.safetensors", module, 32, 32, 1)
    modules, seen = AdaptedModules("toy", "sd", {DENOISER: unet}), []
    for wanted in ([(adapter, 0.5)], [(adapter, 0.5)], [(adapter, 0.6)], [], [(adapter, 0.6)]):
        with modules.applied(wanted):
            seen.append(unet.get_submodule(module).weight)
    assert seen[0] is seen[1] and len({id(weight) for weight in seen[1:]}) == 4
    with modules.applied([]):
        assert modules._made == ((), {})


def test_an_error_inside_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    unet = sd.toy().modules[DENOISER]
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    adapter, _ = one(tmp_path / "a.safetensors", module, 32, 32, 1)
    parameter = unet.get_submodule(module).weight
    with pytest.raises(ZeroDivisionError), AdaptedModules("toy", "sd", {DENOISER: unet}).applied([(adapter, 1.0)]):
        raise ZeroDivisionError
    assert unet.get_submodule(module).weight is parameter


# ── what does not fit ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

GOOD = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"unet.nowhere.lora_B.weight": (8, 2), "unet.nowhere.lora_A.weight": (2, 8)}, "1 of its 2 modules are not there: nowhere"),
        ({"text_encoder.x.lora_B.weight": (8, 2), "text_encoder.x.lora_A.weight": (2, 8)}, r"not there: text_encoder\.x"),
        ({"unet.conv_in.lora_B.weight": (8, 2), "unet.conv_in.lora_A.weight": (2, 8)}, r"conv_in \[8, 8\] for a weight \[32, 4, 3, 3\]"),
        ({"unet.conv_in.diff_b": (3,)}, "conv_in has a bias of 3 for a module that has none of that size"),
        ({f"lora_{GOOD.replace('.', '_')}.diff": (32, 32)}, "is there twice, by two names"),
        (
            {"lora_unet_mid_block_attentions_0_transformer_blocks_3_attn1_to_q.diff": (32, 32)},
            "is for sdxl, the model toy is sd: 1 of its 2 modules are not there: .*; choose a LoRA for sd",
        ),
        ({"transformer.single_transformer_blocks.0.attn.to_q.diff": (32, 32)}, "is for flux, the model toy is sd"),
    ],
)
def test_nothing_is_half_applied(tensors: dict[str, tuple[int, ...]], words: str, tmp_path: Path) -> None:
    unet = sd.toy().modules[DENOISER]
    good = {f"{GOOD}.lora_B.weight": torch.ones(32, 2), f"{GOOD}.lora_A.weight": torch.ones(2, 32)}
    adapter = write(tmp_path / "x.safetensors", {**good, **{name: torch.ones(shape) for name, shape in tensors.items()}})
    before, modules = weights(unet), AdaptedModules("toy", "sd", {DENOISER: unet})
    enter: list[Callable[[], object]] = [lambda: modules.applied([(adapter, 1.0)]).__enter__(), lambda: modules.fuse([(adapter, 1.0)])]
    for way in enter:
        with pytest.raises(WeightsError, match=words) as caught:
            way()
        assert "\n" not in str(caught.value)
    assert not changed(unet, before)


def test_the_pipelines_of_diffusers_still_have_no_lora_for_pixart() -> None:
    assert not hasattr(PixArtSigmaPipeline, "load_lora_weights")
