"""Instruction models as translators, on a toy that has learnt one answer."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from jpgen.errors import WeightsError
from jpgen.translate import kind_of, load_translator, open_translator
from jpgen.translate.causal import ASKED

TEMPLATE = "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
PAIRS = {"赤い猫": "a red cat", "雨": "rain"}
SPECIAL = ("<unk>", "</s>", "<u>", "</u>", "<a>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 64 × 1 over bytes, taught two answers in its own template."""
    place = tmp_path_factory.mktemp("translators") / "cat"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate([*SPECIAL, *letters])}, merges=[], unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=made, unk_token="<unk>", eos_token="</s>", additional_special_tokens=[*SPECIAL[2:]], chat_template=TEMPLATE
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=512, bos_token_id=None, eos_token_id=1, pad_token_id=1,
        )
    )
    rows = [tokenizer(f"<u>{ASKED.format(ja)}</u><a>{en}</s>", add_special_tokens=False)["input_ids"] for ja, en in PAIRS.items()]
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(60):
        loss = sum(model(input_ids=torch.tensor([row]), labels=torch.tensor([row])).loss for row in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokenizer.save_pretrained(place)
    model.save_pretrained(place)
    return place


def test_it_is_asked_in_its_own_template(folder: Path) -> None:
    assert kind_of(folder) == "causal"
    translator = load_translator("causal", folder)
    assert translator.translate(["雨", "", "赤い猫", " "]) == ["rain", "", "a red cat", ""]  # of unlike length, together
    assert [translator.translate([text])[0] for text in PAIRS] == [*PAIRS.values()]
    opened = open_translator(folder)
    assert opened is not None and opened.name == "cat" and opened.translate(["雨"]) == ["rain"]


def test_what_cannot_be_asked_is_told(folder: Path, tmp_path: Path) -> None:
    for name, file, change, says in (
        ("plain", "tokenizer_config.json", {"chat_template": None}, "no chat template"),
        ("narrow", "config.json", {"hidden_size": 32}, "cannot read the language model"),
        ("deep", "config.json", {"num_hidden_layers": 3}, "has no model.layers.2"),
        ("remote", "config.json", {"model_type": "unheard", "auto_map": {"AutoConfig": "evil.Config"}}, "own code are refused"),
    ):
        place = tmp_path / name
        place.mkdir()
        for one in folder.iterdir():
            if one.suffix != ".jinja" or name != "plain":
                (place / one.name).write_bytes(one.read_bytes())
        (place / file).write_text(json.dumps({**json.loads((place / file).read_text()), **change}))
        with pytest.raises(WeightsError, match=says):
            load_translator("causal", place)
    with pytest.raises(WeightsError):
        load_translator("causal", tmp_path / "none")
