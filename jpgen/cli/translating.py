"""`jpgen translate`: prompts in English, as models that read English alone get them."""

from __future__ import annotations

import json
import sys

import click

from jpgen.cli.command import explained


@click.command("translate")
@click.argument("text")
@click.option("--model", help="翻訳モデル（名前かフォルダ。省くと内蔵、gloss: 辞書だけ） / a translator, gloss: lexicon alone")
@click.option("--normalize/--no-normalize", default=True, show_default=True, help="プロンプトを読み解く（jpgen normalize） / read the prompt first")
@click.option("--json", "as_json", is_flag=True, help="一行に一つの JSON / one JSON object a line")
@explained
def translate_command(text: str, model: str | None, normalize: bool, as_json: bool) -> None:
    """TEXT を英語のプロンプトにします。「-」なら標準入力から一行に一つ / a prompt in English; '-' reads one a line from stdin."""
    from jpgen.english import to_english, written_in_english
    from jpgen.errors import PromptError

    lines = [line.strip() for line in (sys.stdin if text == "-" else [text])]
    lines = [line for line in lines if line]
    if not lines:
        raise PromptError("訳すプロンプトがありません / no prompt to translate: write one, or one a line on standard input")
    made = to_english(lines, translator=model, normalize=normalize)
    for prompt in made:
        english = written_in_english(prompt)
        if as_json:
            told = {
                "source": prompt.source, "english": english, "negative": prompt.translation.negative or prompt.negative, "by": prompt.translation.by,
                "notes": prompt.notes,
            }  # fmt: skip
            click.echo(json.dumps(told, ensure_ascii=False))
        else:
            click.echo(english)
    if not as_json and sys.stderr.isatty():
        for note in dict.fromkeys(note for prompt in made for note in prompt.notes):
            click.echo(f"jpgen: {note}", err=True)
