"""The road with pictures: begun from, inpainted, enlarged, seamless, with another autoencoder; repeated from files; from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from jpgen import api
from jpgen.api import load_generation
from jpgen.backbones import diffusers, flux, pixart, sd
from jpgen.backbones.unet import toy_vae
from jpgen.cli import main
from jpgen.encoders import clip
from jpgen.errors import Cancelled, IncompatibleError, MetadataError, SettingError, WeightsError
from jpgen.metadata import parse_parameters, read_settings
from jpgen.pipeline import Pipeline
from jpgen.types import Control, Generation, InitImage, Inputs, ModelInfo, Step
from jpgen.weights import load_weights
from tests.backbones.test_controlnet import net_for
from tests.toys.pictures import mask, picture

INFO = ModelInfo("toy", "0", "Apache-2.0", "0000000000")


class Words:
    """Reads texts by their length alone: states of the width that is wanted."""

    name = "words"

    def __init__(self, backbone: Any) -> None:
        self.spec = replace(backbone.spec, max_length=None)

    def encode(self, texts: Any) -> Any:
        from jpgen.types import Conditioning

        rows = [torch.randn(4, self.spec.width, generator=torch.Generator().manual_seed(len(text))) for text in texts]
        return Conditioning(torch.stack(rows), torch.ones(len(texts), 4, dtype=torch.int64))


@pytest.fixture(scope="module")
def unet() -> Pipeline:
    backbone = sd.toy()
    return Pipeline.from_parts(Words(backbone), backbone, INFO)


@pytest.fixture(scope="module")
def net(unet: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets") / "control_toy"
    net_for(unet.backbone._pipeline.unet).save_pretrained(folder)
    return folder


def pixels(made: Generation) -> np.ndarray:
    return np.asarray(made.image, int)


def told_in(path: Path) -> dict[str, str]:
    """What A1111 reads in a file."""
    with Image.open(path) as image:
        return parse_parameters(image.info["parameters"])[2]


def test_a_picture_to_begin_from(toy: Pipeline) -> None:
    init = InitImage(picture(), 0.5)
    one, many = toy.generate("猫", seed=3, init=init), toy.generate_many(["猫", "犬"], seed=3, init=init)
    assert (pixels(one) == pixels(many[0])).all() and (pixels(many[0]) != pixels(many[1])).any()
    assert (pixels(one) != pixels(toy.generate("猫", seed=3))).any()
    assert (pixels(toy.generate("猫", seed=3, init=InitImage(picture(), 1.0))) == pixels(toy.generate("猫", seed=3))).all()
    assert (one.inputs.strength, len(one.inputs.picture), one.inputs.mask) == (0.5, 64, "")
    assert toy.generate("猫", seed=3).inputs == Inputs()


def test_sampling_together_changes_rounding_at_most(toy: Pipeline) -> None:
    together = Pipeline.from_parts(toy.encoder, toy.backbone, toy.info, batch_size=3)
    settings = {"seed": 3, "count": 3, "init": InitImage(picture(), 0.6, mask()), "upscale": 1.5}
    for one, other in zip(toy.generate_many(["猫"], **settings), together.generate_many(["猫"], **settings), strict=True):
        assert abs(pixels(one) - pixels(other)).max() <= 2


def test_outside_the_mask_nothing_changes_even_enlarged(toy: Pipeline) -> None:
    outside = np.asarray(mask()) == 0
    made = toy.generate("猫", seed=1, init=InitImage(picture(), 0.8, mask()))
    assert (pixels(made)[outside] == np.asarray(picture(), int)[outside]).all()
    assert (pixels(made)[~outside] != np.asarray(picture(), int)[~outside]).any()
    original = picture(128, 128, seed=4)
    large = toy.generate("猫", seed=1, init=InitImage(original, 0.8, mask(128, 128)), upscale=2)
    outside = np.asarray(mask(128, 128)) == 0
    assert large.image.size == (128, 128)
    assert (pixels(large)[outside] == np.asarray(original, int)[outside]).all()  # the original's own pixels, not enlarged ones


def test_upscaling_is_another_pass_from_the_enlarged_picture(toy: Pipeline) -> None:
    seen: list[tuple[int, int]] = []
    config = toy.config(steps=5)
    small = toy.generate("猫", seed=1, config=config)
    made = toy.generate_many(["猫"], seed=1, count=1, config=config, upscale=2, on_step=lambda step: seen.append((step.index, step.total)))[0]
    enlarged = small.image.resize((128, 128), Image.Resampling.LANCZOS)
    by_hand = toy.generate("猫", seed=1, config=toy.config(steps=5, width=128, height=128), init=InitImage(enlarged, 0.4))
    assert (pixels(made) == pixels(by_hand)).all()
    assert (made.config, made.inputs.upscale, made.inputs.upscale_strength) == (config, 2.0, 0.4)
    assert seen == [(i, 7) for i in range(1, 8)]
    assert toy.generate("猫", seed=1, upscale=1.3).image.size == (96, 96)  # 83.2, on the grid of 32
    with pytest.raises(Cancelled, match="step 2 of 2"):
        toy.generate("猫", seed=1, config=config, upscale=2, on_step=lambda step: step.index < 7)


def test_all_is_checked_before_anything_is_sampled(toy: Pipeline) -> None:
    steps: list[Step] = []
    for wrong in ({"init": InitImage("none.png")}, {"upscale": -1.0}, {"init": InitImage(picture(), 7)}, {"init": InitImage(picture(), 0.5, "no")}):
        with pytest.raises(SettingError):
            toy.generate("猫", on_step=steps.append, **wrong)
    with pytest.raises(IncompatibleError, match=r"toy-pixart cannot do it.*ControlNet: sd, sdxl, flux"):
        toy.generate("猫", on_step=steps.append, controls=[Control("net", picture())])
    with pytest.raises(IncompatibleError, match="seamless tiling: sd, sdxl"):
        toy.generate("猫", on_step=steps.append, tile=True)
    assert steps == []


def test_tiles_have_no_seam_and_leave_the_model_as_it_was(unet: Pipeline) -> None:
    modules = [module for part in ("unet", "vae") for module in getattr(unet.backbone._pipeline, part).modules()]
    convolutions = [module for module in modules if isinstance(module, torch.nn.Conv2d)]
    before, plain = [layer.padding_mode for layer in convolutions], pixels(unet.generate("猫", seed=1))
    during: set[str] = set()
    made = pixels(unet.generate("猫", seed=1, tile=True, on_step=lambda _: during.update(layer.padding_mode for layer in convolutions)))
    assert during == {"circular", "zeros"}  # 1 × 1 convolutions have nothing to wrap
    assert [layer.padding_mode for layer in convolutions] == before
    assert (pixels(unet.generate("猫", seed=1)) == plain).all() and (made != plain).any()
    with pytest.raises(Cancelled):
        unet.generate("猫", tile=True, on_step=lambda _: False)
    assert [layer.padding_mode for layer in convolutions] == before


def test_a_tile_that_is_shifted_decodes_to_the_shifted_tile() -> None:
    """What makes it seamless: the convolutions know no edge."""
    from jpgen.backbones.tiling import seamless

    vae = toy_vae().eval()
    torch.nn.Module.requires_grad_(vae, False)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with seamless(vae):
        one, other = vae.decode(latents).sample, vae.decode(latents.roll((3, 2), (2, 3))).sample
    torch.testing.assert_close(one.roll((24, 16), (2, 3)), other, atol=1e-4, rtol=1e-4)
    assert (vae.decode(latents).sample.roll((24, 16), (2, 3)) - vae.decode(latents.roll((3, 2), (2, 3))).sample).abs().max() > 0.01


def test_large_pictures_are_decoded_in_pieces_where_memory_is_short(
    unet: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from jpgen.backbones import tiling

    vae, used = unet.backbone._pipeline.vae, []
    tiled = vae.tiled_decode
    monkeypatch.setattr(vae, "tiled_decode", lambda *args, **kwargs: used.append(1) or tiled(*args, **kwargs))
    config = unet.config(width=128, height=128)
    whole = pixels(unet.generate("猫", seed=1, config=config))
    assert not used
    monkeypatch.setattr(tiling, "memory_available", lambda _device: 1_000_000)
    monkeypatch.setattr(tiling, "TILE", 64)
    before = (vae.tile_sample_min_size, vae.tile_latent_min_size)
    with caplog.at_level("WARNING", "jpgen"):
        pieces = pixels(unet.generate("猫", seed=1, config=config))
    assert "decoded in pieces" in caplog.text
    assert used and not vae.use_tiling and not vae.use_slicing and (vae.tile_sample_min_size, vae.tile_latent_min_size) == before
    used.clear()
    unet.generate("猫", seed=1, config=config, tile=True)  # pieces would have seams
    assert not used
    monkeypatch.setattr(tiling, "memory_available", lambda _device: 8_000_000)  # for one picture, not for two
    rows = vae.decode
    monkeypatch.setattr(vae, "decode", lambda latents, **given: used.append((vae.use_slicing, vae.use_tiling)) or rows(latents, **given))
    Pipeline.from_parts(unet.encoder, unet.backbone, INFO, batch_size=2).generate_many(["猫"], seed=1, count=2, config=config)
    assert used == [(True, False)]
    assert whole.shape == pieces.shape and 0 < abs(whole - pieces).mean() < 40


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_file_repeats_itself_with_the_same_pictures(toy: Pipeline, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.api.open_pipeline", lambda _model: toy)
    given = InitImage(picture(), 0.45, mask())
    made = toy.generate("猫", seed=9, init=given, upscale=1.5, upscale_strength=0.5)
    path = made.save(tmp_path / f"made{suffix}")
    picture().save(tmp_path / "photo.png")
    again = load_generation(path, init=InitImage(tmp_path / "photo.png", mask=mask()))
    assert (pixels(again) == pixels(made)).all() and again.inputs == made.inputs
    with pytest.raises(MetadataError, match=f"init {made.inputs.picture}, got .none."):
        load_generation(path)
    with pytest.raises(MetadataError, match=r"init .*, got "):
        load_generation(path, init=InitImage(picture(seed=1), mask=mask()))
    with pytest.raises(MetadataError, match=f"mask {made.inputs.mask}, got .none."):
        load_generation(path, init=InitImage(picture()))


def test_controls_are_written_and_repeated(unet: Pipeline, net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.api.open_pipeline", lambda _model: unet)
    made = unet.generate("猫", seed=9, controls=[Control(net, picture(seed=2), 0.7, 0.1, 0.9)], tile=True)
    path = made.save(tmp_path / "made.png")
    assert (pixels(load_generation(path, controls=[Control(net, picture(seed=2))])) == pixels(made)).all()
    with pytest.raises(MetadataError, match=r"controls\[0\].net control_toy"):
        load_generation(path)
    with pytest.raises(MetadataError, match=r"controls\[0\].image"):
        load_generation(path, controls=[Control(net, picture(seed=3))])
    told = told_in(path)
    assert told["ControlNet 0"] == (
        f"Module: none, Model: control_toy [{made.inputs.controls[0].net_hash[:8]}], Weight: 0.7, Resize Mode: Crop and Resize, "
        "Guidance Start: 0.1, Guidance End: 0.9"
    )
    assert told["Tiling"] == "True"
    assert read_settings(path).inputs == made.inputs


def test_what_a1111_reads(toy: Pipeline, tmp_path: Path) -> None:
    from jpgen.metadata import parameters_text

    def told(**given: Any) -> dict[str, str]:
        return parse_parameters(parameters_text(toy.generate("猫", seed=1, **given)))[2]

    assert told(init=InitImage(picture(), 0.45))["Denoising strength"] == "0.45"
    large = told(upscale=2.0, upscale_strength=0.3)
    assert (large["Denoising strength"], large["Hires upscale"], large["Hires upscaler"], large["Size"]) == ("0.3", "2", "Lanczos", "64x64")
    assert not {"Denoising strength", "Tiling", "VAE hash", "ControlNet 0"} & told().keys()


def test_pipelines_that_read_texts_begin_from_pictures_too() -> None:
    backbone = diffusers.toy()
    road = Pipeline.from_parts(None, backbone, INFO)
    assert backbone.takes == {"init", "mask"}
    seen: list[tuple[int, int]] = []
    config = road.config(steps=4)

    def on_step(step: Step) -> None:
        seen.append((step.index, step.total))

    made = road.generate("a cat", seed=1, config=config, init=InitImage(picture(), 0.5), on_step=on_step)
    assert seen == [(1, 2), (2, 2)]
    assert (pixels(made) != pixels(road.generate("a cat", seed=1, config=config))).any()
    inside = np.asarray(mask()) > 0
    filled = pixels(road.generate("a cat", seed=1, config=config, init=InitImage(picture(), 1.0, mask())))
    assert (filled[~inside] == np.asarray(picture(), int)[~inside]).all() and (filled[inside] != np.asarray(picture(), int)[inside]).any()
    many = road.generate_many(["a cat", "a dog"], seed=1, config=config, init=InitImage(picture(), 0.01), upscale=1.5)
    assert {one.image.size for one in many} == {(96, 96)}
    assert (pixels(road.generate("a cat", init=InitImage(picture(), 0.0))) == np.asarray(picture(), int)).all()
    with pytest.raises(IncompatibleError, match="ControlNet"):
        road.generate("a cat", controls=[Control("net", picture())])


def test_by_plain_diffusers_from_texts() -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    from jpgen.backbones.schedulers import make_scheduler

    backbone = diffusers.toy()
    parts = {**backbone._pipeline.components, "scheduler": make_scheduler("dpm++2m", backbone._schedule)}
    plain = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    plain.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(1)
        wanted = plain("a cat", picture(), strength=0.5, num_inference_steps=4, guidance_scale=2.0, generator=generator).images[0]
    road = Pipeline.from_parts(None, backbone, INFO)
    made = road.generate("a cat", seed=1, config=road.config(steps=4), init=InitImage(picture(), 0.5))
    np.testing.assert_allclose(pixels(made), np.asarray(wanted, int), atol=1)


# ── another autoencoder ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def mame_with(tmp_path: Path) -> Path:
    """An autoencoder in mame's form of other weights: its colours are turned round."""
    own = Path(str(files("jpgen") / "mame" / "vae"))
    tensors = {name: tensor.contiguous() for name, tensor in load_weights(own / "diffusion_pytorch_model.safetensors").items()}
    last = max((name for name in tensors if name.startswith("decoder.") and name.endswith(".weight")), key=lambda name: int(name.split(".")[1]))
    for name in (last, last.replace("weight", "bias")):
        tensors[name] = -tensors[name]
    (tmp_path / "vae").mkdir()
    save_file(tensors, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    (tmp_path / "vae" / "config.json").write_bytes((own / "config.json").read_bytes())
    return tmp_path / "vae"


def test_another_autoencoder_is_used_recorded_and_wanted_again(mame_with: Path, tmp_path: Path) -> None:
    own, other = Pipeline("mame"), Pipeline("mame", vae=mame_with)
    config = own.config(steps=1)
    one, two = own.generate("猫", seed=1, config=config), other.generate("猫", seed=1, config=config)
    np.testing.assert_allclose(pixels(two), 255 - pixels(one), atol=3)
    assert (len(other.vae_hash), two.inputs.vae, one.inputs.vae) == (10, other.vae_hash, "")
    path = two.save(tmp_path / "two.png")
    assert told_in(path)["VAE hash"] == other.vae_hash
    assert (pixels(load_generation(path, vae=mame_with)) == pixels(two)).all()
    with pytest.raises(MetadataError, match=f"made with the autoencoder {other.vae_hash}"):
        load_generation(path)
    plain = one.save(tmp_path / "one.png")
    with pytest.raises(MetadataError, match="autoencoder of the model"):
        load_generation(plain, vae=mame_with)


def test_autoencoders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no file or folder"):
        Pipeline("mame", vae=tmp_path / "none")
    toy_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(IncompatibleError, match="4 latent channels, the transformer 16"):
        Pipeline("mame", vae=tmp_path / "vae")
    with pytest.raises(WeightsError, match="must be a folder"):
        Pipeline("mame", vae=tmp_path / "vae" / "diffusion_pytorch_model.safetensors")


# ── mame itself ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def mame() -> Pipeline:
    return Pipeline("mame")


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one - other) ** 2)))


def test_mame_from_a_picture(mame: Pipeline) -> None:
    given = mame.generate("赤い船", seed=1)
    config = mame.config(steps=12)
    near, half, far = (
        pixels(mame.generate("緑の木", seed=2, config=config, init=InitImage(given.image, strength))) for strength in (0.0, 0.5, 1.0)
    )
    assert psnr(near, pixels(given)) > 30  # what the autoencoder keeps
    assert psnr(near, pixels(given)) > psnr(half, pixels(given)) > psnr(far, pixels(given))
    assert (far == pixels(mame.generate("緑の木", seed=2, config=config))).all()


def test_mame_inpaints_and_leaves_the_rest(mame: Pipeline) -> None:
    given, hole = picture(256, 256), Image.new("L", (256, 256))
    hole.paste(255, (70, 50, 201, 190))  # not on the grid of latents
    outside = np.asarray(hole) == 0
    made = mame.generate("赤い船", seed=2, config=mame.config(steps=8), init=InitImage(given, 1.0, hole))
    assert (pixels(made)[outside] == np.asarray(given, int)[outside]).all()
    assert abs(pixels(made) - np.asarray(given, int))[~outside].mean() > 5


# ── the command line ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(toy: Pipeline, unet: Pipeline, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    real = api.open_pipeline

    def opened(name: str = "mame", vae: Path | None = None, *others: object) -> Pipeline:
        return real(name, vae, *others) if vae else unet if name == "unet" else toy

    monkeypatch.setattr(api, "open_pipeline", opened)
    monkeypatch.chdir(tmp_path)
    picture().save("photo.png")
    mask().save("mask.png")
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


def test_the_command_takes_pictures(run: Callable[..., Result], net: Path) -> None:
    done = run("generate", "猫", "-o", "a.png", "--seed", 1, "--init", "photo.png", "--strength", 0.5, "--mask", "mask.png", "--upscale", 2, "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)["inputs"]
    assert (told["strength"], told["upscale"], told["controls"]) == (0.5, 2.0, [])
    with Image.open("a.png") as made:
        assert made.size == (128, 128)
    controls = ("--control", f"{net}=photo.png:0.5", "--control", f"{net}=photo.png")
    done = run("generate", "猫", "-o", "b.png", "--model", "unet", *controls, "--tile", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.output)["inputs"]
    assert ([one["scale"] for one in told["controls"]], told["tile"]) == ([0.5, 1.0], True)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--mask", "mask.png"], "--init"),
        (["--strength", "0.5"], "--init"),
        (["--init", "none.png"], "none.png"),
        (["--init", "photo.png", "--strength", "2"], "strength=2.0"),
        (["--control", "net"], "NET=IMAGE"),
        (["--control", "net=photo.png"], "ControlNet: sd, sdxl, flux"),
        (["--tile"], "sd, sdxl"),
        (["--vae", "none"], "no file or folder none"),
        (["--upscale", "0.1"], "upscale=0.1"),
    ],
)
def test_the_command_explains(run: Callable[..., Result], args: list[str], words: str) -> None:
    done = run("generate", "猫", *args)
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert words in done.output


def test_backbones_say_what_they_take() -> None:
    assert pixart.toy().takes == {"init", "mask"}
    assert flux.toy().takes == {"init", "mask", "controls"}
    assert sd.toy().takes == {"init", "mask", "controls", "tile"}
    assert clip.toy().spec.width  # an encoder has none
