"""Training the translator: what it learns from, and a run that was killed goes on to the same losses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from jpgen.cli import main
from jpgen.errors import TrainingDataError
from jpgen.train import alignment, parallel, translator
from jpgen.train.parallel import Parallel, plain_english, tanaka
from jpgen.train.phrases import Phrases, phrase_words
from jpgen.translate import is_japanese, load_translator
from jpgen.translate.markers import LOOKS, MARKERS, NOUNS, PLACES, STYLES

SENTENCES = [
    (f"彼 は {number} 個 目 の {thing} を 持 っ て い る 。", f"he has the {english} {number} , and i don 't .")
    for thing, english in (("りんご", "apple"), ("帽子", "hat"), ("時計", "clock"), ("鍵", "key"))
    for number in range(2, 12)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "tanaka"
    folder.mkdir()
    for side, name in enumerate(("train.ja", "train.en")):
        (folder / name).write_text("".join(f"{pair[side]}\n" for pair in SENTENCES), "utf-8")
    return folder


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything as small as it goes."""
    monkeypatch.setattr(parallel, "HELD_OUT", 8)
    for module in (parallel, translator):
        monkeypatch.setattr(module, "CHUNK", 60)
    small = {
        "WIDTH": 32, "ENCODER_LAYERS": 1, "DECODER_LAYERS": 1, "HEADS": 2, "ENCODER_HIDDEN": 32, "DECODER_HIDDEN": 32, "PIECES": 700,
        "VOCABULARY_CHUNKS": 2, "ALIGNED_CHUNKS": 1, "TOKENS": 300, "SAVE_EVERY": 2, "LOG_EVERY": 1, "WARM_UP": 2,
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(translator, name, value)


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "translator.jsonl").read_text().splitlines()]


def test_tanaka_as_written_and_held_out(data: Path, small: None) -> None:
    learnt, held = tanaka(data)
    assert len(held) == 8 and len(learnt) == len(SENTENCES) - 8 and not {*learnt} & {*held}
    assert tanaka(data) == (learnt, held)
    assert all(" " not in ja and en.endswith(", and i don't.") for ja, en in [*learnt, *held])
    assert plain_english("i 'm sorry , `` mr. smith '' , i can 't .") == 'i\'m sorry, "mr. smith", i can\'t.'
    chunk = {ja.rstrip("。") for number in range(3) for ja, _ in Parallel(data).chunk(number)}
    assert not chunk & {ja.rstrip("。") for ja, _ in held} and chunk & {ja.rstrip("。") for ja, _ in learnt}


def test_nothing_it_is_measured_by_is_learnt_from(data: Path, small: None) -> None:
    rows = [line.split("\t") for line in Path("prompts/translation_eval.tsv").read_text("utf-8").splitlines()]
    measured = {row[0] for row in rows[1:]}
    assert len(measured) == 200 and all(len(row) == 3 for row in rows)
    assert not measured & {ja for number in range(20) for ja, _ in Parallel(data).chunk(number)}


def test_what_is_missing_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingDataError, match=r"train\.ja: give --data the folder of small_parallel_enja"):
        tanaka(tmp_path)
    (tmp_path / "train.ja").write_text("a\nb\n")
    (tmp_path / "train.en").write_text("a\n")
    with pytest.raises(TrainingDataError, match="2 lines of Japanese, 1 of English"):
        tanaka(tmp_path)


def test_practice_sentences_say_the_same_in_both_languages() -> None:
    phrases, again = Phrases(np.random.default_rng(3)), Phrases(np.random.default_rng(3))
    made = [phrases.prompt() for _ in range(400)]
    assert made == [again.prompt() for _ in range(400)]
    for ja, en in made:
        assert ja and en and not is_japanese(en) and not re.search(r"  |~|\||\ba [aio]|, ,", en), (ja, en)
        assert sorted(set(ja) & {*MARKERS}) == sorted(set(en) & {*MARKERS}), (ja, en)  # what is to be carried over is on both sides
    assert {NOUNS[1], LOOKS[1], PLACES[1], STYLES[1]} <= {sign for ja, _ in made for sign in ja}
    kinds = phrase_words()
    assert all(word.within for kind in ("place", "time") for word in kinds[kind]) and all(word.by and word.to for word in kinds["at"])


def test_markers_take_the_place_of_words_on_both_sides(data: Path, small: None) -> None:
    marked = [(ja, en) for number in range(30) for ja, en in Parallel(data).chunk(number)[:23] if {*MARKERS} & {*ja}]
    assert marked and all({*MARKERS} & {*ja} == {*MARKERS} & {*en} for ja, en in marked)


def test_a_run_that_was_killed_goes_on_to_the_same_losses(data: Path, small: None, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    translator.train_translator(data, whole, steps=6)
    translator.train_translator(data, cut, steps=3)  # the state of step 2 is what a kill after it leaves
    before = losses(cut)
    (cut / "translator.jsonl").unlink()
    translator.train_translator(data, cut, steps=6)
    assert before[:2] == losses(whole)[:2] and losses(cut) == losses(whole)[2:]
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, cut))  # their headers' texts come in any order
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    (cut / "translator.pt").write_bytes(b"half")
    with pytest.raises(TrainingDataError, match="delete it to start over"):
        translator.train_translator(data, cut, steps=7)


def test_what_it_writes_is_a_translator(data: Path, small: None, tmp_path: Path) -> None:
    out = tmp_path / "made"
    done = CliRunner().invoke(main, ["train", "translator", "--data", str(data), "--out", str(out), "--steps", "4", "--decay", "2"])
    assert done.exit_code == 0, done.output
    state = torch.load(out / "translator.pt", weights_only=True)
    assert state["step"] == 2  # before the decay
    opened = load_translator("marian", out)
    assert opened.knows_markers and not any(map(is_japanese, opened.translate(["赤い猫", "彼はりんごを持っている。"])))


def test_the_embedding_starts_from_what_goes_together() -> None:
    red, blue, cat, dog = 0, 1, 2, 3  # and 4 more for what they are in English
    pairs = [([look, thing], [look + 4, thing + 4]) for look in (red, blue) for thing in (cat, dog)]
    start = torch.nn.functional.normalize(alignment.bilingual_embedding(pairs, 8, 64), dim=1)
    assert start.shape == (8, 64)
    likeness = start[:4] @ start[4:].T
    assert likeness.argmax(dim=1).tolist() == [red, blue, cat, dog] and float(likeness.diagonal().min()) > 0.7
