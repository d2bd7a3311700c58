"""What the demo imports: of jpgen only the public names of `jpgen`, `jpgen.merge` and `jpgen.prompts`, and beside its pages nothing that draws."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import demo
import jpgen
import jpgen.merge
import jpgen.prompts

DOORS = {"jpgen": set(jpgen.__all__) | {"merge", "prompts"}, "jpgen.merge": set(jpgen.merge.__all__), "jpgen.prompts": set(dir(jpgen.prompts))}
ROOT = Path(demo.__file__).parents[1]
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


PAGES = """
import sys
from PIL import Image
from streamlit.testing.v1 import AppTest
import demo.studio
from demo.frame import TABS
from demo.made import of_item
from demo.worker import Outcome
from jpgen import Generation, ModelInfo, SamplingConfig, normalize

class Idle:
    def run(self, work, progress):
        return Outcome("cancelled")
    def rest(self):
        pass

def visit(name, **state):
    page = AppTest.from_string(f"from demo.frame import TABS; TABS[{name!r}][0]()", default_timeout=100)
    for key, value in state.items():
        page.session_state[f"{name}/{key}"] = value
    page.run()
    assert not page.exception
    return page

demo.studio.new_worker = Idle
picture = Image.new("RGB", (64, 64)), normalize("三匹の猫"), SamplingConfig(64, 64, 1, 1.0), 1, ModelInfo("mame", "0", "Apache-2.0", "0")
item = demo.studio.studio().pictures.add(Generation(*picture, "fake", "native", 0.0))
for name in TABS:
    visit(name)
for name, state, button in (
    ("create", {"prompt": "三匹の猫"}, "generate"), ("repair", {"source": of_item(item), "mode": "whole"}, "whole-go"), ("blend", {}, "blend-go"),
    ("recognise", {"source": of_item(item)}, "recognise-go"),
):
    assert not visit(name, **state).button(key=button).click().run().exception
sys.stdout.write(" ".join(sys.modules))
"""


def test_the_process_of_the_pages_never_loads_torch(tmp_path: Path) -> None:
    (tmp_path / "demo.toml").write_text('gallery = "gallery"\n', "utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JPGEN_DEMO_CONFIG": str(tmp_path / "demo.toml")}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PAGES], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "demo.tabs.create" in loaded
    assert not loaded & {"torch", "diffusers", "transformers", "peft", "accelerate"}
