"""`jpgen evolve`: a recipe's numbers searched by the pictures they draw."""

from __future__ import annotations

import json
from pathlib import Path

import click

from jpgen.cli.command import explained


@click.command("evolve")
@click.argument("study", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="記録の置き場（省くと STUDY から .yaml を取った名前） / the study's folder")
@click.option("--workers", type=int, default=1, show_default=True, help="プロセスの数。結果は変わらない / processes; results are the same")
@click.option("--evaluations", type=int, help="評価の回数（増やせば続きから） / trials in all; more of them go on with the search")
@click.option("--weight", "weights", multiple=True, metavar="NAME=W", help="最良を選ぶ目的の重み（何度でも） / an objective's weight in the choice")
@click.option("--held-out/--no-held-out", default=True, show_default=True, help="最後に検証用のプロンプトで比べる / compare by held-out prompts")
@click.option("--example", type=click.Path(path_type=Path), metavar="FOLDER", help="すぐ動く study を書き出す / write a study that runs as it is")
@click.option("--json", "as_json", is_flag=True, help="結果を JSON で出す / as JSON")
@explained
def evolve_command(
    study: Path | None, output: Path | None, workers: int, evaluations: int | None, weights: tuple[str, ...], held_out: bool,
    example: Path | None, as_json: bool,
) -> None:
    """配合の数を、描く絵で探します。止めても続きから。STUDY の scorer はそのまま実行されます / search a recipe's numbers by pictures, resumable."""
    from jpgen.errors import StudyError
    from jpgen.evolve.run import Progress, evolve, summary
    from jpgen.types import plain_data

    if example is not None:
        from jpgen.evolve.example import write_example

        click.echo(f"{write_example(example)}")
        return
    if study is None:
        raise StudyError("study のファイルを書いてください / name a study file, or write one with --example FOLDER")

    def told(one: Progress) -> None:
        scores, reached = (" ".join("—" if s is None else f"{s:.4f}" for s in of.scores) if of else "" for of in (one.outcome, one.best))
        best = "" if one.best is None else f"、最良 / best {one.best.id}: {reached}"
        left = "" if one.left is None else f"、残り / left {int(one.left) // 60}:{int(one.left) % 60:02d}"
        click.echo(f"{one.done}/{one.total} 試行 / trial {one.trial.id}: {scores}{best}{left}", err=True)

    found = evolve(
        study, output=output, workers=workers, evaluations=evaluations, weights=_weights(weights), held_out=held_out, on_progress=told
    )
    if as_json:
        click.echo(json.dumps({**plain_data(found), "folder": str(found.folder), "recipe": str(found.recipe)}, ensure_ascii=False))
        return
    click.echo(f"{found.recipe}")
    if found.rivals:
        click.echo(summary(found.rivals))


def _weights(given: tuple[str, ...]) -> dict[str, float] | None:
    from jpgen.errors import SettingError

    try:
        return {name: float(value) for name, _, value in (one.rpartition("=") for one in given)} or None
    except ValueError as error:
        raise SettingError(f"--weight は judge=1 のように書いてください / write --weight as judge=1, got {', '.join(given)}") from error
