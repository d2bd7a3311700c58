"""The built-in translator and the road of a model that reads English alone: nothing of the lexicon lost, weights kept, and what is told of it."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from jpgen import english
from jpgen.catalog import find_model
from jpgen.cli import main
from jpgen.english import BUILTIN, in_english, open_english, to_english, written_in_english
from jpgen.errors import UnknownNameError, WeightsError
from jpgen.evaluate import bench_translate
from jpgen.evaluate.bench_translate import lost, recall, scores
from jpgen.pipeline import Pipeline
from jpgen.prompt.chain import normalize
from jpgen.prompt.lexicon import load_lexicon
from jpgen.prompt.terms import terms
from jpgen.translate import is_japanese, load_translator
from jpgen.translate.glossary import Gloss, Glossed
from jpgen.types import Translation
from tests.toys import stable_diffusion


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def builtin() -> Glossed:
    return Glossed(load_translator("marian", find_model(BUILTIN).folder), terms)


def test_it_is_small_and_knows_the_markers() -> None:
    folder = find_model(BUILTIN).folder
    assert sum(file.stat().st_size for file in folder.iterdir()) < 12e6
    assert load_translator("marian", folder).knows_markers
    card = (folder / "README.md").read_text("utf-8")
    assert all(said in card for said in ("CC BY 2.0 FR", "small_parallel_enja", "BLEU", "jpgen train translator"))


def test_prompts_it_must_know() -> None:
    made = builtin().translate(["赤い猫", "海に浮かぶ船", "白いドレスの少女、森の中", "傘を持った少年"])
    for text, words in zip(made, ("red cat", "ship floating sea", "girl white dress forest", "boy holding umbrella"), strict=True):
        assert all(word in text for word in words.split()), text


def test_no_word_of_the_lexicon_is_lost() -> None:
    texts = [f"{entry.surface}と猫" for entry in load_lexicon()][::7]
    assert lost(builtin(), texts) == []


def test_weights_windows_adapters_and_negative_prompts_stay() -> None:
    (prompt,) = to_english(["赤い猫、(江ノ島:1.3) BREAK (雨:0.8)、8k<lora:ink:0.5>"])
    spans = prompt.translation.spans
    assert [weight for _, weight in spans] == [1.0, 1.3, -1.0, 0.8, 1.0]
    assert "Enoshima" in spans[1][0] and spans[2] == ("BREAK", -1.0) and "rain" in spans[3][0] and spans[4][0].endswith("8k")
    written = written_in_english(prompt)
    assert written.endswith(" <lora:ink:0.5>") and "(Enoshima" in written and ":1.3)" in written
    assert not any(is_japanese(text) for text, _ in spans)
    (done,) = in_english(builtin(), [normalize("猫", negative="(雨:1.2)")])
    assert done.translation.negative == "(rain, falling raindrops:1.2)"
    assert in_english(builtin(), [done]) == [done]  # once is enough


def test_it_says_that_it_is_small_and_the_gloss_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    (prompt,), (plain,) = to_english(["赤い猫"]), to_english(["a red cat"])
    assert prompt.translation.by == BUILTIN and english.NOTES[BUILTIN] in prompt.notes and english.NOTES[BUILTIN] in prompt.explain()
    assert plain.translation == Translation() and plain.notes == () and written_in_english(plain) == "a red cat"

    def gone(_name: str) -> None:
        raise WeightsError("weights are gone")

    monkeypatch.setattr(english, "open_translator", gone)
    assert isinstance(open_english(), Gloss)
    (prompt,) = to_english(["鳥居と猫"])
    assert (prompt.translation.by, prompt.translation.text) == ("gloss", terms("鳥居")[0].english) and english.NOTES["gloss"] in prompt.notes
    with pytest.raises(WeightsError, match="gone"):
        open_english("opus-mt-ja-en")  # what was asked for is not replaced behind one's back


def test_a_model_of_english_has_it_unless_told_otherwise(tmp_path: Path) -> None:
    toy = stable_diffusion.single_sd1(tmp_path / "english.safetensors")
    pipeline = Pipeline(toy.path)
    assert pipeline.route == "translate" and pipeline.translator is not None and pipeline.translator.name == BUILTIN
    made = pipeline.generate("江ノ島", seed=1, config=pipeline.config(width=64, height=64, steps=1))
    assert made.route == "translate" and made.prompt.translation.text.startswith("Enoshima")
    raw, glossed = pipeline.with_translator(""), pipeline.with_translator("gloss")
    assert (raw.route, raw.translator, glossed.route) == ("raw", None, "translate")
    with pytest.raises(UnknownNameError, match="mame-ja-en"):
        pipeline.with_translator("mame-ja-em")


def test_the_command_prints_a_line_a_prompt() -> None:
    run = CliRunner()
    done = run.invoke(main, ["translate", "-"], input="鳥居\n\n(雪:1.2)と8k\n")
    assert done.exit_code == 0 and done.output.splitlines()[0] == terms("鳥居")[0].english and len(done.output.splitlines()) == 2
    assert done.output.splitlines()[1].startswith("(snow:1.2)")
    told = json.loads(run.invoke(main, ["translate", "--json", "--model", "gloss", "文字のない鳥居"]).output)
    assert (told["by"], told["english"]) == ("gloss", terms("鳥居")[0].english) and told["negative"] != "" and len(told["notes"]) >= 1
    for arguments, says in ((["translate", "猫", "--model", "nothing"], "翻訳モデル"), (["translate", " "], "訳すプロンプトがありません")):
        failed = run.invoke(main, arguments)
        assert failed.exit_code == 2 and says in failed.stderr and len(failed.stderr.splitlines()) == 1


def test_the_command_starts_without_torch_being_imported_first() -> None:
    code = "import sys, jpgen.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "False"


def test_the_bench_counts_as_it_says(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert recall(["two red flowers in the heart", ""], ["flower|scarlet/red|art", "cat"]) == 0.5
    assert scores(["a red cat sat on the mat"], ["A red cat sat on the mat"]) == (pytest.approx(100), pytest.approx(100))

    class Perfect:
        name = "perfect"
        knows_markers = True

        def translate(self, texts: Sequence[str]) -> list[str]:
            return [*texts]

    monkeypatch.setattr(bench_translate, "load_translator", lambda *_: Perfect())
    monkeypatch.setattr(bench_translate, "load_lexicon", lambda: ())
    monkeypatch.setattr(bench_translate, "TIMED", 2)
    assert bench_translate.main(["--sentences", "5"]) == 1  # what stays Japanese has few of the words
    told = capsys.readouterr().out
    assert "✗ content-word recall" in told and "✓ words of the lexicon lost: 0" in told
