"""Start the demo: `jpgen demo`, or `python -m demo` beside it. Address, port and upload limit come from the settings."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from demo.settings import Settings, SettingsError, load_settings


def command(settings: Settings, port: int | None) -> list[str]:
    """The command line of streamlit for these settings; whatever they do not say is in .streamlit/config.toml beside app.py."""
    flags = {
        "server.address": settings.address, "server.port": port or settings.port, "server.maxUploadSize": max(1, settings.upload_bytes >> 20),
    }  # fmt: skip
    if settings.public:  # by which names others reach it, only its owner knows: the password keeps them out
        flags["server.allowedHosts"] = "*"
    return [
        sys.executable, "-m", "streamlit", "run", str(Path(__file__).with_name("app.py")), *(f"--{name}={value}" for name, value in flags.items())
    ]  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Replace this process by streamlit; 2 if the settings are wrong, which is told in a line."""
    parser = argparse.ArgumentParser(prog="jpgen demo")
    parser.add_argument("--port", type=int)
    given = parser.parse_args(arguments)
    try:
        settings = load_settings()
    except SettingsError as error:
        sys.stderr.write(f"jpgen: {error}\n")
        return 2
    started = command(settings, given.port)
    os.execv(started[0], started)


if __name__ == "__main__":
    sys.exit(main())
