"""Cards of models: one for each row of the catalogue, and terms accepted by name."""

from pathlib import Path

import pytest

from jpgen import UnknownNameError, accept_terms, load_catalog, model_cards
from jpgen.catalog import SCORERS, TRANSLATORS


def test_every_row_has_a_card() -> None:
    cards = model_cards()
    assert list(cards) == list(load_catalog())
    kinds = {"translator": TRANSLATORS, "scorer": SCORERS}
    for name, entry in load_catalog().items():
        assert cards[name].kind == next((kind for kind, families in kinds.items() if entry.family in families), "model")


def test_the_built_in_model_is_here_and_asks_for_nothing() -> None:
    card = model_cards()["mame"]
    assert (card.where, card.here, card.asks, card.commercial) == ("builtin", True, False, "yes")
    assert card.bytes == sum(file.stat().st_size for file in load_catalog()["mame"].place.rglob("*.safetensors"))


def test_terms_are_accepted_by_name_with_those_of_all_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert not model_cards()["jsdxl"].accepted
    assert accept_terms("jsdxl") == ["jsdxl"]
    assert model_cards()["jsdxl"].accepted
    assert accept_terms("jsdxl") == []
    assert len(accept_terms("evo-ukiyoe")) > 1
    with pytest.raises(UnknownNameError, match="mame"):
        accept_terms("mam")
