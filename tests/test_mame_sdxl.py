"""The built-in model of English alone: a Stable Diffusion XL as any program knows it, small enough, paired with mame's Japanese encoder."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from jpgen.api import load_generation
from jpgen.backbones.loading import filled, load_autoencoder
from jpgen.catalog import find_model
from jpgen.pipeline import Pipeline
from jpgen.safety import read_json
from jpgen.weights import load_weights

PACKAGE = Path(find_model("mame").place).parent


def text_encoder(kind, folder: Path):  # type: ignore[no-untyped-def]
    model = kind(CLIPTextConfig(**read_json(folder / "config.json")))
    state = {name.removeprefix("text_model."): value for name, value in load_weights(folder / "model.safetensors").items()}
    model.load_state_dict({name: state[name.removeprefix("text_model.")] for name in model.state_dict()})  # the prefix comes and goes
    return model.eval()


def test_all_weights_of_the_package_stay_small() -> None:
    files = {file: file.stat().st_size for file in PACKAGE.rglob("*.safetensors")}
    assert sum(files.values()) <= 100e6
    assert sum(size for file, size in files.items() if "mame_sdxl" in file.parts) <= 25e6


def test_diffusers_own_pipeline_draws_the_same_picture_of_an_english_prompt() -> None:
    entry = find_model("mame-sdxl")
    folder = entry.place
    stock = StableDiffusionXLPipeline(
        vae=load_autoencoder(entry, 16, torch.float32),
        unet=filled(UNet2DConditionModel, folder / "unet", torch.float32),
        scheduler=EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        text_encoder=text_encoder(CLIPTextModel, folder / "text_encoder"),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, folder / "text_encoder_2"),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(folder / "tokenizer_2"),
        add_watermarker=False,
    )  # fmt: skip
    stock.set_progress_bar_config(disable=True)
    noise = torch.randn((1, 16, 8, 8), generator=torch.Generator().manual_seed(7))
    wanted = stock("a red apple", latents=noise, num_inference_steps=3, guidance_scale=4.0, width=128, height=128).images[0]
    pipeline = Pipeline("mame-sdxl", route="raw")
    made = pipeline.generate("a red apple", seed=7, config=pipeline.config(steps=3, scheduler="own"))
    assert made.image.size == (128, 128)
    assert np.abs(np.asarray(made.image, int) - np.asarray(wanted, int)).mean() < 1.0


@pytest.mark.parametrize(("route", "taken"), [("auto", "adapter"), ("translate", "translate"), ("raw", "raw")])
def test_japanese_takes_the_wanted_route_and_a_picture_tells_it(route: str, taken: str, tmp_path: Path) -> None:
    pipeline = Pipeline("mame-sdxl", route=route)
    made = pipeline.generate("赤いりんご", seed=3, config=pipeline.config(steps=2))
    assert made.route == taken
    assert [one.name for one in made.adapters] == (["mame-sdxl"] if taken == "adapter" else [])
    again = load_generation(made.save(tmp_path / "apple.png"))
    assert again.image.tobytes() == made.image.tobytes() and again.route == taken


def test_the_adapter_is_worth_its_name() -> None:
    """The figures of the card come from bench-pairing; here a few texts, so that a broken file is seen."""
    from jpgen.encoders.adapted import load_adapted, open_source
    from jpgen.evaluate.pairing import recall_at_1

    texts = [line.split("\t") for line in (PACKAGE.parent / "prompts" / "pairing_captions.tsv").read_text("utf-8").splitlines()[1:61]]
    adapted, teacher = load_adapted(PACKAGE / "pairings" / "mame-sdxl.safetensors"), open_source("mame-sdxl")
    wanted = teacher.encode([en for _, en in texts])
    assert recall_at_1(adapted.encode([ja for ja, _ in texts]), wanted) >= 0.9
    assert recall_at_1(teacher.encode([ja for ja, _ in texts]), wanted) < 0.3, "the control: Japanese as it is"
