"""The eight layouts of the hub's models, each as a tiny checkpoint, through `jpgen.generate(model=...)` alone: pictures of embeddings made by hand.

Here 1, 2, 3, 4 and 6; the others have files of their own: 5 (Evo) tests/test_merged.py, 7 (Marian) tests/translate/test_marian.py, 8 (waon-siglip2,
rinna's CLIP) tests/encoders/test_contrastive.py.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from diffusers import StableDiffusionXLPipeline as PlainXL
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

import jpgen
from jpgen import backbones
from jpgen.api import open_pipeline
from jpgen.backbones.unet import SCHEDULE
from jpgen.encoders import clip, llm
from jpgen.encoders.tokenizers import clip_tokenizer
from tests.backbones import test_sd, test_sdxl
from tests.toys import stable_diffusion as toys
from tests.toys.diffusion_transformers import commonart

TEXT, NEGATIVE = "赤い鬱の猫 CAT", "青い船"  # 鬱: no tokenizer here knows it
SETTINGS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 3.0}


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for module in (clip, llm, backbones):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))
    (tmp_path / "mine.toml").touch()
    open_pipeline.cache_clear()
    return tmp_path


def drawn(model: str | Path, **changes: Any) -> jpgen.Generation:
    return jpgen.generate(TEXT, model=model, negative=NEGATIVE, seed=7, normalize=False, **SETTINGS | changes)


def check(made: jpgen.Generation, wanted: np.ndarray, route: str = "native") -> None:
    np.testing.assert_allclose(np.asarray(made.image, int), wanted, atol=1)
    assert made.route == route and wanted.std() > 5


def test_1_jsdxl(home: Path) -> None:
    toy = toys.jsdxl(home / "m")

    def states(text: str) -> test_sdxl.States:
        hidden = test_sdxl.run(toy.texts[0], test_sdxl.filled([*toy.pieces.encode(text), 2], 3)).hidden_states[-2]
        return torch.cat([hidden, torch.zeros(1, 77, 20)], -1), torch.zeros(1, 20)

    check(drawn(toy.path), test_sdxl.plain(toy.unet, toy.vae, states(TEXT), states(NEGATIVE)))


def test_2_tohoku(home: Path) -> None:
    toy = toys.tohoku(home / "m")
    one, other = (test_sdxl.tohoku_states(toy, text) for text in (TEXT, NEGATIVE))
    check(drawn(toy.path), test_sdxl.plain(toy.unet, toy.vae, one, other))


def test_3_rinna(home: Path) -> None:
    toy = toys.rinna(home / "m")
    one, other = (test_sd.by_transformers(toy.texts[0], toy.pieces.encode(text.lower()), 2, 3) for text in (TEXT, NEGATIVE))
    check(drawn(toy.path), test_sd.plain(toy.unet, toy.vae, one, other))


def test_4_commonart(home: Path) -> None:
    root = commonart(home)
    (home / "llm").rename(root / "text_encoder")
    (home / "vae").rename(root / "vae")
    model = AutoModelForCausalLM.from_pretrained(root / "text_encoder")
    tokenizer = llm.load_tokenizer(root / "text_encoder")
    rows = [[1, *tokenizer.encode(text, add_special_tokens=False).ids] for text in (TEXT, NEGATIVE)]
    length = max(map(len, rows))
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with torch.inference_mode():
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
        states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states[-1]
    plain = PixArtSigmaPipeline(
        tokenizer=None, text_encoder=None, vae=AutoencoderKL.from_pretrained(root / "vae").eval(),
        transformer=PixArtTransformer2DModel.from_pretrained(root).eval(), scheduler=DPMSolverMultistepScheduler(),
    )  # fmt: skip
    plain.set_progress_bar_config(disable=True)
    wanted = plain(
        prompt=None, negative_prompt=None, prompt_embeds=states[:1], prompt_attention_mask=mask[:1], negative_prompt_embeds=states[1:],
        negative_prompt_attention_mask=mask[1:], latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7)), num_inference_steps=2,
        guidance_scale=3.0, height=64, width=64, use_resolution_binning=False,
    ).images[0]  # fmt: skip
    check(drawn(root), np.asarray(wanted, int))


def test_6_lightning(home: Path) -> None:
    """One LoRA at the root of its repository, a row on another row, with its own sampler, steps and no guidance."""
    toy = toys.single_sdxl(home / "base.safetensors")
    name = "down_blocks.2.attentions.0.transformer_blocks.1.attn2.to_k"
    up, down = torch.ones(128, 2), torch.full((2, 32), 0.01)
    key, file = f"lora_unet_{name.replace('.', '_')}", home / "lightning" / "sdxl_lightning_4step_lora.safetensors"
    file.parent.mkdir()
    save_file({f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(8.0)}, file)
    (home / "mine.toml").write_text(f'[sdxl-base]\npath = "{toy.path}"\n[sdxl-lightning]\npath = "{file.parent}"\n')
    made = jpgen.generate(TEXT, model="sdxl-lightning", seed=7, normalize=False, width=64, height=64, translator="")
    toy.unet.get_parameter(f"{name}.weight").data += 4 * up @ down
    scheduler = EulerDiscreteScheduler.from_config(SCHEDULE, timestep_spacing="trailing")
    pipe = PlainXL(
        vae=toy.vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=toy.unet, scheduler=scheduler,
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    tokens, pooled = test_sdxl.single_states(toy, TEXT)
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(7))
    wanted = pipe(
        prompt_embeds=tokens, pooled_prompt_embeds=pooled, latents=noise, num_inference_steps=4, guidance_scale=0.0, width=64, height=64
    ).images[0]
    check(made, np.asarray(wanted, int), route="raw")
    assert (made.config.steps, made.config.guidance_scale, made.config.scheduler) == (4, 0.0, "euler_trailing")


@pytest.mark.parametrize("kind", ["sd1", "sdxl"])
def test_single_files_of_english_say_that_they_read_no_japanese(home: Path, kind: str) -> None:
    toy = (toys.single_sd1 if kind == "sd1" else toys.single_sdxl)(home / "m.safetensors")
    if kind == "sd1":
        ids = [[49406, *clip_tokenizer().encode(text)] for text in (TEXT, NEGATIVE)]
        wanted = test_sd.plain(toy.unet, toy.vae, *(test_sd.by_transformers(toy.texts[0], row, 49407, 49407) for row in ids))
    else:
        wanted = test_sdxl.plain(toy.unet, toy.vae, *(test_sdxl.single_states(toy, text) for text in (TEXT, NEGATIVE)))
    check(drawn(toy.path, translator=""), wanted, route="raw")
