"""Tiny checkpoints of random weights in the layouts of Stable Diffusion's relatives (models.md section 8: 1, 2, 3; and single files).

Real classes, real file and key names, real SentencePiece models; only the widths are small.
"""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from jpgen.backbones.unet import SCHEDULE

LINES = ["赤い猫が海を見る", "青い船と白い花", "夕焼けの空に鳥が飛ぶ", "a red cat by the sea", "a blue ship and a white flower", "森の中の小さな家"]
"""What the SentencePiece models learn from."""

VOCABULARY = 49408
"""Pieces of CLIP's own tokenizer, which single files count on."""


@dataclass(frozen=True)
class Parts:
    """What was written, before it was: the reference to check against."""

    path: Path
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    texts: tuple[Any, ...]
    pieces: SentencePieceProcessor | None = None


def sentencepiece(lower: bool = True) -> bytes:
    """A trained model in rinna's layout: <unk> 0, <s> 1, </s> 2, [PAD] 3, then [CLS] [SEP] [MASK]."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=iter([line.lower() if lower else line for line in LINES]), model_writer=model, vocab_size=200, hard_vocab_limit=False,
        unk_id=0, bos_id=1, eos_id=2, pad_id=3, pad_piece="[PAD]", control_symbols="[CLS],[SEP],[MASK]", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()


def write_sentencepiece(folder: Path, **config: object) -> SentencePieceProcessor:
    """`spiece.model` and rinna's tokenizer_config.json, with what is given in its place."""
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(sentencepiece())
    settings = {
        "tokenizer_class": "T5Tokenizer", "do_lower_case": True, "model_max_length": 77, "extra_ids": 0, "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **config}))
    return SentencePieceProcessor(model_file=str(folder / "spiece.model"))


def text_model(vocabulary: int, width: int, *, projection: int | None = None, seed: int = 0, layers: int = 3, act: str = "quick_gelu") -> Any:
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=width, projection_dim=projection or width, num_hidden_layers=layers, num_attention_heads=1,
        intermediate_size=2 * width, hidden_act=act, bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def sd_unet(width: int, *, linear: bool = False) -> UNet2DConditionModel:
    """Four levels, two layers each, as in Stable Diffusion 1 (or 2: linear projections, heads of 64)."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 32, 32, 64), cross_attention_dim=width, attention_head_dim=1 if linear else 8,
        use_linear_projection=linear,
    ).eval()  # fmt: skip


def sdxl_unet(width: int, pooled: int) -> UNet2DConditionModel:
    """Three levels, two layers each, no attention in the first, as in Stable Diffusion XL."""
    torch.manual_seed(1)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64, 128), down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=(1, 1, 2), cross_attention_dim=width,
        attention_head_dim=(1, 1, 2), use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=pooled + 6 * 8,
    ).eval()  # fmt: skip


def autoencoder(scaling: float = 0.18215) -> AutoencoderKL:
    torch.manual_seed(2)
    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1, latent_channels=4, sample_size=64, scaling_factor=scaling,
    ).eval()  # fmt: skip


def _write_parts(folder: Path, unet: UNet2DConditionModel, vae: AutoencoderKL, index: dict[str, object]) -> None:
    unet.save_pretrained(folder / "unet")
    vae.save_pretrained(folder / "vae")
    PNDMScheduler.from_config(SCHEDULE, skip_prk_steps=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_diffusers_version": "0.26.0", **index}))


def rinna(folder: Path) -> Parts:
    """Layout 3: Stable Diffusion 1 with a SentencePiece tokenizer and a pipeline class of a package of rinna's own."""
    pieces = write_sentencepiece(folder / "tokenizer")
    text = text_model(len(pieces), 16)
    text.save_pretrained(folder / "text_encoder")
    unet, vae = sd_unet(16), autoencoder()
    _write_parts(folder, unet, vae, {"_class_name": "StableDiffusionPipeline", "tokenizer": ["transformers", "T5Tokenizer"]})
    return Parts(folder, unet, vae, (text,), pieces)


def jsdxl(folder: Path) -> Parts:
    """Layout 1: SDXL's U-Net, one encoder saved with a projection, a list for a class."""
    pieces = write_sentencepiece(folder / "tokenizer", do_lower_case=False)
    text = text_model(len(pieces), 12, projection=10)
    text.save_pretrained(folder / "text_encoder")
    unet, vae = sdxl_unet(12 + 20, 20), autoencoder(0.13025)
    _write_parts(folder, unet, vae, {"_class_name": ["pipeline_japanese_stable_diffusion_xl", "JapaneseStableDiffusionXLPipeline"]})
    return Parts(folder, unet, vae, (text,), pieces)


def tohoku(folder: Path) -> Parts:
    """Layout 2: SDXL whole, with SentencePiece in `tokenizer/` and `tokenizer_2/`."""
    pieces = write_sentencepiece(folder / "tokenizer")
    write_sentencepiece(folder / "tokenizer_2")
    texts = (text_model(len(pieces), 12), text_model(len(pieces), 20, projection=20, seed=5, act="gelu"))
    for text, suffix in zip(texts, ("", "_2"), strict=True):
        text.save_pretrained(folder / f"text_encoder{suffix}")
    unet, vae = sdxl_unet(32, 20), autoencoder(0.13025)
    _write_parts(folder, unet, vae, {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True})
    return Parts(folder, unet, vae, texts, pieces)


# ── single files ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def ldm_unet(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """The tensors of a U-Net by LDM's names: diffusers' conversion backwards."""
    step = unet.config.layers_per_block + 1
    resnet = {
        "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }  # fmt: skip
    flat = {
        "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2", "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0",
        "conv_out": "out.2", "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    }  # fmt: skip

    def renamed(name: str) -> str:
        module, _, leaf = name.rpartition(".")
        if module in flat:
            return f"{flat[module]}.{leaf}"
        first, *rest = name.split(".")
        if first == "mid_block":
            kind, number, *inner = rest
            place = f"middle_block.{2 * int(number) if kind == 'resnets' else 1}"
        else:
            block, kind, number, *inner = rest
            down = first == "down_blocks"
            n = int(block) * step + (int(number) if kind in ("resnets", "attentions") else step - 1) + int(down)
            side = "input_blocks" if down else "output_blocks"
            if kind == "downsamplers":
                return f"{side}.{n}.0.op.{leaf}"
            if kind == "upsamplers":
                return f"{side}.{n}.{2 if hasattr(unet.up_blocks[int(block)], 'attentions') else 1}.conv.{leaf}"
            place = f"{side}.{n}.{0 if kind == 'resnets' else 1}"
        return ".".join([place, *([resnet[inner[0]], *inner[1:]] if kind == "resnets" else inner)])

    return {f"model.diffusion_model.{renamed(name)}": tensor for name, tensor in unet.state_dict().items()}


def ldm_vae(vae: AutoencoderKL) -> dict[str, torch.Tensor]:
    """The tensors of an autoencoder by LDM's names."""
    levels = len(vae.config.block_out_channels)
    made = {}
    for name, tensor in vae.state_dict().items():
        for i in range(levels):
            name = name.replace(f"down_blocks.{i}.", f"down.{i}.").replace(f"up_blocks.{i}.", f"up.{levels - 1 - i}.")
        name = name.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2").replace("resnets", "block")
        name = name.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample").replace("conv_shortcut", "nin_shortcut")
        name = name.replace("conv_norm_out", "norm_out")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("group_norm", "norm").replace("to_out.0", "proj_out")
            for letter in "qkv":
                name = name.replace(f"to_{letter}", letter)
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor
        made[f"first_stage_model.{name}"] = tensor
    return made


def ldm_clip(text: Any, place: str) -> dict[str, torch.Tensor]:
    """The tensors of CLIP's text encoder as SD 1 and SDXL name them, with the position ids of old."""
    made = {f"{place}transformer.text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in text.state_dict().items()}
    return {**made, f"{place}transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}


def open_clip(text: Any, place: str) -> dict[str, torch.Tensor]:
    """The tensors of a text encoder by OpenCLIP's names."""
    state = {name.removeprefix("text_model."): tensor for name, tensor in text.state_dict().items()}
    made = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"], "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"], "ln_final.bias": state["final_layer_norm.bias"], "logit_scale": torch.ones(()),
    }  # fmt: skip
    if "text_projection.weight" in state:
        made["text_projection"] = state["text_projection.weight"].T.contiguous()
    for i in range(text.config.num_hidden_layers):
        old, new = f"encoder.layers.{i}.", f"transformer.resblocks.{i}."
        for leaf in ("weight", "bias"):
            made[f"{new}attn.in_proj_{leaf}"] = torch.cat([state[f"{old}self_attn.{part}_proj.{leaf}"] for part in "qkv"])
            for theirs, ours in (("self_attn.out_proj", "attn.out_proj"), ("layer_norm1", "ln_1"), ("layer_norm2", "ln_2")):
                made[f"{new}{ours}.{leaf}"] = state[f"{old}{theirs}.{leaf}"]
            made[f"{new}mlp.c_fc.{leaf}"], made[f"{new}mlp.c_proj.{leaf}"] = state[f"{old}mlp.fc1.{leaf}"], state[f"{old}mlp.fc2.{leaf}"]
    return {f"{place}model.{name}": tensor for name, tensor in made.items()}


def _write_file(path: Path, *tensors: dict[str, torch.Tensor], **metadata: str) -> None:
    together = {name: tensor.contiguous().clone() for part in tensors for name, tensor in part.items()}
    save_file(together, path, metadata={"format": "pt", **metadata})


def single_sd1(path: Path) -> Parts:
    unet, vae, text = sd_unet(24), autoencoder(), text_model(VOCABULARY, 24)
    _write_file(path, ldm_unet(unet), ldm_vae(vae), ldm_clip(text, "cond_stage_model."))
    return Parts(path, unet, vae, (text,))


def single_sd2(path: Path) -> Parts:
    """OpenCLIP's encoder with all its layers; the last is not used."""
    unet, vae, text = sd_unet(24, linear=True), autoencoder(), text_model(VOCABULARY, 24, projection=24, act="gelu")
    _write_file(path, ldm_unet(unet), ldm_vae(vae), open_clip(text, "cond_stage_model."))
    return Parts(path, unet, vae, (text,))


def single_sdxl(path: Path) -> Parts:
    unet, vae = sdxl_unet(12 + 20, 16), autoencoder(0.13025)
    texts = (text_model(VOCABULARY, 12), text_model(VOCABULARY, 20, projection=16, seed=5, act="gelu"))
    _write_file(path, ldm_unet(unet), ldm_vae(vae), ldm_clip(texts[0], "conditioner.embedders.0."), open_clip(texts[1], "conditioner.embedders.1."))
    return Parts(path, unet, vae, texts)
