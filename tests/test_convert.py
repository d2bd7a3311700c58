"""Single files into diffusers folders and back: the same bytes; folders that diffusers opens; bad input."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers import FluxTransformer2DModel, PixArtTransformer2DModel, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from jpgen import generate
from jpgen.cli import main
from jpgen.convert import convert
from jpgen.encoders.single_file import read_clip
from jpgen.errors import OutputError, SettingError, WeightsError
from jpgen.layout import recognise
from jpgen.merge.files import Tensors
from jpgen.merge.sources import ONLY_SINGLE
from tests.toys import diffusion_transformers as dit
from tests.toys import stable_diffusion as sd

WRITERS = {"sd1": sd.single_sd1, "sd2": sd.single_sd2, "sdxl": sd.single_sdxl}


def rewritten(path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], **metadata: str) -> None:
    save_file(change(load_file(path)), path, metadata={"format": "pt", **metadata})


@pytest.mark.parametrize("family", WRITERS)
def test_a_single_file_through_a_folder_is_the_same_file(family: str, tmp_path: Path) -> None:
    source, folder = tmp_path / "model.safetensors", tmp_path / "model"
    parts = WRITERS[family](source)
    half = {"model.diffusion_model.out.2.weight": torch.float16, "first_stage_model.quant_conv.bias": torch.bfloat16}
    rewritten(source, lambda tensors: {n: t.to(half.get(n, t.dtype)) for n, t in tensors.items()}, **{"modelspec.title": "猫"})
    assert convert(source, folder) == folder
    assert convert(folder, tmp_path / "back.safetensors").read_bytes() == source.read_bytes()
    made = (StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline).from_pretrained(folder)
    assert torch.equal(made.unet.state_dict()["conv_in.weight"], parts.unet.state_dict()["conv_in.weight"])
    assert torch.equal(made.vae.decoder.mid_block.attentions[0].to_q.weight, parts.vae.decoder.mid_block.attentions[0].to_q.weight)
    assert made.vae.config.scaling_factor == parts.vae.config.scaling_factor
    ids = torch.tensor([[49406, 320, 49407]])
    for text, reference in zip([made.text_encoder, getattr(made, "text_encoder_2", None)], [*parts.texts, None], strict=False):
        if text is not None and family != "sd2":  # of which the last layer is left aside
            torch.testing.assert_close(text(ids).last_hidden_state, reference(ids).last_hidden_state)
    assert made.tokenizer("a cat").input_ids == [49406, 320, 2368, 49407]
    assert made.scheduler.config.prediction_type == ("v_prediction" if family == "sd2" else "epsilon")


def test_the_folder_draws_what_the_file_draws(tmp_path: Path) -> None:
    source, folder = sd.single_sdxl(tmp_path / "model.safetensors").path, convert(tmp_path / "model.safetensors", tmp_path / "model")
    assert recognise(folder).variant == recognise(source).variant == "sdxl"
    assert recognise(folder).default == recognise(source).default
    made = [generate("a cat", model=str(path), seed=1, steps=2, width=64, height=64) for path in (source, folder)]
    assert made[0].image.tobytes() == made[1].image.tobytes()


def test_a_file_of_another_order_is_the_same_again(tmp_path: Path) -> None:
    source = tmp_path / "model.safetensors"
    sd.single_sd1(source)
    data = source.read_bytes()
    length = int.from_bytes(data[:8], "little")
    table = json.loads(data[8 : 8 + length])
    names = [name for name in table if name != "__metadata__"][::-1]
    body, at, turned = b"", 0, {"__metadata__": table["__metadata__"]}
    for name in names:
        begin, end = table[name]["data_offsets"]
        body += data[8 + length + begin : 8 + length + end]
        turned[name] = {**table[name], "data_offsets": [at, at := at + end - begin]}
    text = json.dumps(turned, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    source.write_bytes(len(text).to_bytes(8, "little") + text + body)
    convert(source, tmp_path / "model")
    assert convert(tmp_path / "model", tmp_path / "back.safetensors").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("kind", ["flux", "pixart"])
def test_transformers_alone(kind: str, prefix: str, tmp_path: Path) -> None:
    """From a folder of diffusers' to a file, to a folder that diffusers opens, and the same file again."""
    before: Any = FluxTransformer2DModel if kind == "flux" else PixArtTransformer2DModel
    root = dit.flux(tmp_path / "whole") if kind == "flux" else dit.pixart_sigma(tmp_path / "whole")
    if kind == "pixart":
        dit.in_shards(root / "transformer")
    file = convert(root / "transformer", tmp_path / "a.safetensors")
    extra = {} if kind == "flux" else {"pos_embed": torch.zeros(1, 32 * 32, 32), "y_embedder.y_embedding": torch.zeros(300, 32)}
    rewritten(file, lambda tensors: {prefix + name: tensor for name, tensor in {**tensors, **extra}.items()})
    folder = convert(file, tmp_path / "a")
    assert convert(folder, tmp_path / "b.safetensors").read_bytes() == file.read_bytes()
    made, reference = before.from_pretrained(folder / "transformer").state_dict(), before.from_pretrained(root / "transformer").state_dict()
    assert made.keys() == reference.keys()
    assert all(torch.equal(made[name], reference[name]) for name in made)


def test_a_folder_becomes_a_file_of_its_metadata_and_its_prediction(tmp_path: Path) -> None:
    convert(sd.single_sd2(tmp_path / "model.safetensors").path, tmp_path / "model")
    (tmp_path / "model" / ONLY_SINGLE).unlink()
    file = tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    rewritten(file, lambda tensors: tensors, **{"jpgen.recipe": "{}"})
    made = convert(tmp_path / "model", tmp_path / "back.safetensors")
    with safe_open(made, "pt") as opened:
        assert opened.metadata() == {"format": "pt", "jpgen.recipe": "{}", "modelspec.prediction_type": "v"}
    assert not [name for name in load_file(made) if "logit_scale" in name or "resblocks.2." in name]
    assert read_clip(made, "", torch.float32)[0].num_hidden_layers == 2  # the last layer of the original went with the folder's
    with Tensors.of_folder(tmp_path / "model") as folder, Tensors.of_folder(convert(made, tmp_path / "again")) as again:
        assert folder.headers == again.headers


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        (("model.safetensors", "out.safetensors"), SettingError, "nothing to convert"),
        (("model.safetensors", "model.safetensors"), SettingError, "is the input"),
        (("model.safetensors", "taken"), OutputError, "not empty"),
        (("model.safetensors", "model.safetensors/under"), OutputError, "cannot write"),
        (("model.safetensors", "out", "single"), SettingError, "wanted|name one"),
        (("model.safetensors", "out", "sgm"), SettingError, "diffusers or single"),
        (("spoiled.safetensors", "out"), WeightsError, "surprise"),
        (("none.safetensors", "out"), WeightsError, "no weight file"),
        (("taken", "out.safetensors"), WeightsError, "no weights"),
        (("pickle.ckpt", "out"), WeightsError, "pickle"),
    ],
)
def test_bad_input_leaves_nothing(arguments: tuple[str, ...], error: type[Exception], told: str, tmp_path: Path) -> None:
    sd.single_sd1(tmp_path / "model.safetensors")
    save_file({**load_file(tmp_path / "model.safetensors"), "surprise": torch.zeros(1)}, tmp_path / "spoiled.safetensors")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "note.txt").write_text("mine")
    (tmp_path / "pickle.ckpt").write_bytes(b"\x80\x04.")
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    with pytest.raises(error, match=told):
        convert(tmp_path / arguments[0], tmp_path / arguments[1], layout=arguments[2] if len(arguments) > 2 else "")
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


def test_no_space_is_found_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sd.single_sd1(tmp_path / "model.safetensors")
    monkeypatch.setattr("shutil.disk_usage", lambda _place: type("Usage", (), {"free": 10}))
    with pytest.raises(OutputError, match="not enough space"):
        convert(tmp_path / "model.safetensors", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_the_command(tmp_path: Path) -> None:
    sd.single_sd1(tmp_path / "model.safetensors")
    made = CliRunner().invoke(main, ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out"), "--layout", "diffusers"])
    assert made.exit_code == 0, made.output
    assert made.output.strip() == str(tmp_path / "out")
    failed = CliRunner().invoke(main, ["convert", str(tmp_path / "model.safetensors"), str(tmp_path / "out")])
    assert failed.exit_code == 2
    assert "not empty" in failed.stderr
