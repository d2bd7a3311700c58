"""What every command of the command line shares: errors told in one line."""

from __future__ import annotations

import sys
from collections.abc import Callable
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
