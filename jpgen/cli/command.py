"""What the commands of the command line share: errors told in one line, a start and an end that look for no garbage."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

from jpgen.errors import JpgenError

FAILED = 2


def explained(command: Callable[..., None]) -> Callable[..., None]:
    """Every jpgen error becomes one line on stderr and exit code 2, never a traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except JpgenError as error:
            click.echo(f"jpgen: {str(error).splitlines()[0]}", err=True)
            sys.exit(FAILED)
        except KeyboardInterrupt:
            click.echo("jpgen: 中止しました / cancelled", err=True)
            sys.exit(130)

    return run


@contextmanager
def for_good() -> Iterator[None]:
    """Within, what is imported and opened stays until the program ends: Python's collector does not look through it, then or later.

    700,000 objects of torch, diffusers and transformers, of which 10,000 are garbage: looking again and again while they grow is an eighth of a cold
    start. The rest of the program is collected as ever. For programs, not for libraries: the collector is everybody's.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was:
            gc.enable()
