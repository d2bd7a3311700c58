"""The compiler that sleeps until something is compiled: what it is told meanwhile, and that it is whole once it wakes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

BEGIN = """
import json, sys
from jpgen.dozing import doze
doze()
asleep = sys.modules["torch._dynamo"]
import torch
"""
MARKS = """
@torch.compiler.disable
def plain(x): return x + 1
@torch.compiler.disable(recursive=False)
def options(x): return x + 2
@torch.compiler.allow_in_graph
def whole(x): return x * 3
@torch.compiler.assume_constant_result
def constant(): return 4
"""


def told(*parts: str) -> Any:
    """What a new process prints that carries out `BEGIN` and these parts."""
    made = subprocess.run([sys.executable, "-c", BEGIN + "".join(parts)], check=True, capture_output=True, text=True)
    return json.loads(made.stdout.splitlines()[-1])


def test_marked_functions_work_while_it_sleeps():
    asked = """
from diffusers.utils.torch_utils import is_compiled_module
told = [plain(1), options(1), whole(1), constant(), plain.__name__, is_compiled_module(torch.nn.Linear(1, 1))]
print(json.dumps([*told, sys.modules["torch._dynamo"] is asleep]))
"""
    assert told(MARKS, asked) == [2, 3, 3, 4, "plain", False, True]


def test_compiling_wakes_it_and_it_knows_the_marks():
    asked = """
from torch._dynamo.testing import CompileCounterWithBackend
counter = CompileCounterWithBackend("eager")
made = torch.compile(lambda x: whole(x) + constant(), backend=counter)(torch.ones(2))
halted = torch.compile(lambda x: plain(x * 2) * 2, backend=counter)(torch.ones(2))
graphs = [[str(node.target) for node in graph.graph.nodes] for graph in counter.graphs]
print(json.dumps([made.tolist(), halted.tolist(), plain(1), sys.modules["torch._dynamo"] is asleep, graphs]))
"""
    made, halted, plain, asleep, graphs = told(MARKS, asked)
    assert (made, halted, plain, asleep) == ([7.0, 7.0], [6.0, 6.0], 2, False)
    assert any("whole" in target for target in graphs[0])  # not looked into
    assert not any("add" in target for graph in graphs[1:] for target in graph)  # what `plain` does is in no graph


@pytest.mark.parametrize("wanted", ["import torch._dynamo.config as it", "from torch._dynamo.backends import registry as it"])
def test_a_submodule_wakes_it_and_is_there_once(wanted):
    asked = """
real = sys.modules["torch._dynamo"]
place = it.__name__.removeprefix("torch._dynamo.").split(".")
found = real
for name in place:
    found = getattr(found, name)
print(json.dumps([real is asleep, it is sys.modules[it.__name__], it is found]))
"""
    assert told(wanted, asked) == [False, True, True]


def test_masks_sleep_until_one_is_made():
    asked = """
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
told = [sys.modules["torch._dynamo"] is asleep]
with TransformGetItemToIndex():
    told.append(torch.arange(3)[torch.tensor(2)].item())
from torch._dynamo._trace_wrapped_higher_order_op import trace_wrapped
print(json.dumps([*told, sys.modules["torch._dynamo"] is asleep, trace_wrapped.__module__]))
"""
    assert told(asked) == [True, 2, False, "torch._dynamo._trace_wrapped_higher_order_op"]


def test_one_that_is_awake_stays_so():
    asked = """
awake = asleep.wake()
torch.distributed.is_available = lambda: True
doze()
print(json.dumps([sys.modules["torch._dynamo"] is awake, torch.distributed.is_available()]))
"""
    assert told(asked) == [True, True]
