"""The values of the road check themselves."""

import pytest

from jpgen.errors import IncompatibleError, SettingError, UnknownNameError
from jpgen.types import ConditioningSpec, Edit, Prompt, SamplingConfig, plain_data, require_seed

GOOD = SamplingConfig(width=256, height=256, steps=16, guidance_scale=4.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"width": 250}, "width=250"),
        ({"width": 0}, "width=0"),
        ({"width": -32}, "width=-32"),
        ({"width": 10**400}, "width="),
        ({"width": float("nan")}, "width=nan"),
        ({"width": float("inf")}, "width=inf"),
        ({"height": True}, "height=True"),
        ({"height": "256"}, "height='256'"),
        ({"height": 1_000_000}, "height=1000000"),
        ({"steps": 0}, "steps=0"),
        ({"steps": 1001}, "steps=1001"),
        ({"steps": 2.5}, "steps=2.5"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"guidance_scale": float("inf")}, "guidance_scale=inf"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan"),
    ],
)
def test_a_setting_out_of_range_is_named(changes: dict[str, object], words: str) -> None:
    config = SamplingConfig(**{**plain_data(GOOD), **changes})
    with pytest.raises(SettingError) as caught:
        config.validated(32)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(SettingError) as caught:
        SamplingConfig(width=1, height=2, steps=0, guidance_scale=-1).validated(32)
    assert all(name in str(caught.value) for name in ("width", "height", "steps", "guidance_scale"))


def test_a_near_size_is_offered() -> None:
    with pytest.raises(SettingError, match=r"e\.g\. 256"):
        SamplingConfig(width=270, height=256, steps=1, guidance_scale=1).validated(32)


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "4", None])
def test_bad_seeds(seed: object) -> None:
    with pytest.raises(SettingError, match="seed="):
        require_seed(seed)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", [0, 42, 2**63 - 1])
def test_good_seeds(seed: int) -> None:
    assert require_seed(seed) == seed


def test_specs_that_do_not_fit_say_both_sides() -> None:
    with pytest.raises(IncompatibleError) as caught:
        ConditioningSpec(384).require_fit(ConditioningSpec(2048, 77, 1280), "e5", "sdxl")
    assert all(word in str(caught.value) for word in ("384", "2048", "1280", "adapter"))


def test_explain_has_a_line_per_edit_and_note() -> None:
    prompt = Prompt("猫を描いてください", "猫", edits=(Edit("request", "猫を描いてください", "猫"),), notes=("「はし」は橋とも箸とも読めます",))
    assert prompt.explain().splitlines() == ["request: 「猫を描いてください」→「猫」", "注: 「はし」は橋とも箸とも読めます"]


def test_unknown_name_offers_the_nearest_or_the_list() -> None:
    assert "'mame'" in str(UnknownNameError.of("model", "mane", ["mame", "sdxl"]))
    assert "mame, sdxl" in str(UnknownNameError.of("model", "zzzzz", ["sdxl", "mame"]))
