"""Evo-Ukiyoe's members as tiny checkpoints in their repositories' file names (models.md section 8: 5)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file

from jpgen.encoders import clip
from tests.toys import stable_diffusion as toys

FP16, PLAIN = "diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.safetensors"

ROW = '[{name}]\npath = "{path}"\n'


@dataclass(frozen=True)
class Evo:
    """The four U-Nets in the recipe's order, and what else comes of whom."""

    root: Path
    unets: tuple[UNet2DConditionModel, ...]
    vae: AutoencoderKL
    japanese: toys.Parts
    english: Any
    tokenizer: Any

    def catalogue(self, more: str = "") -> str:
        """A user's catalogue: every member where it was written."""
        rows = {"sdxl-base": "sdxl", "sdxl-dpo": "dpo", "juggernaut-xl-9": "juggernaut", "jsdxl": "jsdxl"}
        return "".join(ROW.format(name=name, path=self.root / folder) for name, folder in rows.items()) + more


def unet(seed: int) -> UNet2DConditionModel:
    """SDXL's shape, every tensor its own."""
    made = toys.sdxl_unet(12 + 20, 20)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return made


def write_unet(folder: Path, model: UNet2DConditionModel, name: str = FP16) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob("*.safetensors"):
        other.unlink()
    model.save_config(folder)
    dtype = torch.float16 if name == FP16 else torch.float32
    save_file({key: tensor.to(dtype).contiguous() for key, tensor in model.state_dict().items()}, folder / name, metadata={"format": "pt"})


def evo(root: Path, *, alike: bool = False) -> Evo:
    """`sdxl` and `jsdxl` whole, `juggernaut` and `dpo` (without "fp16" in its name, in fp32) as U-Nets alone; `alike`: four times the same one."""
    unets = tuple(unet(0 if alike else n) for n in range(4))
    japanese = toys.jsdxl(root / "jsdxl")
    reader = clip.toy()
    english = toys.text_model(len(reader._tokenizer), 20, projection=20, seed=5, act="gelu")
    vae = toys.autoencoder(0.13025)
    toys._write_parts(root / "sdxl", unets[0], vae, {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True})
    for suffix, text in (("", toys.text_model(len(reader._tokenizer), 12)), ("_2", english)):
        text.save_pretrained(root / "sdxl" / f"text_encoder{suffix}")
        reader._tokenizer.inner.save_pretrained(root / "sdxl" / f"tokenizer{suffix}")
    for folder, model, name in zip(("sdxl", "dpo", "juggernaut", "jsdxl"), unets, (FP16, PLAIN, FP16, FP16), strict=True):
        write_unet(root / folder / "unet", model, name)
    return Evo(root, unets, vae, japanese, english, reader._tokenizer)
