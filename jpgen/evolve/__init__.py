"""`jpgen evolve`: a search for the numbers of a merge recipe by the pictures it draws (study file, prompts, scorers, processes, report)."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_example"]


def write_example(folder: str | Path) -> Path:
    """Write a study that runs as it is, with its prompts and two parents; see `jpgen.evolve.example`."""
    from jpgen.evolve.example import write_example as write  # here: it loads torch

    return write(Path(folder))
