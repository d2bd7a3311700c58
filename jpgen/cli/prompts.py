"""`jpgen prompts`: the prompts that come with jpgen, searched and listed."""

from __future__ import annotations

import json

import click

from jpgen.cli.command import explained

KINDS = ("pairs", "messy", "culture", "negatives", "styles", "wildcards")


@click.group("prompts")
def prompts_group() -> None:
    """付属のプロンプトを探し、一覧します / search and list the prompts that come with jpgen."""


@prompts_group.command("search")
@click.argument("text")
@click.option("--tag", help="この札のあるものだけ（jpgen prompts list で見られます） / only those with this tag")
@click.option("--split", help="dev か held-out だけ / only this half")
@click.option("--json", "as_json", is_flag=True, help="一行に一つの JSON / one JSON object a line")
@explained
def search_command(text: str, tag: str | None, split: str | None, as_json: bool) -> None:
    """TEXT のあるプロンプトを探します。読みでも、英語でも / find prompts by a word, its reading, or English."""
    from jpgen import prompts

    found = prompts.search(text, tag=tag, split=split)
    if not found:
        click.echo(f"「{text}」は見つかりません / nothing found for {text!r}", err=True)
    _tell(found, as_json)


@prompts_group.command("list")
@click.argument("kind", type=click.Choice(KINDS), required=False)
@click.option("--tag", help="この札（culture では分類）のものだけ / only those with this tag (of culture: category)")
@click.option("--json", "as_json", is_flag=True, help="一行に一つの JSON / one JSON object a line")
@explained
def list_command(kind: str | None, tag: str | None, as_json: bool) -> None:
    """KIND の中身。省くと、何がいくつあるか / what is in one kind; without it, how much there is of each."""
    from jpgen import prompts
    from jpgen.errors import SettingError
    from jpgen.prompt import Wildcards, load_styles

    if tag is not None and kind not in ("pairs", "messy", "culture"):
        raise SettingError(f"--tag は pairs、messy、culture に使えます / --tag goes with pairs, messy or culture, got {kind}")
    if kind == "pairs":
        _tell(prompts.pairs(tag=tag), as_json)
    elif kind == "messy":
        _tell(prompts.messy(tag=tag), as_json)
    elif kind == "culture":
        _tell(prompts.culture(category=tag), as_json)
    elif kind == "negatives":
        _tell(tuple(prompts.negatives().values()), as_json)
    elif kind == "styles":
        _tell(tuple(load_styles().values()), as_json)
    elif kind == "wildcards":
        wildcards = Wildcards.default()
        _tell(tuple({"name": name, "lines": wildcards.lines(name)} for name in wildcards.names()), as_json)
    else:
        _tell(_overview(), as_json)


def _overview() -> tuple[dict[str, object], ...]:
    """How many there are of each kind, tag and category."""
    from jpgen import prompts
    from jpgen.prompt import Wildcards, load_styles

    halves = {split: len(prompts.pairs(split=split)) for split in prompts.SPLITS}
    return (
        {"kind": "pairs", "title": "日本語と英語の組", "count": len(prompts.pairs()), **halves},
        *({"kind": f"pairs/{tag}", "title": title, "count": len(prompts.pairs(tag=tag))} for tag, title in prompts.TAGS.items()),
        {"kind": "messy", "title": "打ったままのプロンプト", "count": len(prompts.messy())},
        *({"kind": f"messy/{tag}", "title": title, "count": len(prompts.messy(tag=tag))} for tag, title in prompts.MESSY_TAGS.items()),
        {"kind": "culture", "title": "日本のもの", "count": len(prompts.culture())},
        *({"kind": f"culture/{one}", "title": title, "count": len(prompts.culture(category=one))} for one, title in prompts.CATEGORIES.items()),
        {"kind": "negatives", "title": "ネガティブ", "count": len(prompts.negatives())},
        {"kind": "styles", "title": "スタイル", "count": len(load_styles())},
        {"kind": "wildcards", "title": "ワイルドカード", "count": len(Wildcards.default().names())},
    )


def _tell(rows: tuple[object, ...], as_json: bool) -> None:
    from jpgen.types import plain_data

    for row in rows:
        data = plain_data(row)
        told = "\t".join("、".join(cell) if isinstance(cell, list) else str(cell) for cell in data.values())
        click.echo(json.dumps(data, ensure_ascii=False) if as_json else told)
