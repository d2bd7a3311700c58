"""`jpgen demo`: the studio in the browser; a part of `jpgen.cli`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from jpgen.cli.command import explained

SETTINGS = "JPGEN_DEMO_CONFIG"
"""Environment variable: the settings file of the demo."""


@click.command("demo")
@click.option("--port", type=click.IntRange(1, 65535), help="待ち受けるポート（既定 8501） / the port to listen at")
@click.option("--config", type=click.Path(path_type=Path), help="設定ファイル（合言葉、公開など） / settings: a password, a public demo …")
@explained
def demo_command(port: int | None, config: Path | None) -> None:
    """ブラウザで絵をつくります（この計算機からだけ見えます） / make pictures in the browser, seen from this machine alone."""
    from jpgen.errors import MissingExtraError, UnknownNameError

    if find_spec("streamlit") is None:
        raise MissingExtraError("デモには Streamlit が要ります: pip install 'jpgen[demo]' / the demo wants Streamlit: pip install 'jpgen[demo]'")
    if config is not None and not config.is_file():
        raise UnknownNameError(f"設定ファイル {config} がありません。場所を確かめてください / no settings file {config}: correct its path")
    path = os.pathsep.join(filter(None, (str(home()), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path} | ({SETTINGS: str(config.resolve())} if config else {})
    command = [sys.executable, "-m", "demo", *([f"--port={port}"] if port else [])]
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def home() -> Path:
    """The folder that holds the package `demo`: of the wheel, else of the checkout jpgen is imported from; raises UnknownNameError without one."""
    from jpgen.errors import UnknownNameError

    package = Path(__file__).resolve().parents[1]
    for folder in (package / "studio", package.parent):
        if (folder / "demo" / "app.py").is_file():
            return folder
    raise UnknownNameError("デモのファイルがありません。jpgen を入れ直してください / the files of the demo are missing: install jpgen again")
