"""Shared by all tests: a pipeline of toy parts (random weights, pictures of 64 pixels), opened once."""

import pytest
from hypothesis import settings

import tests.typechecks  # noqa: F401  # before anything of jpgen: what checks it
from jpgen.pipeline import Pipeline
from jpgen.types import ModelInfo

settings.register_profile("same", derandomize=True, deadline=None)  # a run fails for what changed, not by chance
settings.load_profile("same")


@pytest.fixture(scope="session")
def toy() -> Pipeline:
    from jpgen.backbones import pixart
    from jpgen.encoders import bert

    return Pipeline.from_parts(bert.toy(), pixart.toy(), ModelInfo("toy", "0", "Apache-2.0", "0000000000"))
