"""Drawings: openly licensed emoji art, rendered once to square RGBA sprites.

The art comes from npm packages (`ART`), each an Iconify JSON file of SVG bodies. `render_sprites` draws every usable emoji of every
art set with resvg and keeps them in one memory-mapped array, so that a scene is a few alpha pastes.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
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
    "fluent-line": ("@iconify-json/fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft Corporation, Fluent Emoji High Contrast"),
    "mdi": ("@iconify-json/mdi", "1.2.3", "Apache-2.0", "Pictogrammers, Material Design Icons"),
    "phosphor": ("@iconify-json/ph", "1.2.2", "MIT", "Phosphor Icons"),
    "game-icons": ("@iconify-json/game-icons", "1.2.4", "CC-BY-3.0", "Lorc, Delapouite and contributors, Game Icons"),
    "fontawesome": ("@iconify-json/fa6-solid", "1.2.4", "CC-BY-4.0", "Fonticons, Inc., Font Awesome Free 6"),
    "tabler": ("@iconify-json/tabler", "1.2.41", "MIT", "Paweł Kuna, Tabler Icons"),
    "icon-park": ("@iconify-json/icon-park", "1.2.4", "Apache-2.0", "ByteDance, IconPark"),
    "streamline-core": ("@iconify-json/streamline-color", "1.2.2", "CC-BY-4.0", "Streamline, Core Color"),
    "streamline-plump": ("@iconify-json/streamline-plump-color", "1.2.2", "CC-BY-4.0", "Streamline, Plump Color"),
    "streamline-sharp": ("@iconify-json/streamline-sharp-color", "1.2.2", "CC-BY-4.0", "Streamline, Sharp Color"),
    "streamline-flex": ("@iconify-json/streamline-flex-color", "1.2.2", "CC-BY-4.0", "Streamline, Flex Color"),
    "streamline-cyber": ("@iconify-json/streamline-cyber-color", "1.2.2", "CC-BY-4.0", "Streamline, Cyber Color"),
    "streamline-kameleon": ("@iconify-json/streamline-kameleon-color", "1.2.2", "CC-BY-4.0", "Streamline, Kameleon Color"),
}
"""Art sets that only mame-clip learns from: more hands that drew the same things."""

ONE_COLOR = frozenset({"fluent-line", "mdi", "phosphor", "game-icons", "fontawesome", "tabler"})
"""Those of one colour, drawn here in a middle grey."""
GREY = "#808080"
KIN = "-kin"
"""What the name of an art set ends in where it drew something else that shows the same."""

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


def render_sprites(
    art_folder: Path, out: Path, sets: ArtSets = ART, *, words: Mapping[str, Sequence[str]] = MappingProxyType({}),
    kin: Mapping[str, str] = MappingProxyType({}),
) -> None:  # fmt: skip
    """Render every usable emoji of these art sets: `out/sprites.npy` uint8 [n, 192, 192, 4] and `out/sprites.json`.

    A set that tells no emoji is searched by `words` (emoji -> names). With `kin` (emoji -> another that it shows too: a cat's face, a cat) only
    these are drawn, as drawings of the other, and their art set is `<art>-kin`.
    """
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
        code, emoji = _plain_code(entry["hexcode"]), entry["emoji"].replace("\ufe0f", "")
        if kin and emoji not in kin:
            continue
        for art, (icons, chars) in icons_of.items():
            name = chars.get(code) or _spelt((bridge.get(code, ""), *words.get(emoji, ())), icons)
            name = icons.get("aliases", {}).get(name, {}).get("parent", name)
            icon = icons["icons"].get(name)
            if icon is None:
                continue
            width, height = icon.get("width", icons.get("width", 16)), icon.get("height", icons.get("height", 16))
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="0 0 {width} {height}" width="{SIZE}" height="{SIZE}" color="{GREY}">{icon["body"]}</svg>'
            )
            png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
            image = Image.open(io.BytesIO(bytes(png))).convert("RGBA").resize((SIZE, SIZE))
            pixels = np.asarray(image)
            if pixels[..., 3].mean() < 10:
                continue  # an empty drawing
            drawings.append(Drawing(kin.get(emoji, emoji), f"{art}{KIN}" if kin else art, len(drawings)))
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
        raise TrainingDataError(
            f"{folder} に絵がありません。jpgen train mame --stage art（mame-clip の絵は jpgen train clip）で作れます / "
            f"no sprites in {folder}: make them with jpgen train mame --stage art (those of mame-clip alone with jpgen train clip)"
        ) from error
    return array, index


def _read_set(art_folder: Path, package: str, version: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The icons of a package, and the name of each code point it tells."""
    folder = _package_folder(art_folder, package, version) / "package"
    chars = json.loads((folder / "chars.json").read_text("utf-8"))
    return json.loads((folder / "icons.json").read_text("utf-8")), {_plain_code(code): name for code, name in chars.items()}


def _spelt(names: Sequence[str], icons: dict[str, Any]) -> str:
    """The first of the names that this set has, as it spells it: filled, the same, numbered or run together, or an alias spelt alike; or empty."""
    plain = [name.lower().replace(" ", "-") for name in names if name]
    ways = [way for name in plain for way in (f"{name}-fill", f"{name}-filled", name, f"{name}-1", name.replace("-", ""))]
    return next((way for way in ways if way in icons["icons"] or (way in plain and way in icons.get("aliases", {}))), "")


def _package_folder(folder: Path, package: str, version: str) -> Path:
    return folder / f"{package.replace('@', '').replace('/', '-')}-{version}"


def _plain_code(code: str) -> str:
    return code.lower().replace("-fe0f", "")
