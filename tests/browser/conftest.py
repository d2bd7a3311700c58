"""A real Chromium and a real server of the demo, each in an empty folder. Time-outs are generous: the machine may be busy."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright
from safetensors.torch import save_file

from jpgen.weights import load_weights

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PROMPT = "プロンプト (Prompt)"
CONTEXT = {"locale": "ja-JP", "viewport": {"width": 1280, "height": 900}, "reduced_motion": "reduce"}
WAIT = int(os.environ.get("JPGEN_BROWSER_WAIT", "180")) * 1000
expect.set_options(timeout=WAIT)


@dataclass(frozen=True)
class Server:
    """A running demo: its address and the folder of everything it writes."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return int(place.getsockname()[1])


def serve(folder: Path, script: Path, *arguments: str, settings: str = "") -> Server:
    """Start streamlit with a script, its gallery and configuration in the folder; returns when it answers."""
    port = free_port()
    home = folder / "home"
    home.mkdir(parents=True, exist_ok=True)
    (folder / "demo.toml").write_text(settings, "utf-8")
    environment = os.environ | {
        "PYTHONPATH": str(ROOT), "HOME": str(home), "XDG_DATA_HOME": str(home / "data"), "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"), "HF_HUB_OFFLINE": "1", "JPGEN_DEMO_CONFIG": str(folder / "demo.toml"),
    }  # fmt: skip
    flags = [f"--server.port={port}", "--server.address=127.0.0.1", "--server.headless=true", "--browser.gatherUsageStats=false"]
    with (folder / "server.log").open("wb") as log:
        command = [sys.executable, "-m", "streamlit", "run", str(script), *flags, "--", *arguments]
        process = subprocess.Popen(command, cwd=ROOT / "demo", env=environment, stdout=log, stderr=log)
    url, paced = f"http://127.0.0.1:{port}", Event()
    for _ in range(1200):
        with suppress(OSError), urllib.request.urlopen(f"{url}/_stcore/health", timeout=5):
            return Server(url, folder, process)
        if process.poll() is not None:
            break
        paced.wait(0.1)
    process.kill()
    raise RuntimeError((folder / "server.log").read_text("utf-8", "replace"))


def stop(server: Server) -> None:
    server.process.terminate()
    try:
        server.process.wait(20)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo as it is, with the built-in model."""
    few = "" if os.environ.get("JPGEN_SCREENSHOTS") else "max_steps = 4\n"  # enough to be told apart, and soon drawn
    server = serve(tmp_path_factory.mktemp("demo"), ROOT / "demo" / "app.py", settings=few)
    yield server
    stop(server)


@pytest.fixture(scope="session")
def merges(real: Server) -> Path:
    """The folder of the models that the real demo mixes; in it ふたご, a model of the built-in one's kind."""
    folder = real.folder / "home" / ".local" / "share" / "jpgen" / "merges"
    folder.mkdir(parents=True)
    weights = load_weights(ROOT / "jpgen" / "mame" / "transformer" / "diffusion_pytorch_model.safetensors")
    save_file({name: (one * 0.9).contiguous() for name, one in weights.items()}, folder / "ふたご.safetensors")
    return folder


def mix_twin(page: Page) -> None:
    """Choose ふたご beside the built-in model on まぜる, and draw."""
    page.get_by_role("combobox", name="モデル（3 つまで）").fill("ふたご")
    page.get_by_role("option", name="ふたご").click()
    page.keyboard.press("Escape")
    expect(page.get_by_role("slider", name="割合")).to_have_count(2)
    settled(page)
    page.get_by_role("button", name="この配合で描く").click()
    expect(page.get_by_role("button", name="PNG を保存")).to_be_visible()


def serve_gated(folder: Path, settings: str = "") -> Server:
    """The demo with the engine of gated_app.py; its gates are in the folder `gates`."""
    (folder / "gates").mkdir(exist_ok=True)
    return serve(folder, Path(__file__).with_name("gated_app.py"), str(folder), settings=settings)


@pytest.fixture(scope="session")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One gated demo for all tests: each uses texts of its own, and leaves no job behind."""
    server = serve_gated(tmp_path_factory.mktemp("gated"))
    yield server
    stop(server)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Server]:
    """A gated demo for one test alone, its gallery empty."""
    server = serve_gated(tmp_path)
    yield server
    stop(server)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    place = shutil.which("chromium")
    if place is None:
        pytest.fail("chromium がありません / wanted: apt-get install chromium fonts-noto-cjk")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=place, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens a page of a server in a context of its own (a new session), and waits until the application stands there."""
    contexts: list[BrowserContext] = []

    def open_page(server: Server, tab: str = "", **options: object) -> Page:
        context = chromium.new_context(**CONTEXT | options)  # type: ignore[arg-type]
        contexts.append(context)
        context.set_default_timeout(WAIT)
        page = context.new_page()
        page.goto(f"{server.url}/{tab}")
        expect(page.get_by_role("heading", level=1).or_(page.locator(".stException")).first).to_be_visible()
        settled(page)
        assert not page.locator(".stException").count(), page.locator(".stException").inner_text()
        return page

    yield open_page
    for context in contexts:
        context.close()


def settled(page: Page) -> None:
    """Wait until the server has nothing more to send, and the page holds no place for what it is still loading."""
    expect(page.locator("[data-test-script-state='notRunning']")).to_be_attached()
    expect(page.locator("[data-testid=stSkeleton]")).to_have_count(0)


def fill(page: Page, name: str, text: str) -> None:
    """Put a text into a box as typing does, and leave it, so that the page knows it."""
    box = page.get_by_role("textbox", name=name)
    box.fill(text)
    box.blur()
    settled(page)


def generate(page: Page, text: str) -> None:
    """Write a prompt on つくる and hand it in."""
    fill(page, PROMPT, text)
    page.get_by_role("button", name="生成", exact=True).click()


def paint(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """A stroke of the brush over the picture on なおす, from and to these parts of its sides."""
    page.get_by_text("一部を").click()
    canvas = page.locator("canvas[role=application]")
    expect(canvas).to_be_visible()
    box = canvas.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * start[0], box["y"] + box["height"] * start[1])
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * end[0], box["y"] + box["height"] * end[1], steps=6)
    page.mouse.up()
    expect(page.get_by_role("button", name="塗った所を描きなおす")).to_be_enabled()


def go(page: Page, tab: str) -> None:
    """Open another page of the demo by its name."""
    page.get_by_role("link", name=tab).first.click()
    expect(page.get_by_role("heading", level=1, name=tab)).to_be_visible()
    settled(page)
