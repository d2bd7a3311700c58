"""A cold `jpgen generate` imports nothing it does not need, and Python looks for garbage neither while it does nor at the end."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jpgen.cli.command import for_good

NEVER = (
    "cv2", "IPython", "jax", "matplotlib", "onnxruntime", "openvino", "pandas", "playwright", "ray", "scipy", "sklearn", "streamlit", "tensorflow",
    "torchaudio", "torchvision", "sympy", "torch._dynamo.eval_frame", "torch.distributed.tensor",
    "jpgen.backbones.unet", "jpgen.backbones.flux", "jpgen.backbones.diffusers", "jpgen.evaluate", "jpgen.train", "jpgen.evolve",
    "diffusers.pipelines.auto_pipeline", "diffusers.pipelines.stable_diffusion", "diffusers.pipelines.stable_diffusion_xl",
    "diffusers.models.controlnets", "transformers.pipelines", "transformers.trainer", "transformers.models.clip.modeling_clip",
)  # fmt: skip
"""What the built-in model has no use for, of what is installed for other things."""

DRAW = """
import atexit, gc, json, sys
def tell():
    found = {"loaded": sorted(sys.modules), "whole collections": gc.get_stats()[2]["collections"] - before, "frozen": gc.get_freeze_count(),
             "collecting": gc.isenabled(), "left": len(gc.get_objects())}
    with open(sys.argv[-1] + ".json", "w") as file:
        json.dump(found, file)
atexit.register(tell)  # called after what is registered later
before = gc.get_stats()[2]["collections"]
from jpgen.cli import main
main()
"""


def test_only_what_is_needed_is_imported_and_none_of_it_is_looked_through(tmp_path: Path) -> None:
    target = tmp_path / "cat.png"
    subprocess.run([sys.executable, "-c", DRAW, "generate", "猫", "--steps", "1", "-o", str(target)], check=True)
    assert target.is_file()
    found = json.loads(target.with_name("cat.png.json").read_text("utf-8"))
    assert {"torch", "diffusers", "jpgen.backbones.pixart", "jpgen.encoders.bert"} <= set(found["loaded"])
    assert [name for name in NEVER if name in found["loaded"]] == []
    assert found["whole collections"] <= 1  # there are seven while a model is opened when Python is left to itself
    assert found["collecting"]
    assert found["frozen"] > 300_000  # all that was opened, so that the end of the process does not look through it
    assert found["left"] < 10_000


@pytest.fixture
def unfrozen() -> Iterator[None]:
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
def test_what_is_made_within_is_never_looked_at_and_what_comes_after_is() -> None:
    with for_good():
        assert not gc.isenabled()
        within: list[object] = [[]]
    after: list[object] = [[]]
    assert gc.isenabled()
    seen = {id(one) for one in gc.get_objects()}
    assert (id(within) in seen, id(after) in seen) == (False, True)


@pytest.mark.usefixtures("unfrozen")
def test_a_collector_that_was_off_stays_off_and_an_error_turns_it_on_again() -> None:
    with pytest.raises(RuntimeError), for_good():
        raise RuntimeError("said")
    assert gc.isenabled()
    gc.disable()
    try:
        with for_good():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
