"""mame-clip: shapes, round trip, refusals; the built-in one reads both languages."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from jpgen.encoders import bert
from jpgen.errors import WeightsError
from jpgen.evaluate.mame_clip import CONFIG, WEIGHTS, ClipConfig, ClipNetwork, MameClip, pooled
from jpgen.evaluate.scorer import ImageTextScorer, open_scorer
from jpgen.evaluate.scores import clip_score

SMALL = ClipConfig(text_width=32, text_hidden=40, width=24, side=64, looks=4)


@pytest.fixture
def clip() -> MameClip:
    torch.manual_seed(0)
    return MameClip(ClipNetwork(SMALL), SMALL, bert.toy())


def test_features_are_unit_vectors_whatever_the_size(clip: MameClip) -> None:
    assert isinstance(clip, ImageTextScorer)
    images = [Image.new("RGB", (30, 50), "red"), Image.new("L", (128, 128), 40)]
    torch.testing.assert_close(clip.image_features(images).norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(clip.text_features(["赤い船", "a"]).norm(dim=-1), torch.ones(2))
    assert clip.image_features([]).shape == (0, 24) and clip.scale > 1


def test_a_text_does_not_depend_on_its_company(clip: MameClip) -> None:
    texts = ["赤い船", "猫", "a red ship", "青い海の船と猫"] * 12
    one_by_one = torch.cat([clip.text_features([text]) for text in texts])
    torch.testing.assert_close(clip.text_features(texts), one_by_one, atol=1e-5, rtol=1e-4)


def test_pooling_is_the_mean_of_the_tokens_alone() -> None:
    encoder = bert.toy()
    made = encoder.encode(["赤い船"])
    torch.testing.assert_close(pooled(encoder, ["赤い船", "青い海の船と猫"])[0], made.tokens[0].mean(0), atol=1e-5, rtol=1e-4)


def test_a_picture_is_the_mean_of_its_cells_until_it_learns_where_to_look(clip: MameClip) -> None:
    cells = torch.rand(2, 9, 1280)
    network = clip.network
    torch.testing.assert_close(network.cell_features(cells), network.cell_features(cells.mean(1, keepdim=True)), atol=1e-5, rtol=1e-4)
    network.look.weight.normal_(std=100)
    by_hand = torch.empty(2, 1280)
    for look, part in enumerate(torch.arange(1280).chunk(4)):
        weights = (cells @ network.look.weight[look] + network.look.bias[look]).softmax(dim=1)
        by_hand[:, part] = (weights[..., None] * cells[..., part]).sum(dim=1)
    torch.testing.assert_close(network.cell_features(cells), network.cell_features(by_hand[:, None]), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(by_hand, cells.mean(1), atol=1e-2)


def test_it_is_there_again_in_eight_bits(clip: MameClip, tmp_path: Path) -> None:
    clip.save(tmp_path)
    again = MameClip.load(tmp_path, encoder=bert.toy())
    image = [Image.new("RGB", (128, 128), "teal")]
    assert float((again.image_features(image) * clip.image_features(image)).sum()) > 0.99
    assert again.config == clip.config


def test_damage_is_told(clip: MameClip, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=CONFIG):
        MameClip.load(tmp_path)
    clip.save(tmp_path)
    told = json.loads((tmp_path / CONFIG).read_text())
    for wrong in ({**told, "width": 25}, {**told, "depth": 3}, {**told, "looks": 3}):
        (tmp_path / CONFIG).write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match="do not fit"):
            MameClip.load(tmp_path, encoder=bert.toy())
    (tmp_path / CONFIG).write_text(json.dumps(told))
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(WeightsError):
        MameClip.load(tmp_path, encoder=bert.toy())


def test_the_built_in_one_is_small_and_knows_a_colour_from_another() -> None:
    scorer = open_scorer("mame-clip")
    folder = Path(__file__).parents[2] / "jpgen" / "evaluate" / "clip"
    assert (folder / WEIGHTS).stat().st_size <= 6_000_000
    assert open_scorer() is scorer  # kept open
    sea, sky = Image.new("RGB", (256, 256), (225, 70, 65)), Image.new("RGB", (256, 256), (85, 140, 235))
    for red, blue in (("赤い背景", "青い背景"), ("red background", "blue background")):
        right = clip_score([sea, sky], [red, blue])
        wrong = clip_score([sea, sky], [blue, red])
        assert sum(right) > sum(wrong)
