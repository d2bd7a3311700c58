"""torch's compiler, asleep until something is compiled, and no torch.distributed: for programs that want their first picture soon.

diffusers, transformers and peft import `torch._dynamo`, and sympy with it, only to mark functions that the compiler would meet, and the tensors of
torch.distributed, for models on many machines. That is two fifths of the time that their import takes. `doze()` puts a module in the compiler's
place that takes the marks. Whatever else is asked of it wakes the real one, which is told the marks then: torch.compile works as ever.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"
MASKS = f"{COMPILER}._trace_wrapped_higher_order_op"
"""Of this one transformers takes a context, `TransformGetItemToIndex`, for masks it makes by vmap."""


def doze() -> None:
    """Load torch, and from now on its compiler only if it is needed, torch.distributed never; nothing happens where the compiler is loaded already.

    For a process of one's own, before diffusers and transformers are imported.
    """
    import torch.distributed

    if COMPILER not in sys.modules:
        torch.distributed.is_available = lambda: False
        asleep = sys.modules[COMPILER] = Compiler(COMPILER)
        sys.meta_path.insert(0, asleep.finder)


class Compiler(ModuleType):
    """What stands in for `torch._dynamo` and takes its marks."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self.finder = Submodules(self)
        self.eval_frame = SimpleNamespace(OptimizedModule=Compiler)  # nothing is compiled yet: no model is one of these
        self._graph: list[Any] = []

    def allow_in_graph(self, function: Any) -> Any:
        """As of `torch._dynamo`; the compiler hears of it when it wakes."""
        self._graph.append(function)
        return function

    def assume_constant_result(self, function: Any) -> Any:
        """As of `torch._dynamo`."""
        function._dynamo_marked_constant = True
        return function

    def disable(self, function: Any = None, *options: Any, **named: Any) -> Any:
        """As of `torch._dynamo`; the function is called as it is while nothing can be compiled."""
        if function is None:
            return lambda later: self.disable(later, *options, **named)
        disabled: list[Callable[..., Any]] = []

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if sys.modules[COMPILER] is self:
                return function(*args, **kwargs)
            if not disabled:
                disabled.append(sys.modules[COMPILER].disable(function, *options, **named))
            return disabled[0](*args, **kwargs)

        return call

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # such are asked of every module, as by torch.library when it notes where an operator is defined
            raise AttributeError(name)
        return getattr(self.wake(), name)

    def wake(self) -> ModuleType:
        """The real module, loaded now if it was not."""
        if sys.modules.get(COMPILER) is self:
            sys.meta_path.remove(self.finder)
            del sys.modules[COMPILER]
            sys.modules.pop(MASKS, None)
            real = importlib.import_module(COMPILER)
            for function in self._graph:
                real.allow_in_graph(function)
        return sys.modules[COMPILER]


class Submodules(MetaPathFinder):
    """Finds those of a compiler asleep: `MASKS` sleeps on, any other wakes it."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The submodule of that name; None for all other modules."""
        if not name.startswith(f"{COMPILER}."):
            return None
        if name == MASKS:
            return ModuleSpec(name, _Given(Masks(self.compiler)))
        self.compiler.wake()
        importlib.import_module(name)
        return ModuleSpec(name, _Given(sys.modules.pop(name)))  # popped, as Python goes by the module's own spec, and loads it again, if it is there


class Masks(ModuleType):
    """What stands in for `MASKS`: its context wakes the compiler when it is entered, all else at once."""

    def __init__(self, compiler: Compiler) -> None:
        super().__init__(MASKS)
        self.compiler = compiler

    def TransformGetItemToIndex(self) -> Any:
        """As of `MASKS`."""
        return self._real().TransformGetItemToIndex()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def _real(self) -> ModuleType:
        self.compiler.wake()
        return importlib.import_module(MASKS)


class _Given(Loader):
    """Of a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """That module."""
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        """It has been carried out."""
