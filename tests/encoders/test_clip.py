"""CLIP's encoder against transformers, and its loading from the folders diffusers writes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from jpgen.encoders import clip
from jpgen.errors import SettingError, WeightsError

TEXTS = ["red cat, a ship", "赤い猫", ""]


def saved(folder: Path, toy: clip.ClipEncoder, suffix: str = "") -> Path:
    toy._model.save_pretrained(folder / f"text_encoder{suffix}")
    toy._tokenizer.inner.save_pretrained(folder / f"tokenizer{suffix}")
    return folder


def by_transformers(toy: clip.ClipEncoder, texts: list[str]) -> object:
    """What diffusers does: the tokenizer fills to 77, no mask."""
    ids = toy._tokenizer.inner(texts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        return toy._model(ids, output_hidden_states=True)


def test_it_is_transformers_last_hidden_state() -> None:
    toy = clip.toy()
    made = toy.encode(TEXTS)
    assert torch.equal(made.tokens, by_transformers(toy, TEXTS).last_hidden_state)
    assert made.mask.all() and made.pooled is None


def test_it_is_what_sdxl_wants() -> None:
    toy = clip.toy(projection=True, clip_skip=1, final_norm=False)
    made, wanted = toy.encode(TEXTS), by_transformers(toy, TEXTS)
    assert torch.equal(made.tokens, wanted.hidden_states[-2])
    assert torch.equal(made.pooled, wanted.text_embeds)
    assert toy.spec.pooled_width == made.spec.pooled_width == 24


def test_clip_skip_leaves_out_layers_and_keeps_the_norm() -> None:
    toy = clip.toy(clip_skip=1)
    hidden = by_transformers(toy, TEXTS).hidden_states[-2]
    with torch.inference_mode():
        assert torch.equal(toy.encode(TEXTS).tokens, toy._model.final_layer_norm(hidden))


@pytest.mark.parametrize("clip_skip", [-1, 2])
def test_more_layers_than_there_are_cannot_be_left_out(clip_skip: int) -> None:
    with pytest.raises(SettingError, match="0–1"):
        clip.toy(clip_skip=clip_skip)


def test_japanese_is_byte_fragments() -> None:
    toy = clip.toy()
    assert len(toy.tokenize("猫")) == 3
    assert len(toy.tokenize("cat")) == 1
    assert toy._tokenizer.inner.convert_ids_to_tokens(toy.tokenize("cat"))[0] == "cat</w>"


def test_names_of_special_tokens_in_a_text_are_text() -> None:
    toy = clip.toy()
    assert not {*toy.window.begin, *toy.window.end} & {*toy.tokenize("<|startoftext|>猫<|endoftext|>")}


@pytest.mark.parametrize("projection", [False, True])
def test_a_saved_encoder_is_read_again(projection: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip, "best_dtype", lambda *_device: torch.float32)
    toy = clip.toy(projection=projection)
    read = clip.load(saved(tmp_path, toy, "_2"), suffix="_2")
    assert (read.spec, read.window) == (toy.spec, toy.window)
    one, other = toy.encode(TEXTS), read.encode(TEXTS)
    assert torch.equal(one.tokens, other.tokens)
    assert (one.pooled is None and other.pooled is None) or torch.equal(one.pooled, other.pooled)


def test_the_tokenizer_of_older_repositories_is_read(tmp_path: Path) -> None:
    """vocab.json and merges.txt, names of weights with `text_model.` before them, filling with "!" (Stable Diffusion 2, SDXL's second encoder)."""
    toy = clip.toy()
    folder = saved(tmp_path, toy) / "tokenizer"
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(toy._tokenizer.inner.get_vocab()))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *clip.TOY_MERGES]))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "!"}))
    weights = tmp_path / "text_encoder" / "model.safetensors"
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})
    read = clip.load(tmp_path)
    assert [read.tokenize(text) for text in [*TEXTS, "a ship!"]] == [toy.tokenize(text) for text in [*TEXTS, "a ship!"]]
    assert read.window.pad == toy._tokenizer.inner.convert_tokens_to_ids("!") != toy.window.pad
    torch.testing.assert_close(read.encode(TEXTS[:1]).tokens[:, :5], toy.encode(TEXTS[:1]).tokens[:, :5], atol=0.1, rtol=0.1)  # bf16 here or there


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    weights = saved(tmp_path, clip.toy()) / "text_encoder" / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in tensors if "final_layer_norm" in name)
    save_file({name: tensor for name, tensor in tensors.items() if name != gone}, weights, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="final_layer_norm"):
        clip.load(tmp_path)


def test_tokenizer_and_encoder_of_different_models_are_refused(tmp_path: Path) -> None:
    toy = clip.toy()
    toy._tokenizer.inner.add_tokens(["neko"])
    with pytest.raises(WeightsError, match="not of one model"):
        clip.load(saved(tmp_path, toy))


def test_damaged_weights_are_explained(tmp_path: Path) -> None:
    (saved(tmp_path, clip.toy()) / "text_encoder" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="fetch it again"):
        clip.load(tmp_path)
