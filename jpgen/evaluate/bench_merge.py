"""`make bench-merge`: merging checkpoints of SDXL's shapes, beside sd-mecha and mergekit and beside the same program without arithmetic.

Every run is a process of its own; programs take turns, inputs are in the page cache, and the time is that of the merge without imports. What travels
between machines is the ratio to copy-only: the same reads and writes by the same threads into the same buffers, and no arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from jpgen.evaluate.merge_rivals import KIT, LYCORIS, MECHA, command, installed

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

CASES: dict[str, tuple[int, dict[str, Any]]] = {
    "lerp": (2, {"t": 0.3}), "n_average": (3, {}), "add_difference": (3, {"alpha": 1.0}), "slerp": (2, {"t": 0.3}), "ties": (3, {"density": 0.2}),
    "dare": (3, {"density": 0.5}),
}  # fmt: skip
"""Method -> how many models, and its numbers."""


LAYERS = {"1280×1280": (1280, 1280), "10240×1280": (10240, 1280), "1280×1280×3×3": (1280, 1280, 3, 3)}
"""Layers of SDXL that a LoRA of RANK is extracted of."""

RANK = 32


@dataclass(frozen=True)
class Run:
    """What a process told: seconds on the wall clock and of the processor, its largest memory in MiB; of ours bytes read ÷ bytes needed, and the
    seconds that hashing the inputs took beside the merge, their hashes being noted; of an extraction what the factors miss (0: not told)."""

    seconds: float
    cpu: float
    rss: float
    read: float = 0.0
    hashing: float = 0.0
    error: float = 0.0


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fraction", type=float, default=QUICK, help="share of the U-Net, up to 1.0 (0.16: its middle block)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 4))
    parser.add_argument("--extract", action="store_true", help="also extract a LoRA of single layers, beside LyCORIS")
    parser.add_argument(
        "--scratch", type=Path, default=None, help="where checkpoints and the rivals' environments are kept (default: a temporary folder)"
    )
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--layer", nargs=3, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.one:
        _measure_one(*told.one)
        return
    if told.layer:
        _measure_layer(*told.layer)
        return
    with tempfile.TemporaryDirectory() as temporary:
        scratch: Path = told.scratch or Path(temporary)
        scratch.mkdir(parents=True, exist_ok=True)
        print(f"{told.threads} threads, {os.cpu_count()} cores, torch {torch.__version__}, {told.rounds} rounds, load {os.getloadavg()[0]:.1f}\n")
        if told.cases:
            paths = _checkpoints(scratch, told.fraction, max(CASES[case][0] for case in told.cases))
            _compare(told, scratch, paths, _rivals(scratch, () if told.no_rivals else ("sd-mecha", "mergekit")))
        if told.extract:
            _extract(told, scratch, _rivals(scratch, () if told.no_rivals else ("lycoris",)).get("lycoris"))


def _rivals(scratch: Path, names: tuple[str, ...]) -> dict[str, Path]:
    """The Pythons of those that can be installed."""
    made = {}
    for name in names:
        try:
            made[name] = installed(scratch, name)
        except RuntimeError as error:
            print(f"{name} を除きます / left out: {error}")
    return made


def _compare(told: argparse.Namespace, scratch: Path, paths: list[Path], rivals: dict[str, Path]) -> None:
    print(f"{paths[0].stat().st_size / 1e9:.2f} GB a model, fp16; ratios of CPU seconds in brackets")
    print(f"{'':15} {'program':10} {'seconds (min–max)':>22} {'CPU s':>7} {'÷ copy-only':>14} {'÷ jpgen':>14} {'MiB':>6} {'read':>6} {'hashes':>7}")
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
        wall = {name: statistics.median(one.seconds for one in done) for name, done in runs.items() if done}
        cpu = {name: statistics.median(one.cpu for one in done) for name, done in runs.items() if done}
        for name, done in runs.items():
            if not done:
                print(f"{case:15} {name:10} {'not measured':>22}")
                continue
            times = [one.seconds for one in done]
            spread = f"{wall[name]:.2f} ({min(times):.2f}–{max(times):.2f})"
            ratios = [f"{wall[name] / wall[other]:.2f} [{cpu[name] / cpu[other]:.2f}]" for other in ("copy-only", "jpgen")]
            read = f"{statistics.median(one.read for one in done):6.3f}" if done[0].read else f"{'–':>6}"
            hashing = f"{statistics.median(one.hashing / one.seconds for one in done):7.2%}" if done[0].hashing else f"{'–':>7}"
            memory = max(one.rss for one in done)
            print(
                f"{case:15} {name:10} {spread:>22} {cpu[name]:7.2f} {ratios[0]:>14} {ratios[1]:>14} {memory:6.0f} {read} {hashing}", flush=True
            )


def _run(name: str, case: str, scratch: Path, inputs: list[str], threads: int, rivals: dict[str, Path]) -> Run | None:
    out, folder = scratch / f"{name}-out.safetensors", scratch / "mergekit-out"
    if name == "mergekit":
        made = _told(f"{name}, {case}", command(rivals[name], KIT, case, str(folder), *inputs), scratch)
    elif name == "sd-mecha":
        made = _told(f"{name}, {case}", command(rivals[name], MECHA, case, str(out), *inputs), scratch)
    else:
        made = _told(f"{name}, {case}", _ours("--one", name, case, str(threads), str(out), *inputs))
    out.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
    return made


def _ours(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "jpgen.evaluate.bench_merge", *arguments]


def _told(what: str, command: list[str], folder: Path | None = None) -> Run | None:
    """What a process told in its last line; None, saying why, if it failed."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        print(f"  {what}: {(done.stderr.strip().splitlines() or ['?'])[-1][:160]}", flush=True)
        return None
    return Run(**json.loads(done.stdout.strip().splitlines()[-1]))


def _measure_one(name: str, case: str, threads: str, out: str, *inputs: str) -> None:
    """A merge in this process, told in a line of JSON; metadata are not part of it, and are timed apart."""
    from jpgen.merge.engine import write
    from jpgen.merge.plan import plan
    from jpgen.merge.provenance import describe
    from jpgen.merge.recipe import Merge, Model, Recipe

    recipe = Recipe(Merge(case, tuple(map(Model, inputs)), CASES[case][1]))
    before, began, worked = _bytes_read(), time.perf_counter(), time.process_time()
    made = plan(recipe)
    write(made, Path(out), {"format": "pt"}, threads=int(threads), copy_only=name == "copy-only", sync=False)
    run = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - worked, "rss": _peak()}
    run["read"] = (_bytes_read() - before) / made.bytes_needed
    if name == "jpgen":
        describe(made, {})  # notes the hashes, unless they are noted
        began = time.perf_counter()
        describe(made, {})
        run["hashing"] = time.perf_counter() - began
    print(json.dumps(run))


def _extract(told: argparse.Namespace, scratch: Path, lycoris: Path | None) -> None:
    """Layers of SDXL's sizes, one at a time: a change of falling singular values, as training makes them."""
    print(f"\nLoRA of rank {RANK} of a layer's change; missed: what the factors miss of it (LyCORIS takes the whole SVD: the least there is)")
    print(f"{'':15} {'program':10} {'seconds (min–max)':>22} {'CPU s':>7} {'÷ jpgen':>14} {'MiB':>6} {'missed':>8}")
    for label, shape in LAYERS.items():
        file = scratch / "layer.safetensors"
        save_file({"delta": _change(shape)}, file)
        runs: dict[str, list[Run]] = {"jpgen": [], **({"lycoris": []} if lycoris else {})}
        for _ in range(told.rounds):
            for name, done in runs.items():
                given = (str(file), str(RANK), str(told.threads))
                made = _told(f"{name}, {label}", _ours("--layer", *given) if name == "jpgen" or not lycoris else command(lycoris, LYCORIS, *given))
                done += [made] if made else []
        for name, done in runs.items():
            if not done or not runs["jpgen"]:
                print(f"{label:15} {name:10} {'not measured':>22}")
                continue
            times, ours = [one.seconds for one in done], runs["jpgen"]
            ratio = statistics.median(times) / statistics.median(one.seconds for one in ours)
            cpu = statistics.median(one.cpu for one in done)
            spread = f"{statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f})"
            both = f"{ratio:.2f} [{cpu / statistics.median(one.cpu for one in ours):.2f}]"
            print(f"{label:15} {name:10} {spread:>22} {cpu:7.2f} {both:>14} {max(one.rss for one in done):6.0f} {done[0].error:8.4f}", flush=True)
        file.unlink()


def _change(shape: tuple[int, ...]) -> torch.Tensor:
    """A matrix or kernel whose k-th singular value falls as 1/k, and noise of a tenth of its norm."""
    rows, columns = shape[0], torch.Size(shape[1:]).numel()
    generator = torch.Generator().manual_seed(rows + columns)
    rank = min(rows, columns) // 4
    left, right = (torch.randn(side, rank, generator=generator) for side in (rows, columns))
    made = (left / torch.arange(1, rank + 1)) @ right.T
    noise = torch.randn(rows, columns, generator=generator)
    return (made + noise * (0.1 * made.norm() / noise.norm())).reshape(shape)


def _measure_layer(file: str, rank: str, threads: str) -> None:
    """An extraction in this process, told in a line of JSON."""
    from jpgen.merge.low_rank import truncated

    torch.set_num_threads(int(threads))
    delta = load_file(file)["delta"].flatten(1)
    began, worked = time.perf_counter(), time.process_time()
    up, down = truncated(delta, int(rank), generator=torch.Generator().manual_seed(0))
    run = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - worked, "rss": _peak()}
    print(json.dumps(run | {"error": float((delta - up @ down).norm() / delta.norm())}))


def _peak() -> float:
    """The largest memory of this process so far, MiB; getrusage would tell the parent's, if that is larger."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024


def _bytes_read() -> int:
    """Bytes this process has asked for so far; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/io").read_text().split()[1])
    except OSError:
        return 0


def _checkpoints(scratch: Path, fraction: float, count: int) -> list[Path]:
    """So many checkpoints of SDXL's names and shapes, made once."""
    told = subprocess.run([sys.executable, "-c", SHAPES], check=True, capture_output=True, text=True)
    shapes: dict[str, list[int]] = json.loads(told.stdout.strip().splitlines()[-1])
    middle = [name for name in shapes if name.startswith("mid_block.")]
    total, held, names = sum(torch.Size(shape).numel() for shape in shapes.values()), 0, []
    for name in (*middle, *sorted(shapes.keys() - set(middle))):
        if held < (fraction - 0.005) * total:
            names.append(name)
            held += torch.Size(shapes[name]).numel()
    paths = []
    for index in range(count):
        path = scratch / f"model-{fraction:g}-{index}.safetensors"
        if not path.is_file():
            generator = torch.Generator().manual_seed(index)
            made = {name: torch.randn(shapes[name], generator=generator).mul_(0.02).half() for name in names}
            save_file(made, path, metadata={"format": "pt"})
        paths.append(path)
    return paths


if __name__ == "__main__":
    main()
