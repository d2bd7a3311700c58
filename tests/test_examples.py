"""What a reader copies works: the Python of README, the examples in docstrings, the commands of README."""

import doctest
import importlib
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from jpgen.api import load_generation
from jpgen.cli import main
from jpgen.metadata import read_settings

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
PYTHON = [re.sub(r"^  ", "", block, flags=re.MULTILINE) for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)]
COMMANDS = [line.split("  #")[0].strip() for line in README.splitlines() if line.startswith("jpgen generate")]


@pytest.mark.parametrize("code", PYTHON)
def test_python_of_readme_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_readme_has_its_examples() -> None:
    assert len(PYTHON) >= 3
    assert len(COMMANDS) >= 2


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_readme_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, shlex.split(command)[1:])
    assert done.exit_code == 0, done.output
    first, *others = done.output.split()
    assert load_generation(first).prompt.source in command  # drawn again
    assert all(read_settings(Path(path)).prompt.source in command for path in others)


MODULES = (
    "jpgen", "jpgen.api", "jpgen.cards", "jpgen.catalog", "jpgen.compute", "jpgen.emphasis", "jpgen.english", "jpgen.evolve.live", "jpgen.hub",
    "jpgen.models", "jpgen.pipeline", "jpgen.routes", "jpgen.safety", "jpgen.types", "jpgen.evaluate.judge", "jpgen.prompt.chain",
    "jpgen.prompt.fullwidth", "jpgen.prompt.scan", "jpgen.prompt.schedule", "jpgen.prompt.styles", "jpgen.prompt.syntax", "jpgen.prompt.tags",
    "jpgen.prompt.variants", "jpgen.prompt.wildcards", "jpgen.prompts",
)


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctest.testmod(importlib.import_module(module)).failed == 0
