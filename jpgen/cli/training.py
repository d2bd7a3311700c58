"""Commands that train models: `jpgen train …`; a part of `jpgen.cli`."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from jpgen.cli.command import explained
from jpgen.cli.measuring import train_clip_command


@click.group("train")
def train_group() -> None:
    """モデルを学習します / train models (pip install 'jpgen[train]')."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")


@train_group.command("mame")
@click.option("--stage", required=True, help="art, text_encoder, autoencoder, latents, backbone, decoder, grain, sheet, score")
@click.option("--data", type=click.Path(path_type=Path), default=Path("train/data"), show_default=True, help="絵の置き場 / art and sprites")
@click.option("--out", type=click.Path(path_type=Path), default=Path("train/mame"), show_default=True, help="モデルの置き場 / the model's folder")
@click.option("--steps", type=int, default=2000, show_default=True, help="通算のステップ数 / steps in all")
@click.option("--decay", type=int, default=0, show_default=True, help="最後に学習率を下げるステップ数 / steps of the final decay")
@click.option("--shards", type=int, default=6, show_default=True, help="シャード数（一つ五千場面） / shards of 5,000 scenes")
@click.option("--learning-rate", type=float, default=2e-3, show_default=True, help="backbone の学習率 / learning rate of the backbone")
@explained
def train_mame_command(stage: str, data: Path, out: Path, steps: int, decay: int, shards: int, learning_rate: float) -> None:
    """内蔵モデル mame を学習します。途中で止めても続きから / train mame, resumable."""
    from jpgen.train import mame

    mame.run_stage(stage, data, out, steps=steps, decay=decay, shards=shards, learning_rate=learning_rate)


@train_group.command("sdxl")
@click.option("--stage", required=True, help="latents, tokenizer, clip, unet, ceiling")
@click.option("--data", type=click.Path(path_type=Path), default=Path("train/data"), show_default=True, help="スプライトの置き場 / sprites")
@click.option("--out", type=click.Path(path_type=Path), default=Path("train/mame-sdxl"), show_default=True, help="モデルの置き場 / its folder")
@click.option("--steps", type=int, default=2000, show_default=True, help="通算のステップ数 / steps in all")
@click.option("--decay", type=int, default=0, show_default=True, help="最後に学習率を下げるステップ数 / steps of the final decay")
@click.option("--shards", type=int, default=4, show_default=True, help="シャード数（一つ五千場面） / shards of 5,000 scenes")
@explained
def train_sdxl_command(stage: str, data: Path, out: Path, steps: int, decay: int, shards: int) -> None:
    """英語だけを読む小さな SDXL、mame-sdxl を学習します / train mame-sdxl, a small SDXL that reads English alone, resumable."""
    from jpgen.train import sdxl

    sdxl.run_stage(stage, data, out, steps=steps, decay=decay, shards=shards)


@train_group.command("adapter")
@click.argument("recipe")
@click.option("--encoder", default="", help="日本語を読むエンコーダのモデル / the model whose encoder reads Japanese")
@click.option("--backbone", default="", help="英語を学んだモデル / the model that learnt English")
@click.option("--data", type=click.Path(path_type=Path), multiple=True, help="対訳の TSV（日本語<TAB>英語、何度でも） / pairs of texts")
@click.option("--scenes", help="場面の説明文も使う: mame、mame-sdxl / captions of the scenes of this staging, too")
@click.option("--lexicon/--no-lexicon", default=True, show_default=True, help="辞書も使う / the lexicon, too")
@click.option("--out", type=click.Path(path_type=Path), default=Path("train/adapter"), show_default=True, help="置き場 / where it goes")
@click.option("--steps", type=int, default=0, help="通算のステップ数（省くとレシピのもの） / steps in all, else the recipe's")
@explained
def train_adapter_command(
    recipe: str, encoder: str, backbone: str, data: tuple[Path, ...], scenes: str | None, lexicon: bool, out: Path, steps: int
) -> None:
    """日本語のエンコーダと英語のモデルをつなぐアダプタを学習します。RECIPE は同梱の名前（mame-sdxl、sdxl）か TOML / train an adapter, resumable."""
    from jpgen.train.adapter import read_recipe, train_adapter, with_pair
    from jpgen.train.pairs import SCENES, lexicon_pairs, read_pairs, scene_pairs

    pairs = [pair for file in data for pair in read_pairs(file)]
    pairs += lexicon_pairs() if lexicon else []
    pairs += scene_pairs(scenes, SCENES) if scenes else []
    sources = [*(file.name for file in data), *(["lexicon"] if lexicon else []), *([f"scenes of {scenes}"] if scenes else [])]
    click.echo(f"{train_adapter(with_pair(read_recipe(recipe), encoder, backbone), pairs, out, sources=sources, steps=steps)}")


@train_group.command("judge")
@click.option("--data", type=click.Path(path_type=Path), default=Path("train/data"), show_default=True, help="スプライトの置き場 / sprites")
@click.option("--out", type=click.Path(path_type=Path), default=Path("train/judge"), show_default=True, help="判定器の置き場 / the judge's folder")
@click.option("--steps", type=int, default=2500, show_default=True, help="通算のステップ数 / steps in all")
@click.option("--learning-rate", type=float, default=1e-3, show_default=True, help="学習率の最大 / the highest learning rate")
@explained
def train_judge_command(data: Path, out: Path, steps: int, learning_rate: float) -> None:
    """絵を読む判定器を学習します / train the judge that reads pictures."""
    from jpgen.train.judge import train_judge

    train_judge(data, out, steps=steps, learning_rate=learning_rate)


@train_group.command("translator")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="対訳（small_parallel_enja）の置き場 / Tanaka pairs")
@click.option("--out", type=click.Path(path_type=Path), default=Path("train/translator"), show_default=True, help="書き出す先 / the model's folder")
@click.option("--steps", type=int, default=2000, show_default=True, help="通算のステップ数 / steps in all")
@click.option("--decay", type=int, default=0, show_default=True, help="最後に学習率を下げるステップ数 / steps of the final decay")
@explained
def train_translator_command(data: Path, out: Path, steps: int, decay: int) -> None:
    """内蔵の日英翻訳モデルを学習します。途中で止めても続きから / train the built-in translator, resumable."""
    from jpgen.train.translator import train_translator

    train_translator(data, out, steps=steps, decay=decay)


train_group.add_command(train_clip_command)
