"""`jpgen merge RECIPE -o OUT`, `jpgen merge verify OUT`, `jpgen merge methods`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jpgen.cli.command import FAILED, explained

if TYPE_CHECKING:
    from jpgen.merge.plan import Plan

RUN = "run"


class _RecipeOrCommand(click.Group):
    """A group whose first word may be a recipe: `jpgen merge mine.yaml` is `jpgen merge run mine.yaml` (click has no other way to say so)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            args = [RUN, *args]
        return super().parse_args(ctx, args)


@click.group("merge", cls=_RecipeOrCommand)
def merge_group() -> None:
    """RECIPE でモデルを配合します（jpgen merge RECIPE -o OUT） / merge models by a recipe: jpgen merge RECIPE -o OUT."""


@merge_group.command(RUN, hidden=True)
@click.argument("recipe")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="書き出す .safetensors かフォルダ / where to write, a file or a folder")
@click.option("--dtype", default="", help="fp32, bf16, fp16, fp8（省くと最初のモデルの型） / type of the result (that of the first model)")
@click.option("--layout", type=click.Choice(["single", "diffusers"]), help="書き出す形式（省くと OUTPUT の名前から） / the layout to write")
@click.option("--threads", type=click.IntRange(1, 64), help="スレッド数（結果は変わらない） / threads; they change nothing in the result")
@click.option("--dry-run", is_flag=True, help="確かめるだけで書かない / check and tell, write nothing")
@explained
def merge_run_command(recipe: str, output: Path | None, dtype: str, layout: str | None, threads: int | None, dry_run: bool) -> None:
    """RECIPE（YAML か JSON、または付属のレシピ名）で配合します / merge by a recipe: a YAML or JSON file, or the name of one that came with jpgen."""
    from jpgen.errors import OutputError
    from jpgen.merge.engine import require_other, write
    from jpgen.merge.plan import plan
    from jpgen.merge.provenance import describe
    from jpgen.merge.reading import load_recipe
    from jpgen.merged import find_input, require_terms, terms_of

    read = load_recipe(recipe)
    read = replace(read, dtype=dtype or read.dtype, layout=layout or read.layout)
    if output is None and not dry_run:
        raise OutputError("書き出す先がありません / no output: say -o OUT.safetensors, or --dry-run")
    require_terms(read)
    made = plan(read, find_input, output=output)
    _tell(made)
    if output is None or dry_run:
        return
    require_other(output, made)
    click.echo(f"{write(made, output, describe(made, terms_of(read)), threads=threads, companions=_furnish)}")


@merge_group.command("verify")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--folder", "folders", type=click.Path(path_type=Path), multiple=True, help="入力を探すフォルダ（何度でも） / where inputs may be")
@click.option("--threads", type=click.IntRange(1, 64), help="スレッド数 / threads")
@explained
def merge_verify_command(file: Path, folders: tuple[Path, ...], threads: int | None) -> None:
    """FILE を自身のメタデータから作り直し、同じかを確かめます / make FILE again of its own metadata, and compare."""
    from jpgen.merge.provenance import verify
    from jpgen.merged import find_input

    found = verify(file, find=find_input, folders=folders, threads=threads)
    if found.differing:
        told = ", ".join(found.differing[:5])
        click.echo(f"jpgen: {file} はレシピどおりではありません / is not what its recipe gives: {len(found.differing)} tensors: {told}", err=True)
        raise SystemExit(FAILED)
    click.echo(f"{file}: レシピどおりです / is what its recipe gives: {found.tensors} tensors of {found.inputs} inputs, every byte")


@merge_group.command("methods")
@click.option("--json", "as_json", is_flag=True, help="JSON で一行ずつ / one JSON object a line")
@explained
def merge_methods_command(as_json: bool) -> None:
    """配合の方法と、その数の範囲 / the methods, and the ranges of their numbers."""
    from jpgen.merge.methods import METHODS, find_method
    from jpgen.types import plain_data

    for method in map(find_method, METHODS):
        if as_json:
            row = {"name": method.name, "inputs": method.inputs, "about": method.about, "parameters": plain_data(dict(method.parameters))}
            click.echo(json.dumps(row, ensure_ascii=False))
            continue
        numbers = []
        for name, one in method.parameters.items():
            default = "" if one.default is None else f" = {one.default:g}"
            told = "true/false" if one.flag else f"{one.range.low:g}…{one.range.high:g}{' each' if one.each else ''}"
            numbers.append(f"{name}: {told}{default}")
        click.echo(f"{method.name} ({method.inputs}){': ' if numbers else ''}{', '.join(numbers)}\n  {method.about}")


def _furnish(file: Path, folder: Path) -> None:
    from jpgen.convert import furnish  # here: it loads diffusers

    furnish(file, folder)


def _tell(made: Plan) -> None:
    """What will be merged, and what of each adapter goes where."""
    for leaf, paths in made.files.items():
        told = f"{len(made.sources[leaf].tensors)} tensors" if leaf in made.sources else ""  # type: ignore[index]
        for lora, adapter in made.adapters.items():
            if lora == leaf:
                told = f"{len(adapter.changes)} / {len(adapter.changes)} modules -> {len(made.shares[lora])} tensors"
        click.echo(f"{leaf.name}: {told} ({', '.join(path.name for path in paths[:3])})", err=True)
    click.echo(f"{len(made.tensors)} tensors, {made.size / 1e9:.2f} GB, {made.bytes_needed / 1e9:.2f} GB read", err=True)
