"""The merge engine against averages computed by hand, and what it refuses."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jpgen.errors import OutputError, WeightsError
from jpgen.merge import engine, lora, model, survey, worker
from jpgen.merge import merge as merge_nodes
from jpgen.merge.engine import merge
from jpgen.merge.evaluation import evaluate
from jpgen.merge.plan import PIECE, plan
from jpgen.merge.recipe import Lora, Merge, Model, Node, Recipe
from jpgen.safety import check_safetensors

Q, C = "mid.attn1.to_q.weight", "conv_in.weight"
WEIGHTS = {"attn": (0.75, 0.25), "other": (0.4, 0.6)}


def tensors(seed: int, dtype: torch.dtype = torch.float16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {Q: (8, 4), C: (8, 4, 3, 3), "bias": (5,), "scalar": ()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()} | {"steps": torch.tensor([3, 4])}


def files(folder: Path, **given: dict[str, torch.Tensor]) -> dict[str, Model]:
    for name, one in given.items():
        save_file(one, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return {name: model(folder / f"{name}.safetensors") for name in given}


def two(inputs: dict[str, Model], weights: object = WEIGHTS) -> Recipe:
    return Recipe(Merge("weighted_sum", (inputs["a"], inputs["b"]), {"weights": weights}), name="toy")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_two_groups_are_averaged_in_fp32(tmp_path: Path, dtype: torch.dtype) -> None:
    a, b = tensors(1, dtype), tensors(2, torch.float32)
    made = load_file(merge(two(files(tmp_path, a=a, b=b)), tmp_path / "out" / "m.safetensors"))
    assert made.keys() == a.keys() and torch.equal(made.pop("steps"), a["steps"])
    for name, tensor in made.items():
        one, other = WEIGHTS["attn" if name == Q else "other"]
        wanted = (a[name].double() * one + b[name].double() * other).to(dtype)
        assert tensor.dtype == dtype
        torch.testing.assert_close(tensor, wanted, rtol=torch.finfo(dtype).eps * 2, atol=1e-6)
    assert os.listdir(tmp_path / "out") == ["m.safetensors"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("t", [0.3, 0.5, 0.7, 0.0231193])
def test_halves_are_bit_equal_to_fp32_rounded_once(tmp_path: Path, dtype: torch.dtype, t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    size = PIECE + 77  # more than a piece, and an end that fills no vector
    a, b = ({"w": torch.randn(size, generator=generator).mul_(scale).to(dtype), "v": torch.ones(3, dtype=dtype)} for scale in (0.02, 3.0))
    made = load_file(merge(two(files(tmp_path, a=a, b=b), (1 - t, t)), tmp_path / "m.safetensors"))
    assert all(torch.equal(made[name], torch.lerp(a[name].float(), b[name].float(), t).to(dtype)) for name in a)


def test_weights_of_one_and_nothing_are_a_copy_of_bytes(tmp_path: Path) -> None:
    a, b = tensors(1), tensors(2)
    b[C][0] = float("nan")  # never read
    inputs = files(tmp_path, a=a, b=b)
    made = load_file(merge(two(inputs, (1.0, 0.0)), tmp_path / "m.safetensors"))
    assert all(torch.equal(made[name], a[name]) for name in a)
    needed = plan(two(inputs, (1.0, 0.0))).bytes_needed
    assert needed == sum(one.numel() * one.element_size() for one in a.values()) + 16  # and both models' steps, which must agree


@pytest.mark.parametrize(
    ("dtype", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp8", torch.float8_e4m3fn)]
)
def test_the_type_may_be_told(tmp_path: Path, dtype: str, kind: torch.dtype) -> None:
    a, b = tensors(1), tensors(2)
    inputs = files(tmp_path, a=a, b=b)
    made = load_file(merge_nodes(Merge("n_average", (inputs["a"], inputs["b"])), tmp_path / "m.safetensors", dtype=dtype))
    assert made.pop("steps").dtype == torch.int64
    for name, tensor in made.items():
        assert torch.equal(tensor.float(), ((a[name].float() + b[name].float()) / 2).to(kind).float()) and tensor.dtype == kind
    with pytest.raises(WeightsError, match="the weights are too large for F8_E4M3"):
        big = files(tmp_path, a={"w": torch.full((4,), 2e3)}, b={"w": torch.full((4,), 2e3)})
        merge_nodes(Merge("n_average", (big["a"], big["b"])), tmp_path / "m.safetensors", dtype="fp8")


def test_shards_and_folders_are_read_as_one(tmp_path: Path) -> None:
    a, b = tensors(1), tensors(2)
    inputs = files(tmp_path, a=a, b=b)
    whole = load_file(merge(two(inputs), tmp_path / "m.safetensors"))
    folder = tmp_path / "b"
    (folder / "unet").mkdir(parents=True)
    save_file({Q: b[Q]}, folder / "unet" / "one.safetensors")
    save_file({name: one for name, one in b.items() if name != Q}, folder / "unet" / "two.safetensors")
    index = {"weight_map": {name: "one.safetensors" if name == Q else "two.safetensors" for name in b}}
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    made = load_file(merge(two({"a": inputs["a"], "b": model(folder / "unet")}), tmp_path / "s.safetensors"))
    assert all(torch.equal(made[name], whole[name]) for name in whole)
    shutil.copytree(folder, tmp_path / "c")
    out = merge(two({"a": model(tmp_path / "c"), "b": model(folder)}), tmp_path / "f")
    made = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert [str(path.relative_to(out)) for path in out.rglob("*.*")] == ["unet/diffusion_pytorch_model.safetensors"]
    assert made.keys() == b.keys() and torch.equal(made["steps"], b["steps"])


@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_nodes_build_on_each_other_and_a_lora_is_added(tmp_path: Path, style: str) -> None:
    a, b, c = tensors(1, torch.float32), tensors(2, torch.float32), tensors(3, torch.float32)
    up, down = torch.randn(8, 2), torch.randn(2, 4)
    kernel_up, kernel_down = torch.randn(8, 2, 1, 1), torch.randn(2, 4, 3, 3)
    if style == "kohya":
        flat = {"mid_attn1_to_q": (up, down), "conv_in": (kernel_up, kernel_down)}
        adapter = {f"lora_unet_{n}.lora_up.weight": u for n, (u, _) in flat.items()}
        adapter |= {f"lora_unet_{n}.lora_down.weight": d for n, (_, d) in flat.items()}
        adapter |= {f"lora_unet_{n}.alpha": torch.tensor(1.0) for n in flat}
    else:
        adapter = {"unet.mid.attn1.to_q.lora_B.weight": up / 2, "unet.mid.attn1.to_q.lora_A.weight": down}
        adapter |= {"unet.conv_in.lora_B.weight": kernel_up / 2, "unet.conv_in.lora_A.weight": kernel_down}
    inputs = files(tmp_path, a=a, b=b, c=c, l=adapter)
    fused = Merge("add_lora", (two(inputs).root, lora(inputs["l"].name)), {"scale": 3.0})
    last = Merge("weighted_sum", (inputs["c"], fused), {"weights": {"attn": (0.1, 0.9), "other": (0.2, 0.8)}})
    made = load_file(merge(Recipe(last), tmp_path / "m.safetensors"))
    added = {Q: 1.5 * up @ down, C: 1.5 * torch.einsum("or,rikl->oikl", kernel_up[..., 0, 0], kernel_down)}
    for name in (Q, C, "bias"):
        one, other, mine, theirs = (0.75, 0.25, 0.1, 0.9) if name == Q else (0.4, 0.6, 0.2, 0.8)
        wanted = mine * c[name] + theirs * (one * a[name] + other * b[name] + added.get(name, 0))
        torch.testing.assert_close(made[name], wanted, rtol=1e-5, atol=1e-5)


def test_models_that_differ_are_listed(tmp_path: Path) -> None:
    a, b = tensors(1), tensors(2)
    b = {name: tensor for name, tensor in b.items() if name != "bias"} | {Q: torch.zeros(8, 5, dtype=torch.float16), "more": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"b\.safetensors: 3 tensors: no bias, extra more, mid\.attn1\.to_q\.weight \[8, 5\] for \[8, 4\]"):
        merge(two(files(tmp_path, a=a, b=b)), tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="steps holds whole numbers that differ"):
        merge(two(files(tmp_path, a=a, b=tensors(2) | {"steps": torch.tensor([3, 5])})), tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="steps F16 for I64"):
        merge(two(files(tmp_path, a=a, b=tensors(2) | {"steps": torch.ones(2).half()})), tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        ({"lora_unet_nowhere.lora_up.weight": torch.zeros(8, 2), "lora_unet_nowhere.lora_down.weight": torch.zeros(2, 4)}, "fit nothing: nowhere"),
        ({"lora_unet_conv_in.lora_up.weight": torch.zeros(8, 2)}, "conv_in lacks lora_down"),
        ({"unet.mid.attn1.to_q.lora_B.weight": torch.zeros(9, 2), "unet.mid.attn1.to_q.lora_A.weight": torch.zeros(2, 4)},
         r"\[9, 4\] for a weight \[8, 4\]"),
        ({"lora_te_x.lora_up.weight": torch.zeros(8, 2), "lora_te_x.lora_down.weight": torch.zeros(2, 4)}, r"fit nothing: text_encoder\.x"),
    ],
)  # fmt: skip
def test_a_lora_that_does_not_fit_is_told(tmp_path: Path, adapter: dict[str, torch.Tensor], says: str) -> None:
    inputs = files(tmp_path, a=tensors(1), b=tensors(2), l=adapter)
    with pytest.raises(WeightsError, match=says):
        merge(Recipe(Merge("add_lora", (two(inputs).root, Lora(inputs["l"].name)))), tmp_path / "m.safetensors")


def test_values_that_are_not_finite_name_their_tensor_and_whose_it_is(tmp_path: Path) -> None:
    b = tensors(2)
    b["bias"][3] = float("nan")
    with pytest.raises(WeightsError, match=r"bias comes out .* not finite, so has .*b\.safetensors"):
        merge(two(files(tmp_path, a=tensors(1), b=b)), tmp_path / "m.safetensors")
    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    with pytest.raises(WeightsError, match=r"to_q\.weight comes out .* though no input has: the weights are too large for F16"):
        node = Merge("add_difference", (inputs["a"], inputs["a"], inputs["b"]), {"alpha": 10.0})
        for _ in range(6):
            node = Merge("add_difference", (inputs["a"], node, inputs["b"]), {"alpha": {"attn": 10.0, "other": 0.0}})
        merge(Recipe(node), tmp_path / "m.safetensors")
    inputs = files(tmp_path, a=tensors(1), b=b)
    with pytest.raises(WeightsError, match=r"bias .* so has .*b\.safetensors"):  # a method that wants the whole tensor
        merge(Recipe(Merge("slerp", (inputs["a"], inputs["b"]), {"t": 0.5})), tmp_path / "m.safetensors")
    assert [name for name in os.listdir(tmp_path) if name.startswith(("m.", ".m"))] == []


def test_damage_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    file = tmp_path / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(WeightsError, match="cut off"):
        merge(two(inputs), tmp_path / "m.safetensors")
    file.rename(tmp_path / "b.ckpt")
    with pytest.raises(WeightsError, match="is a pickle"):
        merge(two({**inputs, "b": model(tmp_path / "b.ckpt")}), tmp_path / "m.safetensors")
    with pytest.raises(WeightsError, match="no file or folder"):
        merge(two({**inputs, "b": model(tmp_path / "none.safetensors")}), tmp_path / "m.safetensors")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, output = files(tmp_path, a=tensors(1), b=tensors(2)), tmp_path / "m.safetensors"
    output.write_bytes(b"old")
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda _: usage(9, 9, 100))
        with pytest.raises(OutputError, match=r"cannot write .*GB wanted.*XDG_CACHE_HOME"):
            merge(two(inputs), output)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(engine.os, "posix_fallocate", full)
        patch.setattr(engine, "_run", lambda *_: pytest.fail("worked before there was room"))
        with pytest.raises(OutputError, match="No space left"):
            merge(two(inputs), output)
    monkeypatch.setattr(engine.os, "fsync", full)
    with pytest.raises(OutputError, match="No space left"):
        merge(two(inputs), output)
    assert output.read_bytes() == b"old" and sorted(os.listdir(tmp_path)) == ["a.safetensors", "b.safetensors", "m.safetensors"]


def test_an_input_is_no_output(tmp_path: Path) -> None:
    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    before = (tmp_path / "b.safetensors").read_bytes()
    (tmp_path / "link.safetensors").symlink_to(tmp_path / "b.safetensors")
    for name in ("b", "link"):
        with pytest.raises(OutputError, match="name another output"):
            merge(two(inputs), tmp_path / f"{name}.safetensors")
    assert (tmp_path / "b.safetensors").read_bytes() == before


MIXED = """
import sys
from pathlib import Path
from jpgen.merge import model, merge, dare, slerp, weighted_sum, della
a, b = model("a.safetensors"), model("b.safetensors")
tree = weighted_sum(slerp(a, b, t=0.3), dare(a, b, density=0.5), della(a, b, weights=[0.5]), weights=[0.2, 0.5, 0.3])
for threads in sys.argv[1:]:
    merge(tree, f"{threads}.safetensors", threads=int(threads), seed=7)
"""


def large(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"x": (700, 900), "y": (700, 900), "z": (3, 5), "huge": (1200, 1000)}
    return {name: torch.randn(shape, generator=generator).half() for name, shape in shapes.items()}


def test_bytes_are_the_same_on_any_thread_count_and_hash_seed(tmp_path: Path) -> None:
    files(tmp_path, a=large(1), b=large(2))
    made = set()
    for seed, counts in (("1", "12"), ("2", "4")):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, "-c", MIXED, *counts], cwd=tmp_path, env=environment, check=True, capture_output=True)
        for threads in counts:
            out = tmp_path / f"{threads}.safetensors"
            header, data = check_safetensors(out), out.read_bytes()
            made.add(hashlib.sha256(data[min(one.begin for one in header.tensors.values()) :]).hexdigest())
    assert len(made) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_length_of_strips_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    inputs = files(tmp_path, **{name: {key: one.to(dtype) for key, one in large(seed).items()} for seed, name in enumerate("abc")})
    a, b, c = inputs["a"], inputs["b"], inputs["c"]
    parts = (Merge("add_difference", (a, b, c), {"alpha": 0.7}), Merge("train_difference", (b, a, c)), Merge("n_average", (a, b, c)), a)
    tree = Merge("task_arithmetic", (Merge("weighted_sum", parts, {"weights": (0.4, 0.3, 0.2, 0.1)}), b, Merge("lerp", (a, c), {"t": 0.3})))
    made = [merge(Recipe(tree), tmp_path / "default.safetensors").read_bytes()]
    for strip in (101 * 64, 1 << 16):
        monkeypatch.setattr(worker, "STRIP", strip)
        made.append(merge(Recipe(tree), tmp_path / "default.safetensors", threads=3).read_bytes())
    assert made[0] == made[1] == made[2]
    assert load_file(tmp_path / "a.safetensors")["x"].equal(large(0)["x"].to(dtype))
    wanted = evaluate(Recipe(tree), "y", lambda model, name: load_file(model.name)[name])
    torch.testing.assert_close(load_file(tmp_path / "default.safetensors")["y"].float(), wanted, rtol=1e-3, atol=1e-6)


def everything(a: Model, b: Model, c: Model) -> Recipe:
    """Every method that looks at tensors before it makes a value, some on others."""
    parts: tuple[Node, ...] = (
        Merge("slerp", (a, Merge("karcher_mean", (b, c))), {"t": 0.3}), Merge("nuslerp", (a, b), {"t": 0.3}), Merge("geometric_median", (a, b, c)),
        Merge("model_stock", (a, b, c)), Merge("cosine_a", (a, b), {"t": 0.1}), Merge("cosine_b", (Merge("ties", (a, b, c)), b), {"t": 0.1}),
        Merge("breadcrumbs", (a, b, c), {"density": 0.7, "gamma": 0.1}), Merge("sce", (a, b, c)), Merge("della", (a, b), {"density": 0.4}),
        Merge("swap", (a, b), {"start": 0.3, "end": 0.8}), Merge("dare", (a, b)),
    )  # fmt: skip
    return Recipe(Merge("n_average", parts), seed=5)


def test_what_is_looked_at_in_pieces_is_what_the_whole_tensor_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"kernel": (600, 200, 3, 3), "matrix": (1060, 1000), "vector": (1300,), "number": ()}  # the first two are more than a piece
    given = {}
    for seed, name in enumerate("abc"):
        generator = torch.Generator().manual_seed(seed)
        given[name] = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    inputs = files(tmp_path, **given)
    recipe = everything(*inputs.values())
    made = merge(recipe, tmp_path / "one.safetensors", threads=1).read_bytes()
    assert merge(recipe, tmp_path / "one.safetensors", threads=3).read_bytes() == made
    for name, tensor in load_file(tmp_path / "one.safetensors").items():
        wanted = evaluate(recipe, name, lambda model, key: load_file(model.name)[key])
        torch.testing.assert_close(tensor, wanted, rtol=3e-7, atol=1e-7)
    monkeypatch.setattr(survey, "ROOM", 1 << 20)  # most pieces are read again for every pass
    monkeypatch.setattr(survey, "MORE", 0)
    assert merge(recipe, tmp_path / "one.safetensors", threads=2).read_bytes() == made


def test_pieces_are_kept_from_pass_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = files(tmp_path, a=large(1), b=large(2), c=large(3))
    read: list[int] = []
    preadv = os.preadv

    def counted(number: int, buffers: list[memoryview], offset: int) -> int:
        read.append(preadv(number, buffers, offset))
        return read[-1]

    monkeypatch.setattr("jpgen.merge.sources.os.preadv", counted)
    recipe = Recipe(Merge("ties", tuple(inputs.values())))
    merge(recipe, tmp_path / "m.safetensors", threads=2)
    assert sum(read) == plan(recipe).bytes_needed == 3 * sum(2 * one.numel() for one in large(1).values())


def test_who_waits_for_a_piece_that_failed_ends(tmp_path: Path) -> None:
    a, b = large(1), large(2)
    b["huge"][-1, -1] = float("inf")
    inputs = files(tmp_path, a=a, b=b)
    with pytest.raises(WeightsError, match=r"huge .* so has .*b\.safetensors"):
        merge(Recipe(Merge("slerp", (inputs["a"], inputs["b"]), {"t": 0.5})), tmp_path / "m.safetensors", threads=4)
    (tmp_path / "b.safetensors").write_bytes((tmp_path / "b.safetensors").read_bytes()[:-4])
    made = plan(Recipe(Merge("slerp", (inputs["a"], inputs["a"]), {"t": 0.5})))
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-4])
    with pytest.raises(WeightsError, match="cut off while it was read"):
        engine.write(made, tmp_path / "m.safetensors", {}, threads=4)


MEMORY = """
import sys
from pathlib import Path
from jpgen.merge.engine import merge
from jpgen.merge.recipe import Merge, Model, Recipe
def peak(): return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
models = tuple(map(Model, ("a.safetensors", "b.safetensors", "c.safetensors")))
merge(Recipe(Merge("n_average", models)), Path("out.safetensors"), threads=2)
before = peak()
for node in (Merge("slerp", models[:2], {"t": 0.3}), Merge("ties", models), Merge("sce", models)):
    merge(Recipe(node), Path("out.safetensors"), threads=2)
print(peak() - before)
"""


def test_no_tensor_is_whole_in_memory(tmp_path: Path) -> None:
    """Of three models of 48 MB, one tensor each, no more than a part is kept (64 MiB, and 16 for each model)."""
    tensor = torch.randn(4000, 6000, generator=torch.Generator().manual_seed(0)).half()
    files(tmp_path, a={"w": tensor}, b={"w": tensor.flip(0).contiguous()}, c={"w": tensor.flip(1).contiguous()})
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 112 + 80  # and tiles, buffers, what the allocator keeps; whole, in fp32, they would be 275


def test_the_order_of_the_inputs_files_changes_nothing_and_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = large(1), large(2)
    inputs = files(tmp_path, a=a, b=b)
    once = merge(two(inputs), tmp_path / "m.safetensors").read_bytes()
    order = ["huge", "z", "x", "y"]
    table, data = {}, b""
    for name in order:
        raw = b[name].numpy().tobytes()
        table[name] = {"dtype": "F16", "shape": list(b[name].shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps({"__metadata__": {"format": "pt"}, **table}).encode()
    (tmp_path / "b.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    read: list[int] = []
    preadv = os.preadv

    def counted(number: int, buffers: list[memoryview], offset: int) -> int:
        read.append(preadv(number, buffers, offset))
        return read[-1]

    monkeypatch.setattr("jpgen.merge.sources.os.preadv", counted)
    again = merge(two(inputs), tmp_path / "n.safetensors", threads=2)
    assert sum(read) == 2 * len(data)
    assert again.read_bytes()[-len(data) :] == once[-len(data) :]


def test_kill_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    files(tmp_path, a=large(1), b=large(2))
    out = tmp_path / "1.safetensors"
    out.write_bytes(b"old")
    slow = "import jpgen.merge.engine as e, time\nold = e.put\ndef put(*a): old(*a); time.sleep(30)\ne.put = put\n" + MIXED
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", slow, "1"], cwd=tmp_path, env=environment) as process:
        while not list(tmp_path.glob(".1.safetensors.*.tmp")) and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and out.read_bytes() == b"old"


def test_a_recipe_with_free_numbers_is_not_merged(tmp_path: Path) -> None:
    from jpgen.errors import RecipeError
    from jpgen.merge import Free

    inputs = files(tmp_path, a=tensors(1), b=tensors(2))
    node: Node = Merge("lerp", (inputs["a"], inputs["b"]), {"t": {"global": 0.1, "attn": Free(0.0, 1.0)}})
    with pytest.raises(RecipeError, match=r"free numbers: root\.t\.attn"):
        merge(Recipe(node), tmp_path / "m.safetensors")
    made = load_file(merge(Recipe(node).fixed({"root.t.attn": 1.0}), tmp_path / "m.safetensors"))
    assert torch.equal(made[Q], tensors(2)[Q])
