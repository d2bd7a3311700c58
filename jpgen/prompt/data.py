"""Where the data of prompts is: wildcards, styles, and the prompts of jpgen.prompts."""

from __future__ import annotations

from pathlib import Path


def data_folder() -> Path:
    """The folder with `wildcards/` and `styles.tsv`: inside an installed jpgen, or `prompts` of a checkout.

        >>> (data_folder() / "styles.tsv").is_file()
        True
    """
    package = Path(__file__).resolve().parent
    installed = package / "data"
    return installed if installed.is_dir() else package.parents[1] / "prompts"
