"""`make bench-speed`: jpgen beside plain diffusers on the same weights, in turns, as ratios; every row fails if the pictures are not the same.

Legs: `small` (mame, and a fifth of SDXL's width), `load` (opening a model, and importing), `wide` (SDXL's width, shallow: beside OpenVINO), `full`
(SDXL itself, warmed up by one small picture), `cpp` (beside stable-diffusion.cpp, an engine at a time in a process of its own). `load` and
`cpp` take the model of `full` where that is asked for too. The random weights of the last three are written into --folder once, in the number type of
this machine: some minutes and 7 GB in bf16, 14 in fp32 for `full`, half of it for `wide`, and `cpp` as much again. Ratios are of CPU seconds, of one
thread unless --threads says otherwise (threads that wait for one another may count). Random weights say nothing of quality; memory does not hold the
whole SDXL twice, so plain diffusers runs on the same U-Net.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from jpgen.backbones.lean import lean
from jpgen.catalog import find_model
from jpgen.compute import best_dtype
from jpgen.encoders.remembered import Remembered
from jpgen.evaluate.bench_models import joined, opened, written
from jpgen.evaluate.counting import counted
from jpgen.evaluate.rivals import DIFFUSERS_TOKENS, PixArtStep, Plain, SdxlStep, absent, openvino_forward
from jpgen.evaluate.timing import PSNR, Compared, UnlikeError, compare, cpu_seconds, nearness, probe
from jpgen.models import recognise
from jpgen.pipeline import Pipeline
from jpgen.types import SamplingConfig

PROMPT = "夕焼けの海に浮かぶ赤い船"
ENGINE = "from diffusers import PixArtSigmaPipeline, StableDiffusionXLPipeline"
FULL, WIDE = "SDXL", "SDXL の幅 / at SDXL's width,"
SEEDS = {1: (1,), 4: (1, 2, 3, 4)}

LOAD = """
import json, sys, torch
from pathlib import Path
from jpgen.evaluate.timing import cpu_seconds
from jpgen.backbones import load_backbone
from jpgen.models import recognise
def anonymous():
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
entry, dtype = recognise(sys.argv[1]), getattr(torch, sys.argv[2])
import jpgen.backbones.sdxl, jpgen.backbones.placement
before, began = anonymous(), cpu_seconds()
backbone = load_backbone(entry, dtype)
print(json.dumps([cpu_seconds() - began, anonymous() - before]))
"""
"""Run by itself: CPU seconds and growth of memory that is no file's, of opening a model's U-Net and autoencoder."""

COLD = """
import json, time
from jpgen.cli.command import for_good
from jpgen.dozing import doze
stages = [time.process_time()]
with for_good():
    doze()
    stages.append(time.process_time())
    import jpgen.backbones.pixart, jpgen.encoders.bert
    stages.append(time.process_time())
    from jpgen import Pipeline
    pipeline = Pipeline("mame")
    stages.append(time.process_time())
pipeline.generate("夕焼けの海に浮かぶ赤い船", seed=1)
print(json.dumps([*stages, time.process_time()]))
"""
"""Run by itself: CPU seconds of its life at the end of each of STAGES but the last."""

STAGES = (
    "Python", "import torch", "import diffusers, transformers, peft", "開く / open mame", "一枚 / one picture", "終わり / the end of the process",
)  # fmt: skip


def main() -> None:
    """Measure and print the tables; exit code 1 if pictures that should be the same are not."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leg", action="append", choices=sorted(LEGS), help="何度でも。省くと small と load（幅 1/5） / repeatable; small and load")
    parser.add_argument("--only", default="", metavar="TEXT", help="名前にこれを含む行だけ / only rows whose names contain this")
    parser.add_argument("--folder", type=Path, help="乱数の重みの置き場（wide、full、cpp に要る） / where random weights are kept")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=25, help="SDXL のガイダンスつきのステップ数 / guided steps of SDXL")
    parser.add_argument("--side", type=int, default=512, help="SDXL の絵の一辺 / side of SDXL's pictures")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    legs = options.leg or ["small", "load"]
    if not {"small", "load"}.issuperset(legs) and options.folder is None:
        parser.error("--folder がありません / the legs wide, full and cpp want --folder, a place for 7 GB and more")
    torch.set_num_threads(options.threads)
    print(probe())
    missing = "".join(f"{name}: 入っていない / not installed; " for name in absent())
    print(f"dtype: {best_dtype()}; {missing}{options.rounds} rounds, {options.steps} guided steps")
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        for leg in legs:
            print(f"\n{leg}\n  比 / ratio (最小–最大 / range)  jpgen ÷ 相手 / rival")
            failed += _print(LEGS[leg](options, options.folder or Path(scratch)), options.only)
    sys.exit(1 if failed else 0)


Row = tuple[str, Callable[[str], Compared | str]]
"""A row's name, and what measures it under that name."""


def _print(rows: Iterable[Row], only: str = "") -> int:
    """Each row whose name contains `only`, as soon as it is measured; how many were unlike."""
    failed = 0
    for name, measured in rows:
        try:
            if only in name:
                print(measured(name), flush=True)
        except UnlikeError as error:
            failed += 1
            print(f"  FAIL  {error}", flush=True)
    return failed


# ── legs ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _small(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    entry, dtype, rounds = find_model("mame"), best_dtype(), options.rounds
    ours = Pipeline("mame")
    encoder: Any = ours.encoder
    drawn = partial(_drawn, ours=ours, config=ours.config(), rounds=rounds)
    plain = Plain.opened(entry, encoder, dtype)
    yield "mame 一枚 / one picture", partial(drawn, plain=plain)
    yield "mame 四枚 / four pictures", partial(drawn, plain=plain, count=4)
    if dtype != torch.float32:
        default = Plain.opened(entry, encoder, torch.float32)
        yield "mame 一枚、相手は既定の fp32 / one picture, rival in its default fp32", partial(drawn, plain=default)
    filled = Plain.opened(entry, encoder, dtype, filled=DIFFUSERS_TOKENS)
    yield f"mame 一枚、相手は {DIFFUSERS_TOKENS} トークン / rival fills prompts as its encode_prompt does", partial(drawn, plain=filled)
    yield "mame もう一枚（同じプロンプト） / another seed ÷ first picture", partial(_repeated, ours=ours, rounds=rounds)
    yield "mame の transformer ÷ OpenVINO", partial(_openvino, ours=ours, rounds=rounds)
    yield "mame 回数 / counts", partial(_counts, ours=ours)
    place = written(folder, "small", dtype)
    sdxl = opened(place)
    yield from _of_sdxl(sdxl, Plain.opened(recognise(place), _encoder(sdxl), dtype), options, "SDXL 1/5")
    yield f"SDXL 1/5 U-Net {options.side}² ÷ OpenVINO", partial(_openvino_sdxl, ours=sdxl, side=options.side, rounds=rounds)


def _wide(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    sdxl = opened(written(folder, "wide", best_dtype()))
    yield f"{WIDE} U-Net {options.side}² ÷ OpenVINO", partial(_openvino_sdxl, ours=sdxl, side=options.side, rounds=options.rounds)


def _full(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    sdxl = opened(written(folder, "full", best_dtype()))
    plain = Plain.beside(sdxl.backbone, _encoder(sdxl))
    once = SamplingConfig(64, 64, 1, 0.0, "euler_trailing")
    _drawn(FULL, ours=sdxl, plain=plain, config=once, rounds=1, same=False, warm=0)  # touches every weight
    yield from _of_sdxl(sdxl, plain, options, FULL)


def _cpp(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    shape, name = ("full", FULL) if "full" in options.leg else ("wide", WIDE)
    place = written(folder, shape, best_dtype())
    yield f"{name} {options.side}², 3 steps, no guidance ÷ stable-diffusion.cpp fp16", partial(_beside_cpp, place=place, options=options)


def _of_sdxl(ours: Pipeline, plain: Plain, options: argparse.Namespace, name: str) -> Iterator[Row]:
    side, rounds = options.side, options.rounds
    few = SamplingConfig(side, side, 4, 0.0, "euler_trailing")
    guided = replace(few, steps=options.steps, guidance_scale=5.0, scheduler="dpm++2m")
    half = replace(guided, guidance_start=0.2, guidance_stop=0.7)
    deep = replace(guided, cache="deepcache")
    drawn = partial(_drawn, ours=ours, plain=plain, rounds=rounds, warm=1 if name != FULL else 0)
    yield f"{name} {side}², 4 steps, no guidance", partial(drawn, config=few)
    yield f"{name} {side}², {options.steps} steps, guidance 5", partial(drawn, config=guided)
    yield f"{name} 〃, 区間 / guidance interval 0.2:0.7（別の絵 / another picture）", partial(drawn, config=half, same=False)
    yield f"{name} 〃, deepcache（別の絵 / another picture）", partial(drawn, config=deep, same=False)
    yield f"{name} {side // 2}², 4 steps, no guidance", partial(drawn, config=replace(few, width=side // 2, height=side // 2))
    yield f"{name} デコード / decode, {side}²", partial(_decoded, ours=ours, plain=plain, side=side, rounds=rounds)
    yield f"{name} 途中の絵 ÷ デコード / preview ÷ decode, {side}²", partial(_preview, ours=ours, side=side, rounds=rounds)


def _load(options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    shape = "full" if options.leg and "full" in options.leg else "small"
    place = written(folder, shape, torch.bfloat16)
    for dtype in dict.fromkeys((torch.bfloat16, best_dtype())):
        told = str(dtype).removeprefix("torch.")
        yield f"{place.name} を {told} で開く / open as {told}", partial(_opening, place=place, dtype=told, rounds=options.rounds)
    yield "import jpgen ÷ import diffusers", _importing
    yield "起動から一枚 ÷ diffusers の import だけ / cold `jpgen generate` ÷ importing diffusers", _cold
    yield "起動から一枚の内訳 / parts of a cold picture", _cold_parts


LEGS: dict[str, Callable[[argparse.Namespace, Path], Iterator[Row]]] = {"small": _small, "load": _load, "wide": _wide, "full": _full, "cpp": _cpp}


# ── rows ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _drawn(
    name: str, *, ours: Pipeline, plain: Plain, config: SamplingConfig, rounds: int, count: int = 1, same: bool = True, warm: int = 1
) -> Compared:
    """Whole pictures, each arm encoding its prompt; the rival guides on every step."""
    together = Pipeline.from_parts(ours.encoder, ours.backbone, ours.info, batch_size=count)

    def draw() -> np.ndarray:
        together._remembered = Remembered()
        made = together.generate_many([PROMPT], seed=SEEDS[count][0], count=count, config=config, normalize=False)
        return np.stack([np.asarray(one.image) for one in made])

    backbone: Any = ours.backbone
    denoiser = backbone._pipeline.components.get("unet") or backbone._pipeline.transformer
    usual = replace(config, guidance_start=0.0, guidance_stop=1.0, cache="none")
    least = PSNR[denoiser.dtype] if same else None
    return compare(name, draw, lambda: plain.draw(PROMPT, SEEDS[count], usual), rounds=rounds, least=least, warm=warm)


def _repeated(name: str, *, ours: Pipeline, rounds: int) -> Compared:
    """Another seed of a prompt beside its first picture: what remembering it saves."""

    def anew() -> None:
        ours._remembered = Remembered()
        ours.generate(PROMPT, seed=2)

    return compare(name, lambda: ours.generate(PROMPT, seed=2), anew, rounds=rounds, least=None)


def _openvino(name: str, *, ours: Pipeline, rounds: int) -> Compared | str:
    backbone: Any = ours.backbone
    transformer = backbone._pipeline.transformer
    generator = torch.Generator().manual_seed(0)
    channels, side = transformer.config.in_channels, transformer.config.sample_size
    latents = torch.randn(2, channels, side, side, generator=generator)
    text = torch.randn(2, 14, transformer.config.caption_channels, generator=generator)
    inputs = (latents, text, torch.ones(2, 14, dtype=torch.int64), torch.full((2,), 500))
    return _beside_openvino(name, PixArtStep(transformer), inputs, lean(transformer), rounds=4 * rounds)


def _openvino_sdxl(name: str, *, ours: Pipeline, side: int, rounds: int) -> Compared | str:
    backbone: Any = ours.backbone
    unet, spec = backbone._pipeline.unet, backbone.spec
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, side // 8, side // 8), (1, 77, spec.width), (1, spec.pooled_width))
    sizes = torch.tensor([[side, side, 0, 0, side, side]], dtype=torch.float32)
    inputs = (*(torch.randn(shape, generator=generator) for shape in shapes), sizes, torch.tensor(500))
    return _beside_openvino(name, SdxlStep(unet), inputs, backbone._packing.over(unet), rounds=rounds)


def _beside_openvino(
    name: str, step: torch.nn.Module, inputs: Sequence[torch.Tensor], faster: AbstractContextManager[None], *, rounds: int
) -> Compared | str:
    """One forward of the denoiser, with what makes jpgen's `faster`, beside OpenVINO's of the stock one."""
    rival = openvino_forward(step, inputs)
    if rival is None:
        return f"     -  {name}: 入っていない / not installed (pip install 'jpgen[bench]')"
    dtype = next(step.parameters()).dtype
    given = [one.to(dtype) if one.is_floating_point() else one for one in inputs]
    with torch.inference_mode(), faster:
        return compare(name, lambda: np.asarray(step(*given).float()), rival, rounds=rounds, least=PSNR[dtype])


def _beside_cpp(name: str, *, place: Path, options: argparse.Namespace) -> str:
    """Whole pictures and their steps beside stable-diffusion.cpp in fp16: processes in turns, each opening the model before the clock runs."""
    if "stable-diffusion.cpp" in absent():
        return f"     -  {name}: 入っていない / not installed (pip install 'jpgen[bench]')"
    joined(place)
    found: dict[str, list[Any]] = {"jpgen": [], "cpp": []}
    with tempfile.TemporaryDirectory() as scratch:
        pictures = {engine: Path(scratch) / f"{engine}.npy" for engine in found}
        for _ in range(options.rounds):
            for engine, runs in found.items():
                given = ("--side", str(options.side), "--steps", "3", "--threads", str(options.threads))
                runs.append(json.loads(_run("-m", "jpgen.evaluate.bench_steps", engine, str(place), str(pictures[engine]), *given)))
        psnr = nearness(*(np.load(picture) for picture in pictures.values()))
    if psnr < PSNR[torch.float16]:
        raise UnlikeError(f"{name}: 絵が違います / the pictures differ: {psnr:.1f} dB, wanted {PSNR[torch.float16]:.0f}")
    rows = {"whole": name, "step": "〃, 一歩 / a step of it"}
    return "\n".join(str(_taken(told, key, list(found.values()), psnr)) for key, told in rows.items())


def _taken(name: str, key: str, arms: Sequence[Sequence[Any]], psnr: float) -> Compared:
    """The row of what the processes tell under this key."""
    (ours, theirs), clock = (tuple(tuple(run[key][kind] for run in runs) for runs in arms) for kind in (0, 1))
    return Compared(name, ours, theirs, psnr, clock)


def _decoded(name: str, *, ours: Pipeline, plain: Plain, side: int, rounds: int) -> Compared:
    """The autoencoder's part of a picture."""
    backbone: Any = ours.backbone
    latents = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def decode() -> np.ndarray:
        return np.stack([np.asarray(one) for one in backbone.decode(latents)])

    least = PSNR[backbone._pipeline.vae.dtype]
    return compare(name, decode, lambda: plain.decode(latents), rounds=rounds, least=least)


def _preview(name: str, *, ours: Pipeline, side: int, rounds: int) -> Compared:
    """A preview beside a whole decode, after the first one has fitted its matrix."""
    backbone: Any = ours.backbone
    latents = torch.randn(1, 4, side // 8, side // 8, generator=torch.Generator().manual_seed(0))
    config = SamplingConfig(side, side, 1, 1.0)
    with torch.inference_mode():
        shown = partial(backbone._preview.images, latents, config)
        return compare(name, shown, lambda: backbone.decode(latents), rounds=rounds, least=None)


def _counts(name: str, *, ours: Pipeline) -> str:
    """Forwards of one guided picture and of a second one with an interval over half of the steps: exact, whatever else the machine does."""
    ours._remembered = Remembered()
    lines = []
    for told, config in (("全部 / all", ours.config()), ("0.25:0.75", ours.config(guidance_start=0.25, guidance_stop=0.75))):
        with counted(ours) as found:
            ours.generate(PROMPT, seed=1, config=config)
        rows = sum(found.forwards)
        lines.append(f"{told}: {rows} rows in {len(found.forwards)} forwards, encoder {len(found.encoded)}, decoder {len(found.decoded)}")
    return f"     -  {name}: " + "; ".join(lines)


def _opening(name: str, *, place: Path, dtype: str, rounds: int) -> str:
    found = [json.loads(_run("-c", LOAD, str(place), dtype)) for _ in range(min(rounds, 3) + 1)][1:]
    size = sum(file.stat().st_size for part in ("unet", "vae") for file in (place / part).glob("*.safetensors"))
    seconds, grown = min(one[0] for one in found), min(one[1] for one in found)
    return f"     -  {name}: {size / 1e9:.2f} GB, CPU {seconds:.2f} s, RssAnon +{grown / 1e9:.2f} GB"


def _importing(name: str) -> Compared:
    return compare(name, lambda: _run("-c", "import jpgen"), lambda: _run("-c", ENGINE), rounds=3, least=None)


def _cold(name: str) -> Compared:
    """From the start of a process to one picture in its file, beside the imports that a diffusers program does first."""
    with tempfile.TemporaryDirectory() as folder:
        drawing = ("-m", "jpgen.cli", "generate", PROMPT, "-o", str(Path(folder) / "ship.png"))
        return compare(name, lambda: _run(*drawing), lambda: _run("-c", ENGINE), rounds=3, least=None)


def _cold_parts(name: str) -> str:
    """CPU seconds of the stages of a process that draws one picture and ends: of each the median of three."""
    found = []
    for _ in range(3):
        began = cpu_seconds()
        stages = json.loads(_run("-c", COLD))
        found.append([after - before for before, after in pairwise([0.0, *stages, cpu_seconds() - began])])
    told = (f"{stage} {median(seconds):.2f}" for stage, seconds in zip(STAGES, zip(*found, strict=True), strict=True))
    return f"     -  {name}, CPU s: {', '.join(told)}; 計 / in all {median(map(sum, found)):.2f}"


def _encoder(pipeline: Pipeline) -> Any:
    return pipeline.encoder


def _run(*arguments: str) -> str:
    threads = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True, env=threads).stdout


if __name__ == "__main__":
    main()
