"""Merging into open modules: what the block sees, what is computed again, originals that come back, and what is refused before a change."""

import pytest
import torch
from torch import nn

from jpgen.backbones import pixart, sd
from jpgen.errors import WeightsError
from jpgen.merge.live import Formula, LiveModules


def parent(module: nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: value.float() + 0.1 * torch.randn(value.shape, generator=generator) for name, value in module.state_dict().items()}


def lerp(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], attn: float, other: float, computed: list[str] | None = None) -> Formula:
    def t(key: str) -> float:
        return attn if ".to_" in key else other

    def tensor(key: str) -> torch.Tensor:
        if computed is not None:
            computed.append(key)
        name = key.partition(".")[2]
        return torch.lerp(a[name], b[name], t(key))

    return Formula(t, tensor)


@pytest.mark.parametrize("backbone", [pixart.toy, sd.toy])
def test_modules_have_the_merged_weights_for_the_time_of_the_block(backbone) -> None:
    module = backbone().modules["denoiser"]
    a, b = parent(module, 1), parent(module, 2)
    objects, before = dict(module.named_parameters()), {name: value.clone() for name, value in module.state_dict().items()}
    live = LiveModules({"unet": module}, [f"unet.{name}" for name in a])
    for attn, other in ((0.25, 0.75), (1.0, 0.0)):
        with live.applied(lerp(a, b, attn, other)):
            for name, value in module.state_dict().items():
                assert torch.equal(value, torch.lerp(a[name], b[name], attn if ".to_" in name else other).to(value.dtype))
        after = dict(module.named_parameters())
        assert all(after[name] is objects[name] for name in objects) and after.keys() == objects.keys()
        assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_only_tensors_whose_numbers_changed_are_computed() -> None:
    module = pixart.toy().modules["denoiser"]
    a, b = parent(module, 1), parent(module, 2)
    live = LiveModules({"transformer": module}, [f"transformer.{name}" for name in a])
    attention = [f"transformer.{name}" for name in a if ".to_" in name]
    for numbers, wanted in (((0.5, 0.5), len(a)), ((0.7, 0.5), len(attention)), ((0.7, 0.5), 0), ((0.7, 0.1), len(a) - len(attention))):
        computed: list[str] = []
        with live.applied(lerp(a, b, *numbers, computed)):
            fresh = LiveModules({"transformer": pixart.toy().modules["denoiser"]}, [f"transformer.{name}" for name in a])
            with fresh.applied(lerp(a, b, *numbers)):
                assert all(torch.equal(x, fresh._made[f"transformer.{n}"][1]) for n, x in module.state_dict().items())
        assert len(computed) == wanted


def test_halves_and_memory_formats_stay() -> None:
    module = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)).to(torch.bfloat16).to(memory_format=torch.channels_last)
    a, b = parent(module, 1), parent(module, 2)
    keys = [f"m.{name}" for name, value in module.state_dict().items() if value.is_floating_point()]
    assert "m.1.running_mean" in keys
    with LiveModules({"m": module}, keys).applied(lerp(a, b, 0.5, 0.25)):
        weight = module[0].weight
        assert weight.dtype == torch.bfloat16 and weight.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(weight, torch.lerp(a["0.weight"], b["0.weight"], 0.25).bfloat16())
        assert torch.equal(module[1].running_mean, torch.lerp(a["1.running_mean"], b["1.running_mean"], 0.25).bfloat16())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: x * float("nan"), r"m\.\d\.weight .*not finite"),
        (lambda x: x * 1e30, "times as large|not finite"),
        (lambda x: x * 10, "times as large"),
        (lambda x: x * 0, "times as large"),
        (lambda x: x[:1], r"m\.0\.weight .*\[1, 4\]"),
    ],
)
def test_what_is_no_good_is_refused_before_anything_changes(change, told: str) -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    good = {name: value.clone() for name, value in module.state_dict().items()}
    live = LiveModules({"m": module}, ["m.0.weight", "m.1.weight"])
    formula = Formula(lambda _: "bad", lambda key: change(good[key.partition(".")[2]]))
    with pytest.raises(WeightsError, match=told), live.applied(formula):
        pytest.fail("applied")
    assert all(torch.equal(value, good[name]) for name, value in module.state_dict().items())
    with live.applied(Formula(lambda _: "good", lambda key: good[key.partition(".")[2]] * 0.5)):  # and it works afterwards
        assert torch.equal(module[0].weight, good["0.weight"] * 0.5)


def test_an_exception_in_the_block_brings_the_originals_back() -> None:
    module = nn.Linear(2, 2)
    weight = module.weight
    with pytest.raises(ZeroDivisionError), LiveModules({"m": module}, ["m.weight"]).applied(Formula(lambda _: 0, lambda _: torch.eye(2))):
        assert module.weight is not weight
        raise ZeroDivisionError
    assert module.weight is weight


def test_keys_that_are_nowhere_are_told() -> None:
    with pytest.raises(WeightsError, match=r"2 of 3 .*m\.bias2, n\.weight"):
        LiveModules({"m": nn.Linear(2, 2)}, ["m.weight", "m.bias2", "n.weight"])
