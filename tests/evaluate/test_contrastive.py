"""Scorers through transformers, against the models called by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AltCLIPConfig,
    AltCLIPModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from jpgen.encoders.siglip import toy_tokenizer
from jpgen.errors import WeightsError
from jpgen.evaluate.contrastive import load
from jpgen.evaluate.scores import zero_shot

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}
TEXTS = ["赤い船", "a red ship"]


def save_toy(folder: Path, kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=toy_tokenizer(), pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>")
    tokenizer.model_max_length = 16
    text = {**SIZES, "vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "max_position_embeddings": 16}
    if kind == "siglip":
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=VISION))
    elif kind == "clip":
        model = CLIPModel(CLIPConfig(text_config={**text, "projection_dim": 24}, vision_config={**VISION, "projection_dim": 24}, projection_dim=24))
    else:
        text = {**text, "max_position_embeddings": 32, "project_dim": 24, "type_vocab_size": 1}
        model = AltCLIPModel(AltCLIPConfig(text_config=text, vision_config={**VISION, "projection_dim": 24}, projection_dim=24))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = SiglipImageProcessor if kind == "siglip" else CLIPImageProcessor
    processor(size={"height": 32, "width": 32}, do_center_crop=False).save_pretrained(folder)
    return model.eval()


def pictures() -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)) for _ in range(3)]


@pytest.mark.parametrize("kind", ["siglip", "clip", "altclip"])
def test_features_are_those_of_the_model(kind: str, tmp_path: Path) -> None:
    model = save_toy(tmp_path, kind)
    scorer = load(tmp_path, "toy")
    pixels = torch.stack([torch.from_numpy(np.array(image.resize((32, 32), scorer._processor.resample))).permute(2, 0, 1) for image in pictures()])
    mean, std = (torch.tensor(value)[:, None, None] for value in (scorer._processor.image_mean, scorer._processor.image_std))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    fixed = kind == "siglip"
    ids = tokenizer(TEXTS, padding="max_length" if fixed else True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        given = {"input_ids": ids["input_ids"]} | ({} if fixed else {"attention_mask": ids["attention_mask"]})
        logits = model(pixel_values=(pixels / 255 - mean) / std, **given).logits_per_image
    images, texts = scorer.image_features(pictures()), scorer.text_features(TEXTS)
    torch.testing.assert_close(images.norm(dim=-1), torch.ones(3))
    bias = model.logit_bias if fixed else 0.0
    torch.testing.assert_close(scorer.scale * images @ texts.T + bias, logits, atol=2e-2, rtol=1e-3)
    assert zero_shot(pictures()[0], TEXTS, model=scorer)[0].label in TEXTS


def test_texts_of_siglip_are_in_small_letters_and_cut_at_its_length(tmp_path: Path) -> None:
    save_toy(tmp_path, "siglip")
    scorer = load(tmp_path)
    torch.testing.assert_close(scorer.text_features(["A RED SHIP"]), scorer.text_features(["a red ship"]))
    assert scorer.text_features(["船" * 500]).isfinite().all()


def test_batches_are_the_rows_one_by_one(tmp_path: Path) -> None:
    save_toy(tmp_path, "clip")
    scorer = load(tmp_path)
    texts = [f"{'赤い' * (n % 5)}船" for n in range(40)]
    one_by_one = torch.cat([scorer.text_features([text]) for text in texts])
    torch.testing.assert_close(scorer.text_features(texts), one_by_one, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(F.cosine_similarity(one_by_one, scorer.text_features(texts)), torch.ones(40))


def test_what_is_no_clip_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(WeightsError, match="type 'bert'"):
        load(tmp_path)


def test_pickles_and_damage_are_refused(tmp_path: Path) -> None:
    save_toy(tmp_path, "siglip")
    weights = tmp_path / "model.safetensors"
    state = load_file(weights)
    torch.save(state, tmp_path / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin"):
        load(tmp_path)
    save_file({"wrong": torch.zeros(2)}, weights)
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(WeightsError):
        load(tmp_path)
