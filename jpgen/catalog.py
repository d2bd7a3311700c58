"""The catalogue: every model jpgen knows, from `catalog.toml` and a user's own file on top of it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from functools import cache
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
"""Environment variable: the path of a catalogue of one's own; without it `$XDG_CONFIG_HOME/jpgen/models.toml` is read if it is there."""

BUILTIN = "builtin:"
LATEST = "main"
"""The revision of a repository whose commit is not known."""

FAMILY_DEFAULT = {
    "sd": SamplingConfig(width=512, height=512, steps=25, guidance_scale=7.5),
    "sdxl": SamplingConfig(width=1024, height=1024, steps=25, guidance_scale=5.0),
    "pixart": SamplingConfig(width=1024, height=1024, steps=20, guidance_scale=4.5, emphasis="comfy"),
    "flux": SamplingConfig(width=1024, height=1024, steps=28, guidance_scale=3.5, scheduler="own"),
    "diffusers": SamplingConfig(width=1024, height=1024, steps=25, guidance_scale=5.0, scheduler="own"),
    **dict.fromkeys(("marian", "causal"), SamplingConfig(width=0, height=0, steps=0, guidance_scale=0.0, scheduler="")),
    "clip": SamplingConfig(width=0, height=0, steps=0, guidance_scale=0.0, scheduler=""),
}
"""The families, each with the settings that are common for it: what a row of the catalogue does not state comes from here."""

TRANSLATORS = ("marian", "causal")
"""Families that translate and draw nothing (their settings are none); each is a file in jpgen/translate."""

SCORERS = ("clip",)
"""Families that compare pictures with texts and draw nothing (jpgen.evaluate)."""

COMMERCIAL = ("yes", "no", "ask")
ROUTES = ("native", "adapter", "translate")


@dataclass(frozen=True)
class Entry:
    """One model: where it is, which backbone family and encoder open it, its terms, its best settings and what of this is unverified.

    `encoder` is a file in jpgen/encoders ("": the family's own). `path` is "builtin:NAME", a local folder or .safetensors file, or ""; `repo` a hub
    repository or "", `files` the patterns to fetch of it (none: what the family needs), `sha256` the hash of each file that is known. `commercial`
    is "yes", "no" or "ask" (ask the licensor, or nobody knows). `route` is how Japanese reaches it. `parts` is what the family's loader reads.
    """

    name: str
    family: str
    _: KW_ONLY
    encoder: str = ""
    path: str = ""
    repo: str = ""
    revision: str = LATEST
    files: tuple[str, ...] = ()
    sha256: Mapping[str, str] = field(default_factory=dict, hash=False)
    license: str = "unknown"
    commercial: str = "ask"
    gated: bool = False
    title: str = ""
    route: str = "native"
    unverified: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()
    default: SamplingConfig
    parts: Mapping[str, str | int | float | bool] = field(default_factory=dict, hash=False)

    @property
    def folder(self) -> Path:
        """The local folder of its files (of a file, the folder it is in); raises WeightsError if it is not there."""
        if not self.path:
            raise WeightsError(f"{self.name} はまだ手元にありません / {self.name} is not on this machine: open it with jpgen.models.open_model first")
        place = self.place
        folder = place.parent if place.suffix == ".safetensors" and place.is_file() else place
        if not folder.is_dir():
            raise WeightsError(f"{self.name}: {folder} がありません / the model's folder {folder} is missing; correct its path in the catalogue")
        return folder

    @property
    def builtin(self) -> bool:
        """Whether its files came with jpgen."""
        return self.path.startswith(BUILTIN)

    @property
    def place(self) -> Path:
        """Where `path` points, there or not."""
        return Path(str(resources.files("jpgen"))) / self.path.removeprefix(BUILTIN) if self.builtin else Path(self.path).expanduser()


def user_file() -> Path | None:
    """The user's own catalogue: $JPGEN_CATALOG, else jpgen/models.toml under $XDG_CONFIG_HOME (~/.config), if it is there."""
    if chosen := os.environ.get(USER_FILE):
        return Path(chosen)
    file = xdg_folder("XDG_CONFIG_HOME", ".config") / "models.toml"
    return file if file.is_file() else None


def xdg_folder(variable: str, usual: str) -> Path:
    """jpgen's folder under an XDG base directory; one that is not absolute does not count, as the specification says."""
    base = Path(os.environ.get(variable, ""))
    return (base if base.is_absolute() else Path("~").expanduser() / usual) / "jpgen"


def load_catalog(file: Path | None = None) -> dict[str, Entry]:
    """All entries by name. A user's file (argument, or `user_file()`) adds models and replaces settings of known ones.

    Raises WeightsError for a file that is not there or not TOML, naming what is wrong.

        >>> load_catalog()["mame"].family
        'pixart'
    """
    tables = dict(_shipped())
    chosen = file or user_file()
    if chosen:
        try:
            added = tomllib.loads(chosen.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise WeightsError(f"カタログ {chosen} を読めません / cannot read the catalogue {chosen}: {error}") from error
        for name, table in added.items():
            tables[name] = _merged(tables.get(name, {}), table) if isinstance(table, dict) else table
    return {name: _entry(name, table) for name, table in tables.items()}


@cache
def _shipped() -> Mapping[str, Any]:
    """The tables of jpgen's own file, parsed once: a model's card alone asks for them several times."""
    tables: dict[str, Any] = tomllib.loads((resources.files("jpgen") / "catalog.toml").read_text("utf-8"))
    return tables


def find_model(name: str) -> Entry:
    """The entry with this name; raises UnknownNameError, which offers the nearest."""
    catalog = load_catalog()
    if name not in catalog:
        raise UnknownNameError.of("モデル / model", name, catalog)
    return catalog[name]


def _merged(base: dict[str, Any], added: dict[str, Any]) -> dict[str, Any]:
    known = {k: v if isinstance(v, dict) else {} for k, v in base.items()}
    return base | {k: _merged(known.get(k, {}), v) if isinstance(v, dict) else v for k, v in added.items()}


def _text(value: object) -> bool:
    return isinstance(value, str)


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


KEYS: Mapping[str, tuple[Any, str]] = {
    "family": (lambda value: value in FAMILY_DEFAULT, f"one of {', '.join(FAMILY_DEFAULT)}"),
    "encoder": (_text, "a text"),
    "path": (_text, "a text"),
    "repo": (lambda value: _text(value) and re.fullmatch(r"([\w.-]+/[\w.-]+)?", value), "owner/name"),
    "revision": (_text, "a text"),
    "files": (_texts, "a list of texts"),
    "sha256": (
        lambda value: isinstance(value, dict) and all(_text(hash_) and re.fullmatch("[0-9a-f]{64}", hash_) for hash_ in value.values()),
        "a table of file = 64 hex digits",
    ),
    "license": (lambda value: _text(value) and value, "a text"),
    "commercial": (lambda value: value in COMMERCIAL, f"one of {', '.join(COMMERCIAL)}"),
    "gated": (lambda value: isinstance(value, bool), "true or false"),
    "title": (_text, "a text"),
    "route": (lambda value: value in ROUTES, f"one of {', '.join(ROUTES)}"),
    "unverified": (_texts, "a list of texts"),
    "sources": (_texts, "a list of texts"),
    "default": (lambda value: isinstance(value, dict), "a table"),
    "parts": (lambda value: isinstance(value, dict) and all(isinstance(v, str | int | float) for v in value.values()), "a table of plain values"),
}
"""What a row may state: each key with its check and what it wants."""

SETTINGS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys((f.name for f in fields(SamplingConfig)), (lambda _value: True, "")),
    **dict.fromkeys(("width", "height", "steps"), (lambda value: _number(value) and isinstance(value, int), "a whole number")),
    "guidance_scale": (_number, "a number"),
    **dict.fromkeys(("guidance_start", "guidance_stop"), (_number, "a number")),
    **dict.fromkeys(("scheduler", "emphasis", "cache"), (_text, "a text")),
}
"""What its `default` may state; later fields of SamplingConfig pass unchecked."""



def _entry(name: str, table: object) -> Entry:
    """The entry of a row; raises WeightsError naming all that is wrong with it."""
    if not isinstance(table, dict):
        raise WeightsError(f"カタログの {name} は [{name}] という表にしてください / catalogue: {name} must be a table [{name}], got {table!r}")
    settings = table.get("default", {})
    wrong = [f"no {key}" for key in ("family", "license", "title") if key not in table]
    if not any(table.get(key) for key in ("path", "repo")) and "recipe" not in table.get("parts", {}):
        wrong.append("no path or repo")
    wrong += _wrong("", table, KEYS)
    if isinstance(settings, dict):
        wrong += _wrong("default.", settings, SETTINGS)
    if wrong:
        raise WeightsError(f"カタログの [{name}] / catalogue entry [{name}]: {', '.join(wrong)}")
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items() if key != "default"}
    default = replace(FAMILY_DEFAULT[table["family"]], **settings)
    unverified = [*values.pop("unverified", ()), *_assumed(table, settings, default)]
    return Entry(name, values.pop("family"), **values, default=default, unverified=tuple(unverified))


def _wrong(place: str, table: Mapping[str, Any], known: Mapping[str, tuple[Any, str]]) -> list[str]:
    unknown = [f"unknown {place}{key}" for key in sorted(table.keys() - known.keys())]
    return unknown + [
        f"{place}{key} = {value!r}: wanted {known[key][1]}" for key, value in table.items() if key in known and not known[key][0](value)
    ]


def _assumed(table: Mapping[str, Any], settings: Mapping[str, Any], default: SamplingConfig) -> list[str]:
    """What no source stands behind: settings that the row does not state, and a repository without a commit."""
    if str(table.get("path", "")).startswith(BUILTIN):
        return []
    told = [key for key in ("width", "height", "steps", "guidance_scale", "scheduler") if key not in settings]
    lines = []
    if told and table["family"] not in (*TRANSLATORS, *SCORERS):
        values = ", ".join(f"{key}={getattr(default, key)}" for key in told)
        lines.append(f"既定の設定 {values} は {table['family']} で普通の値 / settings common for the family, not from the model's own page")
    if table.get("repo") and table.get("revision", LATEST) == LATEST:
        lines.append(f"revision: コミットが未確認（{LATEST} の今の中身を取る） / its commit is not known: whatever {LATEST} holds is fetched")
    return lines
