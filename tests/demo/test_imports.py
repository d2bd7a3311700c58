"""The demo stands at jpgen's front door: it imports the public names of `jpgen`, `jpgen.merge` and `jpgen.prompts` and reaches nowhere inside."""

import ast
from pathlib import Path

import pytest

import demo
import jpgen
import jpgen.merge
import jpgen.prompts

DOORS = {"jpgen": set(jpgen.__all__) | {"merge", "prompts"}, "jpgen.merge": set(jpgen.merge.__all__), "jpgen.prompts": set(dir(jpgen.prompts))}
FILES = sorted(Path(demo.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_only_public_names_of_jpgen_are_imported(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not [one.name for one in node.names if one.name.startswith("jpgen.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "jpgen":
            assert node.module in DOORS, node.module
            assert {one.name for one in node.names} <= DOORS[node.module]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "jpgen":
            assert node.attr in DOORS["jpgen"], node.attr
