"""`jpgen demo`: the studio in the browser; a part of `jpgen.cli`."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import click

from jpgen.cli.command import explained

CONFIG = "JPGEN_DEMO"
"""Environment variable: the settings file of the demo."""


@click.command("demo")
@click.option("--port", type=click.IntRange(1, 65535), default=8501, show_default=True, help="待ち受けるポート / the port to listen at")
@click.option("--config", type=click.Path(path_type=Path), help="設定ファイル（合言葉、公開など） / settings: a password, a public demo …")
@explained
def demo_command(port: int, config: Path | None) -> None:
    """ブラウザで絵をつくります（この計算機からだけ見えます） / make pictures in the browser, seen from this machine alone."""
    from jpgen.errors import MissingExtraError, UnknownNameError

    if find_spec("streamlit") is None:
        raise MissingExtraError("デモには Streamlit が要ります: pip install 'jpgen[demo]' / the demo wants Streamlit: pip install 'jpgen[demo]'")
    if config is not None and not config.is_file():
        raise UnknownNameError(f"設定ファイル {config} がありません / no settings file {config}: correct its path")
    environment = os.environ | ({CONFIG: str(config.resolve())} if config else {})
    command = [sys.executable, "-m", "streamlit", "run", str(application()), f"--server.port={port}"]
    sys.exit(subprocess.run(command, env=environment, check=False).returncode)


def application() -> Path:
    """The demo's app.py: of the wheel, else of the checkout that jpgen is imported from; raises UnknownNameError if there is none."""
    from jpgen.errors import UnknownNameError

    package = Path(__file__).resolve().parents[1]
    for folder in (package / "studio" / "demo", package.parent / "demo"):
        if (folder / "app.py").is_file():
            return folder / "app.py"
    raise UnknownNameError("デモのファイルがありません。jpgen を入れ直してください / the files of the demo are missing: install jpgen again")
