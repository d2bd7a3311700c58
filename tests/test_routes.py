"""Routes: which is taken, what an adapter changes, what a picture says of it, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

from jpgen.api import load_generation
from jpgen.backbones import load_backbone
from jpgen.encoders import bert
from jpgen.encoders.adapted import AdaptedEncoder, open_source, probe
from jpgen.encoders.pairing import Pairing, PairingSpec, new_network, save_pairing
from jpgen.errors import IncompatibleError, MetadataError, UnknownNameError
from jpgen.models import recognise
from jpgen.pipeline import Pipeline
from jpgen.routes import choose_route
from tests.toys import stable_diffusion as toys


@pytest.mark.parametrize(
    ("wanted", "own", "adapter", "translator", "taken"),
    [
        ("auto", "native", False, False, "native"), ("auto", "translate", False, False, "raw"), ("auto", "translate", False, True, "translate"),
        ("auto", "native", False, True, "translate"), ("auto", "translate", True, True, "adapter"), ("auto", "adapter", False, False, "raw"),
        ("raw", "native", True, True, "raw"), ("translate", "translate", True, True, "translate"),
    ],
)  # fmt: skip
def test_the_first_open_route_is_taken(wanted: str, own: str, adapter: bool, translator: bool, taken: str) -> None:
    assert choose_route(wanted, own, "m", adapter=adapter, translator=translator) == taken


def test_routes_that_are_not_open_say_what_to_do() -> None:
    with pytest.raises(IncompatibleError, match="reads no Japanese"):
        choose_route("native", "translate", "sdxl-base", adapter=False, translator=False)
    with pytest.raises(IncompatibleError, match="jpgen train adapter"):
        choose_route("adapter", "translate", "sdxl-base", adapter=False, translator=True)
    with pytest.raises(IncompatibleError, match="give a translator"):
        choose_route("translate", "translate", "sdxl-base", adapter=False, translator=False)
    with pytest.raises(UnknownNameError, match="native"):
        choose_route("nativ", "native", "mame", adapter=False, translator=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "sdxl.safetensors"
    return toys.single_sdxl(folder).path


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained adapter of mame's encoder for the toy."""
    wanted, encoder = load_backbone(recognise(model)).spec, open_source("mame")
    spec = PairingSpec("resampler", "mame", "toy", encoder.spec.width, wanted.width, wanted.pooled_width, hidden=64, layers=1, length=9)
    path = tmp_path_factory.mktemp("adapter") / "mame-toy.safetensors"
    save_pairing(path, Pairing(spec, new_network(spec), probe(encoder)))
    return path


def test_a_picture_by_an_adapter_tells_it_and_is_repeated(model: Path, adapter: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(model, adapter=adapter)
    assert pipeline.route == "adapter" and isinstance(pipeline.encoder, AdaptedEncoder)
    config = pipeline.config(width=64, height=64, steps=2)
    made = pipeline.generate("赤い(猫:1.3)", seed=1, config=config)
    assert (made.route, made.encoder) == ("adapter", "multilingual-e5-small-ja-en+resampler")
    assert [one.kind for one in made.adapters] == ["pairing"] and made.adapters[0].name == "mame-toy"
    raw = Pipeline(model, route="raw").generate("赤い(猫:1.3)", seed=1, config=config)
    assert raw.route == "raw" and np.asarray(raw.image, int).tobytes() != np.asarray(made.image, int).tobytes()
    path = made.save(tmp_path / "cat.png")
    again = load_generation(path, model=str(model), adapter=adapter)
    assert again.image.tobytes() == made.image.tobytes() and again == made
    with pytest.raises(MetadataError, match=r"made with the adapter mame-toy"):
        load_generation(path, model=str(model))


def test_an_adapter_for_another_width_is_refused(model: Path, tmp_path: Path) -> None:
    encoder = bert.toy()
    spec = PairingSpec("mlp", "mame", "other", 32, 48, None, hidden=32)
    save_pairing(tmp_path / "other.safetensors", Pairing(spec, new_network(spec), probe(encoder)))
    with pytest.raises(IncompatibleError, match=r"mame \(32\) → other \(48\), mlp.*wants width"):
        Pipeline(model, adapter=tmp_path / "other.safetensors")
    with pytest.raises(IncompatibleError, match="give an adapter trained for"):
        Pipeline(model, route="adapter")
