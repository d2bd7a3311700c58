"""LoRA files with each other: sums of deltas, truncated ones against plain SVD, names, metadata, bad input."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen.cli import main
from jpgen.errors import JpgenError, WeightsError
from jpgen.lora import Change, read_adapter
from jpgen.lora_modules import AdaptedModules
from jpgen.merge.lora_files import common_name, merge_loras, resize_lora, show
from jpgen.merge.low_rank import truncated
from tests.toys import stable_diffusion as sd

Tensors = dict[str, Tensor]
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) * 100 + seed))


def written(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt", **metadata})
    return path


def lora(module: str, shape: tuple[int, ...], rank: int, *, alpha: float = 2.0, seed: int = 0, te: str = "lora_unet_") -> Tensors:
    up, down = rand(shape[0], rank, *(1,) * (len(shape) - 2), seed=seed), rand(rank, *shape[1:], seed=seed + 1)
    name = te + module.replace(".", "_")
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(alpha)}


def deltas(path: Path, variant: str = "sd1") -> dict[tuple[str, str], Tensor]:
    """By jpgen.lora, in fp64 where that counts."""
    made = {}
    for change in read_adapter(path).changes:
        wide = Change(change.part, change.module, change.factors, change.scale)
        made[change.part, common_name(change.part, change.module, variant)] = wide.delta(torch.zeros(change.shape())).double()
    return made


def close(one: Tensor, other: Tensor, tolerance: float = 1e-6) -> bool:
    return bool((one.reshape(other.shape) - other).norm() <= tolerance * other.norm())


def two(folder: Path) -> tuple[Path, Path]:
    """Of different ranks, kernels and matrices, one module in each alone, one in half precision; one by diffusers' names, one by LDM's."""
    conv, text = "down_blocks.0.resnets.0.conv1", "text_model.encoder.layers.0.mlp.fc1"
    a = {**lora(Q, (32, 32), 4), **lora(conv, (32, 32, 3, 3), 3, alpha=1.0), **lora(text, (48, 24), 2, te="lora_te_")}
    b = {
        **lora("input_blocks.1.1.transformer_blocks.0.attn1.to_q", (32, 32), 2, seed=5), **lora("mid_block.attentions.0.proj_in", (64, 64, 1, 1), 2),
        **lora("input_blocks.1.0.in_layers.2", (32, 32, 3, 3), 2, seed=7),
    }  # fmt: skip
    mid = "lora_unet_input_blocks_1_0_in_layers_2"
    b |= {f"{mid}.lora_mid.weight": rand(2, 2, 3, 3), f"{mid}.lora_down.weight": rand(2, 32, 1, 1)}  # Tucker
    return written(folder / "a.safetensors", a), written(folder / "b.safetensors", {n: t.half().float() for n, t in b.items()})


def test_the_sum_of_files_is_the_sum_of_their_deltas(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    out = tmp_path / "ab.safetensors"
    assert merge_loras([(a, 0.6), (b, -0.4)], out) == 4
    one, other, made = deltas(a), deltas(b), deltas(out)
    assert made.keys() == one.keys() | other.keys()
    assert len(one.keys() & other.keys()) == 2
    for key, delta in made.items():
        wanted = 0.6 * one.get(key, torch.zeros(())) - 0.4 * other.get(key, torch.zeros(()))
        assert close(delta, wanted), key
    ranks = {change.module: change.factors["lora_down"].shape[0] for change in read_adapter(out).changes}
    assert sorted(ranks.values()) == [2, 2, 5, 6]


def test_three_files_and_the_order_of_two_do_not_matter(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    for name, loras in {"x": [(a, 0.6), (b, 0.4)], "y": [(b, 0.4), (a, 0.6)], "z": [(a, 0.5), (b, 0.4), (a, 0.1)]}.items():
        merge_loras(loras, tmp_path / f"{name}.safetensors")
    made = [deltas(tmp_path / f"{name}.safetensors") for name in "xyz"]
    for key in made[0]:
        assert close(made[1][key], made[0][key]) and close(made[2][key], made[0][key])
    assert merge_loras([(a, 0.6), (b, 0.4)], tmp_path / "again.safetensors") == 4
    again = (tmp_path / "again.safetensors").read_bytes()
    assert len(again) == (tmp_path / "x.safetensors").stat().st_size
    assert load_file(tmp_path / "again.safetensors").keys() == load_file(tmp_path / "x.safetensors").keys()


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_with_a_rank_it_is_the_best_of_that_rank(rank: int, tmp_path: Path) -> None:
    a, b = two(tmp_path)
    merge_loras([(a, 0.6), (b, 0.4)], tmp_path / "whole.safetensors")
    merge_loras([(a, 0.6), (b, 0.4)], tmp_path / "small.safetensors", rank=rank)
    whole, small = deltas(tmp_path / "whole.safetensors"), deltas(tmp_path / "small.safetensors")
    assert whole.keys() == small.keys()
    for key, delta in whole.items():
        u, s, v = torch.linalg.svd(delta.flatten(1), full_matrices=False)
        assert close(small[key].flatten(1), (u[:, :rank] * s[:rank]) @ v[:rank], 2e-6), key


def test_resizing_to_the_rank_it_has_changes_nothing_and_is_the_svd_below(tmp_path: Path) -> None:
    a, _ = two(tmp_path)
    resize_lora(a, tmp_path / "same.safetensors", rank=8)
    resize_lora(a, tmp_path / "small.safetensors", rank=2)
    before, same, small = (deltas(path) for path in (a, tmp_path / "same.safetensors", tmp_path / "small.safetensors"))
    for key, delta in before.items():
        assert close(same[key], delta)
        left = torch.linalg.svdvals(delta.flatten(1))[2:].norm()
        torch.testing.assert_close((small[key] - delta).norm(), left, rtol=1e-5, atol=1e-5)


def test_loha_and_lokr_are_resized_by_their_whole_delta(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_proj_in"
    factors = {"hada_w1_a": rand(40, 2), "hada_w1_b": rand(2, 30), "hada_w2_a": rand(40, 2, seed=1), "hada_w2_b": rand(2, 30)}
    loha = {f"{name}.{factor}": tensor for factor, tensor in factors.items()}
    lokr = {f"{name}.lokr_w1": rand(4, 3), f"{name}.lokr_w2": rand(10, 10)}
    for tensors in (loha, lokr):
        path = written(tmp_path / "x.safetensors", tensors)
        with pytest.raises(WeightsError, match="no factors add up to exactly: give a rank"):
            merge_loras([(path, 1.0)], tmp_path / "y.safetensors")
        resize_lora(path, tmp_path / "y.safetensors", rank=3)
        ((_, before),), ((_, after),) = deltas(path).items(), deltas(tmp_path / "y.safetensors").items()
        u, s, v = torch.linalg.svd(before, full_matrices=False)
        assert close(after, (u[:, :3] * s[:3]) @ v[:3], 1e-5)


def test_the_merged_file_does_to_a_unet_what_both_do(tmp_path: Path) -> None:
    """Through jpgen's own application of adapters, on a real U-Net; and peft's names through peft's layers."""
    unet = sd.sd_unet(24)
    a = written(tmp_path / "a.safetensors", {**lora(Q, (32, 32), 4), **lora("mid_block.attentions.0.proj_in", (64, 64, 1, 1), 2)})
    b = written(tmp_path / "b.safetensors", lora("input_blocks.1.1.transformer_blocks.0.attn1.to_q", (32, 32), 3, seed=9))
    merge_loras([(a, 0.7), (b, 0.3)], tmp_path / "ab.safetensors")
    modules = AdaptedModules("toy", "sd", {"denoiser": unet})
    weight = unet.get_submodule(Q)
    with modules.applied([(read_adapter(a), 0.7), (read_adapter(b), 0.3)]):
        wanted = weight.weight.detach().clone()
    with modules.applied([(read_adapter(tmp_path / "ab.safetensors"), 1.0)]):
        torch.testing.assert_close(weight.weight.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert (wanted - weight.weight).abs().max() > 0.1


def test_peft_reads_what_is_written_by_its_names(tmp_path: Path) -> None:
    """Two modules of different ranks: peft takes one rank, so zeros fill the smaller."""
    tensors = {}
    for module, rank in ((Q, 4), ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k", 2)):
        width = (32, 32) if module == Q else (64, 24)
        tensors |= {f"unet.{module}.lora_B.weight": rand(width[0], rank), f"unet.{module}.lora_A.weight": rand(rank, width[1])}
    source = written(tmp_path / "a.safetensors", tensors)
    merge_loras([(source, 0.5)], tmp_path / "b.safetensors")
    made = load_file(tmp_path / "b.safetensors")
    assert {name.split(".", 1)[0] for name in made} == {"unet"}
    unet = sd.sd_unet(24)
    before = {module: unet.get_submodule(module).weight.detach().clone() for module in deltas_by_module(source)}
    from peft.utils import set_peft_model_state_dict

    tuned: Any = get_peft_model(unet, LoraConfig(r=4, lora_alpha=4, target_modules=list(before)))
    loaded = set_peft_model_state_dict(tuned, {f"base_model.model.{name.removeprefix('unet.')}": tensor for name, tensor in made.items()})
    assert not loaded.unexpected_keys
    tuned.merge_adapter()
    for module, old in before.items():
        new = tuned.base_model.model.get_submodule(module).base_layer.weight
        torch.testing.assert_close(new - old, 0.5 * deltas_by_module(source)[module], rtol=1e-4, atol=1e-5)


def deltas_by_module(path: Path) -> Tensors:
    return {change.module: change.delta(torch.zeros(change.shape())) for change in read_adapter(path).changes}


def test_the_metadata_say_what_it_is_and_where_it_is_from(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    merge_loras([(a, 0.6), (b, 0.4)], tmp_path / "ab.safetensors")
    with safe_open(tmp_path / "ab.safetensors", "pt") as file:
        told = file.metadata()
    assert (told["ss_network_module"], told["ss_network_dim"], told["ss_network_alpha"]) == ("networks.lora", "6", "6.0")
    assert json.loads(told["ss_network_args"]) == {"conv_dim": "5", "conv_alpha": "5.0"}
    assert (told["ss_base_model_version"], told["modelspec.architecture"]) == ("sd_v1", "stable-diffusion-v1/lora")
    made = json.loads(told["jpgen.lora"])
    assert made["operation"] == "merge"
    assert [(one["name"], one["weight"], len(one["sha256"])) for one in made["inputs"]] == [("a.safetensors", 0.6, 64), ("b.safetensors", 0.4, 64)]
    assert str(tmp_path) not in json.dumps(told)


def test_biases_and_whole_deltas_of_vectors_add_up(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_attentions_0_norm"
    files = [written(tmp_path / f"{n}.safetensors", {f"{name}.diff": rand(8, seed=n), f"{name}.diff_b": rand(8, seed=n + 5)}) for n in range(2)]
    merge_loras([(files[0], 2.0), (files[1], 3.0)], tmp_path / "x.safetensors")
    made = load_file(tmp_path / "x.safetensors")
    torch.testing.assert_close(made[f"{name}.diff"], 2 * rand(8) + 3 * rand(8, seed=1))
    torch.testing.assert_close(made[f"{name}.diff_b"], 2 * rand(8, seed=5) + 3 * rand(8, seed=6))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda t: lora(Q, (32, 16), 2), r"deltas of \[32, 16\] and \[32, 32\]"),
        (lambda t: {**t, f"lora_unet_{Q.replace('.', '_')}.dora_scale": torch.ones(32, 1)}, "is DoRA"),
        (lambda t: lora("down_blocks.2.attentions.1.transformer_blocks.9.attn1.to_q", (32, 32), 2), "one family"),
        (lambda t: {**t, "lora_unet_x.strange": torch.ones(1)}, "unknown kind of adapter"),
        (lambda t: {n: v * torch.nan for n, v in t.items()}, "not finite"),
    ],
)
def test_bad_files_are_refused_and_nothing_is_written(spoil: Callable[[Tensors], Tensors], told: str, tmp_path: Path) -> None:
    a = written(tmp_path / "a.safetensors", lora(Q, (32, 32), 4))
    b = written(tmp_path / "b.safetensors", spoil(lora(Q, (32, 32), 2)))
    with pytest.raises(JpgenError, match=told):
        merge_loras([(a, 0.5), (b, 0.5)], tmp_path / "x.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]


def test_what_does_not_fit_is_left_out_where_that_is_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    k = Q.replace("to_q", "to_k")
    a = written(tmp_path / "a.safetensors", {**lora(Q, (32, 32), 4), **lora(k, (32, 32), 2)})
    b = written(tmp_path / "b.safetensors", {**lora(Q, (32, 16), 2), **lora(k, (32, 32), 2), "lora_unet_x.strange": torch.ones(1)})
    out = tmp_path / "x.safetensors"
    assert merge_loras([(a, 0.5), (b, 0.5)], out, allow_unmatched=True) == 1
    adapters = [read_adapter(path, allow_unknown=True) for path in (out, a, b)]
    made, one, two = (change.delta(torch.zeros(32, 32)) for adapter in adapters for change in adapter.changes if "to_k" in change.module)
    torch.testing.assert_close(made, 0.5 * one + 0.5 * two)
    assert "lora_unet_x.strange" in caplog.text and "1 modules left out" in caplog.text
    done = CliRunner().invoke(main, ["lora", "merge", str(a), str(b), "-o", str(tmp_path / "y.safetensors")])
    assert done.exit_code == 2 and not (tmp_path / "y.safetensors").exists()
    done = CliRunner().invoke(main, ["lora", "merge", str(a), str(b), "-o", str(tmp_path / "y.safetensors"), "--allow-unmatched"])
    assert done.exit_code == 0, done.output
    lonely = [written(tmp_path / f"{name}.safetensors", lora(Q, shape, 2)) for name, shape in (("c", (32, 32)), ("d", (32, 16)))]
    with pytest.raises(JpgenError, match=r"deltas of \[32, 16\] and \[32, 32\]"):  # nothing would be left
        merge_loras([(path, 0.5) for path in lonely], tmp_path / "z.safetensors", allow_unmatched=True)


@pytest.mark.parametrize("shape", [(96, 96), (64, 500), (500, 64), (32, 288), (300, 400)])
@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0])
def test_the_randomised_svd_is_within_a_percent_of_the_best(shape: tuple[int, int], decay: float) -> None:
    """Of spectra that fall fast, slowly, and hardly at all (noise: the hard case)."""
    u, _, v = torch.linalg.svd(rand(*shape), full_matrices=False)
    side = min(shape)
    sigma = torch.linspace(1, 0.1, side) if decay == 0 else torch.arange(1.0, side + 1) ** -decay
    matrix = (u * sigma) @ v
    up, down = truncated(matrix, 8, generator=torch.Generator().manual_seed(0))
    best = sigma[8:].norm()
    assert up.shape == (shape[0], 8) and down.shape == (8, shape[1])
    assert best * (1 - 1e-4) <= (matrix - up @ down).norm() <= best * 1.01
    again, _ = truncated(matrix, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(up, again)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_ldm_and_diffusers_names_of_every_module_are_one(family: str) -> None:
    unet = sd.sd_unet(24) if family == "sd" else sd.sdxl_unet(32, 16)
    names = [name.removeprefix("model.diffusion_model.") for name in sd.ldm_unet(unet) if name.endswith(".weight")]
    theirs = [name for name in unet.state_dict() if name.endswith(".weight")]
    for here, there in zip(names, theirs, strict=True):
        ours = [common_name("denoiser", name.removesuffix(".weight").replace(".", "_"), family) for name in (here, there)]
        assert ours[0] == ours[1], (here, there)


def test_the_commands(tmp_path: Path) -> None:
    a, b = two(tmp_path)
    out, small = tmp_path / "ab.safetensors", tmp_path / "small.safetensors"

    def run(*arguments: str) -> str:
        made = CliRunner().invoke(main, ["lora", *arguments])
        assert made.exit_code == 0, made.output
        return made.output

    assert "4 of 4 モジュール" in run("merge", f"{a}:0.6", f"{b}:0.4", "-o", str(out))
    assert "rank 2" in run("resize", str(out), "-o", str(small), "--rank", "2")
    told = run("show", str(small))
    assert "LoCon, LoRA（sd1）4 モジュール" in told and "rank: 2\n" in told
    rows = [json.loads(line) for line in run("show", str(a), "--json").splitlines()]
    assert {row["rank"] for row in rows} == {2, 3, 4}
    for row, change in zip(rows, read_adapter(a).changes, strict=True):
        torch.testing.assert_close(torch.tensor(row["norm"]), change.delta(torch.zeros(change.shape())).norm())
    assert {module.kind for module in show(b)[1]} == {"LoRA", "LoCon"}
    assert CliRunner().invoke(main, ["lora", "resize", str(a), "-o", str(small), "--rank", "0"]).exit_code == 2
