"""The demo's front door: `jpgen demo`, `make demo` or `streamlit run demo/app.py`."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(place for place in sys.path if place not in (str(HERE), str(HERE.parent)))]  # `demo`, not its files, by name

from demo.frame import show  # noqa: E402

show()
