"""LoRAs, embeddings and clip skip on the road: found by name, on the weights for one picture, written into it and repeated from it."""

import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image, PngImagePlugin
from safetensors.torch import load_file, save_file
from torch import Tensor

from jpgen.adapter_files import list_files
from jpgen.adapters import parse_loras
from jpgen.api import load_generation
from jpgen.backbones import diffusers as texts_family
from jpgen.backbones import flux, pixart, sd, sdxl
from jpgen.backbones.schedulers import make_scheduler
from jpgen.cli import main
from jpgen.emphasis import chunk, encode_weighted
from jpgen.encoders import bert, clip, jsdxl, t5
from jpgen.encoders import flux as flux_encoder
from jpgen.encoders import sdxl as sdxl_encoder
from jpgen.encoders.embeddings import read_embedding
from jpgen.errors import IncompatibleError, MetadataError, SettingError, UnknownNameError, WeightsError
from jpgen.metadata import parameters_text, parse_parameters, read_settings
from jpgen.pipeline import Pipeline
from jpgen.types import AdapterInfo, Generation, ModelInfo, SamplingConfig

INFO = ModelInfo("toy", "0", "Apache-2.0", "0000000000")
UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`loras/` and `embeddings/` in an empty folder."""
    for variable, name in (("JPGEN_LORAS", "loras"), ("JPGEN_EMBEDDINGS", "embeddings")):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="module")
def painter() -> Pipeline:
    return Pipeline.from_parts(clip.toy(), sd.toy(), INFO)


def pixels(made: Generation) -> bytes:
    return made.image.tobytes()


def lora(folder: Path, name: str, *modules: str, size: float = 1.0, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module in modules or (UNET,):
        rows = 64 if module == TEXT else 32
        tensors |= {f"{module}.lora_B.weight": size * torch.randn(rows, 2), f"{module}.lora_A.weight": torch.randn(2, 32)}
    path = folder / "loras" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path)
    return path


def all_weights(pipeline: Pipeline) -> dict[tuple[str, str], tuple[int, Tensor]]:
    parts = {**getattr(pipeline.encoder, "modules", {}), **pipeline.backbone.modules}
    return {(part, name): (id(p), p.detach().clone()) for part, module in parts.items() for name, p in module.named_parameters()}


def require_unchanged(pipeline: Pipeline, before: dict[tuple[str, str], tuple[int, Tensor]]) -> None:
    after = all_weights(pipeline)
    assert after.keys() == before.keys()
    assert all(after[key][0] == before[key][0] and torch.equal(after[key][1], before[key][1]) for key in before)


# ── LoRAs ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lora_of_the_prompt_changes_that_picture_alone(painter: Pipeline, folders: Path) -> None:
    lora(folders, "水彩", UNET, TEXT)
    before, plain = all_weights(painter), painter.generate("赤い猫", seed=1)
    made = painter.generate("赤い猫 <lora:水彩:0.8>", seed=1)
    require_unchanged(painter, before)
    assert pixels(made) != pixels(plain)
    assert pixels(painter.generate("赤い猫", seed=1)) == pixels(plain)
    assert made.prompt.loras == (("水彩", 0.8),) and made.prompt.text == "赤い猫"
    assert pixels(painter.generate("赤い猫", seed=1, loras={"水彩": 0.8})) == pixels(made)
    assert pixels(painter.generate("赤い猫", seed=1, loras={"水彩": 0.4})) not in (pixels(made), pixels(plain))
    assert pixels(painter.generate("赤い猫 <lora:水彩:0>", seed=1)) == pixels(plain)
    assert pixels(painter.generate("赤い猫 <lora:水彩:0.5><lora:水彩:0.3>", seed=1)) == pixels(made)


def test_unet_and_text_encoder_parts_both_count(painter: Pipeline, folders: Path) -> None:
    lora(folders, "both", UNET, TEXT), lora(folders, "unet", UNET), lora(folders, "text", TEXT)
    pictures = {name: pixels(painter.generate("赤い猫", seed=1, loras={name: 1.0} if name else None)) for name in ("", "both", "unet", "text")}
    assert len(set(pictures.values())) == 4


def test_the_picture_is_that_of_diffusers(folders: Path) -> None:
    """Its own pipeline, with the LoRA loaded into U-Net and text encoder by load_lora_weights."""
    path = lora(folders, "x", UNET, TEXT, size=0.5)
    old = {".lora_B.": ".lora_linear_layer.up.", ".lora_A.": ".lora_linear_layer.down."}  # diffusers reads no other names for a text encoder
    tensors = load_file(path)
    for name in [name for name in tensors if name.startswith("text_encoder.")]:
        tensors[next(name.replace(new, there) for new, there in old.items() if new in name)] = tensors.pop(name)
    save_file(tensors, path)
    encoder, backbone = clip.toy(), sd.toy()
    made = Pipeline.from_parts(encoder, backbone, INFO).generate("red cat", seed=7, loras={"x": 1.0}, normalize=False)
    parts = backbone._pipeline.components
    texts = {"text_encoder": encoder._model, "tokenizer": encoder._tokenizer.inner}
    pipeline = StableDiffusionPipeline(**{**parts, **texts}, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(str(folders / "loras"), weight_name="x.safetensors")
    pipeline.scheduler = make_scheduler(backbone.default.scheduler, backbone._schedule)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    wanted = pipeline("red cat", negative_prompt="", latents=noise, width=64, height=64, num_inference_steps=2, guidance_scale=2.0).images[0]
    np.testing.assert_allclose(np.asarray(made.image, int), np.asarray(wanted, int), atol=1)


def test_prompts_of_unlike_loras_are_not_sampled_together(folders: Path) -> None:
    lora(folders, "a", seed=1), lora(folders, "b", seed=2)
    many = Pipeline.from_parts(clip.toy(), sd.toy(), INFO, batch_size=4)
    rows: list[int] = []
    many.backbone.modules["denoiser"].register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    prompts = ["猫 <lora:a:1>", "犬 <lora:a:1>", "猫 <lora:b:1>", "猫", "船 <lora:a:0.5>"]
    before = all_weights(many)
    together = many.generate_many(prompts, seed=3, config=many.config(steps=1))
    assert rows == [4, 2, 2, 2]  # prompts and negative ones
    require_unchanged(many, before)
    alone = Pipeline.from_parts(clip.toy(), sd.toy(), INFO)
    for prompt, made in zip(prompts, together, strict=True):
        one = alone.generate(prompt, seed=3, config=alone.config(steps=1))
        assert abs(np.asarray(one.image, int) - np.asarray(made.image, int)).max() <= 1
        assert made.adapters == one.adapters and len(made.adapters) == len(made.prompt.loras)


def test_a_lora_by_its_path(painter: Pipeline, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lora(folders, "x")
    by_name = painter.generate("猫", seed=1, loras={"x": 0.5})
    moved = path.rename(folders / "far.safetensors")
    made = painter.generate("猫", seed=1, loras={str(moved): 0.5})
    assert pixels(made) == pixels(by_name)
    assert made.prompt.loras == (("far", 0.5),) and made.prompt.written == "猫 <lora:far:0.5>"
    monkeypatch.chdir(folders)
    assert pixels(painter.generate("猫", seed=1, loras={"far.safetensors": 0.5})) == pixels(by_name)
    with pytest.raises(SettingError, match="two LoRAs of one name"):
        painter.generate("猫", loras={str(moved): 0.5, "far": 0.5})


def test_a_file_that_changed_is_read_again(painter: Pipeline, folders: Path) -> None:
    lora(folders, "x", seed=1)
    one = painter.generate("猫", seed=1, loras={"x": 1.0})
    os.utime(lora(folders, "x", seed=2), ns=(1, 1))
    other = painter.generate("猫", seed=1, loras={"x": 1.0})
    assert pixels(one) != pixels(other) and one.adapters != other.adapters


@pytest.mark.parametrize(
    ("prompt", "loras", "kind", "words"),
    [
        ("猫 <lora:水彩画:1>", {}, UnknownNameError, "もしかして 水彩 ですか"),
        ("猫 <lora:../loras/水彩:1>", {}, UnknownNameError, r"unknown LoRA '\.\./loras/水彩'"),
        ("猫 <lora:/etc/passwd:1>", {}, UnknownNameError, "unknown LoRA '/etc/passwd'"),
        ("猫 <lora:外:1>", {}, UnknownNameError, "unknown LoRA '外'"),
        ("猫 <lora:同じ:1>", {}, WeightsError, "write one of a/同じ, b/同じ"),
        ("猫 <lora:水彩:101>", {}, SettingError, "101"),
        ("猫", {"水彩": float("nan")}, SettingError, "nan"),
        ("猫", {"水彩": float("inf")}, SettingError, "inf"),
        ("猫", {"水彩": "strong"}, SettingError, "strong"),
        ("猫", {"水彩.pt": 1.0}, WeightsError, "pickle"),
        ("猫", {"./none.safetensors": 1.0}, WeightsError, "none.safetensors"),
        ("猫 <lora:他:1>", {}, WeightsError, "is for sdxl, the model toy is sd"),
    ],
)
def test_what_is_wrong_with_a_lora_is_said_before_anything_is_sampled(
    painter: Pipeline, folders: Path, prompt: str, loras: dict[str, Any], kind: type[Exception], words: str
) -> None:
    lora(folders, "水彩"), lora(folders, "a/同じ"), lora(folders, "b/同じ")
    lora(folders, "他", "unet.down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_v")
    outside = lora(folders, "../外")
    (folders / "loras" / "外.safetensors").symlink_to(outside)
    steps: list[object] = []
    with pytest.raises(kind, match=words) as caught:
        painter.generate_many(["犬", prompt], loras=loras, on_step=steps.append)
    assert not steps and "\n" not in str(caught.value)


def test_names_are_those_of_the_folder(folders: Path) -> None:
    for name in ("a/同じ", "b/同じ", "深い/水彩", "か\u3099"):
        lora(folders, name)
    (folders / "loras" / "notes.txt").write_text("-")
    assert sorted(list_files(folders / "loras")) == sorted(["a/同じ", "b/同じ", "深い/水彩", "水彩", "が"])
    assert list_files(folders / "nowhere") == {}


def test_without_a_folder_the_error_says_where_it_would_be(painter: Pipeline, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPGEN_LORAS")
    monkeypatch.setenv("XDG_DATA_HOME", str(folders / "share"))
    with pytest.raises(UnknownNameError, match=r"share/jpgen/loras.*JPGEN_LORAS"):
        painter.generate("猫 <lora:x:1>")
    place = lora(folders, "x").rename(folders / "x.safetensors")
    (folders / "share" / "jpgen" / "loras").mkdir(parents=True)
    place.rename(folders / "share" / "jpgen" / "loras" / "x.safetensors")
    assert painter.generate("猫 <lora:x:1>", seed=1).adapters[0].name == "x"


@pytest.mark.parametrize("family", ["sdxl", "pixart", "flux"])
def test_other_families_take_loras_too(family: str, folders: Path) -> None:
    encoder, backbone, module, rows, columns = {
        "sdxl": lambda: (sdxl_encoder.toy(), sdxl.toy(), "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v", 32, 64),
        "pixart": lambda: (bert.toy(), pixart.toy(), "transformer.transformer_blocks.0.attn2.to_v", 32, 32),
        "flux": lambda: (flux_encoder.toy(), flux.toy(), "transformer.transformer_blocks.0.attn.add_v_proj", 32, 32),
    }[family]()
    tensors = {f"{module}.lora_B.weight": 3 * torch.randn(rows, 2), f"{module}.lora_A.weight": torch.randn(2, columns)}
    if family != "pixart":
        for part in ("text_encoder", "text_encoder_2"):
            is_t5 = family == "flux" and part == "text_encoder_2"
            name, wide = ("encoder.block.0.layer.0.SelfAttention.q", 32) if is_t5 else ("text_model.encoder.layers.0.mlp.fc1", 64)
            tensors |= {f"{part}.{name}.lora_B.weight": torch.randn(wide, 2), f"{part}.{name}.lora_A.weight": torch.randn(2, 32)}
    save_file(tensors, folders / "loras" / "x.safetensors")
    pipeline = Pipeline.from_parts(encoder, backbone, INFO)
    before, plain = all_weights(pipeline), pipeline.generate("赤い猫", seed=1)
    made = pipeline.generate("赤い猫 <lora:x:1>", seed=1)
    assert pixels(made) != pixels(plain)
    require_unchanged(pipeline, before)


# ── pipelines that read texts themselves ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_text_pipeline_loads_by_diffusers_and_unloads(folders: Path) -> None:
    backbone = texts_family.toy()
    module = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
    save_file({f"{module}.lora_B.weight": 5 * torch.randn(16, 2), f"{module}.lora_A.weight": torch.randn(2, 32)}, folders / "loras" / "x.safetensors")
    pipeline = Pipeline.from_parts(None, backbone, INFO, route="raw")
    before = {name: (id(p), p.detach().clone()) for name, p in backbone._pipeline.unet.named_parameters()}
    plain, made = pipeline.generate("cat", seed=1), pipeline.generate("cat <lora:x:1>", seed=1)
    half = pipeline.generate("cat <lora:x:0.5>", seed=1)
    assert len({pixels(plain), pixels(made), pixels(half)}) == 3
    assert pixels(pipeline.generate("cat", seed=1)) == pixels(plain)
    after = dict(backbone._pipeline.unet.named_parameters())
    assert after.keys() == before.keys() and all(id(after[n]) == i and torch.equal(after[n], t) for n, (i, t) in before.items())


@pytest.mark.parametrize("module", ["unet.nowhere.to_v", "transformer.blocks.0.to_v"])
def test_a_text_pipeline_tells_what_does_not_fit(module: str, folders: Path) -> None:
    good = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
    tensors = {f"{module}.lora_B.weight": torch.randn(16, 2), f"{module}.lora_A.weight": torch.randn(2, 32)}
    if module.startswith("unet"):
        tensors |= {f"{good}.lora_B.weight": torch.randn(16, 2), f"{good}.lora_A.weight": torch.randn(2, 32)}
    save_file(tensors, folders / "loras" / "x.safetensors")
    backbone = texts_family.toy()
    pipeline = Pipeline.from_parts(None, backbone, INFO, route="raw")
    plain = pixels(pipeline.generate("cat", seed=1))
    with pytest.raises(WeightsError, match="does not fit toy"):
        pipeline.generate("cat <lora:x:1>", seed=1)
    assert pixels(pipeline.generate("cat", seed=1)) == plain


def test_a_text_pipeline_without_loras_says_so(folders: Path) -> None:
    lora(folders, "x")
    backbone = texts_family.toy()
    backbone.takes_adapters = False
    with pytest.raises(IncompatibleError, match="toy takes no LoRA"):
        Pipeline.from_parts(None, backbone, INFO, route="raw").generate("cat <lora:x:1>")


# ── what a picture says ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_picture_tells_its_adapters_and_is_made_again(painter: Pipeline, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lora(folders, "水彩", UNET, TEXT)
    save_file({"emb_params": torch.randn(2, 32)}, folders / "embeddings" / "badhands.safetensors")
    config = painter.config(clip_skip=2)
    made = painter.generate("赤い猫 <lora:水彩:0.8>", negative="badhands", seed=7, config=config)
    data = path.read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()[:12]
    whole = hashlib.sha256((folders / "embeddings" / "badhands.safetensors").read_bytes()).hexdigest()[:12]
    assert made.adapters == (AdapterInfo("lora", "水彩", digest), AdapterInfo("embedding", "badhands", whole))
    prompt, negative, pairs = parse_parameters(parameters_text(made))
    assert (prompt, negative) == ("赤い猫 <lora:水彩:0.8>", "badhands")
    assert (pairs["Lora hashes"], pairs["TI hashes"], pairs["Clip skip"]) == (f"水彩: {digest}", f"badhands: {whole}", "2")
    saved = made.save(folders / "out.png")
    settings = read_settings(saved)
    assert (settings.adapters, settings.prompt.loras, settings.config.clip_skip) == (made.adapters, (("水彩", 0.8),), 2)

    monkeypatch.setattr("jpgen.api.open_pipeline", lambda _name: painter)
    again = load_generation(saved)
    assert pixels(again) == pixels(made) and again.adapters == made.adapters
    os.utime(lora(folders, "水彩", UNET, TEXT, seed=9), ns=(1, 1))
    with pytest.raises(MetadataError, match=r"made with other files.*lora 水彩"):
        load_generation(saved)
    path.write_bytes(data)
    assert pixels(load_generation(saved)) == pixels(made)
    (folders / "embeddings" / "badhands.safetensors").unlink()
    with pytest.raises(MetadataError, match="embedding badhands"):
        load_generation(saved)
    path.unlink()
    with pytest.raises(UnknownNameError, match="水彩"):
        load_generation(saved)


def test_a_picture_of_an_older_jpgen_has_none(painter: Pipeline, folders: Path) -> None:
    saved = painter.generate("猫", seed=1).save(folders / "out.png")
    twin = json.loads(Image.open(saved).text["jpgen"])
    assert twin.pop("adapters") == [] and twin["config"].pop("clip_skip") == 0
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("jpgen", json.dumps(twin))
    Image.new("RGB", (8, 8)).save(saved, pnginfo=chunks)
    assert (read_settings(saved).adapters, read_settings(saved).config.clip_skip) == ((), 0)


def test_a_picture_cannot_name_a_file_outside_the_folder(painter: Pipeline, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = lora(folders, "../secret")
    made = painter.generate("猫", seed=1, loras={str(path): 1.0})
    evil = replace(made, prompt=replace(made.prompt, loras=((str(path), 1.0),))).save(folders / "out.png")
    monkeypatch.setattr("jpgen.api.open_pipeline", lambda _name: painter)
    with pytest.raises(UnknownNameError, match="unknown LoRA"):
        load_generation(evil)


# ── embeddings ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def embedding(folder: Path, name: str, tensors: dict[str, Tensor]) -> Path:
    path = folder / "embeddings" / f"{name}.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("key", ["emb_params", "<token>"])
@pytest.mark.parametrize("vectors", [1, 3])
def test_states_are_those_of_diffusers_textual_inversion(key: str, vectors: int, folders: Path) -> None:
    values = torch.randn(vectors, 32, generator=torch.Generator().manual_seed(3))
    read = read_embedding(embedding(folders, "mystyle", {key: values}))
    ours, theirs = clip.toy(), clip.toy()
    pipeline: Any = StableDiffusionPipeline(
        vae=None, unet=None, scheduler=None, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        text_encoder=theirs._model, tokenizer=theirs._tokenizer.inner,
    )  # fmt: skip
    pipeline.load_textual_inversion({key: values}, token="mystyle")
    text = "red cat mystyle ship"
    wanted, _ = pipeline.encode_prompt(text, "cpu", 1, False)
    with torch.inference_mode():
        torch.testing.assert_close(ours.with_embeddings([read]).encode([text]).tokens, wanted, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(ours.encode([text]).tokens, wanted, atol=1e-2)


def test_sdxls_two_vectors_are_those_of_diffusers(folders: Path) -> None:
    both = {name: torch.randn(2, 32, generator=torch.Generator().manual_seed(i)) for i, name in enumerate(("clip_l", "clip_g"))}
    read = read_embedding(embedding(folders, "mystyle", both))
    ours, theirs = sdxl_encoder.toy(), sdxl_encoder.toy()
    first, second = theirs.pair
    tokenizers = [clip.toy()._tokenizer.inner, clip.toy()._tokenizer.inner]
    pipeline: Any = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None, add_watermarker=False, text_encoder=first._model, text_encoder_2=second._model,
        tokenizer=tokenizers[0], tokenizer_2=tokenizers[1],
    )  # fmt: skip
    for name, encoder, tokenizer in (("clip_l", first, tokenizers[0]), ("clip_g", second, tokenizers[1])):
        pipeline.load_textual_inversion({name: both[name]}, token="mystyle", text_encoder=encoder._model, tokenizer=tokenizer)
    tokens, _, pooled, _ = pipeline.encode_prompt("red mystyle cat", device="cpu", do_classifier_free_guidance=False)
    made = ours.with_embeddings([read]).encode(["red mystyle cat"])
    torch.testing.assert_close(made.tokens, tokens, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(made.pooled, pooled, atol=1e-6, rtol=1e-5)


def test_a_name_is_a_word_of_its_own_in_either_case(folders: Path) -> None:
    read = read_embedding(embedding(folders, "EasyNegative", {"emb_params": torch.randn(4, 32)}))
    japanese = read_embedding(embedding(folders, "水彩絵柄", {"emb_params": torch.randn(2, 32)}))
    plain = clip.toy()
    encoder = plain.with_embeddings([read, japanese])
    own = len(plain._tokenizer)
    for text, count in (
        ("easynegative", 4), ("(EasyNegative)", 4), ("猫EasyNegativeと犬", 4), ("EasyNegative2", 0), ("notEasyNegative", 0),
        ("夜の水彩絵柄の猫", 2), ("EasyNegative, 水彩絵柄", 6), ("猫", 0),
    ):  # fmt: skip
        assert sum(token >= own for token in encoder.tokenize(text)) == count, text
    assert encoder.tokenize("赤い猫") == plain.tokenize("赤い猫")


def test_weights_and_chunks_know_embeddings(folders: Path) -> None:
    values = torch.randn(30, 32)
    encoder = clip.toy().with_embeddings([read_embedding(embedding(folders, "mystyle", {"emb_params": values}))])
    first = len(clip.toy()._tokenizer)
    parts = chunk([("cat " * 50 + "mystyle", 1.3), ("dog", 1.0)], encoder)
    assert [len(part.ids) for part in parts] == [50, 31]
    assert parts[1].ids[:30] == tuple(range(first, first + 30)) and set(parts[1].weights[:30]) == {1.3}
    heavy = encode_weighted(encoder, [[("mystyle", 1.3), (" cat", 1.0)]], "a1111-nonorm").tokens
    light = encode_weighted(encoder, [[("mystyle", 1.0), (" cat", 1.0)]], "a1111-nonorm").tokens
    torch.testing.assert_close(heavy[0, 1:31], light[0, 1:31] * 1.3)
    torch.testing.assert_close(heavy[0, 31:], light[0, 31:])
    long = read_embedding(embedding(folders, "long", {"emb_params": torch.randn(100, 32)}))
    assert [len(part.ids) for part in chunk([("cat long", 1.0)], clip.toy().with_embeddings([long]))] == [75, 26]


def test_the_road_finds_embeddings_in_prompt_and_negative(painter: Pipeline, folders: Path) -> None:
    plain = painter.generate("赤い猫、mystyle", seed=1, negative="bad")
    embedding(folders, "mystyle", {"emb_params": torch.randn(3, 32)})
    made = painter.generate("赤い猫、mystyle", seed=1, negative="bad")
    embedding(folders, "bad", {"emb_params": torch.randn(2, 32)})
    both = painter.generate("赤い猫、(mystyle:1.2)", seed=1, negative="bad")
    assert len({pixels(plain), pixels(made), pixels(both)}) == 3
    assert [[one.name for one in g.adapters] for g in (plain, made, both)] == [[], ["mystyle"], ["bad", "mystyle"]]
    embedding(folders, "red mystyle", {"emb_params": torch.randn(2, 32)})
    apart = painter.generate("a red (mystyle:1.2)", seed=1)
    assert [one.name for one in apart.adapters] == ["mystyle"]  # the longer name is nowhere in one span
    table = painter.encoder._model.get_input_embeddings()
    assert not table._forward_hooks and len(table.weight) == len(clip.toy()._tokenizer)


@pytest.mark.parametrize(
    ("tensors", "kind", "words"),
    [
        ({"emb_params": (2, 768)}, IncompatibleError, r"is for Stable Diffusion 1 \(width 768\), toy-clip wants 32"),
        ({"emb_params": (2, 1024)}, IncompatibleError, "is for Stable Diffusion 2"),
        ({"clip_l": (2, 768), "clip_g": (2, 1280)}, IncompatibleError, r"is for SDXL \(width (768 \+ 1280|1280 \+ 768)\)"),
        ({"clip_l": (2, 768), "clip_g": (3, 1280)}, WeightsError, "is no embedding: shapes"),
        ({"a": (2, 32), "b": (2, 32)}, WeightsError, "is no embedding: it holds a, b"),
        ({"emb_params": (2, 3, 32)}, WeightsError, r"wanted \[vectors, width\]"),
    ],
)
def test_an_embedding_that_does_not_fit_is_told_when_it_is_named(
    painter: Pipeline, folders: Path, tensors: dict[str, tuple[int, ...]], kind: type[Exception], words: str
) -> None:
    embedding(folders, "mystyle", {name: torch.randn(*shape) for name, shape in tensors.items()})
    assert painter.generate("猫", seed=1).adapters == ()
    steps: list[object] = []
    with pytest.raises(kind, match=words):
        painter.generate("猫、mystyle", on_step=steps.append)
    assert not steps


def test_pickled_damaged_and_nan_embeddings_are_refused(painter: Pipeline, folders: Path) -> None:
    (folders / "embeddings" / "old.pt").write_bytes(b"\x80\x02.")
    assert painter.generate("猫", seed=1).adapters == ()
    with pytest.raises(WeightsError, match=r"old\.pt.*pickle"):
        painter.generate("猫、old")
    embedding(folders, "nan", {"emb_params": torch.full((1, 32), torch.nan)})
    with pytest.raises(WeightsError, match="not finite"):
        painter.generate("猫、nan")
    cut = embedding(folders, "cut", {"emb_params": torch.randn(1, 32)})
    cut.write_bytes(cut.read_bytes()[:-4])
    with pytest.raises(WeightsError, match="cut"):
        painter.generate("猫、cut")


def test_an_encoder_without_embeddings_says_that_names_are_words(folders: Path, caplog: pytest.LogCaptureFixture) -> None:
    embedding(folders, "mystyle", {"emb_params": torch.randn(1, 32)})
    pipeline = Pipeline.from_parts(bert.toy(), pixart.toy(), INFO)
    with caplog.at_level(logging.WARNING, "jpgen"):
        assert pipeline.generate("mystyle", seed=1).adapters == ()
    assert "takes no embeddings" in caplog.text


# ── clip skip ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_clip_skip_counts_as_webui_does(painter: Pipeline) -> None:
    model = painter.encoder._model
    ids = painter.encoder._tokenizer.inner(["red cat"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        hidden = model(ids, output_hidden_states=True)
        penultimate = model.get_submodule("final_layer_norm" if hasattr(model, "final_layer_norm") else "text_model.final_layer_norm")(
            hidden.hidden_states[-2]
        )
    assert torch.equal(painter.encoder.with_clip_skip(1).encode(["red cat"]).tokens, hidden.last_hidden_state)
    assert torch.equal(painter.encoder.with_clip_skip(2).encode(["red cat"]).tokens, penultimate)
    pictures = [pixels(painter.generate("red cat", seed=1, config=painter.config(clip_skip=skip))) for skip in (0, 1, 2)]
    assert pictures[0] == pictures[1] != pictures[2]


def test_sdxls_own_layer_is_the_penultimate() -> None:
    for encoder in (sdxl_encoder.toy(), jsdxl.toy()):
        own, last, second = (one.encode(["赤い猫"]).tokens for one in (encoder, encoder.with_clip_skip(1), encoder.with_clip_skip(2)))
        assert torch.equal(own, second) and not torch.equal(own, last)


def test_clip_skip_and_embeddings_go_together(folders: Path) -> None:
    read = read_embedding(embedding(folders, "mystyle", {"emb_params": torch.randn(2, 32)}))
    one, other = clip.toy().with_clip_skip(2).with_embeddings([read]), clip.toy().with_embeddings([read]).with_clip_skip(2)
    assert torch.equal(one.encode(["mystyle cat"]).tokens, other.encode(["mystyle cat"]).tokens)


@pytest.mark.parametrize("clip_skip", [-1, 3, 99, 1.5, True])
def test_a_clip_skip_out_of_range_is_told_before_sampling(painter: Pipeline, clip_skip: Any) -> None:
    steps: list[object] = []
    with pytest.raises(SettingError, match="clip_skip="):
        painter.generate("猫", config=replace(painter.backbone.default, clip_skip=clip_skip), on_step=steps.append)
    assert not steps


def test_encoders_without_layers_to_skip_say_so() -> None:
    for encoder, backbone in ((bert.toy(), pixart.toy()), (t5.toy(), pixart.toy()), (flux_encoder.toy(), flux.toy()), (None, texts_family.toy())):
        pipeline = Pipeline.from_parts(encoder, backbone, INFO)
        with pytest.raises(SettingError, match="no layers to skip"):
            pipeline.generate("猫", config=pipeline.config(clip_skip=2))


def test_a_default_may_set_it() -> None:
    backbone = sd.toy()
    backbone.default = SamplingConfig(64, 64, 1, 2.0, clip_skip=2)
    pipeline = Pipeline.from_parts(clip.toy(), backbone, INFO)
    assert pipeline.generate("猫", seed=1).config.clip_skip == 2


# ── the command line ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def run(painter: Pipeline, monkeypatch: pytest.MonkeyPatch, folders: Path) -> Callable[..., Result]:
    monkeypatch.setattr("jpgen.api.open_pipeline", lambda name="mame": painter)
    monkeypatch.chdir(folders)
    return lambda *args: CliRunner().invoke(main, ["generate", "赤い猫", "-o", "out.png", "--seed", "1", *map(str, args)])


def test_the_command_takes_loras_and_clip_skip(run: Callable[..., Result], painter: Pipeline, folders: Path) -> None:
    lora(folders, "a", seed=1), lora(folders, "b:2", seed=2)
    done = run("--lora", "a:0.5", "--lora", "loras/b:2.safetensors", "--clip-skip", 2, "--json")
    row = json.loads(done.output)
    assert (row["prompt"]["loras"], row["config"]["clip_skip"]) == ([["a", 0.5], ["b:2", 1.0]], 2)
    wanted = painter.generate("赤い猫", seed=1, loras={"a": 0.5, "loras/b:2.safetensors": 1.0}, config=painter.config(clip_skip=2))
    assert Image.open("out.png").tobytes() == pixels(wanted)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--lora", "none:0.5"], "unknown LoRA"), (["--lora", "../x:1"], "../x"), (["--lora", ""], "FILE:0.8"), (["--lora", "a:nan"], "nan"),
        (["--lora", "a:1000"], "±100"), (["--lora", "cut.safetensors"], "cut.safetensors"), (["--lora", "a.pt"], "pickle"),
        (["--clip-skip", "9"], "clip_skip=9"), (["--clip-skip", "-1"], "clip_skip=-1"),
    ],
)  # fmt: skip
def test_its_errors_are_one_line(run: Callable[..., Result], folders: Path, args: list[str], words: str) -> None:
    whole = lora(folders, "a").read_bytes()
    (folders / "cut.safetensors").write_bytes(whole[:-10])
    (folders / "a.pt").write_bytes(whole)
    done = run(*args)
    assert done.exit_code == 2 and words in done.output and len(done.output.splitlines()) == 1
    assert not Path("out.png").exists()


def test_weights_on_the_command_line_are_read() -> None:
    assert parse_loras(["a", "b:0.5", "dir:x/c:-1", "d:.5", "b:0.25", "C:/x.safetensors", "e:2:3"]) == {
        "a": 1.0, "b": 0.75, "dir:x/c": -1.0, "d": 0.5, "C:/x.safetensors": 1.0, "e:2": 3.0,
    }  # fmt: skip
