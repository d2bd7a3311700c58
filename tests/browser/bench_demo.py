"""`make bench-demo`: three sessions use the demo for MINUTES; prints the first picture, gaps of the interface, and the memory of the server."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import FLAGS, ROOT, Server, serve, stop

PROMPTS = ("夕焼けの海に浮かぶ赤い船", "鳥居と桜並木", "三つのりんご、水彩画風")
PROMPT = "プロンプト (Prompt)"
WARM = 4
"""Pictures of each session before the memory is first read."""

WATCH = """() => {
  window.jpGaps = { ping: 0, task: 0 };
  new PerformanceObserver((list) => { for (const one of list.getEntries()) window.jpGaps.task = Math.max(window.jpGaps.task, one.duration); })
    .observe({ type: "longtask", buffered: false });
  (async () => { for (;;) {
    const began = performance.now();
    await fetch("/_stcore/health", { cache: "no-store" }).catch(() => {});
    window.jpGaps.ping = Math.max(window.jpGaps.ping, performance.now() - began);
    await new Promise((resume) => setTimeout(resume, 50));
  } })();
}"""
"""Measures in the page, in ms: the longest wait for an answer of the server, and the longest task that kept the page from answering."""


def memory(server: Server) -> float:
    """The resident memory of the server, MiB."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu(server: Server) -> float:
    """The CPU seconds that the server has used: on a busy machine they say more than the clock."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text("utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def opened(browser: Browser, server: Server) -> Page:
    """A session of its own."""
    context = browser.new_context(locale="ja-JP", viewport={"width": 1280, "height": 900})
    context.set_default_timeout(600_000)
    page = context.new_page()
    page.goto(server.url)
    page.get_by_role("textbox", name=PROMPT).wait_for()
    return page


def begin(page: Page, text: str) -> None:
    """Hand in a picture."""
    page.get_by_role("textbox", name=PROMPT).fill(text)
    page.get_by_role("button", name="生成", exact=True).click()
    page.get_by_role("button", name="取り消す").wait_for()


def finish(page: Page) -> None:
    """Wait for the picture."""
    page.get_by_role("button", name="PNG を保存").wait_for()


def main(minutes: float) -> None:
    """Run, and print the figures."""
    folder = Path(tempfile.mkdtemp())
    server = serve(folder, ROOT / "demo" / "app.py")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            began = time.monotonic()
            first = opened(browser, server)
            shown, shown_cpu = time.monotonic() - began, cpu(server)
            first.evaluate(WATCH)
            begin(first, PROMPTS[0])
            finish(first)
            told = f"page after {shown:.1f} s ({shown_cpu:.1f} CPU s of the server), "
            told += f"first picture after {time.monotonic() - began:.1f} s ({cpu(server):.1f} CPU s), load {os.getloadavg()[0]:.1f}"
            sys.stdout.write(told + "\n")
            sys.stdout.flush()
            sessions = [first, opened(browser, server), opened(browser, server)]
            rounds, start = 0, 0.0
            until = time.monotonic() + 60 * minutes
            while time.monotonic() < until:
                for page, text in zip(sessions, PROMPTS, strict=True):
                    begin(page, text)
                for page in sessions:
                    finish(page)
                rounds += 1
                if rounds == WARM:
                    start = memory(server)
                sys.stdout.write(f"round {rounds}: {memory(server):.0f} MiB\n")
                sys.stdout.flush()
            gaps = first.evaluate("window.jpGaps")
            sys.stdout.write(f"longest wait for the server {gaps['ping']:.0f} ms, longest task of the page {gaps['task']:.0f} ms\n")
            if start:
                grown = memory(server) / start - 1
                sys.stdout.write(f"{3 * rounds} pictures in {minutes:g} min: {start:.0f} MiB after round {WARM}, {100 * grown:+.1f} % at the end\n")
            else:
                sys.stdout.write(f"{rounds} rounds are too few for the memory to be judged\n")
            browser.close()
    finally:
        stop(server)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30)
