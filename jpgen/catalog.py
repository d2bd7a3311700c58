"""The catalogue: every model jpgen knows, from `catalog.toml` and a user's own file on top of it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jpgen.errors import UnknownNameError, WeightsError
from jpgen.types import SamplingConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

USER_FILE = "JPGEN_CATALOG"
"""Environment variable: the path of a catalogue of one's own."""

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Entry:
    """One model: where it is, which backbone family and encoder open it, its terms and its best settings."""

    name: str
    family: str
    encoder: str
    path: str
    revision: str
    license: str
    title: str
    route: str
    default: SamplingConfig

    @property
    def folder(self) -> Path:
        """The local folder of its files; raises WeightsError if it is not there."""
        inside = self.path.startswith(BUILTIN)
        folder = Path(str(resources.files("jpgen"))) / self.path.removeprefix(BUILTIN) if inside else Path(self.path).expanduser()
        if not folder.is_dir():
            raise WeightsError(f"{self.name}: {folder} がありません / the model's folder {folder} is missing; correct its path in the catalogue")
        return folder


def load_catalog(user_file: Path | None = None) -> dict[str, Entry]:
    """All entries by name. A user's file (argument, or $JPGEN_CATALOG) adds models and replaces settings of known ones.

    Raises WeightsError for a file that is not there or not TOML, naming what is wrong.

        >>> load_catalog()["mame"].family
        'pixart'
    """
    tables = tomllib.loads((resources.files("jpgen") / "catalog.toml").read_text("utf-8"))
    chosen = user_file or (Path(os.environ[USER_FILE]) if os.environ.get(USER_FILE) else None)
    if chosen:
        try:
            added = tomllib.loads(chosen.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise WeightsError(f"カタログ {chosen} を読めません / cannot read the catalogue {chosen}: {error}") from error
        for name, table in added.items():
            tables[name] = _merged(tables.get(name, {}), table)
    return {name: _entry(name, table) for name, table in tables.items()}


def find_model(name: str) -> Entry:
    """The entry with this name; raises UnknownNameError, which offers the nearest."""
    catalog = load_catalog()
    if name not in catalog:
        raise UnknownNameError.of("モデル / model", name, catalog)
    return catalog[name]


def _merged(base: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    return base | {k: _merged(base.get(k, {}), v) if isinstance(v, dict) else v for k, v in added.items()}


def _entry(name: str, table: dict[str, Any]) -> Entry:
    wanted = {"family", "encoder", "path", "revision", "license", "title", "route", "default"}
    wrong = [f"no {key}" for key in sorted(wanted - table.keys())] + [f"unknown {key}" for key in sorted(table.keys() - wanted)]
    if wrong:
        raise WeightsError(f"カタログの [{name}] / catalogue entry [{name}]: {', '.join(wrong)}")
    try:
        default = SamplingConfig(**table["default"])
    except TypeError as error:
        raise WeightsError(f"カタログの [{name}.default] / catalogue entry [{name}.default]: {error}") from error
    return Entry(name, **{key: table[key] for key in wanted - {"default"}}, default=default)
