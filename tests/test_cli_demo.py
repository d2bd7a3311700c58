"""`jpgen demo`: what it starts, and what it says when it cannot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from demo import __main__ as start
from demo.settings import Settings
from jpgen.cli import demo as command
from jpgen.cli import main

HASH = "scrypt$c2FsdHNhbHQ=$" + "A" * 86 + "=="


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What would have been started."""
    seen: list[dict[str, Any]] = []

    def run(arguments: list[str], *, env: dict[str, str], check: bool) -> subprocess.CompletedProcess[str]:
        seen.append({"arguments": arguments, "env": env})
        return subprocess.CompletedProcess(arguments, 0)

    monkeypatch.setattr(command.subprocess, "run", run)
    return seen


def test_the_package_demo_is_run_from_where_it_is(started: list[dict[str, Any]], tmp_path: Path) -> None:
    settings = tmp_path / "mine.toml"
    settings.write_text("", "utf-8")
    done = CliRunner().invoke(main, ["demo", "--port", "9000", "--config", str(settings)])
    assert (done.exit_code, done.output) == (0, "")
    (one,) = started
    assert one["arguments"] == [sys.executable, "-m", "demo", "--port=9000"]
    assert one["env"]["JPGEN_DEMO_CONFIG"] == str(settings.resolve())
    assert (Path(one["env"]["PYTHONPATH"].split(":")[0]) / "demo" / "app.py").is_file()


def test_without_streamlit_it_says_what_to_install(started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    done = CliRunner().invoke(main, ["demo"])
    assert done.exit_code == 2
    assert "pip install 'jpgen[demo]'" in done.output
    assert started == []


def test_a_settings_file_that_is_not_there(started: list[dict[str, Any]]) -> None:
    done = CliRunner().invoke(main, ["demo", "--config", "none.toml"])
    assert done.exit_code == 2
    assert "none.toml" in done.output
    assert started == []


def test_only_this_machine_reaches_it_unless_it_is_public() -> None:
    flags = start.command(Settings(), None)
    assert {"--server.address=127.0.0.1", "--server.port=8501", "--server.maxUploadSize=9"} <= set(flags)
    assert not any("allowedHosts" in flag for flag in flags)
    public = start.command(Settings(public=True, address="0.0.0.0", password_hash=HASH), 9000)
    assert {"--server.address=0.0.0.0", "--server.port=9000", "--server.allowedHosts=*"} <= set(public)


def test_wrong_settings_are_told_in_a_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = tmp_path / "wrong.toml"
    settings.write_text('public = true\naddress = "0.0.0.0"\n', "utf-8")
    monkeypatch.setenv("JPGEN_DEMO_CONFIG", str(settings))
    assert start.main([]) == 2
    assert "password_hash" in capsys.readouterr().err
