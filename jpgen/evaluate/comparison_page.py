"""The page of a comparison: arms, differences, tags, distributions and contact sheets in one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from jpgen.errors import MissingExtraError, OutputError
from jpgen.evaluate.cases import evenly
from jpgen.evaluate.statistics import Difference

if TYPE_CHECKING:
    from jpgen.evaluate.comparison import Comparison, Outcome

SHOWN = 48
"""Prompts on the contact sheets, evenly from all."""

SHOWN_SEEDS = 2
SIDE = 112
STYLE = (
    "body{font:15px/1.5 sans-serif;margin:2em;color:#222}table{border-collapse:collapse;margin:.8em 0}"
    "td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}"
    ".clear{font-weight:bold}.sheet td{text-align:center;vertical-align:top;font-size:12px}.sheet td:first-child{max-width:22em;text-align:left}"
    "img{display:block;margin:auto}small{color:#666}"
)


def write_page(found: Comparison, path: Path) -> Path:
    """Write the page by way of a temporary file; raises OutputError, MissingExtraError without matplotlib."""
    parts = [
        "<!doctype html><html lang=ja><meta charset=utf-8>",
        f"<title>jpgen compare</title><style>{STYLE}</style>",
        f"<h1>比べた結果 / Comparison</h1><p>{len(found.cases)} 個のプロンプト × {len(found.seeds)} シード × {len(found.arms)} 通り、"
        "採点 / scored by "
        f"<b>{html.escape(found.scorer)}</b>。100 × コサイン、同じプロンプト・同じシードの組で比べる / paired by prompt and seed.</p>",
        "<h2>それぞれ / Arms</h2>", _arms(found),
        "<h2>差 / Differences</h2><p><small>95 % は、プロンプト単位のブートストラップ / bootstrap over prompts; "
        "太字は 0 を含まない / bold: the interval excludes 0</small></p>",
        _differences(found, ("",)),
        "<h2>分布 / Distributions</h2>", f"<img alt='distributions of scores' src='{_plot(found)}'>",
    ]  # fmt: skip
    if found.tags:
        parts += ["<h2>種類ごと / By tag</h2>", _differences(found, found.tags)]
    parts += ["<h2>絵 / Pictures</h2>", _sheet(found)]
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_text("\n".join(parts) + "\n", "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} に書けません / cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _table(head: Iterable[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table class='{kind}'><tr>{top}</tr>{body}</table>"


def _arms(found: Comparison) -> str:
    rows = []
    for arm in found.arms:
        values = found.values(arm.name)
        known = values[np.isfinite(values)]
        seconds = [one.seconds for one in found.outcomes if one.arm == arm.name and not one.problem]
        how = f"{arm.model}, {arm.language}, normalize {'on' if arm.normalize else 'off'}" + (f", {arm.translator}" if arm.translator else "")
        figures = (f"{known.mean():.3f}", f"{known.std():.3f}", f"{np.mean(seconds):.2f}") if len(known) else ("—",) * 3
        rows.append([html.escape(arm.name), html.escape(how), str(len(known)), str(len(values) - len(known)), *figures])
    return _table(["腕 / arm", "どう描くか / how", "枚 / pictures", "描けず / undrawn", "平均 / mean", "標準偏差 / std", "秒 / seconds"], rows)


def _differences(found: Comparison, tags: Sequence[str]) -> str:
    rows = []
    for first, second in found.pairs:
        for tag in tags:
            try:
                one = found.difference(first, second, tag=tag)
            except ValueError:  # no pair was drawn
                continue
            rows.append([f"{html.escape(first)} − {html.escape(second)}", html.escape(tag or "全部 / all"), str(one.prompts), *_difference(one)])
    return _table(["差 / difference", "種類 / tag", "プロンプト / prompts", "平均の差 / mean", "95 %", "勝率 / wins"], rows)


def _difference(one: Difference) -> list[str]:
    mean = f"{one.mean:+.3f}"
    return [f"<span class=clear>{mean}</span>" if one.clear else mean, f"[{one.low:+.3f}, {one.high:+.3f}]", f"{one.wins * 100:.0f} %"]


def _plot(found: Comparison) -> str:
    """Histograms of every arm, and of the differences of every pair, as a data URI."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("グラフには matplotlib が要ります / plots are drawn by matplotlib: pip install 'jpgen[evaluate]'") from error
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for arm in found.arms:
        _histogram(left, found.values(arm.name), arm.name)
    for first, second in found.pairs:
        _histogram(right, found.values(first) - found.values(second), f"{first} - {second}")
    left.set(xlabel="score", ylabel="pictures")
    right.set(xlabel="difference, same prompt and seed")
    right.axvline(0, color="black", linewidth=1)
    room = io.BytesIO()
    figure.savefig(room, format="png", dpi=90)
    return _data_uri(room.getvalue(), "png")


def _histogram(axis: Any, values: np.ndarray, name: str) -> None:
    if len(known := values[np.isfinite(values)]):
        label = name.encode("ascii", "backslashreplace").decode().replace("$", r"\$").lstrip("_") or "arm"
        axis.hist(known, bins=30, histtype="step", linewidth=1.6, label=label)
        axis.legend(fontsize=8)


def _sheet(found: Comparison) -> str:
    chosen = evenly(range(len(found.cases)), SHOWN)
    seeds = found.seeds[:SHOWN_SEEDS]
    by_place = {(one.arm, one.case, one.seed): one for one in found.outcomes}
    head = ["プロンプト / prompt", *(f"{html.escape(arm.name)} <small>#{seed}</small>" for arm in found.arms for seed in seeds)]
    rows = []
    for number in chosen:
        case = found.cases[number]
        texts = "<br>".join(html.escape(text) for text in (case.ja, case.clean, case.en) if text)
        told = f"{texts}<br><small>{html.escape(' '.join(case.tags))}</small>"
        rows.append([told, *(_cell(found, by_place[arm.name, number, seed]) for arm in found.arms for seed in seeds)])
    return _table(head, rows, "sheet")


def _cell(found: Comparison, one: Outcome) -> str:
    if one.problem:
        return f"<small>{html.escape(one.problem)}</small>"
    try:
        with Image.open(found.folder / "pictures" / one.file, formats=("PNG",)) as picture:
            small = picture.convert("RGB")
    except (OSError, ValueError) as error:
        return f"<small>{html.escape(str(error))}</small>"
    small.thumbnail((SIDE, SIDE))
    room = io.BytesIO()
    small.save(room, "JPEG", quality=82)
    return f"<img width={SIDE} alt='' src='{_data_uri(room.getvalue(), 'jpeg')}'>{one.score:.2f}"


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
