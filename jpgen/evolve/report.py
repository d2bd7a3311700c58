"""What a person looks at while a study runs: `front.png`, `front.html`, and the best recipe so far. Each is replaced whole."""

from __future__ import annotations

import html
import io
import os
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from jpgen.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    from jpgen.evolve.recipes import Recipe
    from jpgen.merge.study import Study, Trial

STYLE = (
    "body{font:15px sans-serif;margin:2em}td,th{padding:.2em .8em;text-align:right}"
    "tr.front{background:#dff0d8}tr.best{font-weight:bold}"
)


def write_text(path: Path, text: str) -> Path:
    """Write a file by way of a temporary one; raises OutputError."""
    return _replace(path, text.encode())


def save_recipe(recipe: Recipe, path: Path) -> Path:
    """A recipe as YAML, with the paths of its files as they were given."""
    told = recipe.to_data()
    _name(told["root"], recipe.root)
    return write_text(path, yaml.safe_dump(told, allow_unicode=True, sort_keys=False))


def _name(told: Any, node: Any) -> None:
    if hasattr(node, "inputs"):
        for below, one in zip(told["inputs"], node.inputs, strict=True):
            _name(below, one)
    else:
        told["model" if hasattr(node, "component") else "lora"] = node.name


def draw_front(study: Study, best: Trial, path: Path) -> Path:
    """A PNG: scores of all trials (one objective: as the search went; several: every pair, with the front) and the hypervolume by generation."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib がありません / the front is drawn by matplotlib: pip install 'jpgen[evolve]'") from error
    names = [one.name.encode("ascii", "backslashreplace").decode().replace("$", r"\$") for one in study.objectives]
    pairs = list(combinations(range(len(names)), 2))
    figure = Figure(figsize=(5 * (max(1, len(pairs)) + 1), 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes: list[Any] = list(figure.subplots(1, max(1, len(pairs)) + 1))
    ids = [id for id in sorted(study.told) if not study.told[id].failed]
    scores = np.array([study.told[id].scores for id in ids], dtype=float).reshape(len(ids), len(names))
    generation = np.array([study.asked[id].generation for id in ids])
    front = {trial.id for trial in study.front()}
    for axis, (x, y) in zip(axes, pairs, strict=False):
        axis.scatter(scores[:, x], scores[:, y], c=generation, s=16, cmap="viridis")
        chosen = np.array([row for id, row in zip(ids, scores, strict=True) if id in front])
        chosen = chosen[np.argsort(chosen[:, x])]
        axis.plot(chosen[:, x], chosen[:, y], "o-", mfc="none", color="tab:red", label="front")
        axis.plot(*(study.told[best.id].scores[i] for i in (x, y)), "*", ms=14, color="tab:orange", label=f"best, trial {best.id}")
        axis.set(xlabel=f"{names[x]} ({study.objectives[x].goal})", ylabel=f"{names[y]} ({study.objectives[y].goal})")
        axis.legend()
    if not pairs:
        reached = (np.maximum if study.objectives[0].goal == "maximise" else np.minimum).accumulate(scores[:, 0])
        axes[0].plot(ids, scores[:, 0], ".", label="trials")
        axes[0].step(ids, reached, where="post", color="tab:red", label="best so far")
        axes[0].set(xlabel="trial", ylabel=f"{names[0]} ({study.objectives[0].goal})")
        axes[0].legend()
    axes[-1].plot(study.hypervolumes(), "o-")
    axes[-1].set(xlabel="generation", ylabel="hypervolume")
    room = io.BytesIO()
    figure.savefig(room, format="png", dpi=100)
    return _replace(path, room.getvalue())


def write_page(study: Study, best: Trial, path: Path) -> Path:
    """The same as a page that stands alone and looks again every ten seconds: a plot whose points tell their numbers, and the trials of the front."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("trial", *(one.name for one in study.objectives), *study.genome.paths))
    front = {trial.id for trial in study.front()}
    rows = []
    for id in sorted(front | {best.id}):
        values = [f"{score:.4f}" for score in study.told[id].scores if score is not None]
        values += [f"{value:.4f}" for value in study.genome.numbers(study.asked[id].point).values()]
        kind = "front best" if id == best.id else "front"
        rows.append(f'<tr class="{kind}"><td>{id}</td>{"".join(f"<td>{value}</td>" for value in values)}</tr>')
    failed = sum(outcome.failed for outcome in study.told.values())
    told = f"試行 {len(study.told)}、失敗 {failed}、最良 {best.id} / {len(study.told)} trials, {failed} failed, best {best.id}"
    page = (
        '<!doctype html><html lang="ja"><meta charset="utf-8"><meta http-equiv="refresh" content="10"><title>jpgen evolve</title>'
        f"<style>{STYLE}</style>"
        f"<h1>jpgen evolve</h1><p>{told}</p>{_plot(study, best, front)}<table><tr>{head}</tr>{''.join(rows)}</table></html>\n"
    )
    return write_text(path, page)


def _plot(study: Study, best: Trial, front: set[int], side: int = 420, edge: int = 50) -> str:
    """An SVG of the first two objectives, or of the only one by trial; each point tells its trial, scores and numbers."""
    points = []
    for id, outcome in sorted(study.told.items()):
        if not outcome.failed:
            scores = [float(score or 0) for score in outcome.scores]
            points.append((id, *((scores[0], scores[1]) if len(scores) > 1 else (float(id), scores[0]))))
    if not points:
        return ""
    names = [one.name for one in study.objectives]
    labels = names[:2] if len(names) > 1 else ["trial", names[0]]
    low, high = np.min(points, axis=0)[1:], np.max(points, axis=0)[1:]
    span = np.where(high > low, high - low, 1.0)
    marks = []
    for id, x, y in points:
        at = edge + (np.array([x, y]) - low) / span * (side - 2 * edge)
        colour = "#e80" if id == best.id else "#c22" if id in front else "#58a"
        numbers = ", ".join(f"{path} {value:.3f}" for path, value in study.genome.numbers(study.asked[id].point).items())
        tip = html.escape(f"trial {id}: {labels[0]} {x:.4f}, {labels[1]} {y:.4f}; {numbers}")
        radius = 7 if id == best.id else 5 if id in front else 3
        marks.append(f'<circle cx="{at[0]:.1f}" cy="{side - at[1]:.1f}" r="{radius}" fill="{colour}"><title>{tip}</title></circle>')
    across, up = (f"{html.escape(label)} {a:.3f}…{b:.3f}" for label, a, b in zip(labels, low, high, strict=True))
    half = side // 2
    texts = (
        f'<text x="{half}" y="{side - 12}" text-anchor="middle">{across}</text>'
        f'<text x="14" y="{half}" text-anchor="middle" transform="rotate(-90 14 {half})">{up}</text>'
    )
    return f'<svg width="{side}" height="{side}" viewBox="0 0 {side} {side}">{"".join(marks)}{texts}</svg>'


def _replace(path: Path, data: bytes) -> Path:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} に書き込めません / cannot write {path}: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path
