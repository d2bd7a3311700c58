"""The rows of bench-speed that are not of one process: engines that take turns, and the one that draws step by step."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from jpgen.evaluate import bench_models, bench_speed, bench_steps
from jpgen.evaluate.timing import UnlikeError
from jpgen.types import SamplingConfig


def turns(monkeypatch: pytest.MonkeyPatch, *, apart: int) -> list[str]:
    """Processes that draw pictures of this difference in no time; the engines they were asked for."""
    engines: list[str] = []

    def run(*arguments: str) -> str:
        engine, picture = arguments[2], Path(arguments[4])
        engines.append(engine)
        np.save(picture, np.arange(0, 200, 10, dtype=np.uint8) + (apart if engine == "cpp" else 0))
        return json.dumps({"whole": [10.0 * len(engines), 20.0], "step": [1.0 if engine == "jpgen" else 4.0, 2.0]})

    monkeypatch.setattr(bench_speed, "_run", run)
    monkeypatch.setattr(bench_speed, "joined", lambda place: place)
    monkeypatch.setattr(bench_speed, "absent", list)
    return engines


def test_engines_take_turns_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    engines = turns(monkeypatch, apart=1)
    told = bench_speed._beside_cpp("SDXL 64²", place=Path("place"), options=argparse.Namespace(rounds=2, side=64, threads=1))
    whole, step = told.splitlines()
    assert engines == ["jpgen", "cpp"] * 2
    assert "0.62 (0.50–0.75)" in whole and "64²" in whole and "0.25 (0.25–0.25)" in step and "clock 2.00 ÷ 2.00 s" in step


def test_engines_that_draw_unlike_pictures_have_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    turns(monkeypatch, apart=55)
    with pytest.raises(UnlikeError):
        bench_speed._beside_cpp("SDXL 64²", place=Path("place"), options=argparse.Namespace(rounds=1, side=64, threads=1))


def test_only_rows_of_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    def unlike(name: str) -> str:
        raise UnlikeError(name)

    rows = [("a decode", str), ("a step", str), ("b step", unlike)]
    assert bench_speed._print(rows, "step") == 1
    assert capsys.readouterr().out.split() == ["a", "step", "FAIL", "b", "step"]


def test_without_the_rival_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_speed, "absent", lambda: ["stable-diffusion.cpp"])
    assert "not installed" in bench_speed._beside_cpp("SDXL 64²", place=Path("place"), options=argparse.Namespace(rounds=1, side=64, threads=1))


def test_a_picture_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = {"unet": (32, 64, 64), "heads": (1, 1, 1), "texts": ((32, 2, 1), (64, 2, 1)), "vae": (32, 32, 32, 32), "time": 8}
    monkeypatch.setitem(bench_models.SHAPES, "small", tiny)
    place, picture = bench_models.written(tmp_path, "small", torch.float32), tmp_path / "made.npy"
    given = ["jpgen", str(place), str(picture), "--side", "64", "--steps", "3", "--threads", str(torch.get_num_threads())]
    monkeypatch.setattr(sys, "argv", ["bench_steps", *given])
    bench_steps.main()
    taken = json.loads(capsys.readouterr().out)
    assert taken["whole"][1] > 2 * taken["step"][1] > 0
    config = SamplingConfig(64, 64, 3, 0.0, "euler_trailing")
    wanted = bench_models.opened(place).generate(bench_steps.PROMPT, seed=bench_steps.SEED, config=config, normalize=False).image
    assert np.array_equal(np.load(picture), np.asarray(wanted))
