"""`make bench-merge`: merging checkpoints of SDXL's shapes, beside sd-mecha and mergekit and beside the same program without arithmetic.

Every run is a process of its own; programs take turns, inputs are in the page cache, and the time is that of the merge without imports. What travels
between machines is the ratio to copy-only: the same reads and writes by the same threads into the same buffers, and no arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import site
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

RIVALS = {"sd-mecha": "sd-mecha==1.1.8", "mergekit": "mergekit==0.1.5", "lycoris": "lycoris-lora==4.1.3"}

QUICK = 0.16
"""The share of the U-Net (its middle block) that makes a pair of 0.83 GB each."""

SHAPES = """
import json, torch
from diffusers import UNet2DConditionModel
with torch.device("meta"):
    unet = UNet2DConditionModel(
        sample_size=128, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(320, 640, 1280), cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20), addition_embed_type="text_time", addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816, use_linear_projection=True)
print(json.dumps({name: list(tensor.shape) for name, tensor in unet.state_dict().items()}))
"""
"""Prints names and shapes of SDXL's U-Net: 1,680 tensors, 5.135 GB in fp16."""

MECHA = """
import json, sys, time
import sd_mecha, torch
case, out, *paths = sys.argv[1:]
a, b, *c = [sd_mecha.model(path) for path in paths]
tree = {"lerp": lambda: sd_mecha.weighted_sum(a, b, alpha=0.3), "slerp": lambda: sd_mecha.slerp(a, b, alpha=0.3),
        "add_difference": lambda: sd_mecha.add_difference(a, b, c[0], alpha=1.0),
        "ties": lambda: sd_mecha.add_difference(a, sd_mecha.ties_sum(sd_mecha.subtract(b, a), sd_mecha.subtract(c[0], a), k=0.2), alpha=1.0),
        "dare": lambda: sd_mecha.add_difference(
            a, sd_mecha.dropout(sd_mecha.subtract(b, a), sd_mecha.subtract(c[0], a), probability=0.5, no_rescale=0.0), alpha=1.0)}[case]()
began = time.perf_counter()
sd_mecha.merge(tree, output=out, merge_device="cpu", merge_dtype=torch.float32, output_device="cpu", output_dtype=torch.float16, **OPTIONS)
print(json.dumps({"seconds": time.perf_counter() - began, "rss": int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024}))
"""

KIT = """
import json, sys, time
from mergekit.merge_methods import REGISTERED_MERGE_METHODS
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge
from mergekit.graph import Executor
from mergekit.options import MergeOptions
case, out, *paths = sys.argv[1:]
weights = {"lerp": (0.7, 0.3), "slerp": (1, 1)}.get(case, (1,) * len(paths))
kind = {"lerp": "linear", "add_difference": "task_arithmetic", "dare": "dare_linear"}.get(case, case)
models = [{"model": path, "parameters": {"weight": weight}} for path, weight in zip(paths, weights)]
config = {"merge_method": kind, "models": models, "dtype": "float32", "out_dtype": "float16"}
if kind in ("ties", "dare_linear", "task_arithmetic"):
    config |= {"models": models[1:], "base_model": paths[0], "parameters": {"density": 0.2 if kind == "ties" else 0.5}}
if kind == "slerp":
    config |= {"base_model": paths[0], "parameters": {"t": 0.3}}
options = MergeOptions(random_seed=1)
began = time.perf_counter()
tasks = plan_flat_merge(RawPyTorchMergeConfig.model_validate(config), out, False, False, options)
Executor(tasks, math_device="cpu", storage_device="cpu").execute()
print(json.dumps({"seconds": time.perf_counter() - began, "rss": int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024}))
"""

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "lerp": (2, {"t": 0.3}), "n_average": (3, {}), "add_difference": (3, {"alpha": 1.0}), "slerp": (2, {"t": 0.3}), "ties": (3, {"density": 0.2}),
    "dare": (3, {"density": 0.5}),
}  # fmt: skip
"""Method -> how many models, and its numbers."""


@dataclass(frozen=True)
class Run:
    """What a process told of a merge: seconds, its largest memory in MiB, and bytes read ÷ bytes needed (0: not told)."""

    seconds: float
    rss: float
    read: float = 0.0


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fraction", type=float, default=QUICK, help="share of the U-Net, 0.16 (its middle block) to 1.0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where checkpoints and the rivals' environments are kept (default: a temporary folder)"
    )
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        _measure_one(*told.one)
        return
    with tempfile.TemporaryDirectory() as temporary:
        scratch: Path = told.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        paths = _checkpoints(scratch, told.fraction)
        rivals = {} if told.no_rivals else {name: python for name in RIVALS if (python := _rival(scratch, name))}
        _compare(told, scratch, paths, rivals)


def _compare(told: argparse.Namespace, scratch: Path, paths: list[Path], rivals: dict[str, Path]) -> None:
    size = paths[0].stat().st_size / 1e9
    print(f"{size:.2f} GB a model, fp16, {told.threads} threads, {os.cpu_count()} cores, torch {torch.__version__}, {told.rounds} rounds, "
          f"load {os.getloadavg()[0]:.1f}\n")  # fmt: skip
    print(f"{'':16} {'program':10} {'seconds (min–max)':>24} {'÷ copy-only':>12} {'÷ jpgen':>8} {'MiB':>6} {'read ÷ needed':>14}")
    for case in told.cases:
        inputs = [str(path) for path in paths[: CASES[case][0]]]
        runs: dict[str, list[Run]] = {name: [] for name in ("copy-only", "jpgen", *rivals)}
        for _ in range(told.rounds):
            for name, done in runs.items():
                for path in inputs:  # in the page cache
                    with open(path, "rb", buffering=0) as file:
                        while file.read(1 << 24):
                            pass
                os.sync()
                made = _run(name, case, scratch, inputs, told.threads, rivals)
                if made:
                    done.append(made)
        medians = {name: statistics.median(one.seconds for one in done) for name, done in runs.items() if done}
        for name, done in runs.items():
            if not done:
                print(f"{case:16} {name:10} {'not measured':>24}")
                continue
            times = [one.seconds for one in done]
            spread = f"{medians[name]:.2f} ({min(times):.2f}–{max(times):.2f})"
            read = f"{statistics.median(one.read for one in done):14.3f}" if done[0].read else f"{'–':>14}"
            print(
                f"{case:16} {name:10} {spread:>24} {medians[name] / medians['copy-only']:12.2f} {medians[name] / medians['jpgen']:8.2f} "
                f"{max(one.rss for one in done):6.0f} {read}",
                flush=True,
            )


def _run(name: str, case: str, scratch: Path, inputs: list[str], threads: int, rivals: dict[str, Path]) -> Run | None:
    out = scratch / f"{name}-out.safetensors"
    if name in rivals:
        code = MECHA.replace("OPTIONS", "{'strict_mandatory_keys': False}") if name == "sd-mecha" else KIT
        command = [str(rivals[name]), "-c", code, case, str(out if name == "sd-mecha" else scratch / "mergekit-out"), *inputs]
    else:
        command = [sys.executable, "-m", "jpgen.evaluate.bench_merge", "--one", name, case, str(threads), str(out), *inputs]
    done = subprocess.run(command, capture_output=True, text=True, cwd=None if name not in rivals else scratch)
    out.unlink(missing_ok=True)
    if done.returncode:
        print(f"  {name}, {case}: {(done.stderr.strip().splitlines() or ['?'])[-1][:160]}")
        return None
    return Run(**json.loads(done.stdout.strip().splitlines()[-1]))


def _measure_one(name: str, case: str, threads: str, out: str, *inputs: str) -> None:
    """A merge in this process, told in a line of JSON; metadata (hashes) are not part of it."""
    from jpgen.merge.engine import write
    from jpgen.merge.plan import plan
    from jpgen.merge.recipe import Merge, Model, Recipe

    recipe = Recipe(Merge(case, tuple(map(Model, inputs)), CASES[case][1]))
    before = _bytes_read()
    began = time.perf_counter()
    made = plan(recipe)
    write(made, Path(out), {"format": "pt"}, threads=int(threads), copy_only=name == "copy-only", sync=False)
    seconds = time.perf_counter() - began
    rss = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024  # getrusage would tell the parent's, if that is larger
    print(json.dumps({"seconds": seconds, "rss": rss, "read": (_bytes_read() - before) / made.bytes_needed}))


def _bytes_read() -> int:
    """Bytes this process has asked for so far; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


def _checkpoints(scratch: Path, fraction: float) -> list[Path]:
    """Three checkpoints of SDXL's names and shapes, made once."""
    told = subprocess.run([sys.executable, "-c", SHAPES], check=True, capture_output=True, text=True)
    shapes: dict[str, list[int]] = json.loads(told.stdout.strip().splitlines()[-1])
    names = [name for name in shapes if name.startswith("mid_block.")]
    total = sum(torch.Size(shape).numel() for shape in shapes.values())
    held = sum(torch.Size(shapes[name]).numel() for name in names)
    for name in sorted(shapes.keys() - set(names)):
        if held < (fraction - 0.005) * total:
            names.append(name)
            held += torch.Size(shapes[name]).numel()
    paths = []
    for index in range(3):
        path = scratch / f"model-{fraction:g}-{index}.safetensors"
        if not path.is_file():
            generator = torch.Generator().manual_seed(index)
            made = {name: torch.randn(shapes[name], generator=generator).mul_(0.02).half() for name in names}
            save_file(made, path, metadata={"format": "pt"})
        paths.append(path)
    return paths


def _rival(scratch: Path, name: str) -> Path | None:
    """The Python of a rival in an environment of its own, made there once; None, saying so, if it cannot be installed.

    Packages that are not its own are those of this program, torch among them: the same kernels for all, and no torch for each.
    """
    folder, done = scratch / name, scratch / name / "installed"
    python = folder / "bin" / "python"
    if not done.is_file():
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
            inside = subprocess.run([str(python), "-c", "import site; print(site.getsitepackages()[0])"], check=True, capture_output=True, text=True)
            (Path(inside.stdout.strip()) / "shared.pth").write_text(site.getsitepackages()[0] + "\n")
            subprocess.run([str(python), "-m", "pip", "install", "--disable-pip-version-check", "-q", RIVALS[name]], check=True, capture_output=True)
            done.touch()
        except (OSError, subprocess.CalledProcessError) as error:
            told = getattr(error, "stderr", b"") or str(error).encode()
            print(f"{name} が入りません / cannot install {RIVALS[name]}, left out: {told.decode(errors='replace').strip().splitlines()[-1][:160]}")
            return None
    return python


if __name__ == "__main__":
    main()
