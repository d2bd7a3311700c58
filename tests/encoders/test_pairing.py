"""Adapters between an encoder and a backbone: shapes by spec, a file that cannot be mistaken, an encoder that changed."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from jpgen.encoders import bert
from jpgen.encoders.adapted import AdaptedEncoder, toy
from jpgen.encoders.pairing import KINDS, METADATA_KEY, Pairing, PairingSpec, new_network, read_pairing, read_spec, require_backbone, save_pairing
from jpgen.errors import IncompatibleError, SettingError, UnknownNameError, WeightsError
from jpgen.types import ConditioningSpec

TEXTS = ["赤い船", "", "左に犬、右に車。" * 9]


@pytest.fixture(params=sorted(KINDS))
def adapted(request: pytest.FixtureRequest) -> AdaptedEncoder:
    return toy(request.param)


def test_states_meet_the_backbones_spec(adapted: AdaptedEncoder) -> None:
    made = adapted.encode(TEXTS)
    assert adapted.spec == ConditioningSpec(64, None, 24)
    assert made.tokens.shape == (*made.mask.shape, 64) and made.pooled is not None and made.pooled.shape == (3, 24)
    assert not made.tokens[made.mask == 0].any() and bool((made.mask.sum(1) > 0).all())
    assert toy("mlp", pooled_width=None).encode(["猫"]).pooled is None


def test_a_text_in_company_is_the_text_alone(adapted: AdaptedEncoder) -> None:
    together = adapted.encode(TEXTS)
    for row, text in enumerate(TEXTS):
        alone = adapted.encode([text])
        length = int(alone.mask.sum())
        torch.testing.assert_close(together.tokens[row, :length], alone.tokens[0, :length], atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(together.pooled[row], alone.pooled[0], atol=2e-5, rtol=1e-4)


def test_no_word_of_a_long_text_is_lost(adapted: AdaptedEncoder) -> None:
    long = "左に犬、右に車。" * 9
    assert not torch.allclose(adapted.encode([long + "猫"]).tokens.sum(1), adapted.encode([long + "船"]).tokens.sum(1), atol=1e-6)


def test_weights_act_on_the_encoders_own_states(adapted: AdaptedEncoder) -> None:
    plain = adapted.encode_spans([[("赤い", 1.0), ("猫", 1.0)]], "comfy")
    strong = adapted.encode_spans([[("赤い", 1.0), ("猫", 1.5)]], "comfy")
    torch.testing.assert_close(adapted.encode_spans([[("赤い猫", 1.0)]], "comfy").tokens, adapted.encode(["赤い猫"]).tokens)
    assert not torch.allclose(plain.tokens, strong.tokens)


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    encoder = toy("resampler")
    pairing = replace(encoder._pairing, facts={"pairs": 3, "sources": ["対訳"]})
    save_pairing(tmp_path / "a.safetensors", pairing)
    again = read_pairing(tmp_path / "a.safetensors")
    assert again.spec == pairing.spec and again.facts == {"pairs": 3, "sources": ["対訳"]}
    for name, tensor in again.network.state_dict().items():
        torch.testing.assert_close(tensor, pairing.network.state_dict()[name].bfloat16().float())
    assert AdaptedEncoder(bert.toy(), again).encode(["猫"]).tokens.shape == (1, 9, 64)


def test_another_encoder_is_refused(tmp_path: Path) -> None:
    pairing = toy()._pairing
    changed = bert.toy()
    with torch.no_grad():
        changed._model.embeddings.word_embeddings.weight.normal_(generator=torch.Generator().manual_seed(5))
    with pytest.raises(IncompatibleError, match="cosine of a probe text"):
        AdaptedEncoder(changed, pairing)
    wide = Pairing(replace(pairing.spec, source_width=48), pairing.network, pairing.probe)
    with pytest.raises(IncompatibleError, match=r"wants states of width 48, toy-bert gives 32"):
        AdaptedEncoder(bert.toy(), wide)


def test_a_backbone_that_does_not_fit_is_told_both_specs() -> None:
    with pytest.raises(IncompatibleError, match=r"gives width 64, pooled 24; sdxl wants width 2048, pooled 1280.*train adapter"):
        require_backbone(toy()._pairing.spec, ConditioningSpec(2048, None, 1280), "sdxl")


def test_files_that_are_no_adapter_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"lora_up": torch.zeros(2, 2)}, path)
    with pytest.raises(WeightsError, match="is no adapter of text encoders"):
        read_spec(path)
    for broken in ("{", "[]", '{"spec": {"kind": "mlp"}, "facts": {}}', '{"spec": 3, "facts": {}}'):
        save_file({"x": torch.zeros(1)}, path, metadata={METADATA_KEY: broken})
        with pytest.raises(WeightsError, match="damaged adapter"):
            read_spec(path)
    pairing = toy()._pairing
    save_pairing(path, pairing)
    spec = json.loads(json.dumps({"spec": {**pairing.spec.__dict__, "hidden": 48}, "facts": {}}))
    save_file({name: tensor.contiguous() for name, tensor in pairing.network.state_dict().items()}, path, metadata={METADATA_KEY: json.dumps(spec)})
    with pytest.raises(WeightsError, match="do not match the spec"):
        read_pairing(path)
    with torch.no_grad():
        next(pairing.network.parameters()).fill_(torch.nan)
    save_pairing(path, pairing)
    with pytest.raises(WeightsError, match="not finite"):
        read_pairing(path)


def test_sizes_and_kinds_are_checked() -> None:
    spec = PairingSpec("mlp", "a", "b", 32, 64)
    with pytest.raises(UnknownNameError, match="mixer"):
        new_network(replace(spec, kind="mixr"))
    with pytest.raises(SettingError, match=r"hidden=0, layers=99999"):
        new_network(replace(spec, hidden=0, layers=99999))
    with pytest.raises(SettingError, match="multiple of 64"):
        new_network(replace(spec, kind="resampler", hidden=100))


@pytest.mark.parametrize(("kind", "hidden", "layers"), [("mlp", 1024, 4), ("resampler", 384, 4), ("mixer", 512, 4)])
def test_adapters_for_sdxl_stay_below_12_million_parameters(kind: str, hidden: int, layers: int) -> None:
    spec = PairingSpec(kind, "mame", "sdxl-base", 384, 2048, 1280, hidden=hidden, layers=layers)
    with torch.device("meta"):
        assert sum(p.numel() for p in new_network(spec).parameters()) <= 12_000_000
