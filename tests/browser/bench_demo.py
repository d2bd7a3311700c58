"""`make bench-demo`: three sessions use the demo for MINUTES; prints how soon the first picture comes, how soon the page answers while pictures are
drawn, and how the memory of the server grows."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from threading import Event, Thread

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import CONTEXT, FLAGS, PROMPT, ROOT, Server, generate, serve, stop

PROMPTS = ("夕焼けの海に浮かぶ赤い船", "鳥居と桜並木", "三つのりんご、水彩画風")
WARM = 4
"""Pictures of each session before the memory is first read."""

MOST = 300
"""Milliseconds that nobody should have to wait while pictures are drawn."""

WATCH = """() => {
  window.jpGaps = { ping: [], task: [] };
  new PerformanceObserver((list) => { for (const one of list.getEntries()) window.jpGaps.task.push(one.duration); })
    .observe({ type: "longtask", buffered: false });
  (async () => { for (;;) {
    const began = performance.now();
    await fetch("/_stcore/health", { cache: "no-store" }).catch(() => {});
    window.jpGaps.ping.push(performance.now() - began);
    await new Promise((resume) => setTimeout(resume, 50));
  } })();
}"""
"""Measures in the page, in ms: the waits for an answer of the server, and the tasks that kept the page from answering: what blocks an interface."""

ASK_EXAMPLES = """async () => {
  const shown = () => document.querySelector(".st-key-examples").innerText;
  const before = shown(), began = performance.now();
  document.querySelector(".st-key-examples-more button").click();
  while (shown() === before) await new Promise((resume) => setTimeout(resume, 4));
  return performance.now() - began;
}"""
"""Asks for other examples, and measures in ms how long it takes until they are there: a click, a run of a part of the page, its change."""

OPEN = """async ([tab, button]) => {
  const began = performance.now();
  [...document.querySelectorAll("a")].find((link) => link.innerText.trim().endsWith(tab)).click();
  const named = (one) => one.innerText.trim().endsWith(button) && !one.closest("[data-stale=true]");
  const there = () => document.querySelector("h1").innerText === tab && [...document.querySelectorAll("main button")].some(named);
  while (!there()) await new Promise((resume) => setTimeout(resume, 4));
  return performance.now() - began;
}"""
"""Opens a page by its name, and measures in ms how long it takes until its main button is there: a click, a run of the whole page."""

PAGES = (("くらべる", "くらべる"), ("ギャラリー", "ごみ箱へ"), ("つくる", "生成"))
"""Pages that are opened while pictures are drawn, with a button of each."""

PART, WHOLE = "a click that changes a part of the page", "a click that opens another page"
CLICKS = [(PART, ASK_EXAMPLES, [])] * 3 + [(WHOLE, OPEN, [*there]) for there in PAGES]
IDLE = 8
"""How often all of these are clicked with nothing to draw, to compare: what is slow then too, drawing does not slow."""


def processes(server: Server) -> list[Path]:
    """What the system tells of the server, and of the process that draws for it."""
    pid = server.process.pid
    children = Path(f"/proc/{pid}/task").glob("*/children")
    return [Path(f"/proc/{one}") for one in (pid, *(child for file in children for child in file.read_text("utf-8").split()))]


def memory(server: Server) -> float:
    """The resident memory of the server and the process that draws for it, MiB."""
    lines = [line for place in processes(server) for line in (place / "status").read_text("utf-8").splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def cpu(server: Server) -> float:
    """The CPU seconds that both have used: on a busy machine they say more than the clock."""
    fields = [(place / "stat").read_text("utf-8").rpartition(")")[2].split() for place in processes(server)]
    return sum(int(one[11]) + int(one[12]) for one in fields) / os.sysconf("SC_CLK_TCK")


def opened(browser: Browser, server: Server) -> Page:
    """A session of its own."""
    context = browser.new_context(**CONTEXT)  # type: ignore[arg-type]
    context.set_default_timeout(600_000)
    page = context.new_page()
    page.goto(server.url)
    page.get_by_role("textbox", name=PROMPT).wait_for()
    return page


def begin(page: Page, text: str) -> None:
    """Hand in a picture."""
    generate(page, text)
    page.get_by_role("button", name="取り消す").wait_for()


def finish(page: Page) -> None:
    """Wait for the picture."""
    page.get_by_role("button", name="取り消す").wait_for(state="detached")
    page.get_by_role("button", name="PNG を保存").wait_for()


def say(text: str) -> None:
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def first_picture(browser: Browser, server: Server, when: str) -> Page:
    """Open a page, ask for a picture at once, and say how long each took from the opening on; returns the page."""
    began, began_cpu = time.monotonic(), cpu(server)
    page = opened(browser, server)
    shown, shown_cpu = time.monotonic() - began, cpu(server) - began_cpu
    begin(page, PROMPTS[0])
    finish(page)
    say(
        f"{when}: page {shown:.1f} s after it was opened ({shown_cpu:.1f} CPU s of the server), "
        f"first picture after {time.monotonic() - began:.1f} s ({cpu(server) - began_cpu:.1f} CPU s), load {os.getloadavg()[0]:.1f}"
    )
    return page


def drawing(sessions: list[Page]) -> bool:
    """Whether a picture of any session waits or is drawn."""
    return any(page.get_by_role("button", name="取り消す").count() for page in sessions)


def told(waits: list[float]) -> str:
    """Waits in ms, in a few words."""
    if not waits:
        return "was not measured"
    return f"{median(waits):.0f} ms (median of {len(waits)}), {max(waits):.0f} ms at most, {sum(one > MOST for one in waits)} above {MOST} ms"


def ping(server: Server, waits: list[float], over: Event) -> None:
    """Ask the server for a sign of life, again and again, from outside of the browser, whose own work a page waits for too."""
    while not over.wait(0.05):
        began = time.monotonic()
        urllib.request.urlopen(f"{server.url}/_stcore/health").close()
        waits.append(1000 * (time.monotonic() - began))


def clicked(page: Page) -> Iterator[tuple[str, float]]:
    """Click all of `CLICKS`; what each was, and in ms how long until the page had changed."""
    for what, script, given in CLICKS:
        yield what, float(page.evaluate(script, given))


def use(sessions: list[Page], server: Server, minutes: float) -> None:
    """All sessions draw, again and again, the first one asks for this and that meanwhile; says how long it waited, and how the memory grew."""
    rounds, start = 0, 0.0
    busy: dict[str, list[float]] = {PART: [], WHOLE: []}
    idle: dict[str, list[float]] = {PART: [], WHOLE: []}
    late = 0
    answered: list[float] = []
    over = Event()
    pinging = Thread(target=ping, args=(server, answered, over), daemon=True)
    pinging.start()
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until:
        for page, text in zip(sessions, PROMPTS, strict=True):
            begin(page, text)
        for what, wait in clicked(sessions[0]):
            if drawing(sessions):
                busy[what].append(wait)
            else:
                late += 1
        for page in sessions:
            finish(page)
        rounds += 1
        if rounds == WARM:
            start = memory(server)
        if rounds % 10 == 1:
            say(f"round {rounds}: {memory(server):.0f} MiB")
    over.set()
    pinging.join()
    gaps = sessions[0].evaluate("window.jpGaps")
    for _ in range(IDLE):
        for what, wait in clicked(sessions[0]):
            idle[what].append(wait)
    for what, waits in busy.items():
        ratio = f"; medians {median(waits) / median(idle[what]):.2f} to 1" if waits else ""
        say(f"{what}: while drawing {told(waits)}; with nothing to draw {told(idle[what])}{ratio}")
    say(f"{late} clicks ended when all was drawn, and are not counted")
    say(f"all the time: the server answers a ping from outside of the browser in {told(answered)}")
    say(f"all the time: the server answers a ping from within the page in {told(gaps['ping'])}")
    say(f"all the time: tasks of the page that took 50 ms or more {told(gaps['task'])}")
    if start:
        grown = memory(server) / start - 1
        say(f"{len(sessions) * rounds} pictures in {minutes:g} min: {start:.0f} MiB after round {WARM}, {100 * grown:+.1f} % at the end")
    else:
        say(f"{rounds} rounds are too few for the memory to be judged")


def main(minutes: float) -> None:
    """Run, and print the figures."""
    folder = Path(tempfile.mkdtemp())
    began = time.monotonic()
    server = serve(folder, ROOT / "demo" / "app.py")
    say(f"the server answers after {time.monotonic() - began:.1f} s")
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
            first = first_picture(browser, server, "server just started")
            sessions = [first, first_picture(browser, server, "server that has drawn"), opened(browser, server)]
            first.evaluate(WATCH)
            use(sessions, server, minutes)
            browser.close()
    finally:
        stop(server)
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 30)
