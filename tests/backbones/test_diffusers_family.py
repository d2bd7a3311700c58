"""The family that takes texts: what diffusers' own pipeline makes of a folder, and what is refused of one."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline
from PIL import Image

from jpgen.backbones import diffusers, load_backbone
from jpgen.catalog import Entry
from jpgen.errors import Cancelled, IncompatibleError, SettingError, WeightsError
from jpgen.protocols import TextBackbone
from jpgen.types import SamplingConfig, Step

DEFAULT = SamplingConfig(width=64, height=48, steps=3, guidance_scale=3.0, scheduler="own")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    diffusers.toy()._pipeline.save_pretrained(folder)
    return folder


def entry(root: Path, **parts: int) -> Entry:
    return Entry("toy", "diffusers", path=str(root), default=DEFAULT, parts=parts)


def index(root: Path, **changes: object) -> None:
    file = root / "model_index.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_it_draws_what_the_pipeline_draws(root: Path) -> None:
    plain = StableDiffusionPipeline.from_pretrained(root, safety_checker=None)
    plain.set_progress_bar_config(disable=True)
    settings = {"width": 64, "height": 48, "num_inference_steps": 3, "guidance_scale": 3.0}
    wanted = [
        plain(text, negative_prompt=negative, generator=generator, **settings).images[0].tobytes()
        for text, negative, generator in zip(["赤い猫", "dog"], [None, "雨"], generators(4, 5), strict=True)
    ]
    backbone = load_backbone(entry(root), torch.float32)
    assert isinstance(backbone, TextBackbone)
    made = backbone.sample_texts(["赤い猫", "dog"], ["", "雨"], DEFAULT, generators=generators(4, 5))
    assert [image.tobytes() for image in made] == wanted and made[0].size == (64, 48)


def test_an_image_to_image_folder_begins_with_text(root: Path) -> None:
    index(root, _class_name="StableDiffusionImg2ImgPipeline")
    assert type(load_backbone(entry(root), torch.float32)._pipeline) is StableDiffusionPipeline


def test_steps_are_counted_through_all_pictures() -> None:
    backbone, seen = diffusers.toy(), []
    backbone.sample_texts(["猫", "犬"], ["", ""], backbone.default, generators=generators(1, 2), on_step=seen.append)
    assert [(step.index, step.total) for step in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]

    def stop(step: Step) -> bool:
        return step.index < 3

    with pytest.raises(Cancelled, match="3 of 4"):
        backbone.sample_texts(["猫", "犬"], ["", ""], backbone.default, generators=generators(1, 2), on_step=stop)


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"_class_name": ["pipeline_evil", "EvilPipeline"]}, "never run.*sdxl, sd, pixart"),
        ({"_class_name": "EvilPipeline"}, "not one of diffusers"),
        ({"_class_name": "UNet2DConditionModel"}, "not one of diffusers"),
        ({"_class_name": None}, "not one of diffusers"),
        ({"unet": ["evil", "EvilModel"]}, r"unet \(evil\.EvilModel\)"),
        ({"unet": ["diffusers", "NoSuchModel"]}, "cannot open this StableDiffusionPipeline"),
    ],
)
def test_code_of_the_model_never_runs(root: Path, tmp_path: Path, changes: dict[str, object], complaint: str) -> None:
    index(root, **changes)
    for place in (root / "pipeline_evil.py", root / "unet" / "evil.py", root / "evil.py"):
        place.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(WeightsError, match=complaint):
        load_backbone(entry(root))
    assert not (tmp_path / "ran").exists()


def test_pickles_and_damage_are_refused(root: Path) -> None:
    weights = root / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(WeightsError, match="unet"):
        load_backbone(entry(root))
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(WeightsError, match="pickle"):
        load_backbone(entry(root))


def test_a_folder_that_is_no_pipeline_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"model_index\.json"):
        load_backbone(entry(tmp_path))


def test_the_fp16_variant_is_read(root: Path) -> None:
    weights = root / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model.fp16.safetensors"))
    assert load_backbone(entry(root), torch.float32).sample_texts(["猫"], [""], DEFAULT, generators=generators(1))


def test_a_pipeline_without_prompts_is_refused(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    down, up = ("DownBlock2D",) * 2, ("UpBlock2D",) * 2
    unet = UNet2DModel(sample_size=8, block_out_channels=(8, 8), down_block_types=down, up_block_types=up, norm_num_groups=4)
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(IncompatibleError, match="takes no prompt"):
        load_backbone(entry(tmp_path))


# ── arguments of the other families, each as its pipeline names them ───────────────────────────────────────────────────────────────────────


class Pretending(DiffusionPipeline):
    """Keeps what it is called with, and sets its scheduler as flow pipelines do."""

    def __init__(self, transformer: object = None) -> None:
        super().__init__()
        self.register_modules(scheduler=FlowMatchEulerDiscreteScheduler())
        self.transformer = transformer or SimpleNamespace(config=_Config(patch_size=2, guidance_embeds=False))
        self.vae_scale_factor = 8
        self.seen: dict[str, object] = {}

    def show(self, **seen: object) -> SimpleNamespace:
        from diffusers.pipelines.z_image.pipeline_z_image import retrieve_timesteps

        retrieve_timesteps(self.scheduler, seen["num_inference_steps"], "cpu", sigmas=None if seen.get("sigmas") is None else [1.0, 0.5], mu=1.0)
        self.seen = seen
        return SimpleNamespace(images=[Image.new("RGB", (seen["width"], seen["height"]))])


class ZImage(Pretending):
    def __call__(
        self, prompt=None, height=None, width=None, num_inference_steps=50, guidance_scale=5.0, negative_prompt=None, generator=None,
        output_type="pil", callback_on_step_end=None, max_sequence_length=512,
    ):  # fmt: skip
        return self.show(**{k: v for k, v in locals().items() if k not in ("self", "__class__")})


class QwenImage(Pretending):
    def __call__(
        self, prompt=None, negative_prompt=None, true_cfg_scale=4.0, height=None, width=None, num_inference_steps=50, guidance_scale=None,
        generator=None, output_type="pil", sigmas="its own",
    ):  # fmt: skip
        return self.show(**{k: v for k, v in locals().items() if k not in ("self", "__class__")})


class Sana(Pretending):
    def __call__(
        self, prompt=None, negative_prompt="", num_inference_steps=20, guidance_scale=4.5, height=1024, width=1024, generator=None,
        output_type="pil", clean_caption=True, use_resolution_binning=True, callback=None,
    ):  # fmt: skip
        return self.show(**{k: v for k, v in locals().items() if k not in ("self", "__class__")})


def called(pipeline: Pretending, negative: str = "", **changes: object) -> dict[str, object]:
    backbone = diffusers.DiffusersBackbone("toy", pipeline, DEFAULT, max_tokens=200)
    assert backbone.size_multiple == 16
    image = backbone.sample_texts(["猫"], [negative], replace(DEFAULT, **changes), generators=generators(1))[0]
    assert image.size == (64, 48)
    return pipeline.seen


def test_z_image() -> None:
    seen = called(ZImage(), guidance_scale=1.0)
    assert (seen["prompt"], seen["guidance_scale"], seen["negative_prompt"], seen["max_sequence_length"]) == ("猫", 1.0, None, 200)
    assert called(ZImage(), "雨")["negative_prompt"] == "雨"
    assert called(ZImage(), scheduler="dpm++2m")["prompt"] == "猫"


def test_qwen_image_guides_by_true_cfg_and_wants_a_negative_prompt() -> None:
    seen = called(QwenImage())
    assert (seen["true_cfg_scale"], seen["guidance_scale"], seen["negative_prompt"]) == (3.0, None, " ")
    assert called(QwenImage(), "雨")["negative_prompt"] == "雨"
    seen = called(QwenImage(), "雨", guidance_scale=1.0)
    assert (seen["true_cfg_scale"], seen["negative_prompt"]) == (1.0, None)
    seen = called(QwenImage(SimpleNamespace(config=_Config(guidance_embeds=True))))
    assert (seen["true_cfg_scale"], seen["guidance_scale"]) == (4.0, 3.0)


def test_sana_draws_the_size_and_the_text_that_were_asked_for() -> None:
    seen = called(Sana())
    assert (seen["clean_caption"], seen["use_resolution_binning"], seen["guidance_scale"]) == (False, False, 3.0)


def test_a_sampler_that_the_pipeline_cannot_run_is_named() -> None:
    with pytest.raises(SettingError, match="use 'own'"):
        called(QwenImage(), scheduler="dpm++2m")
    with pytest.raises(SettingError, match="flow"):
        called(ZImage(), scheduler="lcm")


class _Config(dict):
    """As diffusers' FrozenDict: its values are attributes too."""

    __getattr__ = dict.__getitem__
