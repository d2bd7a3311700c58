"""Drawings: openly licensed emoji art, rendered once to square RGBA sprites.

The art comes from npm packages (`ART`), each an Iconify JSON file of SVG bodies. `render_sprites` draws every usable emoji of every
art set with resvg and keeps them in one memory-mapped array, so that a scene is a few alpha pastes.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from jpgen.errors import MissingExtraError, TrainingDataError

SIZE = 192
"""Side of a sprite in pixels."""

ART = {
    "noto": ("@iconify-json/noto", "1.2.9", "Apache-2.0", "Google LLC, Noto Emoji"),
    "twemoji": ("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0", "Twitter, Inc. and contributors, Twemoji"),
    "fluent": ("@iconify-json/fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation, Fluent Emoji"),
    "fluent-flat": ("@iconify-json/fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation, Fluent Emoji"),
    "emojione": ("@iconify-json/emojione", "1.2.3", "CC-BY-4.0", "EmojiOne, 2015-2017 art"),
}
"""Art set -> (npm package, version, SPDX licence, attribution)."""

MORE_ART = {
    "noto-v1": ("@iconify-json/noto-v1", "1.2.5", "Apache-2.0", "Google Inc, Noto Emoji (v1)"),
    "fxemoji": ("@iconify-json/fxemoji", "1.2.2", "Apache-2.0", "Mozilla, Firefox OS Emoji"),
    "streamline": ("@iconify-json/streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline, Streamline Emojis"),
}
"""Art sets that only mame-clip learns from: more hands that drew the same things."""

NAMES_SET = "noto"  # Fluent's own table has names but no code points; Noto's names bridge the two
EXCLUDED_GROUPS = frozenset({None, 2, 8, 9})  # no group, skin and hair components, symbols, flags
EMOJI_TABLE = ("emojibase-data", "17.0.0")


@dataclass(frozen=True)
class Drawing:
    """One sprite: which emoji it draws, in which art set, and its row in the sprite array."""

    emoji: str
    art: str
    row: int


ArtSets = Mapping[str, tuple[str, str, str, str]]


def fetch_art(folder: Path, sets: ArtSets = ART) -> None:
    """Download the npm packages of these art sets into `folder/<package>-<version>/`, skipping those already there."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(package, version) for package, version, _, _ in (*sets.values(), ART[NAMES_SET])] + [EMOJI_TABLE]
    for package, version in wanted:
        target = _package_folder(folder, package, version)
        if target.is_dir():
            continue
        done = subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{version}", "--pack-destination", str(folder)],
            capture_output=True, text=True, check=False,
        )
        if done.returncode:
            raise TrainingDataError(
                f"{package}@{version} を取得できません / "
                f"npm could not fetch {package}@{version}: {done.stderr.strip()[-200:]}; fetch it yourself into {folder}"
            )
        archive = folder / done.stdout.strip().splitlines()[-1]
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
        archive.unlink()


def render_sprites(art_folder: Path, out: Path, sets: ArtSets = ART) -> None:
    """Render every usable emoji of these art sets: `out/sprites.npy` uint8 [n, 192, 192, 4] and `out/sprites.json`."""
    try:
        import resvg_py
    except ImportError as error:
        raise MissingExtraError("絵を描くには resvg-py が要ります / rendering sprites needs resvg-py: pip install 'jpgen[train]'") from error
    icons_of = {art: _read_set(art_folder, package, version) for art, (package, version, _, _) in sets.items()}
    bridge = _read_set(art_folder, *ART[NAMES_SET][:2])[1]
    table = _package_folder(art_folder, *EMOJI_TABLE) / "package" / "en" / "data.json"
    sprites: list[np.ndarray] = []
    drawings: list[Drawing] = []
    for entry in json.loads(table.read_text("utf-8")):
        if entry.get("group") in EXCLUDED_GROUPS:
            continue
        code = _plain_code(entry["hexcode"])
        for art, (icons, chars) in icons_of.items():
            name = chars.get(code) or _bridged(bridge.get(code, ""), icons)
            name = icons.get("aliases", {}).get(name, {}).get("parent", name)
            icon = icons["icons"].get(name)
            if icon is None:
                continue
            width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}">{icon["body"]}</svg>'
            )
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((SIZE, SIZE))
            pixels = np.asarray(image)
            if pixels[..., 3].mean() < 10:
                continue  # an empty drawing
            drawings.append(Drawing(entry["emoji"].replace("\ufe0f", ""), art, len(drawings)))
            sprites.append(pixels)
    out.mkdir(parents=True, exist_ok=True)
    np.save(out / "sprites.npy", np.stack(sprites))
    (out / "sprites.json").write_text(json.dumps([asdict(d) for d in drawings], ensure_ascii=False), "utf-8")


def load_sprites(folder: Path) -> tuple[np.ndarray, list[Drawing]]:
    """The memory-mapped sprites uint8 [n, 192, 192, 4] and their index, as `render_sprites` wrote them."""
    try:
        array = np.load(folder / "sprites.npy", mmap_mode="r")
        index = [Drawing(**row) for row in json.loads((folder / "sprites.json").read_text("utf-8"))]
    except OSError as error:
        raise TrainingDataError(f"{folder} に絵がありません / no sprites in {folder}: make them with jpgen train mame --stage art") from error
    return array, index


def _read_set(art_folder: Path, package: str, version: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The icons of a package, and the name of each code point it tells."""
    folder = _package_folder(art_folder, package, version) / "package"
    chars = json.loads((folder / "chars.json").read_text("utf-8"))
    return json.loads((folder / "icons.json").read_text("utf-8")), {_plain_code(code): name for code, name in chars.items()}


def _bridged(name: str, icons: dict[str, Any]) -> str:
    """The name, as this set spells it: the same, numbered, or run together."""
    return next((one for one in (name, f"{name}-1", name.replace("-", "")) if one in icons["icons"]), name)


def _package_folder(folder: Path, package: str, version: str) -> Path:
    return folder / f"{package.replace('@', '').replace('/', '-')}-{version}"


def _plain_code(code: str) -> str:
    return code.lower().replace("-fe0f", "")
