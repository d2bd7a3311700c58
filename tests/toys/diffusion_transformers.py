"""Tiny checkpoints of random weights as the hub has them: CommonArt β (a bare transformer), PixArt-Σ, FLUX.1, and any pipeline that takes texts."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file
from transformers import T5Config, T5EncoderModel

from jpgen.encoders import clip, llm, t5

WEIGHTS = "diffusion_pytorch_model.safetensors"


def autoencoder() -> AutoencoderKL:
    """As Stable Diffusion's, factor 8, with SDXL's scale."""
    torch.manual_seed(1)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(8, 8, 8, 8),
        layers_per_block=1, latent_channels=4, norm_num_groups=4, scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip


def pixart_transformer(*, caption_channels: int = 32) -> PixArtTransformer2DModel:
    """As CommonArt's and PixArt-Σ's: 4 channels in, 8 out (it learned sigma)."""
    torch.manual_seed(2)
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=2, cross_attention_dim=32, caption_channels=caption_channels, in_channels=4,
        out_channels=8, sample_size=64, patch_size=2, interpolation_scale=1, norm_type="ada_norm_single", use_additional_conditions=False,
    )  # fmt: skip
    for layer in (model.caption_projection.linear_1, model.caption_projection.linear_2, *(b.attn2.to_out[0] for b in model.transformer_blocks)):
        torch.nn.init.normal_(layer.weight, std=0.3)  # so that the text matters
    return model


def commonart(folder: Path, *, caption_channels: int = 32, class_name: str = "Transformer2DModel") -> Path:
    """Three folders as three repositories: `commonart` (config.json and weights at its root), `llm` and `vae`; returns the first."""
    root = folder / "commonart"
    pixart_transformer(caption_channels=caption_channels).save_pretrained(root)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({**config, "_class_name": class_name}))
    language_model(folder / "llm")
    autoencoder().save_pretrained(folder / "vae")
    return root


def language_model(folder: Path) -> Path:
    """A LlamaForCausalLM with its head, and tokenizer.json."""
    from transformers import LlamaForCausalLM

    toy = llm.toy()
    torch.manual_seed(3)
    LlamaForCausalLM(toy._model.config).save_pretrained(folder)
    toy._tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def t5_parts(folder: Path, suffix: str = "") -> None:
    """A T5EncoderModel and its tokenizer.json."""
    torch.manual_seed(4)
    tokenizer = t5.toy_tokenizer()
    config = T5Config(
        vocab_size=tokenizer.get_vocab_size(), d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu",
        dropout_rate=0.0, initializer_factor=0.1,
    )  # fmt: skip
    T5EncoderModel(config).save_pretrained(folder / f"text_encoder{suffix}")
    (folder / f"tokenizer{suffix}").mkdir()
    tokenizer.save(str(folder / f"tokenizer{suffix}" / "tokenizer.json"))


def pixart_sigma(folder: Path) -> Path:
    """PixArt-Σ as diffusers lays it out; its transformer in the shards and the variant that half the hub has."""
    pixart_transformer().save_pretrained(folder / "transformer")
    autoencoder().save_pretrained(folder / "vae")
    DPMSolverMultistepScheduler(algorithm_type="dpmsolver++", beta_schedule="linear").save_pretrained(folder / "scheduler")
    t5_parts(folder)
    names = {"transformer": "PixArtTransformer2DModel", "vae": "AutoencoderKL", "scheduler": "DPMSolverMultistepScheduler"}
    parts = {name: ["diffusers", kind] for name, kind in names.items()}
    parts |= {"text_encoder": ["transformers", "T5EncoderModel"], "tokenizer": ["transformers", "T5Tokenizer"]}
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline", "_diffusers_version": "0.42.1", **parts}))
    return folder


def in_shards(folder: Path, *, variant: str = "") -> None:
    """The weights of this folder again as two shards with an index."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    dotted = f".{variant}" if variant else ""
    places = {}
    for i, names in enumerate((sorted(tensors)[::2], sorted(tensors)[1::2]), start=1):
        file = f"diffusion_pytorch_model{dotted}-0000{i}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": places}
    (folder / f"diffusion_pytorch_model.safetensors.index{dotted}.json").write_text(json.dumps(index))


def flux(folder: Path) -> Path:
    """FLUX.1-schnell as diffusers lays it out."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    from jpgen.backbones import flux as family

    toy = family.toy()
    toy._pipeline.transformer.save_pretrained(folder / "transformer")
    toy._pipeline.vae.save_pretrained(folder / "vae")
    FlowMatchEulerDiscreteScheduler(shift=1.0).save_pretrained(folder / "scheduler")
    reader = clip.toy()
    reader._model.save_pretrained(folder / "text_encoder")
    reader._tokenizer.inner.save_pretrained(folder / "tokenizer")
    t5_parts(folder, "_2")
    return folder
