"""The command line: `jpgen generate`, `jpgen normalize`, `jpgen models`, `jpgen train …`. Only here is anything printed."""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jpgen.cli.command import explained, for_good
from jpgen.cli.demo import demo_command
from jpgen.cli.evolving import evolve_command
from jpgen.cli.measuring import compare_command, score_command
from jpgen.cli.merging import merge_group
from jpgen.cli.prompts import prompts_group
from jpgen.cli.training import train_group
from jpgen.cli.translating import translate_command
from jpgen.cli.weights import convert_command, lora_group
from jpgen.dozing import doze
from jpgen.errors import PromptError

if TYPE_CHECKING:
    from jpgen.pictures import Sources
    from jpgen.pipeline import Pipeline
    from jpgen.types import Generation, SamplingConfig, Step

@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="jpgen", prog_name="jpgen")
def main() -> None:
    """日本語から絵を作ります / pictures from Japanese prompts."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries are not for the reader: jpgen says what came of them
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # nor that torchvision would read pictures faster
    atexit.register(gc.freeze)  # else Python looks through all that torch brought once more before it ends: over a second


@main.command("generate")
@click.argument("prompt")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="書き出す先（.png .jpg .webp。省くと自動） / where to write")
@click.option("--model", default="mame", show_default=True, help="モデルの名前 / model name")
@click.option("--negative", default="", help="描きたくないもの / what must not appear")
@click.option("--seed", type=int, help="シード（同じ値なら同じ絵） / seed")
@click.option("--steps", type=int, help="ステップ数 / sampling steps")
@click.option("--guidance", type=float, help="ガイダンスの強さ / guidance scale")
@click.option("--scheduler", help="サンプラー / sampler name")
@click.option("--size", help="大きさ。例: 256 または 256x320 / size in pixels, W or WxH")
@click.option("--count", type=int, default=1, show_default=True, help="一つのプロンプトから作る枚数 / pictures a prompt")
@click.option("--emphasis", help="（猫：１．２）の重みの効かせ方: a1111, a1111-nonorm, comfy, compel / how attention weights act")
@click.option("--lora", "loras", multiple=True, metavar="FILE[:WEIGHT]", help="LoRA のファイルか名前と重み（何度でも） / a LoRA and its weight")
@click.option("--clip-skip", type=int, help="エンコーダの最後から何番目の層を読むか（1: 最後） / which layer of CLIP, from its end")
@click.option("--guidance-interval", help="ガイダンスを効かせる区間。ステップの割合で 0.1:0.8 のように / guide on these steps only, as fractions")
@click.option("--cache", help="ステップの使い回し（速いが絵は変わる）: deepcache, firstblock / step cache, faster and lossy")
@click.option("--optimize", is_flag=True, help="CUDA でコンパイルなどをする（初めの一枚は遅い） / compile on CUDA, the first picture is slow")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="プロンプトを読み解く（jpgen normalize） / read the prompt first")
@click.option("--translator", help="英語しか読まないモデルに使う翻訳モデル（名前かフォルダ） / translator, for models of English alone")
@click.option("--adapter", type=click.Path(path_type=Path), help="日本語エンコーダをつなぐアダプタ / an adapter of a Japanese encoder")
@click.option("--route", default="auto", show_default=True, help="日本語の渡し方: auto native adapter translate raw / how Japanese gets there")
@click.option("--accept-license", is_flag=True, help="モデルの利用条件を読み、承諾したことを記録する / record that you accept the model's terms")
@click.option("--init", type=click.Path(path_type=Path), help="元にする絵 / a picture to begin from")
@click.option("--strength", type=float, help="元の絵をどれだけ描き直すか 0〜1（既定 0.6） / how much of it is drawn anew (0.6)")
@click.option("--mask", type=click.Path(path_type=Path), help="白い所だけ描き直す / only where this picture is white")
@click.option("--control", multiple=True, metavar="NET=IMAGE[:SCALE]", help="ControlNet と従う絵（何度でも） / a net and the picture it follows")
@click.option("--upscale", type=float, default=1.0, help="描いてから何倍かに描き直す。例: 2 / then draw it again so many times larger")
@click.option("--tile", is_flag=True, help="つなぎ目のない絵にする / a texture without a seam")
@click.option("--vae", type=click.Path(path_type=Path), help="VAE を替える（フォルダかファイル） / an autoencoder in the place of the model's own")
@click.option("--json", "as_json", is_flag=True, help="結果を JSON で一行ずつ出す / one JSON object a line")
@explained
def generate_command(
    prompt: str, output: Path | None, model: str, negative: str, seed: int | None, steps: int | None, guidance: float | None,
    scheduler: str | None, size: str | None, count: int, emphasis: str | None, normalize: bool, translator: str | None, accept_license: bool,
    as_json: bool, loras: tuple[str, ...], clip_skip: int | None, guidance_interval: str | None, cache: str | None, optimize: bool,
    init: Path | None, strength: float | None, mask: Path | None, control: tuple[str, ...], upscale: float, tile: bool, vae: Path | None,
    adapter: Path | None, route: str,
) -> None:
    """PROMPT の絵を作ります。「-」なら標準入力から一行に一つ読みます / make a picture; '-' reads a prompt a line from stdin."""
    width, height = _size(size)
    prompts = _prompts(prompt)

    with for_good():
        if not optimize:
            doze()
        from jpgen.adapters import parse_loras
        from jpgen.api import opened
        from jpgen.metadata import file_name, require_writable

    total = len(prompts) * max(count, 1)
    if output is not None:
        require_writable(output)
    if accept_license:
        from jpgen import models
        from jpgen.catalog import load_catalog
        from jpgen.merged import members

        models.accept_license(*(one for name, row in load_catalog().items() if name in (model, translator) for one in members(row)))
    start, stop = _interval(guidance_interval)
    with for_good():
        pipeline = opened(model, vae=vae, translator=translator, adapter=adapter, route=route, optimize=optimize)
    sources = _sources(init, strength, mask, control, upscale, tile)
    config = pipeline.config(
        width=width, height=height, steps=steps, guidance_scale=guidance, scheduler=scheduler, emphasis=emphasis, clip_skip=clip_skip,
        guidance_start=start, guidance_stop=stop, cache=cache,
    )  # fmt: skip
    weighted = parse_loras(loras)
    for index, made in enumerate(_drawn(pipeline, prompts, config, negative, seed, count, normalize, weighted, sources)):
        target = _numbered(output, index, total) if output else Path(file_name(made))
        _tell(made, made.save(target), as_json)


@main.command("normalize")
@click.argument("text")
@click.option("--off", multiple=True, help="使わない規則（何度でも） / a rule to leave out")
@click.option("--seed", type=int, default=0, show_default=True, help="{猫|犬} や __季節__ を選ぶシード / seed of the choices")
@click.option("--lexicon", type=click.Path(path_type=Path), multiple=True, help="足す辞書（TSV） / a lexicon file to add")
@click.option("--json", "as_json", is_flag=True, help="一行に一つの JSON / one JSON object a line")
@explained
def normalize_command(text: str, off: tuple[str, ...], seed: int, lexicon: tuple[Path, ...], as_json: bool) -> None:
    """TEXT がどう読まれるか。「-」なら標準入力から一行に一つ / how a prompt is read; '-' reads one a line from stdin."""
    from jpgen.prompt import normalize
    from jpgen.types import plain_data

    for line in _prompts(text):
        read = normalize(line, off=off, seed=seed, lexicon=lexicon)
        if as_json:
            click.echo(json.dumps(plain_data(read), ensure_ascii=False))
            continue
        click.echo(read.written)
        if read.negative:
            click.echo(f"  ネガティブ / negative: {read.negative}")
        for told in read.explain().splitlines():
            click.echo(f"  {told}")


WHERE = {"builtin": "内蔵", "local": "手元", "fetched": "取得済み", "absent": "未取得", "recipe": "配合"}
COMMERCIAL = {"yes": "商用可", "no": "商用不可", "ask": "商用は要確認"}


@main.group("models", invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="JSON で出す / as JSON lines")
@click.pass_context
@explained
def models_group(context: click.Context, as_json: bool) -> None:
    """使えるモデルの一覧。show で詳しく、accept で利用条件を承諾 / list the models; show one, accept its terms."""
    if context.invoked_subcommand:
        return
    from jpgen.catalog import load_catalog
    from jpgen.models import whereabouts

    for entry in load_catalog().values():
        where = whereabouts(entry)
        row = {
            "name": entry.name, "title": entry.title, "license": entry.license, "commercial": entry.commercial, "gated": entry.gated,
            "where": where, "family": entry.family, "revision": entry.revision, "route": entry.route,
        }  # fmt: skip
        gate = "、要同意" if entry.gated else ""
        told = f"{entry.name}\t{WHERE[where]}\t{entry.title}\t{entry.license}（{COMMERCIAL[entry.commercial]}{gate}）"
        click.echo(json.dumps(row, ensure_ascii=False) if as_json else told)


@models_group.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="JSON で出す / as JSON")
@explained
def models_show_command(name: str, as_json: bool) -> None:
    """NAME について分かっていること。未確認のものには印を付けます / what is known of a model; what is not verified is marked."""
    from jpgen.catalog import SCORERS, TRANSLATORS, find_model
    from jpgen.models import license_accepted, license_page, restricted, whereabouts
    from jpgen.types import plain_data

    entry = find_model(name)
    where, asked, accepted = whereabouts(entry), restricted(entry), license_accepted(entry)
    if as_json:
        click.echo(json.dumps({**plain_data(entry), "where": where, "restricted": asked, "accepted": accepted}, ensure_ascii=False))
        return
    settings = "" if entry.family in (*TRANSLATORS, *SCORERS) else " ".join(f"{key}={value}" for key, value in plain_data(entry.default).items())
    terms = "" if not asked else "、承諾済み / accepted" if accepted else f"、未承諾 / not accepted: jpgen models accept {name}"
    rows = [
        ("場所 / where", f"{WHERE[where]} / {where}"),
        ("取得元 / source", f"{entry.repo}@{entry.revision}" if entry.repo else entry.path),
        ("利用条件 / license", f"{entry.license}（{COMMERCIAL[entry.commercial]} / commercial: {entry.commercial}）{terms}"),
        ("読む所 / read it at", license_page(entry) if asked else ""),
        ("同意 / gated", "ハブでの同意とログインが要る / terms to accept on the hub, and a login" if entry.gated else ""),
        ("系統 / family", f"{entry.family}{f', {entry.encoder}' if entry.encoder else ''}"),
        ("日本語 / Japanese", "" if entry.family in TRANSLATORS else entry.route),
        ("既定 / default", settings),
        ("部品 / parts", " ".join(f"{key}={value}" for key, value in entry.parts.items())),
        ("ファイル / files", " ".join(entry.files)),
        *((f"SHA-256 {file}", digest) for file, digest in entry.sha256.items()),
        *(("出典 / says", source) for source in entry.sources),
        *(("未確認 / unverified", fact) for fact in entry.unverified),
    ]
    click.echo(f"{entry.name}: {entry.title}")
    for title, value in rows:
        if value:
            click.echo(f"  {title}: {value}")


@models_group.command("accept")
@click.argument("names", nargs=-1, required=True)
@explained
def models_accept_command(names: tuple[str, ...]) -> None:
    """NAMES の利用条件を読んで承諾したことを記録します / record that you have read and accepted the terms of these models."""
    from jpgen.catalog import find_model
    from jpgen.merged import members
    from jpgen.models import accept_license, license_page, restricted

    for entry in [find_model(name) for name in names]:
        accepted = accept_license(*members(entry))
        for one in accepted:
            click.echo(f"{one.name}: {one.license} を承諾しました / accepted ({license_page(one)})")
        if not accepted:
            why = "承諾済みです / accepted already" if restricted(entry) else "承諾は要りません / nothing to accept"
            click.echo(f"{entry.name}: {why} ({entry.license})")


@main.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="JSON で出す / as JSON lines")
@explained
def doctor_command(as_json: bool) -> None:
    """この計算機で何を選ぶか、それはなぜか / what jpgen chooses on this machine, and why."""
    from jpgen.doctor import examine
    from jpgen.types import plain_data

    for found in examine():
        why = f"（{found.why}）" if found.why else ""
        click.echo(json.dumps(plain_data(found), ensure_ascii=False) if as_json else f"{found.title}: {found.value}{why}")


main.add_command(train_group)
main.add_command(score_command)
main.add_command(compare_command)
main.add_command(convert_command)
main.add_command(demo_command)
main.add_command(evolve_command)
main.add_command(merge_group)
main.add_command(translate_command)
main.add_command(lora_group)
main.add_command(prompts_group)


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    width, _, height = size.lower().replace("×", "x").partition("x")
    try:
        return int(width), int(height or width)
    except ValueError as error:
        from jpgen.errors import SettingError

        raise SettingError(f"--size {size!r} は 256 か 256x320 のように書いてください / write the size as 256 or 256x320") from error


def _sources(
    init: Path | None, strength: float | None, mask: Path | None, controls: tuple[str, ...], upscale: float, tile: bool
) -> Sources:
    """What the options give to draw from; raises SettingError for options that want another."""
    from jpgen.errors import SettingError
    from jpgen.pictures import Sources
    from jpgen.types import Control, InitImage

    if init is None and (mask is not None or strength is not None):
        raise SettingError("--mask と --strength には --init（元の絵）が要ります / --mask and --strength want --init, a picture to begin from")
    parsed = []
    for control in controls:
        net, equals, rest = control.partition("=")
        image, colon, scale = rest.rpartition(":")
        if not (net and equals and rest):
            raise SettingError(f"--control {control!r} は NET=IMAGE か NET=IMAGE:0.8 のように書いてください / write it as NET=IMAGE or NET=IMAGE:0.8")
        try:
            parsed.append(Control(net, image, float(scale)) if colon else Control(net, rest))
        except ValueError:  # a colon of the path
            parsed.append(Control(net, rest))
    begin = None if init is None else InitImage(init, mask=mask) if strength is None else InitImage(init, strength, mask)
    return Sources(begin, tuple(parsed), tile, upscale)


def _interval(interval: str | None) -> tuple[float | None, float | None]:
    if interval is None:
        return None, None
    start, _, stop = interval.partition(":")
    try:
        return float(start or 0), float(stop or 1)
    except ValueError as error:
        from jpgen.errors import SettingError

        wanted = "は 0.1:0.8 のように書いてください / write the interval as 0.1:0.8"
        raise SettingError(f"--guidance-interval {interval!r} {wanted}") from error


def _prompts(argument: str) -> list[str]:
    if argument != "-":
        return [argument]
    lines = [line.strip() for line in sys.stdin.buffer.read().decode("utf-8", "surrogateescape").splitlines()]
    prompts = [line for line in lines if line]
    if not prompts:
        raise PromptError("標準入力にプロンプトがありません / no prompt on standard input: write one a line")
    return prompts


def _drawn(
    pipeline: Pipeline, prompts: list[str], config: SamplingConfig, negative: str, seed: int | None, count: int, normalize: bool,
    loras: dict[str, float], sources: Sources,
) -> Iterable[Generation]:
    """The pictures, with a progress bar on a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("描いています / drawing", total=len(prompts) * max(count, 1) * config.steps)
        done = 0

        def on_step(step: Step) -> None:
            progress.update(task, completed=(done + step.index / step.total) * config.steps)

        pictures = pipeline.stream(
            prompts, negative=negative, seed=seed, count=count, config=config, normalize=normalize, loras=loras, on_step=on_step,
            init=sources.init, controls=sources.controls, tile=sources.tile, upscale=sources.upscale,
        )  # fmt: skip
        for made in pictures:
            done += 1
            progress.update(task, completed=done * config.steps)
            yield made


def _numbered(output: Path, index: int, total: int) -> Path:
    return output if total == 1 else output.with_name(f"{output.stem}-{index + 1:0{len(str(total))}d}{output.suffix}")


def _tell(made: Generation, path: Path, as_json: bool) -> None:
    if not as_json:
        click.echo(f"{path}")
        return
    from jpgen.types import plain_data

    click.echo(json.dumps({"path": str(path), **plain_data(made)}, ensure_ascii=False))
