"""What pictures cost, in forwards: the quick leg of bench-speed, by counters instead of clocks."""

from collections.abc import Callable

import pytest

from jpgen.backbones import flux, pixart, sd, sdxl
from jpgen.backbones.passes import guided_steps
from jpgen.encoders import bert, clip
from jpgen.encoders import flux as flux_encoder
from jpgen.encoders import sdxl as sdxl_encoder
from jpgen.evaluate.counting import Counts, counted
from jpgen.pipeline import Pipeline
from jpgen.types import InitImage, ModelInfo, SamplingConfig
from tests.toys.pictures import picture

INFO = ModelInfo("toy", "0", "MIT", "0000000000")
OPENED: dict[str, Callable[[], Pipeline]] = {
    "sd": lambda: Pipeline.from_parts(clip.toy(), sd.toy(), INFO),
    "sdxl": lambda: Pipeline.from_parts(sdxl_encoder.toy(), sdxl.toy(), INFO),
    "pixart": lambda: Pipeline.from_parts(bert.toy(), pixart.toy(), INFO),
}


@pytest.fixture(scope="module", params=OPENED)
def pipeline(request: pytest.FixtureRequest) -> Pipeline:
    return OPENED[request.param]()


def cost(pipeline: Pipeline, *, count: int = 1, prompt: str = "猫", **settings: float | str) -> Counts:
    with counted(pipeline) as counts:
        pipeline.generate_many([prompt], seed=1, count=count, negative="犬", config=pipeline.config(**settings))
    return counts


@pytest.mark.parametrize(("interval", "share"), [((0.0, 1.0), 10), ((0.2, 0.7), 5), ((0.0, 0.35), 4), ((0.65, 1.0), 3), ((0.3, 0.3), 0)])
def test_the_interval_costs_what_it_says(pipeline: Pipeline, interval: tuple[float, float], share: int) -> None:
    found = cost(pipeline, steps=10, guidance_scale=3.0, guidance_start=interval[0], guidance_stop=interval[1])
    assert sum(found.forwards) == 10 + share and len(found.forwards) == 10  # N·(1 + f)
    guided = guided_steps(pipeline.config(guidance_start=interval[0], guidance_stop=interval[1]), 10)
    assert found.forwards == [2 if step in guided else 1 for step in range(10)] and len(guided) == share
    assert found.decoded == [1]


def test_no_guidance_reads_no_negative_prompt() -> None:
    for open_toy in OPENED.values():
        pipeline = open_toy()
        found = cost(pipeline, steps=4, guidance_scale=1.0)
        assert found.forwards == [1] * 4 and set(found.encoded) == {1}
        assert cost(pipeline, steps=4, guidance_scale=0.0).encoded == []


def test_a_prompt_is_encoded_once_and_with_its_negative() -> None:
    for name, open_toy in OPENED.items():
        pipeline = open_toy()
        calls = 2 if name == "sdxl" else 1  # its two encoders
        assert cost(pipeline, steps=1, guidance_scale=2.0).encoded == [2] * calls
        assert cost(pipeline, steps=2, guidance_scale=3.0, count=3).encoded == []
        assert cost(pipeline, steps=1, guidance_scale=2.0, prompt="赤い猫").encoded == [2] * calls


def test_a_batch_encodes_a_text_once() -> None:
    pipeline = Pipeline.from_parts(bert.toy(), pixart.toy(), INFO, batch_size=4)
    found = cost(pipeline, steps=2, guidance_scale=2.0, count=4, guidance_stop=0.5)
    assert (found.encoded, found.forwards, found.decoded) == ([2], [8, 4], [4])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.encoders.remembered.ENTRIES", 2)
    pipeline = OPENED["pixart"]()
    for prompt, calls in (("猫", 1), ("犬", 1), ("猫", 0), ("船", 1), ("犬", 1), ("船", 0)):
        assert len(cost(pipeline, steps=1, prompt=prompt).encoded) == calls, prompt


def test_emphasis_and_weights_are_not_mixed_up(pipeline: Pipeline) -> None:
    one = cost(pipeline, steps=1, prompt="(赤い:1.3)猫", emphasis="comfy")
    other = cost(pipeline, steps=1, prompt="(赤い:1.3)猫", emphasis="a1111")
    third = cost(pipeline, steps=1, prompt="(赤い:1.4)猫", emphasis="a1111")
    assert one.encoded and other.encoded and third.encoded
    assert not cost(pipeline, steps=1, prompt="(赤い:1.4)猫", emphasis="a1111").encoded


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_deepcache_runs_the_depth_on_every_third_step(name: str) -> None:
    found = cost(OPENED[name](), steps=7, guidance_scale=1.0, cache="deepcache")
    assert (found.forwards, found.deep) == ([1] * 7, [1] * 3)
    found = cost(OPENED[name](), steps=6, guidance_scale=2.0, cache="deepcache", guidance_stop=0.5)  # other rows: all of it again
    assert (found.forwards, found.deep) == ([2, 2, 2, 1, 1, 1], [2, 1])


def test_the_first_block_cache_spares_steps_row_by_row() -> None:
    pipeline = OPENED["pixart"]()
    whole = cost(pipeline, steps=20, guidance_scale=2.0)
    spared = cost(pipeline, steps=20, guidance_scale=2.0, cache="firstblock")
    assert spared.forwards == whole.forwards == [2] * 20
    assert sum(whole.deep) == 40 and 2 <= sum(spared.deep) < 40


def test_flux_spares_the_second_pass() -> None:
    encoder, backbone = flux_encoder.toy(), flux.toy()
    pipeline = Pipeline.from_parts(encoder, backbone, INFO)
    found = cost(pipeline, steps=4, guidance_scale=2.0, guidance_start=0.25, guidance_stop=0.5)
    assert len(found.forwards) == 4 + 1
    assert backbone.ignores_negative is False


def test_an_interval_of_the_steps_that_are_run() -> None:
    pipeline = OPENED["pixart"]()
    with counted(pipeline) as found:  # half of 8 steps, of them the first half
        pipeline.generate("猫", seed=1, init=InitImage(picture(), 0.5), config=pipeline.config(steps=8, guidance_scale=3.0, guidance_stop=0.5))
    assert found.forwards == [2, 2, 1, 1]


def test_settings_out_of_order_are_refused(pipeline: Pipeline) -> None:
    for start, stop in ((0.8, 0.2), (-0.1, 1.0), (0.0, 1.5), (float("nan"), 1.0), ("a", 1.0)):
        with pytest.raises(ValueError, match="guidance_start"):
            SamplingConfig(64, 64, 2, 2.0, guidance_start=start, guidance_stop=stop).validated(8)
