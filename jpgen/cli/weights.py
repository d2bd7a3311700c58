"""Commands on weight files: `jpgen convert`, `jpgen lora …`; a part of `jpgen.cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from jpgen.cli.command import explained

DTYPES = ("fp32", "fp16", "bf16")

FILE = click.Path(path_type=Path)


@click.command("convert")
@click.argument("source", type=FILE)
@click.argument("output", type=FILE)
@click.option("--layout", type=click.Choice(["diffusers", "single"]), help="書き出す形式（省くと OUTPUT の名前から） / the layout to write")
@explained
def convert_command(source: Path, output: Path, layout: str | None) -> None:
    """単一ファイル（A1111 など）と diffusers 形式のフォルダを変換します / convert a single file into a diffusers folder, or back."""
    from jpgen.convert import convert

    click.echo(f"{convert(source, output, layout=layout or '')}")


@click.group("lora")
def lora_group() -> None:
    """LoRA を混ぜる・取り出す・小さくする・調べる / merge, extract, resize and show LoRA files."""


@lora_group.command("merge")
@click.argument("loras", nargs=-1, required=True, metavar="FILE[:WEIGHT]...")
@click.option("-o", "--output", required=True, type=FILE, help="書き出す先 / where to write")
@click.option("--rank", type=int, help="ランク（省くと正確な和） / the rank; without, the exact sum")
@click.option("--keys", type=click.Choice(["kohya", "peft"]), help="キーの名前（省くと最初のもの） / names of keys, else as in the first file")
@click.option("--dtype", type=click.Choice(DTYPES), default="fp32", show_default=True, help="書き出す型 / type of the values")
@click.option("--allow-unmatched", is_flag=True, help="知らないキーと足せないモジュールを除く / leave out unknown keys and what does not add up")
@explained
def lora_merge_command(loras: tuple[str, ...], output: Path, rank: int | None, keys: str | None, dtype: str, allow_unmatched: bool) -> None:
    """LoRA を重みつきで足し合わせます / the weighted sum of LoRA files, exact unless a rank is given."""
    from jpgen.adapters import parse_loras
    from jpgen.merge.lora_files import merge_loras

    weighted = [(Path(name), weight) for name, weight in parse_loras(loras).items()]
    modules = merge_loras(weighted, output, rank=rank, keys=keys or "", dtype=_dtype(dtype), allow_unmatched=allow_unmatched)
    click.echo(f"{output}: {modules} of {modules} モジュール / modules")


@lora_group.command("resize")
@click.argument("source", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="書き出す先 / where to write")
@click.option("--rank", type=int, required=True, help="新しいランク / the new rank")
@click.option("--keys", type=click.Choice(["kohya", "peft"]), help="キーの名前（省くと元のまま） / names of keys, else those of the file")
@click.option("--dtype", type=click.Choice(DTYPES), default="fp16", show_default=True, help="書き出す型 / type of the values")
@explained
def lora_resize_command(source: Path, output: Path, rank: int, keys: str | None, dtype: str) -> None:
    """LoRA のランクを変えます（SVD） / a LoRA of another rank, by SVD."""
    from jpgen.merge.lora_files import resize_lora

    modules = resize_lora(source, output, rank=rank, keys=keys or "", dtype=_dtype(dtype))
    click.echo(f"{output}: {modules} of {modules} モジュール / modules, rank {rank}")


@lora_group.command("extract")
@click.argument("tuned", type=FILE)
@click.argument("base", type=FILE)
@click.option("-o", "--output", required=True, type=FILE, help="書き出す先 / where to write")
@click.option("--rank", type=int, default=32, show_default=True, help="ランク / the rank")
@click.option("--keys", type=click.Choice(["kohya", "peft"]), default="kohya", show_default=True, help="キーの名前 / names of keys")
@click.option("--dtype", type=click.Choice(DTYPES), default="fp16", show_default=True, help="書き出す型 / type of the values")
@click.option("--full", is_flag=True, help="正規化層とバイアスの差も入れる / keep the changes of norms and biases, too")
@click.option("--allow-unmatched", is_flag=True, help="片方にしかないキーを無視する / pass over keys that only one model has")
@click.option("--json", "as_json", is_flag=True, help="層ごとの誤差を JSON で出す / the error of each layer, one JSON object a line")
@explained
def lora_extract_command(
    tuned: Path, base: Path, output: Path, rank: int, keys: str, dtype: str, full: bool, allow_unmatched: bool, as_json: bool
) -> None:
    """TUNED と BASE の差を LoRA にします（単一ファイルでもフォルダでも） / the LoRA that makes TUNED of BASE."""
    from rich.console import Console
    from rich.progress import Progress

    from jpgen.merge.extraction import extract_lora

    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("取り出しています / extracting")
        made = extract_lora(
            tuned, base, output, rank=rank, keys=keys, dtype=_dtype(dtype), full=full, allow_unmatched=allow_unmatched,
            on_layer=lambda done, total: progress.update(task, completed=done, total=total),
        )  # fmt: skip
    if as_json:
        for layer in made.layers:
            click.echo(json.dumps({"name": layer.name, "rank": layer.rank, "norm": layer.norm, "error": layer.error}, ensure_ascii=False))
        return
    count = len(made.layers)
    click.echo(f"{output}: {count} of {count} 層 / changed layers, {made.unchanged} 変化なし / unchanged, 誤差 / error {made.error:.2%}")
    worst = sorted(made.layers, key=lambda layer: -layer.error)[:3]
    click.echo("  " + "  ".join(f"{layer.name} {layer.error:.2%}" for layer in worst))
    for title, names in (("入らない差 / changed but left out", made.left_out), ("片方だけ / in one model alone", made.unmatched)):
        if names:
            click.echo(f"  {title}: {len(names)} ({', '.join(names[:3])}{' …' if len(names) > 3 else ''})")


@lora_group.command("show")
@click.argument("file", type=FILE)
@click.option("--json", "as_json", is_flag=True, help="モジュールごとに JSON で出す / one JSON object a module")
@explained
def lora_show_command(file: Path, as_json: bool) -> None:
    """LoRA の種類、系統、ランク、大きさ / the kind of a LoRA file, what it is for, its ranks and norms."""
    from jpgen.merge.lora_files import show
    from jpgen.types import plain_data

    adapter, modules = show(file)
    if as_json:
        for module in modules:
            click.echo(json.dumps(plain_data(module), ensure_ascii=False))
        return
    kinds = ", ".join(sorted({module.kind for module in modules}))
    ranks = sorted({module.rank for module in modules if module.rank})
    click.echo(f"{file}: {kinds}（{adapter.layout.variant}）{len(modules)} モジュール / modules, {adapter.hash}")
    click.echo(f"  ランク / rank: {', '.join(map(str, ranks)) or '-'}")
    for part in dict.fromkeys(module.part for module in modules):
        own = [module for module in modules if module.part == part]
        norms = [module.norm for module in own if module.norm is not None]
        told = f"{sum(norm**2 for norm in norms) ** 0.5:.4g}（最大 / largest {max(norms):.4g}）" if norms else "-"
        click.echo(f"  {part}: {len(own)} モジュール / modules, ノルム / norm {told}")


def _dtype(name: str) -> Any:
    import torch

    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
