"""A language model as text encoder against transformers, and what is refused of a folder."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from jpgen.encoders import llm, load_encoder, t5
from jpgen.errors import SettingError, WeightsError
from tests.toys.diffusion_transformers import language_model, t5_parts

TEXTS = ["赤い猫", "a ship </s> and a sea", ""]


@pytest.fixture(autouse=True)
def _in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (llm, t5):
        monkeypatch.setattr(module, "best_dtype", lambda *_device: torch.float32)


@pytest.mark.parametrize("hidden_layer", [-1, -2, 0, 2])
def test_it_is_the_layer_as_transformers_counts(tmp_path: Path, hidden_layer: int) -> None:
    language_model(tmp_path / "text_encoder")
    encoder = load_encoder("llm", tmp_path, hidden_layer=hidden_layer, max_tokens=40, vae="of no use here")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "text_encoder")
    made = encoder.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        ids = torch.tensor([[1, *encoder.tokenize(text)]])
        with torch.inference_mode():
            states = model(ids, output_hidden_states=True).hidden_states[hidden_layer][0]
        torch.testing.assert_close(made.tokens[row, : len(states)], states, atol=1e-5, rtol=1e-4)
        assert made.mask[row].sum() == len(states) and not made.tokens[row, len(states) :].any()


def test_the_window_is_what_was_asked_for_or_what_there_is() -> None:
    toy = llm.toy()
    assert (toy.window.begin, toy.window.end, toy.window.length) == ((1,), (), 127)
    assert llm.LlmEncoder("toy", _model(), toy._tokenizer, max_tokens=40).window.length == 39
    with pytest.raises(SettingError, match="no room"):
        llm.LlmEncoder("toy", _model(), toy._tokenizer, max_tokens=1)


@pytest.mark.parametrize("hidden_layer", [-4, 3])
def test_layers_that_are_not_there_are_refused(hidden_layer: int) -> None:
    with pytest.raises(SettingError, match="-3–2"):
        llm.toy(hidden_layer=hidden_layer)


def test_names_of_special_tokens_in_a_text_are_text() -> None:
    toy = llm.toy()
    assert len(toy.tokenize("<s>猫</s>")) == len("<s>猫</s>".encode())
    assert not {0, 1, 2} & {*toy.tokenize("<s>猫</s><unk>")}


def test_the_head_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _model()
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: pytest.fail("the head ran"))
    assert llm.LlmEncoder("toy", model, llm.toy()._tokenizer).encode(["猫"]).tokens.shape == (1, 4, 32)


def test_shards_are_read_and_a_missing_one_is_named(tmp_path: Path) -> None:
    language_model(tmp_path / "one")
    whole = llm.load(tmp_path, text_encoder="one").encode(TEXTS)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    (tmp_path / "one" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "one", max_shard_size="20KB")
    shards = sorted((tmp_path / "one").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert torch.equal(llm.load(tmp_path, text_encoder="one").encode(TEXTS).tokens, whole.tokens)
    shards[1].unlink()
    with pytest.raises(WeightsError, match=shards[1].name):
        llm.load(tmp_path, text_encoder="one")


def test_a_model_with_code_of_its_own_is_refused(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text_encoder")
    config = json.loads((folder / "config.json").read_text())
    code = {"model_type": "plamo2", "auto_map": {"AutoConfig": "configuration_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps({**config, **code}))
    for name in ("configuration_evil.py", "modeling_evil.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(WeightsError, match="bring their own code are refused"):
        llm.load(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text_encoder")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match="pickle"):
        llm.load(tmp_path)


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = language_model(tmp_path / "text_encoder")
    toy = llm.toy()
    toy._tokenizer.add_tokens(["neko"])
    toy._tokenizer.save(str(folder / "tokenizer.json"))
    with pytest.raises(WeightsError, match="not of one model"):
        llm.load(tmp_path)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = language_model(tmp_path / "text_encoder") / "model.safetensors"
    save_file({name: t for name, t in load_file(file).items() if "layers.1.mlp" not in name}, file, metadata={"format": "pt"})
    with pytest.raises(WeightsError, match=r"has no .*layers\.1\.mlp"):
        llm.load(tmp_path)


# ── T5 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_t5_is_transformers_and_writes_small_for_pixart_alone(tmp_path: Path) -> None:
    from transformers import T5EncoderModel

    t5_parts(tmp_path)
    encoder = load_encoder("t5", tmp_path, max_tokens=20)
    assert encoder.tokenize("Cat") != encoder.tokenize("cat")
    ids = torch.tensor([[*encoder.tokenize("a cat"), 1]])
    with torch.inference_mode():
        wanted = T5EncoderModel.from_pretrained(tmp_path / "text_encoder")(ids).last_hidden_state
    torch.testing.assert_close(encoder.encode(["a cat", "a red dog"]).tokens[:1, : ids.shape[1]], wanted, atol=1e-5, rtol=1e-4)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtSigmaPipeline"}))
    encoder = load_encoder("t5", tmp_path)
    assert encoder.tokenize("Cat") == encoder.tokenize("cat") and encoder.window.length == 299


def test_t5_reads_spiece_model(tmp_path: Path) -> None:
    """What the hub's T5 folders hold: no tokenizer.json; transformers 5 would want protobuf."""
    from sentencepiece import SentencePieceTrainer

    t5_parts(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    with (tmp_path / "tokenizer" / "spiece.model").open("wb") as file:
        SentencePieceTrainer.train(
            sentence_iterator=iter(["a red cat", "the blue sea"] * 20), model_writer=file, vocab_size=16, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
            minloglevel=2,
        )  # fmt: skip
    encoder = load_encoder("t5", tmp_path)
    assert 2 in encoder.tokenize("猫") and 2 not in encoder.tokenize("red cat")
    assert encoder.encode(["red cat"]).mask.sum() == len(encoder.tokenize("red cat")) + 1


def test_another_sentencepiece_model_is_no_t5(tmp_path: Path) -> None:
    from tests.toys.stable_diffusion import sentencepiece

    t5_parts(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").unlink()
    (tmp_path / "tokenizer" / "spiece.model").write_bytes(sentencepiece())
    with pytest.raises(WeightsError, match="not T5's"):
        t5.load(tmp_path)


def _model() -> object:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(llm.toy()._model.config)
