"""The road on toy parts: seeds, batches, errors, threads."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from jpgen.api import generate, load_generation
from jpgen.errors import Cancelled, IncompatibleError, MetadataError, PromptError, SettingError, UnknownNameError
from jpgen.pipeline import Pipeline
from jpgen.types import Generation, ModelInfo, SamplingConfig


def pixels(made: Generation) -> bytes:
    return made.image.tobytes()


def test_a_generation_says_how_it_was_made(toy: Pipeline) -> None:
    made = toy.generate("赤い船", negative="人", seed=7)
    assert (made.prompt.source, made.prompt.negative, made.seed, made.route) == ("赤い船", "人", 7, "native")
    assert made.config == toy.backbone.default
    assert made.seconds > 0


def test_no_seed_is_a_random_one_that_repeats(toy: Pipeline) -> None:
    made, other = toy.generate("猫"), toy.generate("猫")
    assert made.seed != other.seed
    assert pixels(toy.generate("猫", seed=made.seed)) == pixels(made)


def test_many_is_the_same_as_each_alone(toy: Pipeline) -> None:
    many = toy.generate_many(["猫", "赤い船", "左に犬、右に車"], seed=3, count=2)
    assert [(m.prompt.source, m.seed) for m in many] == [(p, s) for p in ("猫", "赤い船", "左に犬、右に車") for s in (3, 4)]
    for made in many:
        alone = toy.generate(made.prompt.source, seed=made.seed)
        assert pixels(alone) == pixels(made)


def test_sampling_together_changes_rounding_at_most(toy: Pipeline) -> None:
    import numpy as np

    together = Pipeline.from_parts(toy.encoder, toy.backbone, toy.info, batch_size=4)
    prompts = ["猫", "赤い船", "左に犬、右に車"]
    for one, other in zip(toy.generate_many(prompts, seed=3), together.generate_many(prompts, seed=3), strict=True):
        assert abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 2
    with pytest.raises(SettingError, match="batch_size"):
        Pipeline.from_parts(toy.encoder, toy.backbone, toy.info, batch_size=0)


def test_the_negative_prompt_and_the_guidance_matter(toy: Pipeline) -> None:
    plain = pixels(toy.generate("猫", seed=1))
    assert pixels(toy.generate("猫", seed=1, negative="犬")) != plain
    assert pixels(toy.generate("猫", seed=1, config=toy.config(guidance_scale=6.0))) != plain
    unguided = toy.config(guidance_scale=1.0)
    assert pixels(toy.generate("猫", seed=1, negative="犬", config=unguided)) == pixels(toy.generate("猫", seed=1, config=unguided))


def test_sizes_other_than_the_default(toy: Pipeline) -> None:
    assert toy.generate("猫", seed=1, config=toy.config(width=96, height=32)).image.size == (96, 32)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "空です"),
        ("　 \n", "空です"),
        ("あ" * 10_000, "10000 文字"),
        ("猫\ud800", "2 文字目"),
        (5, "int"),
    ],
)
def test_prompts_that_cannot_be_read(toy: Pipeline, prompt: str, words: str) -> None:
    with pytest.raises(PromptError) as caught:
        toy.generate(prompt)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_long_prompt_is_drawn_to_its_last_word(toy: Pipeline) -> None:
    """2,000 letters are many passes of the encoder and far more tokens than the 256 of one: nothing is cut off, and nothing is refused."""
    text = ("赤い猫と青い犬、" * 250)[:2000]
    made = toy.encoder.encode([text])
    assert made.mask.shape[1] > 1000
    assert pixels(toy.generate(text, seed=1)) != pixels(toy.generate(text[:-8] + "青い海に赤い船、", seed=1))
    assert pixels(toy.generate("猫", negative=text, seed=1)) != pixels(toy.generate("猫", seed=1))


def test_a_bad_negative_prompt_is_named(toy: Pipeline) -> None:
    with pytest.raises(PromptError, match="ネガティブ"):
        toy.generate("猫", negative="\udfff")


@pytest.mark.parametrize("count", [0, -1, 10**5, 1.5, True])
def test_bad_counts(toy: Pipeline, count: int) -> None:
    with pytest.raises(SettingError, match="count="):
        toy.generate_many(["猫"], count=count)


def test_nothing_is_sampled_before_everything_is_checked(toy: Pipeline) -> None:
    steps: list[object] = []
    with pytest.raises(PromptError):
        toy.generate_many(["猫", ""], on_step=steps.append)
    with pytest.raises(SettingError):
        toy.generate_many(["猫"], seed=2**63 - 1, count=2, on_step=steps.append)
    with pytest.raises(UnknownNameError):
        toy.generate("猫", config=replace(toy.backbone.default, scheduler="none"), on_step=steps.append)
    assert steps == []


def test_cancelling(toy: Pipeline) -> None:
    with pytest.raises(Cancelled):
        toy.generate("猫", on_step=lambda _: False)


def test_parts_that_do_not_fit_are_refused(toy: Pipeline) -> None:
    class Narrow:
        name = "narrow"
        spec = replace(toy.encoder.spec, width=16)
        encode = toy.encoder.encode

    with pytest.raises(IncompatibleError, match="narrow"):
        Pipeline.from_parts(Narrow(), toy.backbone, toy.info)


def test_threads_get_their_own_pictures(toy: Pipeline) -> None:
    wanted = {seed: pixels(toy.generate("猫", seed=seed)) for seed in range(6)}
    got: dict[int, bytes] = {}
    threads = [threading.Thread(target=lambda s=seed: got.update({s: pixels(toy.generate("猫", seed=s))})) for seed in wanted]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted


def test_unknown_model() -> None:
    with pytest.raises(UnknownNameError, match="'mame'"):
        generate("猫", model="mama")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_saved_picture_repeats_itself(toy: Pipeline, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.api.open_pipeline", lambda _model: toy)
    config = SamplingConfig(64, 96, 3, 1.5, "unipc")
    made = toy.generate("画風: 水彩, 色彩: 青, 主題: 猫", negative="Negative prompt: 犬\nSteps: 1", seed=2**63 - 1, config=config)
    again = load_generation(made.save(tmp_path / f"絵{suffix}"))
    assert pixels(again) == pixels(made)
    assert (again.prompt, again.config, again.seed, again.model) == (made.prompt, made.config, made.seed, made.model)


def test_other_weights_are_refused_unless_asked_for(toy: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toy.generate("猫", seed=1).save(tmp_path / "a.png")
    other = Pipeline.from_parts(toy.encoder, toy.backbone, ModelInfo("toy", "1", "MIT", "1111111111"))
    monkeypatch.setattr("jpgen.api.open_pipeline", lambda _model: other)
    with pytest.raises(MetadataError, match="other weights"):
        load_generation(path)
    assert load_generation(path, model="toy").model.revision == "1"


def test_prompts_are_read_unless_told_not_to(toy: Pipeline) -> None:
    made = toy.generate("帽子をかぶっていない少年の絵を描いてください", negative="人", seed=1)
    assert (made.prompt.text, made.prompt.negative) == ("少年", "人、帽子")
    assert pixels(toy.generate("少年", negative="人、帽子", seed=1)) == pixels(made)
    typed = toy.generate("猫の絵を描いて", seed=1, normalize=False)
    assert typed.prompt.text == "猫の絵を描いて"
    with pytest.raises(PromptError, match="読み取れません"):
        toy.generate("文字なし")


def test_weights_matter_in_every_emphasis(toy: Pipeline) -> None:
    plain = pixels(toy.generate("赤い猫", seed=1))
    made = {}
    for emphasis in ("a1111", "a1111-nonorm", "comfy", "compel"):
        config = toy.config(emphasis=emphasis)
        assert pixels(toy.generate("赤い猫", seed=1, config=config)) == plain
        made[emphasis] = pixels(toy.generate("赤い（猫：０．１）", seed=1, config=config))
        assert made[emphasis] == pixels(toy.generate("赤い(猫:0.1)", seed=1, config=config)) != plain
    assert len({made["a1111-nonorm"], made["comfy"], made["compel"]}) == 3
    with pytest.raises(UnknownNameError, match="comfy"):
        toy.generate("赤い(猫:1.5)", config=toy.config(emphasis="comfi"))


def test_weights_in_the_negative_prompt_matter(toy: Pipeline) -> None:
    one, other = (toy.generate("猫", negative=negative, seed=1) for negative in ("犬と船", "犬と(船:1.8)"))
    assert pixels(one) != pixels(other)


def test_variants_follow_the_seed_of_each_picture_and_repeat(toy: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jpgen import api

    monkeypatch.setattr(api, "open_pipeline", lambda name="mame": toy)
    made = toy.generate_many(["{赤い|青い|黒い|白い}(猫:1.3)"], seed=0, count=12)
    assert len({m.prompt.text for m in made}) > 2
    for one in made[:2]:
        again = load_generation(one.save(tmp_path / "one.png"))
        assert (again.prompt, pixels(again)) == (one.prompt, pixels(one))
