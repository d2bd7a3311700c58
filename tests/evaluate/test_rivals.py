"""Plain diffusers, as bench-speed runs it, draws what jpgen draws: on mame, and on an SDXL of random weights that was written to a folder."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image
from safetensors.torch import load_file

from jpgen.backbones import load_backbone
from jpgen.backbones.unet import SCHEDULE
from jpgen.catalog import find_model
from jpgen.encoders import load_encoder
from jpgen.evaluate import bench_models
from jpgen.evaluate.rivals import Cpp, Plain
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


@pytest.fixture(params=[{}, {"layers": (1, 1, 2), "middle": "UNetMidBlock2D"}], ids=["sdxl", "shallow"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a random SDXL in a few numbers of each kind."""
    tiny = {"unet": (32, 64, 64), "heads": (1, 1, 1), "texts": ((32, 2, 1), (64, 2, 1)), "vae": (32, 32, 32, 32), "time": 8}
    monkeypatch.setitem(bench_models.SHAPES, "small", tiny | request.param)
    monkeypatch.setattr("jpgen.encoders.clip.best_dtype", lambda *_device: torch.float32)
    return bench_models.written(tmp_path, "small", torch.float32)


def test_a_random_sdxl_is_written_once_and_drawn_alike(place: Path) -> None:
    stamp = (place / "unet" / bench_models.STEM).stat().st_mtime_ns
    assert bench_models.written(place.parent, "small", torch.float32) == place
    assert (place / "unet" / bench_models.STEM).stat().st_mtime_ns == stamp
    entry = recognise(place)
    assert (entry.family, entry.encoder) == ("sdxl", "sdxl")
    ours = Pipeline.from_parts(load_encoder("sdxl", entry.place), load_backbone(entry, torch.float32), ModelInfo("toy", "0", "x", "0" * 10))
    for config in (SamplingConfig(64, 64, 3, 0.0, "euler_trailing"), SamplingConfig(64, 96, 3, 4.0)):
        for plain in (Plain.opened(entry, ours.encoder, torch.float32), Plain.beside(ours.backbone, ours.encoder)):
            made, wanted = drawn(ours, config), plain.draw("赤い船", (5,), config)
            assert made.std() > 1  # a picture, not one colour
            assert abs(made - wanted).max() <= 2 and abs(made - wanted).mean() < 0.1
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    backbone: Any = ours.backbone
    assert abs(np.asarray(backbone.decode(latents)[0], int) - plain.decode(latents)[0]).max() <= 1


def test_one_file_of_a_folder_has_the_names_of_stable_diffusion_cpp(place: Path) -> None:
    file = bench_models.joined(place)
    state = load_file(file)
    text, unet = load_file(place / "text_encoder" / "model.safetensors"), load_file(place / "unet" / bench_models.STEM)
    assert len(state) == sum(len(load_file(one)) for one in place.glob("*/*.safetensors"))
    for known in (
        "unet.conv_in.weight", "vae.decoder.conv_out.weight", "conditioner.embedders.1.transformer.text_projection.weight",
        *(f"conditioner.embedders.{one}.transformer.text_model.embeddings.token_embedding.weight" for one in (0, 1)),
    ):  # fmt: skip
        assert known in state
    assert torch.equal(state["unet.conv_in.weight"], unet["conv_in.weight"])
    own = next(name for name in text if name.endswith("token_embedding.weight"))
    assert torch.equal(state["conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight"], text[own])
    stamp = file.stat().st_mtime_ns
    assert bench_models.joined(place) == file and file.stat().st_mtime_ns == stamp


def test_stable_diffusion_cpp_is_given_the_seed_and_the_sigmas(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is built from source, so a stand-in takes down what it is asked for."""
    asked: dict[str, Any] = {}

    class StandIn:
        def __init__(self, **settings: Any) -> None:
            asked.update(settings)

        def generate_image(self, *, progress_callback: Any, **settings: Any) -> list[Image.Image]:
            asked.update(settings)
            for step in range(settings["sample_steps"] + 1):
                progress_callback(step, settings["sample_steps"], 0.0)
            return [Image.new("RGB", (settings["width"], settings["height"]), "red")]

    monkeypatch.setitem(sys.modules, "stable_diffusion_cpp", SimpleNamespace(StableDiffusion=StandIn))
    marks: list[int] = []
    config = SamplingConfig(64, 32, 4, 0.0, "euler_trailing")
    made = Cpp(Path("model.safetensors"), SCHEDULE).draw("a ship", 7, config, on_step=lambda: marks.append(1))
    assert made.shape == (32, 64, 3) and len(marks) == 4
    assert (asked["seed"], asked["rng_type"], asked["wtype"], asked["cfg_scale"]) == (7, "cpu", "f16", 1.0)
    sigmas = [float(one) for one in asked["sigmas"].split(",")]
    wanted = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing")
    wanted.set_timesteps(4)
    assert sigmas == pytest.approx(wanted.sigmas.tolist())
