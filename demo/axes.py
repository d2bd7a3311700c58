"""The two settings of a grid: which, and which values of each."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Any

import streamlit as st

import jpgen
from demo import choosing
from demo.drawing import Cell
from demo.studio import studio
from demo.words import say

NUMBERS = {"steps": (int, "4, 8, 16"), "guidance_scale": (float, "1.5, 4, 7"), "seed": (int, "1, 2, 3")}
"""Settings whose values are typed, with their type and what stands there first."""

SAMPLERS = ("dpm++2m", "dpm++2m_sde", "ddim", "unipc")
TITLES = {"guidance_scale": "guidance", "scheduler": "sampler"}
NAMES = (*NUMBERS, "style", "scheduler", "model")


@dataclass(frozen=True)
class Axis:
    """A setting and its values, as chosen: numbers still as they were typed."""

    name: str
    values: tuple[Any, ...] | str

    def read(self) -> tuple[Any, ...]:
        """The values, each once; raises jpgen.SettingError for what is no number, for too many steps, and for none at all."""
        if not isinstance(self.values, str):
            found = list(self.values)
        else:
            kind = NUMBERS[self.name][0]
            typed = [part.strip() for part in unicodedata.normalize("NFKC", self.values).replace("、", ",").split(",") if part.strip()]
            try:
                found = [kind(part) for part in typed]
            except ValueError as error:
                raise jpgen.SettingError(f"「{self.values[:60]}」は 4, 8, 16 のように数で書いてください / write numbers such as 4, 8, 16") from error
        if not found:
            raise jpgen.SettingError("値を一つは選んでください / choose at least one value")
        most = studio().settings.max_steps
        if self.name == "steps" and max(found) > most:
            raise jpgen.SettingError(f"ステップ数 {max(found)} は多すぎます。{most} までにしてください / {max(found)} steps, at most {most}")
        return tuple(dict.fromkeys(found))


def choose(place: str, *, default: str) -> Axis:
    """The widgets of one axis ("x" or "y")."""
    name = st.selectbox(say(f"axis.{place}"), NAMES, NAMES.index(default), format_func=_setting, key=f"axis/{place}")
    if name in NUMBERS:
        typed = st.text_input(say("axis.values"), NUMBERS[name][1], key=f"axis/{place}/{name}")
        return Axis(name, typed)
    options = {"style": list(choosing.styles()), "scheduler": list(SAMPLERS), "model": _at_hand()}[name]
    chosen = st.multiselect(say("axis.values"), options, options[:2], key=f"axis/{place}/{name}", placeholder=say("axis.choose"))
    return Axis(name, tuple(chosen))


def _at_hand() -> list[str]:
    return [name for name, card in choosing.models().items() if card.here]


def cells(x: Axis, y: Axis, seed: int, model: str) -> list[Cell]:
    """All pictures of the grid, row by row, with this seed and model where no axis says another.

    Raises jpgen.SettingError for two axes of one setting and for too many pictures.
    """
    if x.name == y.name:
        raise jpgen.SettingError("横と縦は別の設定にしてください / choose two different settings")
    across, down = x.read(), y.read()
    most = studio().settings.max_cells
    if len(across) * len(down) > most:
        raise jpgen.SettingError(
            f"{len(across)}×{len(down)} 枚は多すぎます。{most} 枚までにしてください / {len(across) * len(down)} pictures, at most {most}"
        )
    return [_cell(x.name, y.name, {"seed": seed, "model": model, "style": "", x.name: one, y.name: other}) for other in down for one in across]


def _cell(x_name: str, y_name: str, given: dict[str, Any]) -> Cell:
    sampling: dict[str, Any] = {name: given[name] for name in ("steps", "guidance_scale", "scheduler") if name in given}
    return Cell(x_name, y_name, given[x_name], given[y_name], given["seed"], given["model"], given["style"], sampling)


def styled(cell: Cell, text: str) -> tuple[str, str]:
    """Prompt and negative prompt with the words of the cell's style."""
    style = choosing.styles().get(cell.style)
    return jpgen.apply_style(style, text) if style else (text, "")


def told(name: str, value: Any) -> str:
    """A value with the name of its setting, for a heading."""
    return f"{_setting(name)}: {value}"


def _setting(name: str) -> str:
    return say(TITLES.get(name, name))
