"""`jpgen score`, `jpgen compare` and `jpgen train clip`: pictures measured against words."""

from __future__ import annotations

import json
from pathlib import Path

import click

from jpgen.cli.command import explained


@click.command("score")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("labels", nargs=-1, metavar="LABEL...")
@click.option("--model", default="mame-clip", show_default=True, help="採点モデルの名前かフォルダ / scorer")
@click.option("--template", "templates", multiple=True, metavar="TEXT", help="ラベルを入れる文。例: {}の写真（何度でも） / text around a label")
@click.option("--top", type=int, help="上位だけ / only the likeliest")
@click.option("--json", "as_json", is_flag=True, help="JSON で出す / as JSON lines")
@explained
def score_command(image: Path, labels: tuple[str, ...], model: str, templates: tuple[str, ...], top: int | None, as_json: bool) -> None:
    """IMAGE が LABEL のどれに見えるか、確率の順に。LABEL が一つなら、どれだけ合うか / which label a picture shows; of one, how well it suits."""
    from jpgen.evaluate.scores import clip_score, zero_shot

    if len(labels) == 1:
        (score,) = clip_score([image], labels, model=model)
        click.echo(json.dumps({"text": labels[0], "score": score}, ensure_ascii=False) if as_json else f"{score:.2f}\t{labels[0]}")
        return
    for label, probability in zero_shot(image, labels, model=model, templates=templates or None)[:top]:
        row = {"label": label, "probability": probability}
        click.echo(json.dumps(row, ensure_ascii=False) if as_json else f"{probability * 100:5.1f} %\t{label}")


@click.command("compare")
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("--arm", "arms", multiple=True, metavar="NAME:KEY=VALUE,...", help="描き方（何度でも）。例: raw:normalize=off / a way to draw")
@click.option("--seeds", type=int, default=4, show_default=True, help="一つのプロンプトのシードの数 / seeds a prompt")
@click.option("--scorer", default="mame-clip", show_default=True, help="採点モデルの名前かフォルダ / scorer")
@click.option("--split", default="", help="TSV の split がこれの行だけ / only rows of this split")
@click.option("--limit", type=int, help="N 個だけ、全体から均等に / only N prompts, evenly from the whole")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("comparison"), show_default=True, help="置き場 / folder")
@click.option("--json", "as_json", is_flag=True, help="JSON で出す / as JSON")
@explained
def compare_command(
    prompts: Path, arms: tuple[str, ...], seeds: int, scorer: str, split: str, limit: int | None, output: Path, as_json: bool
) -> None:
    """PROMPTS（TSV: ja, en, clean, tags）を同じシードで描き比べます。止めても続きから / draw and score prompts in several ways, resumable."""
    from jpgen.evaluate.cases import JAPANESE_AND_ENGLISH, Arm, read_cases
    from jpgen.evaluate.compare import compare

    def told(done: int, total: int) -> None:
        if done % 10 == 0 or done == total:
            click.echo(f"{done}/{total}", err=True)

    chosen = [Arm.parse(arm) for arm in arms] or JAPANESE_AND_ENGLISH
    cases = read_cases(prompts, split=split, limit=limit)
    found = compare(cases, arms=chosen, seeds=range(seeds), model=scorer, output=output, on_progress=told)
    if as_json:
        click.echo(found.table.to_json(orient="index", force_ascii=False))
        return
    click.echo(found.table.to_string(na_rep="—"))
    click.echo(str(found.folder / "report.html"))


@click.command("clip")
@click.option("--data", type=click.Path(path_type=Path), default=Path("train/data"), show_default=True, help="絵の置き場 / art and sprites")
@click.option("--out", type=click.Path(path_type=Path), default=Path("train/clip"), show_default=True, help="モデルの置き場 / the model's folder")
@click.option("--steps", type=int, default=3900, show_default=True, help="通算のステップ数 / steps in all")
@click.option("--shards", type=int, default=80, show_default=True, help="シャード数（一つ五百場面） / shards of 500 scenes")
@click.option("--pictures", type=int, default=1000, show_default=True, help="測る絵の数（0 なら測らない） / pictures to measure on, 0: none")
@explained
def train_clip_command(data: Path, out: Path, steps: int, shards: int, pictures: int) -> None:
    """内蔵の日本語 CLIP（mame-clip）を学習し、見たことのない絵柄で測ります。続きから / train mame-clip and measure it, resumable."""
    from jpgen.train.clip import train_clip
    from jpgen.train.clip_measure import measure_clip
    from jpgen.train.clip_scenes import prepare_more_art

    prepare_more_art(data)
    clip = train_clip(data, out, steps=steps, shards=shards)
    if pictures > 0:
        click.echo(json.dumps(measure_clip(clip, data, pictures=pictures)))
