"""The demo with an engine that takes a step only when a file lets it (see gated.py): `streamlit run gated_app.py -- FOLDER`."""

import sys
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import demo.studio  # noqa: E402
from demo.worker import Worker  # noqa: E402
from jpgen import Cancelled, Generation, ModelInfo, Prompt, SamplingConfig, Step  # noqa: E402
from tests.browser.gated import STEPS, colour, gate  # noqa: E402

LOOK = threading.Event()  # never set: its wait paces the look for files


class Gated:
    """As much of a Pipeline as the pages use."""

    def __init__(self, model: str, *, vae: Any = None) -> None:
        self.info = ModelInfo(model, "0", "Apache-2.0", "0000000000")

    def config(self, **given: Any) -> SamplingConfig:
        return SamplingConfig(given.get("width") or 64, given.get("height") or 64, STEPS, 4.0)

    def generate(self, prompt: Prompt, *, seed: int, config: SamplingConfig | None = None, on_step: Any = None, init: Any = None) -> Generation:
        image, folder = Image.new("RGB", (64, 64), colour(prompt.source)), Path(sys.argv[1])
        began = time.monotonic()
        for step in range(1, STEPS + 1):
            while not any(gate(folder, prompt.source, n).exists() for n in range(step, STEPS + 1)):
                if on_step(Step(step, STEPS, lambda: [image])) is False or time.monotonic() - began > 300:
                    raise Cancelled("stopped")
                LOOK.wait(0.02)
            if on_step(Step(step, STEPS, lambda: [image])) is False:
                raise Cancelled("stopped")
        return Generation(image, prompt, config or self.config(), seed, self.info, "gated", "native", 0.1)


demo.studio.new_worker = lambda: Worker(Gated)  # in this process: the gates are for the pages

import demo.frame  # noqa: E402

demo.frame.show()
