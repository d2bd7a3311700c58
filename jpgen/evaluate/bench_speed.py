"""`make bench-speed`: how long a picture takes, cold and warm, beside the same weights as diffusers loads them by default (fp32).

The arms take turns; each figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from jpgen.backbones import load_backbone
from jpgen.catalog import find_model
from jpgen.encoders import load_encoder
from jpgen.pipeline import Pipeline

PROMPT = "夕焼けの海に浮かぶ赤い船"
ENGINE = "from diffusers import PixArtSigmaPipeline"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds: int = parser.parse_args().rounds
    entry = find_model("mame")
    ours = Pipeline("mame")
    plain = Pipeline.from_parts(load_encoder(entry.encoder, entry.folder), load_backbone(entry, torch.float32), ours.info)
    arms: dict[str, Callable[[], object]] = {
        "一枚 / one picture: jpgen": lambda: ours.generate(PROMPT, seed=1),
        "一枚 / one picture: diffusers fp32": lambda: plain.generate(PROMPT, seed=1),
        "四枚 / four pictures: jpgen": lambda: ours.generate_many([PROMPT], seed=1, count=4),
        "四枚 / four pictures: diffusers fp32": lambda: plain.generate_many([PROMPT], seed=1, count=4),
        "import jpgen": lambda: _run("-c", "import jpgen"),
        f"import: {ENGINE}": lambda: _run("-c", ENGINE),
        "起動から / cold: jpgen generate": _cold,
    }
    for arm in arms.values():
        arm()  # warm: page cache, kernels
    times: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            began = time.perf_counter()
            arm()
            times[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(values) for name, values in times.items()}
    machine = f"{torch.get_num_threads()} threads, {os.cpu_count()} cores, torch {torch.__version__}"
    print(f"{ours.backbone.default.steps} steps, {machine}, {rounds} rounds\n")
    for name, seconds in medians.items():
        print(f"{seconds:7.2f} s  {name}   ({min(times[name]):.2f}–{max(times[name]):.2f})")
    print()
    for kind in ("一枚 / one picture", "四枚 / four pictures"):
        print(f"{medians[f'{kind}: jpgen'] / medians[f'{kind}: diffusers fp32']:7.2f}    {kind}: jpgen ÷ diffusers fp32")
    print(f"{medians['import jpgen'] / medians[f'import: {ENGINE}']:7.2f}    import jpgen ÷ import diffusers")


def _cold() -> None:
    with tempfile.TemporaryDirectory() as folder:
        _run("-m", "jpgen.cli", "generate", PROMPT, "-o", str(Path(folder) / "ship.png"))


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


if __name__ == "__main__":
    main()
