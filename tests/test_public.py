"""The front door: names, laziness, and what an import costs."""

import subprocess
import sys

import pytest

import jpgen


def test_importing_jpgen_loads_no_torch() -> None:
    heavy = ("torch", "diffusers", "transformers", "PIL", "numpy")
    code = f"import sys, jpgen, jpgen.cli, jpgen.catalog; jpgen.Prompt; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", jpgen.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(jpgen, name).__doc__


def test_all_is_sorted_and_what_the_homes_give() -> None:
    assert jpgen.__all__ == sorted(jpgen._HOME_OF)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="genrate"):
        _ = jpgen.genrate
