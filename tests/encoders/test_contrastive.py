"""Text towers of Japanese contrastive models, against transformers' classes called by hand, and pictures made with them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

import jpgen
from jpgen import backbones
from jpgen.api import open_pipeline
from jpgen.backbones import sd
from jpgen.emphasis import TokenEncoder
from jpgen.encoders import load_encoder, roberta_clip, siglip
from jpgen.errors import IncompatibleError, WeightsError
from tests.backbones.test_sd import plain
from tests.toys import stable_diffusion
from tests.toys.contrastive import Tower, rinna_clip, waon
from tests.toys.diffusion_transformers import autoencoder, pixart_transformer

TEXTS = ["赤い猫 CAT", "青い船", ""]


@pytest.fixture(autouse=True)
def _in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (siglip, roberta_clip, backbones):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)
    open_pipeline.cache_clear()


def of_waon(tower: Tower, text: str) -> tuple[Tensor, Tensor]:
    """As its card does: small letters, <eos>, filled with <pad> to full length, no mask."""
    ids = [*tower.pieces.encode(text.lower(), add_special_tokens=False).ids, 1]
    with torch.inference_mode():
        made = tower.model(input_ids=torch.tensor([[*ids, *[0] * (16 - len(ids))]]))
    return made.last_hidden_state, made.pooler_output


def of_rinna(tower: Tower, text: str) -> tuple[Tensor, Tensor]:
    """As rinna's code does: small letters, [CLS], filled with [PAD] to 77, masked, places from 0; only the text's states are kept."""
    ids = [tower.pieces.piece_to_id("[CLS]"), *tower.pieces.encode(text.lower())]
    filled = torch.tensor([[*ids, *[3] * (77 - len(ids))]])
    with torch.inference_mode():
        mask = (torch.arange(77) < len(ids)).long()[None]
        states = tower.model(filled, attention_mask=mask, position_ids=torch.arange(77)[None]).last_hidden_state
    return states[:, : len(ids)], states[:, 0] @ tower.projection.T


KINDS = {"siglip": (waon, of_waon), "roberta_clip": (rinna_clip, of_rinna)}


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_tower_that_transformers_has(kind: str, tmp_path: Path) -> None:
    build, by_hand = KINDS[kind]
    tower = build(tmp_path / "tower")
    encoder = load_encoder(kind, tmp_path, text_encoder="tower", pooled=True)
    made = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        states, pooled = by_hand(tower, text)
        length = states.shape[1]
        assert int(made.mask[row].sum()) == length and not made.tokens[row, length:].any()
        torch.testing.assert_close(made.tokens[row, :length], states[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(made.pooled[row], pooled[0], atol=1e-5, rtol=1e-4)
    assert abs(made.tokens[0, :3] - made.tokens[1, :3]).max() > 0.1
    assert load_encoder(kind, tmp_path, text_encoder=str(tower.path)).encode(TEXTS).pooled is None


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_really_masks(kind: str, tmp_path: Path) -> None:
    KINDS[kind][0](tmp_path / "text_encoder")
    encoder = load_encoder(kind, tmp_path)
    assert isinstance(encoder, TokenEncoder)
    length = 16 if kind == "siglip" else 9
    one = torch.full((1, length), encoder.window.pad)
    one[0, :4] = torch.tensor([*encoder.window.begin, *encoder.tokenize("赤い猫"), 5, 6, 7, 8][:4])
    other = one.clone()
    other[0, 4:] = 7
    mask = (torch.arange(length) < 4).long()[None]
    seen, unseen = (encoder.encode_ids(ids, mask)[0][:, :4] for ids in (one, other))
    torch.testing.assert_close(seen, unseen)
    assert abs(encoder.encode_ids(other, torch.ones_like(mask))[0][:, :4] - seen).max() > 0.01


def test_gemmas_sentencepiece_model_is_read_too(tmp_path: Path) -> None:
    tower = waon(tmp_path / "text_encoder")
    (tower.path / "tokenizer.json").unlink()
    model = stable_diffusion.write_sentencepiece(tmp_path / "t", tokenizer_class="GemmaTokenizer", add_bos_token=False, add_eos_token=True)
    (tmp_path / "t" / "spiece.model").rename(tower.path / "tokenizer.model")
    (tmp_path / "t" / "tokenizer_config.json").rename(tower.path / "tokenizer_config.json")
    with pytest.raises(WeightsError, match="not of one model"):
        load_encoder("siglip", tmp_path)
    config = json.loads((tower.path / "config.json").read_text())
    config["text_config"]["vocab_size"] = len(model)
    (tower.path / "config.json").write_text(json.dumps(config))
    tensors = load_file(tower.path / "model.safetensors")
    tensors["text_model.embeddings.token_embedding.weight"] = torch.randn(len(model), 32)
    save_file(tensors, tower.path / "model.safetensors", metadata={"format": "pt"})
    encoder = load_encoder("siglip", tmp_path)
    assert (encoder.window.begin, encoder.window.end, encoder.window.pad) == ((), (2,), 3)
    assert encoder.tokenize("A Red CAT") == model.encode("a red cat")


def test_what_is_no_such_tower_is_told(tmp_path: Path) -> None:
    waon(tmp_path / "waon")
    rinna_clip(tmp_path / "rinna")
    with pytest.raises(WeightsError, match=r"type 'clip', wanted one of siglip.*parts\.text_encoder"):
        load_encoder("siglip", tmp_path, text_encoder="rinna")
    with pytest.raises(WeightsError, match="text tower of type 'siglip_text_model', wanted 'roberta'"):
        load_encoder("roberta_clip", tmp_path, text_encoder="waon")
    file = tmp_path / "rinna" / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "layer.1.output.dense" not in name}, file)
    with pytest.raises(WeightsError, match=r"has no encoder\.layer\.1\.output\.dense\.bias, .*2 tensors"):
        load_encoder("roberta_clip", tmp_path, text_encoder="rinna")
    save_file({name: tensor for name, tensor in tensors.items() if "text_projection" not in name}, file)
    with pytest.raises(WeightsError, match="has no text_projection"):
        load_encoder("roberta_clip", tmp_path, text_encoder="rinna")
    file.rename(file.with_name("pytorch_model.bin"))
    with pytest.raises(WeightsError, match="pickle"):
        load_encoder("roberta_clip", tmp_path, text_encoder="rinna")


# ── pictures ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str, kind: str, body: Path, **parts: str | bool) -> None:
    """A user's catalogue with one model, `mine`."""
    given = ", ".join(f"{key} = {json.dumps(value)}" for key, value in parts.items())
    (tmp_path / "mine.toml").write_text(
        f'[mine]\nfamily = "{family}"\nencoder = "{kind}"\npath = "{body}"\nlicense = "MIT"\ncommercial = "yes"\ntitle = "mine"\n'
        f"parts = {{ {given} }}\n"
        "default = { width = 64, height = 64, steps = 2, guidance_scale = 3.0 }\n"
    )
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("kind", KINDS)
def test_under_a_unet_of_its_width(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, by_hand = KINDS[kind]
    tower, unet, vae = build(tmp_path / "tower"), sd.toy()._pipeline.unet, stable_diffusion.autoencoder()
    stable_diffusion._write_parts(tmp_path / "body", unet, vae, {"_class_name": "StableDiffusionPipeline"})
    catalogue(tmp_path, monkeypatch, "sd", kind, tmp_path / "body", text_encoder=str(tower.path))
    guidance = 3.0 if kind == "siglip" else 1.0  # plain diffusers knows no mask, and rinna's rows have unlike lengths
    made = jpgen.generate("赤い猫", model="mine", negative="青い船", seed=7, guidance_scale=guidance, normalize=False)
    wanted = plain(unet, vae, by_hand(tower, "赤い猫")[0], by_hand(tower, "青い船")[0], guidance_scale=guidance)
    np.testing.assert_allclose(np.asarray(made.image, int), wanted, atol=1)
    assert (made.encoder, made.route) == (kind, "native") and wanted.std() > 5


def test_rinnas_under_a_transformer_with_its_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, transformer, vae = rinna_clip(tmp_path / "tower"), pixart_transformer(), autoencoder()
    transformer.save_pretrained(tmp_path / "body")
    vae.save_pretrained(tmp_path / "vae")
    catalogue(tmp_path, monkeypatch, "pixart", "roberta_clip", tmp_path / "body", text_encoder=str(tower.path), vae=str(tmp_path / "vae"))
    one, other = (of_rinna(tower, text)[0] for text in ("赤い猫が海を見る", "青い船"))
    pipe = PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=AutoencoderKL.from_pretrained(tmp_path / "vae").eval(),
        transformer=PixArtTransformer2DModel.from_pretrained(tmp_path / "body").eval(), scheduler=DPMSolverMultistepScheduler(),
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    filled = torch.nn.functional.pad(other, (0, 0, 0, one.shape[1] - other.shape[1]))
    mask = (torch.arange(one.shape[1]) < other.shape[1]).long()[None]
    wanted = pipe(
        prompt=None, negative_prompt=None, prompt_embeds=one, prompt_attention_mask=torch.ones(one.shape[:2]).long(), negative_prompt_embeds=filled,
        negative_prompt_attention_mask=mask, latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)), num_inference_steps=2,
        guidance_scale=3.0, height=64, width=64, use_resolution_binning=False,
    ).images[0]  # fmt: skip
    made = jpgen.generate("赤い猫が海を見る", model="mine", negative="青い船", seed=7, normalize=False)
    assert other.shape[1] < one.shape[1]
    np.testing.assert_allclose(np.asarray(made.image, int), np.asarray(wanted, int), atol=1)


def test_another_width_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waon(tmp_path / "tower")
    unet, vae = stable_diffusion.sd_unet(24), stable_diffusion.autoencoder()
    stable_diffusion._write_parts(tmp_path / "body", unet, vae, {"_class_name": "StableDiffusionPipeline"})
    catalogue(tmp_path, monkeypatch, "sd", "siglip", tmp_path / "body", text_encoder=str(tmp_path / "tower"))
    with pytest.raises(IncompatibleError, match="siglip gives width 32, pooled None; mine wants width 24"):
        jpgen.generate("猫", model="mine")
