"""Marian translators against transformers, span by span, and the road of a model that reads English alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

import jpgen
from jpgen import backbones
from jpgen.api import load_generation, open_pipeline
from jpgen.cli import main
from jpgen.encoders import clip
from jpgen.encoders.tokenizers import clip_tokenizer
from jpgen.errors import IncompatibleError, UnknownNameError, WeightsError
from jpgen.metadata import read_settings
from jpgen.pipeline import Pipeline
from jpgen.protocols import Translator
from jpgen.translate import is_japanese, load_translator, open_translator, translate_spans
from jpgen.types import Prompt, Translation
from tests.backbones.test_sd import by_transformers, plain
from tests.toys import stable_diffusion
from tests.toys.marian import PAIRS, marian, only_a_pickle, open_plainly

SETTINGS = {"width": 64, "height": 64, "steps": 2, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return marian(tmp_path_factory.mktemp("translators") / "opus-mt-ja-en")


@pytest.fixture
def sd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> stable_diffusion.Parts:
    """Stable Diffusion 1 in a single file, with CLIP's own English tokenizer."""
    for module in (clip, backbones):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)
    open_pipeline.cache_clear()
    return stable_diffusion.single_sd1(tmp_path / "english.safetensors")


class Shout:
    """Answers in capitals what it was asked, and remembers it."""

    name = "shout"

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def translate(self, texts: Sequence[str]) -> list[str]:
        self.asked.append([*texts])
        return [f"<{PAIRS.get(text, 'something').upper()}>" for text in texts]


# ── the translator ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_it_is_transformers_beam_search(folder: Path) -> None:
    translator = load_translator("marian", folder)
    assert isinstance(translator, Translator) and translator.name == "opus-mt-ja-en"
    model, tokenizer = open_plainly(folder)
    texts = [*PAIRS, "赤い犬", "白い海と船"]  # the last two it was never taught
    for text, made in zip(texts, translator.translate(texts), strict=True):
        with torch.inference_mode():
            ids = model.generate(**tokenizer([text], return_tensors="pt"), num_beams=4, max_new_tokens=63, early_stopping=True)
        assert made == tokenizer.batch_decode(ids, skip_special_tokens=True)[0]
    assert translator.translate([*PAIRS]) == [*PAIRS.values()]


def test_company_changes_nothing(folder: Path) -> None:
    translator = load_translator("marian", folder)
    texts = ["赤い猫", "犬と海", "", "白い犬の赤い海と船", "雨"] * 8  # more than one batch
    together = translator.translate(texts)
    assert together[2] == "" and together == [translator.translate([text])[0] for text in texts[:5]] * 8 == translator.translate(texts)


def test_sentences_one_by_one_and_nothing_is_cut_off(folder: Path) -> None:
    translator = load_translator("marian", folder)
    assert translator.translate(["赤い猫。青い船！\n雨"]) == [" ".join(translator.translate(["赤い猫。", "青い船！", "雨"]))]
    long = "赤い猫、" * 30  # one sentence, more tokens than the model has places
    pieces = [*translator._pieces(long)]
    assert "".join(pieces) == long and all(translator._fits(piece) for piece in pieces) and len(pieces) > 1
    letters = [*translator._pieces("猫犬" * 60)]
    assert "".join(letters) == "猫犬" * 60 and all(map(translator._fits, letters)) and len(letters) > 1


def test_a_pickle_is_refused_and_the_way_out_works(tmp_path: Path) -> None:
    folder = only_a_pickle(tmp_path / "fugumt-ja-en")
    with pytest.raises(WeightsError, match=r"only pickles \(pytorch_model\.bin\).*not opened.*save_pretrained") as caught:
        load_translator("marian", folder)
    assert "\n" not in str(caught.value)
    way = str(caught.value).split("trust with it: ")[1].replace("FOLDER", str(folder))
    exec(way, {})
    assert load_translator("marian", folder).translate(["赤い猫"]) == ["a red cat"]


def test_what_is_no_translator_is_told(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(WeightsError, match="there is no folder"):
        load_translator("marian", tmp_path / "none")
    with pytest.raises(WeightsError, match=r"no Marian translator, it has no config\.json, source\.spm"):
        load_translator("marian", tmp_path)
    for name, change, says in (
        ("t5", {"model_type": "t5"}, "type 't5', wanted 'marian'"),
        ("narrow", {"d_model": 48}, "cannot read the translator|has no"),
        ("small", {"vocab_size": 9, "decoder_vocab_size": 9, "pad_token_id": 8, "decoder_start_token_id": 8}, "cannot read|not of one model"),
    ):
        marian(tmp_path / name)
        config = json.loads((tmp_path / name / "config.json").read_text())
        (tmp_path / name / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(WeightsError, match=says):
            load_translator("marian", tmp_path / name)
    file = marian(tmp_path / "cut") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="cut off"):
        load_translator("marian", tmp_path / "cut")
    with pytest.raises(UnknownNameError, match="'opus-mt-ja-en'"):
        open_translator("opus-mt-ja")
    with pytest.raises(IncompatibleError, match="mame is no translator"):
        open_translator("mame")
    with pytest.raises(IncompatibleError, match="opus-mt-ja-en is a translator"):
        _opened_from_a_row(tmp_path, folder)


def _opened_from_a_row(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "mine.toml").write_text(f'[opus-mt-ja-en]\npath = "{folder}"\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))
        assert open_translator("opus-mt-ja-en").translate(["雨"]) == ["rain"]
        Pipeline("opus-mt-ja-en")


# ── spans ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("spans", "wanted"),
    [
        ([("赤い猫", 1.0)], [("<A RED CAT>", 1.0)]),
        ([("赤い猫、", 1.0), ("青い船", 1.3), ("。雨", 0.8)], [("<A RED CAT>, ", 1.0), ("<A BLUE SHIP>", 1.3), (". <RAIN>", 0.8)]),
        ([("a cat, ", 1.0), ("海", 1.2), ("BREAK", -1.0), ("8k", 1.0)], [("a cat, ", 1.0), ("<THE SEA>", 1.2), ("BREAK", -1.0), ("8k", 1.0)]),
        ([("", 1.0), ("café （naïve）", 1.1)], [("", 1.0), ("café （naïve）", 1.1)]),
    ],
)
def test_weights_and_windows_stay(spans: list[tuple[str, float]], wanted: list[tuple[str, float]]) -> None:
    assert translate_spans(Shout(), [spans]) == [tuple(wanted)]


def test_words_do_not_grow_together_and_equal_texts_are_asked_once() -> None:
    class Plain(Shout):
        def translate(self, texts: Sequence[str]) -> list[str]:
            return [text.strip("<>") for text in super().translate(texts)]

    translator = Plain()
    made = translate_spans(translator, [[("赤い猫", 1.0), ("青い船", 1.3), ("BREAK", -1.0), ("海", 1.0)], [("赤い猫", 1.0)], [("", 1.0)]])
    assert made[0] == (("A RED CAT", 1.0), (" A BLUE SHIP", 1.3), ("BREAK", -1.0), ("THE SEA", 1.0))
    assert translator.asked == [["赤い猫", "青い船", "海"]]


def test_what_is_japanese() -> None:
    assert all(map(is_japanese, ("猫", "ﾈｺ", "々", "𠮷", "ー", "a の b")))
    assert not any(map(is_japanese, ("cat", "、。！", "", "café", "한국어")))


# ── the road ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def english(toy: stable_diffusion.Parts, text: str) -> torch.Tensor:
    return by_transformers(toy.texts[0], [49406, *clip_tokenizer().encode(text)], 49407, 49407)


def test_a_model_of_english_sees_english(sd: stable_diffusion.Parts, folder: Path, tmp_path: Path) -> None:
    """The layout: a Marian folder before Stable Diffusion; what the encoder saw is what transformers makes of transformers' translation."""
    model, tokenizer = open_plainly(folder)
    with torch.inference_mode():
        ids = model.generate(**tokenizer(["赤い猫", "青い船"], return_tensors="pt", padding=True), num_beams=4, max_new_tokens=63)
    one, other = tokenizer.batch_decode(ids, skip_special_tokens=True)
    made = jpgen.generate("赤い猫", model=sd.path, negative="青い船", seed=7, translator=folder, **SETTINGS)
    np.testing.assert_allclose(np.asarray(made.image, int), plain(sd.unet, sd.vae, english(sd, one), english(sd, other)), atol=1)
    assert (made.route, made.prompt.text, made.prompt.negative) == ("translate", "赤い猫", "青い船")
    assert made.prompt.translation == Translation("opus-mt-ja-en", "a red cat", "a blue ship", (("a red cat", 1.0),))
    assert "translate (opus-mt-ja-en): 「赤い猫」→「a red cat」" in made.prompt.explain()
    for suffix in (".png", ".jpg"):  # repeated from its own words, without the translator
        path = made.save(tmp_path / f"made{suffix}")
        assert read_settings(path).prompt == made.prompt
        again = load_generation(path, model=str(sd.path))
        assert (again.image.tobytes(), again.route, again.prompt) == (made.image.tobytes(), "translate", made.prompt)


def test_weights_and_adapters_survive(sd: stable_diffusion.Parts, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JPGEN_LORAS", str(tmp_path / "loras"))
    (tmp_path / "loras").mkdir()
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    width = sd.unet.get_submodule(module).in_features
    pair = {f"unet.{module}.lora_A.weight": torch.randn(2, width), f"unet.{module}.lora_B.weight": torch.randn(width, 2)}
    save_file(pair, tmp_path / "loras" / "ink.safetensors")
    made = jpgen.generate("赤い猫、(青い船:1.4)<lora:ink:0.5>", model=sd.path, negative="(雨:1.2)", seed=7, translator=folder, **SETTINGS)
    assert made.prompt.translation.spans == (("a red cat, ", 1.0), ("a blue ship", 1.4))
    assert (made.prompt.translation.negative, made.prompt.loras) == ("(rain:1.2)", (("ink", 0.5),))
    typed = jpgen.generate("a red cat, (a blue ship:1.4)<lora:ink:0.5>", model=sd.path, negative="(rain:1.2)", seed=7, normalize=True, **SETTINGS)
    assert made.image.tobytes() == typed.image.tobytes()


def test_without_a_translator_it_says_raw(sd: stable_diffusion.Parts) -> None:
    made = jpgen.generate("赤い猫", model=sd.path, seed=7, normalize=False, translator="", **SETTINGS)
    np.testing.assert_allclose(np.asarray(made.image, int), plain(sd.unet, sd.vae, english(sd, "赤い猫"), english(sd, "")), atol=1)
    assert (made.route, made.prompt.translation) == ("raw", Translation())


def test_english_passes_untouched(sd: stable_diffusion.Parts, folder: Path) -> None:
    plainly = jpgen.generate("A Red Cat, café", model=sd.path, negative="rain", seed=7, **SETTINGS)
    made = jpgen.generate("A Red Cat, café", model=sd.path, negative="rain", seed=7, translator=folder, **SETTINGS)
    assert (made.image.tobytes(), made.prompt, made.route) == (plainly.image.tobytes(), plainly.prompt, "raw")


def test_each_text_is_translated_once_for_many_pictures(sd: stable_diffusion.Parts) -> None:
    shout = Shout()
    pipeline = Pipeline(sd.path, translator=shout)
    config = pipeline.config(**SETTINGS | {"steps": 1})
    many = pipeline.generate_many(["赤い猫", "cat", "海"], seed=1, count=2, negative="雨", config=config)
    assert [made.prompt.translation.text for made in many] == ["<A RED CAT>"] * 2 + ["cat"] * 2 + ["<THE SEA>"] * 2
    assert [made.route for made in many] == ["translate"] * 6  # the negative prompt is Japanese
    assert shout.asked == [["赤い猫", "雨", "海"]]


def test_a_row_may_name_its_translator(sd: stable_diffusion.Parts, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = '[{0}]\nfamily = "{1}"\npath = "{2}"\nlicense = "MIT"\ncommercial = "yes"\ntitle = "{0}"\n'
    told = row.format("words", "marian", folder) + row.format("mine", "sd", sd.path) + 'route = "translate"\nparts = { translator = "words" }\n'
    (tmp_path / "mine.toml").write_text(told)
    monkeypatch.setenv("JPGEN_CATALOG", str(tmp_path / "mine.toml"))
    made = jpgen.generate("海", model="mine", seed=7, **SETTINGS)
    assert (made.route, made.prompt.translation.text) == ("translate", "the sea")
    monkeypatch.chdir(tmp_path)
    run = ["generate", "海", "--model", str(sd.path), "--translator", "words", "--seed", "7", "--size", "64", "--steps", "2", "--json"]
    done = CliRunner().invoke(main, run)
    told = json.loads(done.output)
    assert (told["route"], told["prompt"]["translation"]["text"]) == ("translate", "the sea")
    done = CliRunner().invoke(main, ["generate", "海", "--model", str(sd.path), "--translator", "wordz"])
    assert done.exit_code == 2 and "翻訳モデル" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_model_of_japanese_reads_it_itself(toy: Pipeline) -> None:
    prompt = Prompt("海", "海", translation=Translation("shout", "<THE SEA>", "", (("<THE SEA>", 1.0),)))
    made = toy.generate(prompt, seed=1)
    assert (made.route, made.prompt.translation) == ("native", Translation())
    assert made.image.tobytes() == toy.generate("海", seed=1).image.tobytes()
    asked = toy.with_translator(Shout())
    told = asked.generate("海", seed=1)
    assert (told.route, asked.generate("cat", seed=1).route, asked.encoder) == ("translate", "native", toy.encoder)
    assert told.image.tobytes() != made.image.tobytes()


def test_pipelines_that_read_texts_see_english_too(folder: Path) -> None:
    from jpgen.backbones import diffusers
    from jpgen.types import ModelInfo

    backbone = diffusers.toy()
    pipeline = Pipeline.from_parts(None, backbone, ModelInfo("t", "0", "MIT", "0"), route="translate", translator=open_translator(folder))
    made = pipeline.generate("赤い猫", negative="雨", seed=3)
    wanted = backbone.sample_texts(["a red cat"], ["rain"], backbone.default, generators=[torch.Generator().manual_seed(3)])[0]
    assert (made.image.tobytes(), made.route) == (wanted.tobytes(), "translate")
