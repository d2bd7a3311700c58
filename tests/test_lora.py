"""Adapter files into deltas: every kind against hand-computed formulas, peft's layers and plain torch; names of every program; bad files."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

from jpgen.errors import WeightsError
from jpgen.lora import DENOISER, Adapter, data_hash, read_adapter
from jpgen.lora_modules import AdaptedModules

Tensors = dict[str, Tensor]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) * 100 + seed))


def read(tensors: Tensors, folder: Path, **metadata: str) -> Adapter:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "x.safetensors", metadata={"format": "pt", **metadata})
    return read_adapter(folder / "x.safetensors")


def delta(tensors: Tensors, weight: Tensor, folder: Path) -> Tensor:
    """What `lora_unet_m` gains."""
    (change,) = read({f"lora_unet_m.{name}": tensor for name, tensor in tensors.items()}, folder).changes
    assert (change.part, change.module) == (DENOISER, "m")
    assert change.fits(weight)
    return change.delta(weight)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.conv, self.norm = nn.Linear(6, 8), nn.Conv2d(4, 6, 3), nn.LayerNorm(6)


# ── formulas ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("alpha", "scale"), [(None, 1.0), (1.0, 0.5), (4.0, 2.0), (0.0, 0.0)])
def test_lora_is_the_product_of_its_factors_times_alpha_over_rank(alpha: float | None, scale: float, tmp_path: Path) -> None:
    up, down = rand(8, 2), rand(2, 6)
    told = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    made = delta({"lora_up.weight": up, "lora_down.weight": down, **told}, torch.zeros(8, 6), tmp_path)
    torch.testing.assert_close(made, scale * (up @ down))


def test_half_precision_factors_are_multiplied_in_fp32(tmp_path: Path) -> None:
    up, down = rand(8, 2).bfloat16(), rand(2, 6).bfloat16()
    made = delta({"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(2, dtype=torch.bfloat16)}, torch.zeros(8, 6), tmp_path)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made, up.float() @ down.float(), atol=0, rtol=1e-6)


def test_locon_is_the_composition_of_its_convolutions(tmp_path: Path) -> None:
    """A convolution with ΔW is the down convolution, then (with Tucker the one between, then) the up convolution."""
    picture, weight = rand(1, 4, 9, 9), torch.zeros(6, 4, 3, 3)
    up, down, whole_down, mid = rand(6, 2, 1, 1), rand(2, 4, 3, 3), rand(2, 4, 1, 1), rand(2, 2, 3, 3)
    made = delta({"lora_up.weight": up, "lora_down.weight": down, "alpha": torch.tensor(1.0)}, weight, tmp_path)
    wanted = nn.functional.conv2d(nn.functional.conv2d(picture, down), up) / 2
    torch.testing.assert_close(nn.functional.conv2d(picture, made), wanted, atol=1e-5, rtol=1e-5)
    made = delta({"lora_up.weight": up, "lora_down.weight": whole_down, "lora_mid.weight": mid, "alpha": torch.tensor(1.0)}, weight, tmp_path)
    wanted = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(picture, whole_down), mid), up) / 2
    torch.testing.assert_close(nn.functional.conv2d(picture, made), wanted, atol=1e-5, rtol=1e-5)
    by_hand = torch.zeros(6, 4, 3, 3)
    for o in range(6):
        for i in range(4):
            for m in range(2):
                for n in range(2):
                    by_hand[o, i] += up[o, m, 0, 0] * mid[m, n] * whole_down[n, i, 0, 0] / 2
    torch.testing.assert_close(made, by_hand)


def test_a_linear_lora_suits_a_convolution_of_one_pixel(tmp_path: Path) -> None:
    up, down = rand(8, 2, 1, 1), rand(2, 6, 1, 1)
    made = delta({"lora_up.weight": up, "lora_down.weight": down}, torch.zeros(8, 6), tmp_path)
    torch.testing.assert_close(made, up[:, :, 0, 0] @ down[:, :, 0, 0])
    flat = {"lora_up.weight": up[:, :, 0, 0], "lora_down.weight": down[:, :, 0, 0]}
    assert delta(flat, torch.zeros(8, 6, 1, 1), tmp_path).shape == (8, 6, 1, 1)


@pytest.mark.parametrize("kind", ["loha", "loha-tucker", "lokr-whole", "lokr-factored", "lokr-tucker", "lokr-both"])
def test_loha_and_lokr_are_those_of_peft(kind: str, tmp_path: Path) -> None:
    net = Net()
    common = {"target_modules": ["linear", "conv"], "r": 2, "alpha": 3.0, "init_weights": False}
    config = {
        "loha": lambda: LoHaConfig(**common),
        "loha-tucker": lambda: LoHaConfig(**common, use_effective_conv2d=True),
        "lokr-whole": lambda: LoKrConfig(**{**common, "r": 64}),
        "lokr-factored": lambda: LoKrConfig(**{**common, "r": 1}, decompose_factor=2),
        "lokr-tucker": lambda: LoKrConfig(**{**common, "r": 1}, use_effective_conv2d=True, decompose_factor=2),
        "lokr-both": lambda: LoKrConfig(**{**common, "r": 1}, decompose_both=True, decompose_factor=4),
    }[kind]()
    torch.manual_seed(1)
    tuned = get_peft_model(net, config)
    layers = {"linear": tuned.base_model.model.linear, "conv": tuned.base_model.model.conv}
    factors = {name.removeprefix("base_model.model."): tensor for name, tensor in get_peft_model_state_dict(tuned).items()}
    whole = "lokr_w1" in {name.split(".")[1] for name in factors} and "lokr_w2" in {name.split(".")[1] for name in factors}
    factors |= {f"{module}.alpha": torch.tensor(3.0) for module in layers}
    adapter = read({f"lora_unet_{name}": tensor for name, tensor in factors.items()}, tmp_path)
    assert {change.module for change in adapter.changes} == {"linear", "conv"}
    for change in adapter.changes:
        layer = layers[change.module]
        wanted = layer.get_delta_weight("default")
        if whole:
            wanted = wanted / layer.scaling["default"]  # LyCORIS scales no LoKr of two whole factors, peft does
        weight = layer.get_base_layer().weight
        assert change.fits(weight) and not change.fits(weight[1:]) and not change.fits(weight[:, 1:])
        made = change.delta(weight)
        size = wanted.abs().max().item()
        assert size > 1e-4
        torch.testing.assert_close(made, wanted, atol=1e-6 * size, rtol=1e-5)


def test_loha_and_lokr_by_hand(tmp_path: Path) -> None:
    a, b, c, d = rand(4, 2), rand(2, 3), rand(4, 2, seed=1), rand(2, 3, seed=1)
    loha = {"hada_w1_a": a, "hada_w1_b": b, "hada_w2_a": c, "hada_w2_b": d, "alpha": torch.tensor(1.0)}
    torch.testing.assert_close(delta(loha, torch.zeros(4, 3), tmp_path), 0.5 * (a @ b) * (c @ d))
    small, large = rand(2, 3), rand(4, 5)
    by_hand = torch.cat([torch.cat([small[i, j] * large for j in range(3)], 1) for i in range(2)])
    torch.testing.assert_close(delta({"lokr_w1": small, "lokr_w2": large, "alpha": torch.tensor(7.0)}, torch.zeros(8, 15), tmp_path), by_hand)


@pytest.mark.parametrize("conv", [False, True])
def test_dora_is_that_of_peft(conv: bool, tmp_path: Path) -> None:
    torch.manual_seed(2)
    targets = ["conv" if conv else "linear"]
    tuned = get_peft_model(Net(), LoraConfig(target_modules=targets, r=2, lora_alpha=3, use_dora=True, init_lora_weights=False))
    layer = tuned.base_model.model.conv if conv else tuned.base_model.model.linear
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].weight.mul_(1.5)
    before = layer.get_base_layer().weight.detach().clone()
    state = get_peft_model_state_dict(tuned)
    adapter = read({**state, **{f"{name.split('.lora_A')[0]}.alpha": torch.tensor(3.0) for name in state if ".lora_A" in name}}, tmp_path)
    made = before + adapter.changes[0].delta(before)
    layer.merge()
    torch.testing.assert_close(made, layer.get_base_layer().weight, atol=1e-5, rtol=1e-5)
    assert (made - before).abs().max() > 0.1


def test_dora_of_lycoris_along_either_axis(tmp_path: Path) -> None:
    weight, up, down = rand(4, 4), rand(4, 2), rand(2, 4)
    value = weight + up @ down
    rows, columns = rand(4, 1).abs(), rand(1, 4).abs()
    lora = {"lora_up.weight": up, "lora_down.weight": down}
    by_row = torch.stack([rows[o, 0] * value[o] / value[o].square().sum().sqrt() for o in range(4)]) - weight
    torch.testing.assert_close(delta({**lora, "dora_scale": rows}, weight, tmp_path), by_row)
    by_column = torch.stack([columns[0, i] * value[:, i] / value[:, i].square().sum().sqrt() for i in range(4)], 1) - weight
    torch.testing.assert_close(delta({**lora, "dora_scale": columns}, weight, tmp_path), by_column)


def test_whole_deltas_and_biases(tmp_path: Path) -> None:
    whole, bias = rand(8, 6), rand(8)
    net = Net()
    adapter = read(
        {"lora_unet_linear.diff": whole, "lora_unet_linear.diff_b": bias, "lora_unet_norm.w_norm": rand(6), "lora_unet_norm.b_norm": rand(6, seed=1)},
        tmp_path,
    )
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    with AdaptedModules("net", "", {DENOISER: net}).applied([(adapter, 0.5)]):
        torch.testing.assert_close(net.linear.weight, before["linear.weight"] + 0.5 * whole)
        torch.testing.assert_close(net.linear.bias, before["linear.bias"] + 0.5 * bias)
        torch.testing.assert_close(net.norm.weight, before["norm.weight"] + 0.5 * rand(6))
        torch.testing.assert_close(net.norm.bias, before["norm.bias"] + 0.5 * rand(6, seed=1))
        assert torch.equal(net.conv.weight, before["conv.weight"])


def test_alpha_in_pefts_configuration_counts(tmp_path: Path) -> None:
    up, down = rand(8, 4), rand(4, 6)
    tensors = {"unet.linear.lora_B.weight": up, "unet.linear.lora_A.weight": down}
    weight = torch.zeros(8, 6)

    def made(**config: object) -> Tensor:
        told = json.dumps({f"unet.{key}": value for key, value in config.items()})
        return read(tensors, tmp_path, lora_adapter_metadata=told).changes[0].delta(weight)

    torch.testing.assert_close(made(), up @ down)
    torch.testing.assert_close(made(lora_alpha=2, r=4), 0.5 * up @ down)
    torch.testing.assert_close(made(lora_alpha=2, r=4, use_rslora=True), up @ down)
    torch.testing.assert_close(made(lora_alpha=2, r=4, alpha_pattern={"linear": 12}), 3 * up @ down)


# ── names ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("up", "down", "part", "module"),
    [
        ("lora_unet_a_b.lora_up.weight", "lora_unet_a_b.lora_down.weight", DENOISER, "a_b"),
        ("lora_transformer_a_b.lora_up.weight", "lora_transformer_a_b.lora_down.weight", DENOISER, "a_b"),
        ("lycoris_a_b.lora_up.weight", "lycoris_a_b.lora_down.weight", DENOISER, "a_b"),
        ("lora_te_a_b.lora_up.weight", "lora_te_a_b.lora_down.weight", "text_encoder", "a_b"),
        ("lora_te1_a_b.lora_up.weight", "lora_te1_a_b.lora_down.weight", "text_encoder", "a_b"),
        ("lora_te2_a_b.lora_up.weight", "lora_te2_a_b.lora_down.weight", "text_encoder_2", "a_b"),
        ("unet.a.b.lora_B.weight", "unet.a.b.lora_A.weight", DENOISER, "a.b"),
        ("base_model.model.a.b.lora_B.default.weight", "base_model.model.a.b.lora_A.default.weight", DENOISER, "a.b"),
        ("transformer.a.b.lora_B.weight", "transformer.a.b.lora_A.weight", DENOISER, "a.b"),
        ("diffusion_model.a.b.lora_B.weight", "diffusion_model.a.b.lora_A.weight", DENOISER, "a.b"),
        ("text_encoder.a.b.lora_B.weight", "text_encoder.a.b.lora_A.weight", "text_encoder", "a.b"),
        ("text_encoder_2.a.b.lora_linear_layer.up.weight", "text_encoder_2.a.b.lora_linear_layer.down.weight", "text_encoder_2", "a.b"),
        ("unet.a.b.lora.up.weight", "unet.a.b.lora.down.weight", DENOISER, "a.b"),
        ("unet.a.processor.to_q_lora.up.weight", "unet.a.processor.to_q_lora.down.weight", DENOISER, "a.processor.to_q"),
        ("a.b.lora_B.weight", "a.b.lora_A.weight", DENOISER, "a.b"),
    ],
)
def test_every_spelling_is_read(up: str, down: str, part: str, module: str, tmp_path: Path) -> None:
    (change,) = read({up: rand(8, 2), down: rand(2, 6)}, tmp_path).changes
    assert (change.part, change.module, sorted(change.factors)) == (part, module, ["lora_down", "lora_up"])


def test_the_hash_is_that_of_the_tensor_data(tmp_path: Path) -> None:
    tensors = {"lora_unet_m.lora_up.weight": torch.ones(2, 1), "lora_unet_m.lora_down.weight": torch.full((1, 3), 2.0)}
    adapter = read(tensors, tmp_path)
    data = (tmp_path / "x.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert adapter.hash == hashlib.sha256(data[start:]).hexdigest()[:12] == data_hash(adapter.path)
    assert read(tensors, tmp_path, ss_output_name="another header").hash == adapter.hash


# ── bad files ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"m.lora_down.weight": (2, 6)}, "m lacks lora_up"),
        ({"m.lora_up.weight": (8, 2), "m.lora_down.weight": (2, 6), "n.lora_up.weight": (8, 2)}, "n lacks lora_down"),
        ({"m.lora_up.weight": (8, 2), "m.lora_down.weight": (3, 6)}, r"do not fit each other: lora_down \[3, 6\], lora_up \[8, 2\]"),
        ({"m.hada_w1_a": (8, 2), "m.hada_w1_b": (2, 6), "m.hada_w2_a": (8, 2)}, "m lacks hada_w2_b"),
        ({"m.hada_w1_a": (8, 2), "m.hada_w1_b": (2, 6), "m.hada_w2_a": (8, 2), "m.hada_w2_b": (2, 6), "m.hada_t1": (2, 2, 3, 3)}, "lacks hada_t2"),
        ({"m.lokr_w1": (2, 2), "m.lokr_w2_a": (4, 2)}, "m lacks lokr_w2_b"),
        ({"m.lora_up.weight": (8, 2), "m.lora_down.weight": (2, 6), "m.diff": (8, 6)}, "m has diff besides"),
        ({"m.alpha": ()}, "m has alpha and no factors"),
        ({"m.lora_up.weight": (8, 2), "m.lora_down.weight": (2, 4), "m.lora_mid.weight": (2, 3, 3, 3)}, "do not fit each other"),
        ({"m.hada_w1_a": (8, 2), "m.hada_w1_b": (2, 6), "m.hada_w2_a": (8, 2), "m.hada_w2_b": (2, 5)}, "do not fit each other"),
        ({"m.hada_w1_a": (8, 2), "m.hada_w1_b": (3, 6), "m.hada_w2_a": (8, 2), "m.hada_w2_b": (3, 6)}, "do not fit each other"),
        ({"m.lokr_w1": (2, 2), "m.lokr_w2_a": (4, 2), "m.lokr_w2_b": (3, 4)}, "do not fit each other"),
        ({"m.lokr_w1": (4,), "m.lokr_w2": (4, 4)}, "do not fit each other"),
        ({"m.lora_up.weight": (8,), "m.lora_down.weight": (2, 4)}, "do not fit each other"),
        ({"m.lora_up.weight": (8, 2), "m.lora_down.weight": (2, 6), "m.oft_diag": (8, 2), "z.glow": (1,)}, "2 keys of an unknown kind.*oft_diag"),
        ({"a.b": (2, 2)}, "unknown layout"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_line(tensors: dict[str, tuple[int, ...]], words: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=words) as caught:
        read({f"lora_unet_{name}": torch.ones(shape) for name, shape in tensors.items()}, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_factors_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    up = rand(8, 2)
    up[3, 1] = value
    with pytest.raises(WeightsError, match="m: lora_up not finite"):
        read({"lora_unet_m.lora_up.weight": up, "lora_unet_m.lora_down.weight": rand(2, 6)}, tmp_path)


def test_cut_off_files_pickles_and_other_weights_are_refused(tmp_path: Path) -> None:
    path = read({"lora_unet_m.lora_up.weight": rand(8, 2), "lora_unet_m.lora_down.weight": rand(2, 6)}, tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    with pytest.raises(WeightsError, match=r"x\.safetensors"):
        read_adapter(path)
    path.with_suffix(".pt").write_bytes(whole)
    with pytest.raises(WeightsError, match="pickle"):
        read_adapter(path.with_suffix(".pt"))
    with pytest.raises(WeightsError, match="is no LoRA but embedding"):
        read({"emb_params": rand(2, 768)}, tmp_path)
