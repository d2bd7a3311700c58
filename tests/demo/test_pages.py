"""The pages in Streamlit's own simulator, with a fake model that is done at once."""

from __future__ import annotations

import pickle
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

import demo.studio
import jpgen
from demo import choosing
from demo.brake import FREE
from demo.frame import TABS
from demo.made import Made, of_item
from demo.settings import hash_password
from demo.worker import Outcome, Worker
from jpgen import Generation, ModelInfo, Prompt, SamplingConfig, Step, normalize, read_settings

WAIT = 60


class Instant:
    """As much of a Pipeline as the pages use: one grey picture after one step."""

    def __init__(self, model: str, *, vae: Any = None) -> None:
        self.info = ModelInfo(model, "0", "Apache-2.0", "0000000000")

    def config(self, **given: Any) -> SamplingConfig:
        chosen = {"width": 64, "height": 64, "steps": 1, "guidance_scale": 4.0, **{name: value for name, value in given.items() if value is not None}}
        return SamplingConfig(**chosen)

    def generate(self, prompt: Prompt, *, seed: int, config: SamplingConfig | None = None, on_step: Any = None, init: Any = None) -> Generation:
        used = config or self.config()
        image = Image.new("RGB", (used.width, used.height), "grey")
        on_step(Step(1, 1, lambda: [image]))
        return Generation(image, prompt, used, seed, self.info, "fake", "native", 0.0)


class Sent(Worker):
    """A worker that gets its jobs by pickle, as the one in another process does."""

    def run(self, work: Any, progress: Any) -> Outcome:
        return super().run(pickle.loads(pickle.dumps(work)), progress)


@pytest.fixture(autouse=True)
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    settings = tmp_path / "demo.toml"
    settings.write_text('gallery = "gallery"\n', "utf-8")
    monkeypatch.setenv("JPGEN_DEMO_CONFIG", str(settings))
    monkeypatch.setattr(demo.studio, "new_worker", lambda: Sent(Instant))
    demo.studio.studio.clear()
    yield
    demo.studio.studio().engine.close()
    demo.studio.studio.clear()


def visit(tab: str) -> AppTest:
    """The page of a tab, once run."""

    def script(name: str) -> None:
        from demo.frame import TABS

        TABS[name][0]()

    page = AppTest.from_function(script, args=(tab,), default_timeout=WAIT)
    page.session_state["language"] = "ja"
    page.run()
    assert not page.exception
    return page


def done(page: AppTest, job: str) -> AppTest:
    """The page after its job has ended (which it may have before the page looked)."""
    if f"{job}/ticket" in page.session_state:
        demo.studio.studio().engine.wait(page.session_state[f"{job}/ticket"], session=page.session_state["session"], timeout=WAIT)
        page.run()
    assert not page.exception
    return page


def pictures() -> list[Any]:
    return list(demo.studio.studio().pictures.search().items)


@pytest.mark.parametrize("tab", list(TABS))
@pytest.mark.parametrize("language", ["ja", "en"])
def test_every_page_opens_in_both_languages(tab: str, language: str) -> None:
    page = visit(tab)
    page.session_state["language"] = language
    page.run()
    assert not page.exception


def test_a_picture_is_made_and_kept() -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value("三匹の猫を描いてください")
    page.session_state["create/seed"] = 7
    page.button(key="generate").click().run()
    done(page, "create")
    (item,) = pictures()
    settings = read_settings(item.path)
    assert (settings.source, settings.prompt.text, settings.seed) == ("三匹の猫を描いてください", "3匹の猫", 7)
    assert [button.label for button in page.button if button.key and button.key.startswith("create-undo")] == ["戻す"] * len(settings.prompt.edits)


def test_an_undone_rewrite_is_left_out_of_the_next_picture_and_can_be_used_again() -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value("三匹の猫と二羽の鳥")
    page.button(key="read").click().run()
    page.button(key="create-undo-0").click().run()
    page.button(key="generate").click().run()
    done(page, "create")
    assert read_settings(pictures()[0].path).prompt.text == "三匹の猫と2羽の鳥"
    page.button(key="create-redo-0").click().run()
    page.button(key="generate").click().run()
    done(page, "create")
    assert read_settings(pictures()[0].path).prompt.text == "3匹の猫と2羽の鳥"
    page.text_area(key="create/prompt").set_value("二匹の犬")
    page.button(key="generate").click().run()
    done(page, "create")
    assert read_settings(pictures()[0].path).prompt.text == "2匹の犬"


def test_the_seed_changes_unless_it_is_locked() -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value("猫")
    for _ in range(2):
        page.button(key="generate").click().run()
        done(page, "create")
    page.toggle(key="create/lock").set_value(True).run()
    for _ in range(2):
        page.button(key="generate").click().run()
        done(page, "create")
    seeds = [item.seed for item in reversed(pictures())]
    assert len({*seeds[:2]}) == 2
    assert seeds[1] == seeds[2] == seeds[3]


def test_what_is_changed_just_before_the_click_is_drawn_and_a_typed_side_becomes_one_that_models_take() -> None:
    page = visit("create")
    page.radio(key="create/shape").set_value("own").run()
    page.text_area(key="create/prompt").set_value("猫")
    page.number_input(key="create/width").set_value(300)
    page.slider(key="create/steps/mame").set_value(9)
    page.selectbox(key="create/style").set_value(next(iter(choosing.styles())))
    page.button(key="generate").click().run()  # all in one message, as a browser sends it that is quicker than the server
    done(page, "create")
    assert page.number_input(key="create/width").value == 320
    settings = read_settings(pictures()[0].path)
    assert (settings.config.width, settings.config.height, settings.config.steps) == (320, 256, 9)
    assert settings.source != "猫"


def test_a_model_that_is_changed_just_before_the_click_is_not_asked_for_the_route_of_the_one_before() -> None:
    page = visit("create")
    page.selectbox(key="model").set_value("sdxl-base").run()
    page.radio(key="create/route").set_value("translate").run()
    page.selectbox(key="model").set_value("mame")
    page.text_area(key="create/prompt").set_value("猫")
    page.button(key="generate").click().run()
    done(page, "create")
    assert [item.model for item in pictures()] == ["mame"]


def test_every_side_that_is_offered_is_one_the_built_in_model_takes() -> None:
    taken = jpgen.Pipeline("mame").backbone.size_multiple
    page = visit("create")
    page.radio(key="create/shape").set_value("own").run()
    for side in ("width", "height"):
        box = page.number_input(key=f"create/{side}")
        assert [number % taken for number in (box.value, box.step, box.min, box.max)] == [0] * 4
    sizes = [label.split()[-1] for label in page.radio(key="create/shape").options if "×" in label]
    assert [int(side) % taken for size in sizes for side in size.split("×")] == [0] * 2 * len(choosing.SHAPES)


def test_a_size_that_cannot_be_chosen_is_put_back_as_the_nearest_and_that_is_said() -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value("猫")
    page.button(key="generate").click().run()
    done(page, "create")
    (made,) = page.session_state["create/outcome"]
    config = replace(made.settings.config, width=96, height=1000)
    page.session_state["create/outcome"] = (replace(made, settings=replace(made.settings, config=config)),)
    page.run()
    page.button(key="create-restore-0").click().run()
    assert [page.number_input(key=f"create/{side}").value for side in ("width", "height")] == [128, 1024]
    assert any("128×1024 にしました（絵は 96×1000）" in one.proto.body for one in page.get("html"))
    assert [toast.value for toast in page.toast] == ["設定を戻しました。"]


@pytest.mark.parametrize(("size", "wanted"), [((300, 200), (576, 384)), ((192, 256), (384, 512)), ((40, 900), (64, 1024))])
def test_a_picture_of_any_size_is_drawn_anew_in_one_that_models_take(size: tuple[int, int], wanted: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size, "navy").save(tmp_path / "海.png")
    page = visit("repair")
    page.session_state["repair/source"] = Made("海.png", None, tmp_path / "海.png")
    page.session_state["repair/mode"] = "larger"
    page.run()
    page.text_area(key="repair/larger/prompt").set_value("海")
    page.button(key="larger-go").click().run()
    done(page, "repair")
    config = read_settings(pictures()[0].path).config
    assert (config.width, config.height) == wanted


@pytest.mark.parametrize(("prompt", "told"), [("", "描きたいもの"), ("　", "描きたいもの"), ("あ" * 100_000, "長すぎます"), ("# メモ", "描くもの")])
def test_what_cannot_be_drawn_is_explained(prompt: str, told: str) -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value(prompt)
    page.button(key="generate").click().run()
    assert not page.exception
    assert any(told in one.proto.body for one in page.get("html"))
    assert pictures() == []


def test_a_grid_over_two_settings() -> None:
    page = visit("compare")
    page.selectbox(key="model").set_value("sdxl-base").run()
    page.segmented_control(key="compare/mode").set_value("grid").run()
    page.text_input(key="axis/x/steps").set_value("１、2").run()
    page.text_input(key="axis/y/guidance_scale").set_value("2, 3.5").run()
    page.text_area(key="grid/prompt").set_value("猫")
    page.button(key="grid-go").click().run()
    done(page, "grid")
    found = [(item.model, item.steps, item.guidance_scale) for item in reversed(pictures())]
    assert found == [("sdxl-base", steps, guidance) for guidance in (2.0, 3.5) for steps in (1, 2)]


def test_both_comparisons_are_drawn_in_the_chosen_size_of_each_model() -> None:
    page = visit("compare")
    page.radio(key="compare/shape").set_value("landscape").run()
    page.text_area(key="ways/japanese").set_value("猫")
    page.button(key="ways-go").click().run()
    done(page, "ways")
    page.segmented_control(key="compare/mode").set_value("grid").run()
    page.selectbox(key="axis/x").set_value("model").run()
    page.session_state["axis/x/model"] = ["mame"]
    page.text_input(key="axis/y/guidance_scale").set_value("2, 3").run()
    page.text_area(key="grid/prompt").set_value("猫")
    page.button(key="grid-go").click().run()
    done(page, "grid")
    page.radio(key="compare/shape").set_value("own").run()
    page.number_input(key="compare/width").set_value(330).run()
    page.button(key="grid-go").click().run()
    done(page, "grid")
    configs = [read_settings(item.path).config for item in reversed(pictures())]
    sizes = [(config.width, config.height) for config in configs]
    assert sizes[-4:] == [(256, 192)] * 2 + [(320, 256)] * 2
    assert set(sizes[:-4]) == {(256, 192)}


def test_a_grid_of_too_many_steps_is_refused() -> None:
    page = visit("compare")
    page.segmented_control(key="compare/mode").set_value("grid").run()
    page.text_input(key="axis/x/steps").set_value("4, 900").run()
    page.text_area(key="grid/prompt").set_value("猫")
    page.button(key="grid-go").click().run()
    assert any("900 は多すぎます" in one.proto.body for one in page.get("html"))
    assert pictures() == []


def test_an_edit_by_words_keeps_the_negative_prompt_and_draws_by_the_chosen_model_what_is_no_models() -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value("帽子なしの猫")
    page.text_area(key="create/negative").set_value("文字")
    page.button(key="generate").click().run()
    done(page, "create")
    (item,) = pictures()
    settings = read_settings(item.path)
    page = visit("repair")
    page.session_state["repair/source"] = Made(item.download_name, replace(settings, model="まぜたもの"), item.path)
    page.run()
    page.text_area(key="repair/instruction").set_value("猫を犬に")
    page.button(key="words-go").click().run()
    done(page, "repair")
    edited = read_settings(pictures()[0].path)
    assert (edited.source, edited.negative, edited.seed, edited.model) == ("帽子なしの犬", "文字、帽子", settings.seed, "mame")


def test_a_full_disk_loses_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    from demo.gallery import GalleryError

    def full(*_: Any, **__: Any) -> None:
        raise GalleryError("空きがありません / the disk is full")

    monkeypatch.setattr("demo.gallery.Gallery.add", full)
    page = visit("create")
    page.text_area(key="create/prompt").set_value("猫")
    page.button(key="generate").click().run()
    done(page, "create")
    assert any("空きがありません" in one.proto.body for one in page.get("html"))
    assert [one.alt for image in page.image for one in image.proto.imgs] == ["猫"]


def test_a_picture_is_drawn_anew_with_its_negative_prompt_and_another_seed_each_time_unless_it_is_locked() -> None:
    kept = demo.studio.studio().pictures.add(Instant("mame").generate(normalize("帽子のない船", negative="雲"), seed=1, on_step=lambda _: True))
    page = visit("repair")
    page.session_state["repair/source"] = of_item(kept)
    page.session_state["repair/mode"] = "whole"
    page.run()
    for locked in (False, False, True):
        page.toggle(key="repair/lock").set_value(locked)
        page.button(key="whole-go").click().run()
        done(page, "repair")
    assert page.text_area(key="repair/whole/negative").value == "雲"
    last, second, first = pictures()[:3]
    assert first.seed != second.seed == last.seed
    assert read_settings(last.path).negative == read_settings(kept.path).negative == "雲、帽子"


def test_the_bin_is_emptied_by_nobody_who_has_not_said_so() -> None:
    kept = demo.studio.studio().pictures
    item = kept.add(Instant("mame").generate(normalize("船"), seed=1, on_step=lambda _: True))
    kept.delete([item.id])
    page = visit("gallery")
    page.toggle(key="gallery/bin").set_value(True).run()
    page.button(key="gallery.empty_bin").click().run()
    assert item.path.is_file()
    page.checkbox(key="gallery/sure/0").check()
    page.button(key="gallery.empty_bin").click().run()
    assert not item.path.exists()
    assert any("ごみ箱は空です" in one.proto.body for one in page.get("html"))


def test_a_gallery_in_which_nothing_is_found_does_not_say_that_it_is_empty() -> None:
    demo.studio.studio().pictures.add(Instant("mame").generate(normalize("船"), seed=1, on_step=lambda _: True))
    page = visit("gallery")
    page.text_area(key="gallery/text").set_value("山")
    page.button(key="gallery-search-go").click().run()
    told = "".join(one.proto.body for one in page.get("html"))
    assert "見つかりません" in told
    assert "絵はまだありません" not in told


def test_the_words_and_numbers_of_a_recognition_can_be_read_out() -> None:
    def script() -> None:
        from demo.tabs.recognise import bars

        bars([("犬", 0.25), ("猫", 0.75)])

    (chart,) = AppTest.from_function(script, default_timeout=WAIT).run().get("html")
    assert 'role="group"' in chart.proto.body  # what is in a role="img" is not read
    assert chart.proto.body.index("猫") < chart.proto.body.index("75.0 %") < chart.proto.body.index("犬")


# ── what a run costs, in counts ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often pictures are encoded and decoded, and how often the catalogue and the settings inside of pictures are read."""
    counts: Counter[str] = Counter()

    def count(owner: Any, name: str) -> None:
        whole = getattr(owner, name)

        def counting(*given: Any, **named: Any) -> Any:
            counts[name] += 1
            return whole(*given, **named)

        monkeypatch.setattr(owner, name, counting)

    count(Image.Image, "save")
    count(jpgen, "read_picture")
    count(jpgen, "read_settings")
    count(choosing, "model_cards")
    return counts


@pytest.mark.parametrize("tab", list(TABS))
def test_a_second_run_of_a_page_encodes_decodes_and_reads_nothing(tab: str, counted: Counter[str]) -> None:
    for text in ("赤い船", "青い花"):
        kept = demo.studio.studio().pictures.add(Instant("mame").generate(normalize(text), seed=1, on_step=lambda _: True))
    page = visit(tab)
    if tab in ("repair", "recognise"):
        page.session_state[f"{tab}/source"] = of_item(kept)
        page.run()
    if tab == "repair":
        page.segmented_control(key="repair/mode").set_value("part")
    page.run()
    counted.clear()
    page.run()
    assert not page.exception
    assert counted == {}


class Held(Instant):
    """A pipeline that shows a preview after its first step, and goes on when it is let."""

    stepped, let = threading.Event(), threading.Event()

    def generate(self, prompt: Prompt, *, seed: int, config: SamplingConfig | None = None, on_step: Any = None, init: Any = None) -> Generation:
        on_step(Step(1, 2, lambda: [Image.new("RGB", (64, 64), "navy")]))
        self.stepped.set()
        assert self.let.wait(WAIT)
        return super().generate(prompt, seed=seed, config=config, on_step=on_step)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Held]]:
    Held.stepped.clear(), Held.let.clear()
    monkeypatch.setattr(demo.studio, "new_worker", lambda: Sent(Held))
    yield Held
    Held.let.set()


def test_a_preview_is_encoded_once_however_often_it_is_looked_at(held: type[Held], counted: Counter[str]) -> None:
    page = visit("create")
    page.text_area(key="create/prompt").set_value("猫")
    counted.clear()
    page.button(key="generate").click().run()
    assert held.stepped.wait(WAIT)
    for _ in range(3):
        page.run()
        assert [one.alt for image in page.image for one in image.proto.imgs] == ["描いている途中の絵"]
    assert counted["save"] == 1
    held.let.set()
    done(page, "create")
    assert "create/preview" not in page.session_state


def test_an_example_fills_the_box_and_a_sample_chooses_the_style() -> None:
    page = visit("create")
    before = [page.button(key=f"example-{n}").label for n in range(3)]
    page.button(key="examples-more").click().run()
    after = [page.button(key=f"example-{n}").label for n in range(3)]
    assert not {*before} & {*after}
    page.button(key="example-1").click().run()
    assert page.text_area(key="create/prompt").value == after[1]
    page.session_state["create-style-box"] = True
    page.run()
    page.button(key="create-style-watercolor").click().run()
    assert page.selectbox(key="create/style").value == next(name for name, style in choosing.styles().items() if style.english == "watercolor")


def test_after_too_many_wrong_passwords_the_right_one_has_to_wait_too(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text(f'gallery = "gallery"\npassword_hash = "{hash_password("山と川")}"\n', "utf-8")

    def script() -> None:
        import demo.frame

        if demo.frame._admitted():
            import streamlit as st

            st.text("中")

    page = AppTest.from_function(script, default_timeout=WAIT)
    page.session_state["language"] = "ja"
    page.run()
    for _ in range(FREE + 1):
        page.text_input[0].set_value("川と山")
        page.button[0].click().run()
        assert any("合言葉が違います" in one.proto.body for one in page.get("html"))
    page.text_input[0].set_value("山と川")
    page.button[0].click().run()
    assert any("秒待って" in one.proto.body for one in page.get("html"))
    assert [one.value for one in page.text] == []
    demo.studio.studio().brake._until = 0.0
    page.button[0].click().run()
    assert [one.value for one in page.text] == ["中"]
