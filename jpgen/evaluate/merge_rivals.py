"""Those bench-merge compares with: sd-mecha and mergekit, and LyCORIS for extraction, each in an environment of its own."""

from __future__ import annotations

import site
import subprocess
import sys
from pathlib import Path

RIVALS = {"sd-mecha": "sd-mecha==1.1.8", "mergekit": "mergekit==0.1.5", "lycoris": "lycoris-lora==4.1.3"}

TELL = """
def told(began, **more):
    status = open("/proc/self/status").read()
    print(json.dumps({"seconds": time.perf_counter() - began[0], "cpu": time.process_time() - began[1],
                      "rss": int(status.split("VmHWM:")[1].split()[0]) / 1024, **more}))
"""
"""How a program tells what it took since (wall clock, CPU seconds); getrusage would tell the parent's memory, if that is larger."""

MECHA = """
import json, sys, time
import sd_mecha, torch
from sd_mecha.extensions.builtin.merge_methods import linear  # sd_mecha.add_difference and .subtract fail around ties_sum
case, out, *paths = sys.argv[1:]
a, b, *c = [sd_mecha.model(path) for path in paths]
tree = {"lerp": lambda: sd_mecha.weighted_sum(a, b, alpha=0.3), "slerp": lambda: sd_mecha.slerp(a, b, alpha=0.3),
        "n_average": lambda: sd_mecha.n_average(a, b, *c), "add_difference": lambda: sd_mecha.add_difference(a, b, c[0], alpha=1.0),
        "ties": lambda: linear.add_difference(a, sd_mecha.ties_sum(linear.subtract(b, a), linear.subtract(c[0], a), k=0.2), alpha=1.0),
        "dare": lambda: sd_mecha.dropout(a, b, c[0], probability=0.5, alpha=1.0)}[case]()
began = time.perf_counter(), time.process_time()
sd_mecha.merge(tree, output=out, merge_device="cpu", merge_dtype=torch.float32, output_device="cpu", output_dtype=torch.float16,
               strict_mandatory_keys=False)
told(began)
"""

KIT = """
import json, sys, time
from mergekit.scripts.merge_raw_pytorch import RawPyTorchMergeConfig, plan_flat_merge
from mergekit.graph import Executor
from mergekit.options import MergeOptions
case, out, *paths = sys.argv[1:]
weights = {"lerp": (0.7, 0.3), "slerp": (1, 1)}.get(case, (1,) * len(paths))
kind = {"lerp": "linear", "n_average": "linear", "add_difference": "task_arithmetic", "dare": "dare_linear"}.get(case, case)
models = [{"model": path, "parameters": {"weight": weight}} for path, weight in zip(paths, weights)]
config = {"merge_method": kind, "models": models, "dtype": "float32", "out_dtype": "float16"}
if kind in ("ties", "dare_linear", "task_arithmetic"):
    config |= {"models": models[1:], "base_model": paths[0], "parameters": {"density": 0.2 if kind == "ties" else 0.5}}
if kind == "slerp":
    config |= {"base_model": paths[0], "parameters": {"t": 0.3}}
options = MergeOptions(random_seed=1)
began = time.perf_counter(), time.process_time()
tasks = plan_flat_merge(RawPyTorchMergeConfig.model_validate(config), out, False, False, options)
Executor(tasks, math_device="cpu", storage_device="cpu").execute()
told(began)
"""

LYCORIS = """
import json, sys, time
import torch
from lycoris.utils import extract_conv, extract_linear
from safetensors.torch import load_file
file, rank, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
delta = load_file(file)["delta"]
extract = extract_linear if delta.dim() == 2 else extract_conv
began = time.perf_counter(), time.process_time()
(a, b, left), how = extract(delta, "fixed", rank)
told(began, error=float(left.norm() / delta.norm()))
"""


def installed(scratch: Path, name: str) -> Path:
    """The Python of a rival in an environment of its own, made there once; raises RuntimeError if it cannot be installed.

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
            raise RuntimeError(f"cannot install {RIVALS[name]}: {told.decode(errors='replace').strip().splitlines()[-1][:160]}") from error
    return python


def command(python: Path, program: str, *arguments: str) -> list[str]:
    """How one of the programs above is started."""
    imports, _, rest = program.strip().partition("\n")
    return [str(python), "-c", f"{imports}\n{TELL}\n{rest}", *arguments]
