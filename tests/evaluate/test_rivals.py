"""Plain diffusers, as bench-speed runs it, draws what jpgen draws: on mame, and on an SDXL of random weights that was written to a folder."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jpgen.backbones import load_backbone
from jpgen.catalog import find_model
from jpgen.encoders import load_encoder
from jpgen.evaluate import bench_models
from jpgen.evaluate.rivals import Plain
from jpgen.models import recognise
from jpgen.pipeline import Pipeline
from jpgen.types import ModelInfo, SamplingConfig


def drawn(pipeline: Pipeline, config: SamplingConfig, count: int = 1) -> np.ndarray:
    made = pipeline.generate_many(["赤い船"], seed=5, count=count, config=config, normalize=False)
    return np.stack([np.asarray(one.image, int) for one in made])


def test_mame_is_what_plain_diffusers_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.encoders.bert.best_dtype", lambda *_device: torch.float32)
    entry = find_model("mame")
    encoder = load_encoder("bert", entry.place)
    ours = Pipeline.from_parts(encoder, load_backbone(entry, torch.float32), ModelInfo("mame", "0", "x", "0" * 10), batch_size=2)
    for filled in (0, 40):
        plain = Plain.opened(entry, encoder, torch.float32, filled=filled)
        config = ours.config(steps=4)
        assert abs(drawn(ours, config, 2) - plain.draw("赤い船", (5, 6), config)).max() <= 1


def test_a_random_sdxl_is_written_once_and_drawn_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {"unet": (32, 64, 64), "heads": (1, 1, 1), "texts": ((32, 2, 1), (64, 2, 1)), "vae": (32, 32, 32, 32), "time": 8}
    monkeypatch.setitem(bench_models.SHAPES, "small", tiny)
    monkeypatch.setattr("jpgen.encoders.clip.best_dtype", lambda *_device: torch.float32)
    place = bench_models.written(tmp_path, "small", torch.float32)
    stamp = (place / "unet" / bench_models.STEM).stat().st_mtime_ns
    assert bench_models.written(tmp_path, "small", torch.float32) == place
    assert (place / "unet" / bench_models.STEM).stat().st_mtime_ns == stamp
    entry = recognise(place)
    assert (entry.family, entry.encoder) == ("sdxl", "sdxl")
    ours = Pipeline.from_parts(load_encoder("sdxl", entry.place), load_backbone(entry, torch.float32), ModelInfo("toy", "0", "x", "0" * 10))
    for config in (SamplingConfig(64, 64, 3, 0.0, "euler_trailing"), SamplingConfig(64, 96, 3, 4.0)):
        for plain in (Plain.opened(entry, ours.encoder, torch.float32), Plain.beside(ours.backbone, ours.encoder)):
            made, wanted = drawn(ours, config), plain.draw("赤い船", (5,), config)
            assert made.std() > 1  # a picture, not one colour
            assert abs(made - wanted).max() <= 2 and abs(made - wanted).mean() < 0.1
