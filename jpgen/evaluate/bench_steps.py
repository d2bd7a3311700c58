"""One picture by one engine in a process of its own, step by step: what bench-speed runs in turns where memory does not hold two engines."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jpgen.evaluate.timing import cpu_seconds
from jpgen.safety import read_json
from jpgen.types import SamplingConfig

PROMPT = "a red ship on the sea at sunset"
"""Read alike by every tokenizer of CLIP."""

SEED = 1

Mark = Callable[[], None]


def main() -> None:
    """Draw, save the picture as `.npy` and print, as JSON, [CPU seconds, seconds of the clock] of the whole and of a step after the first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("place", type=Path, help="モデルのフォルダ / a folder of random weights")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = ENGINES[options.engine](options.place)
    marks: list[np.ndarray] = []

    def mark() -> None:
        marks.append(np.array([cpu_seconds(), time.perf_counter()]))

    mark()
    picture = draw(SamplingConfig(options.side, options.side, options.steps, 0.0, "euler_trailing"), mark)
    mark()
    np.save(options.picture, picture)
    began, *steps, ended = marks
    print(json.dumps({"whole": (ended - began).tolist(), "step": np.diff(steps, axis=0).mean(0).tolist()}))


def _jpgen(place: Path) -> Callable[[SamplingConfig, Mark], np.ndarray]:
    from jpgen.evaluate.bench_models import opened

    pipeline = opened(place)

    def draw(config: SamplingConfig, mark: Mark) -> np.ndarray:
        return np.asarray(pipeline.generate(PROMPT, seed=SEED, config=config, normalize=False, on_step=lambda _step: mark()).image)

    return draw


def _cpp(place: Path) -> Callable[[SamplingConfig, Mark], np.ndarray]:
    from jpgen.evaluate.bench_models import joined
    from jpgen.evaluate.rivals import Cpp

    model = Cpp(joined(place), read_json(place / "scheduler" / "scheduler_config.json"))
    return lambda config, mark: model.draw(PROMPT, SEED, config, on_step=mark)


ENGINES: dict[str, Callable[[Path], Any]] = {"cpp": _cpp, "jpgen": _jpgen}


if __name__ == "__main__":
    main()
