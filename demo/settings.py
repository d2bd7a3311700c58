"""What the demo may do: settings from a small TOML file. Without one it is for the person at this computer alone.

The file is `$JPGEN_DEMO_CONFIG`, else `settings.toml` beside this one; what it leaves out is as below. Everything wrong with it is told at once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import os
import secrets
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import jpgen

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIABLE = "JPGEN_DEMO_CONFIG"
BESIDE = Path(__file__).with_name("settings.toml")

class SettingsError(jpgen.JpgenError):
    """The settings file cannot be read, or says what cannot be."""


@dataclass(frozen=True)
class Settings:
    """Limits and places. Sides in pixels, times in seconds, `upload_bytes` of one file.

    `public`: others may come, which wants a `password_hash` (see `hash_password`). `gallery` and `merges` are folders; `models` are those that may
    be chosen (none named: all of the catalogue).
    """

    public: bool = False
    address: str = "127.0.0.1"
    port: int = 8501
    password_hash: str = ""
    model: str = "mame"
    models: tuple[str, ...] = ()
    gallery: Path = Path("~/.local/share/jpgen/gallery")
    merges: Path = Path("~/.local/share/jpgen/merges")
    capacity: int = 16
    per_session: int = 3
    max_side: int = 1024
    max_count: int = 8
    max_steps: int = 60
    max_cells: int = 25
    prompt_characters: int = 2000
    upload_bytes: int = 10_000_000
    upload_pixels: int = 16_000_000
    idle_seconds: float = 600.0
    away_seconds: float = 300.0

    def allows(self, password: str) -> bool:
        """Whether this password opens the demo; without a password_hash anything does, as only this computer can come."""
        return not self.password_hash or check_password(password, self.password_hash)


RANGES: dict[str, tuple[float, float]] = {
    "port": (1, 65535), "capacity": (1, 1000), "per_session": (1, 100), "max_side": (64, 4096), "max_count": (1, 100), "max_steps": (2, 1000),
    "max_cells": (1, 400), "prompt_characters": (1, 2000), "upload_bytes": (1000, 1_000_000_000), "upload_pixels": (4096, 67_108_864),
    "idle_seconds": (0, 1e6), "away_seconds": (1, 1e6),
}  # fmt: skip


def load_settings(path: Path | None = None) -> Settings:
    """The settings of a file (None: where they are looked for); raises SettingsError naming all that is wrong with it."""
    told = path or (Path(named).expanduser() if (named := os.environ.get(VARIABLE)) else None)
    place = told or BESIDE
    try:
        data = tomllib.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if told is not None:
            raise SettingsError(f"{place} がありません。{VARIABLE} を直してください / no such file: correct ${VARIABLE}") from error
        data = {}
    except (OSError, ValueError) as error:  # also what is no UTF-8 or no TOML
        raise SettingsError(f"{place} を TOML として読めません: {error} / cannot be read as TOML: correct it") from error
    wrong: list[str] = []
    given: dict[str, Any] = {name: _placed(getattr(Settings, name), Path()) for name in ("gallery", "merges")}
    kinds = {one.name: Path if isinstance(one.default, Path) else type(one.default) for one in fields(Settings)}
    for name, value in data.items():
        if name not in kinds:
            wrong.append(f"{name!r} という設定はありません / unknown setting; known: {', '.join(kinds)}")
        elif fault := _fault(name, value, kinds[name]):
            wrong.append(fault)
        else:
            given[name] = _as(kinds[name], value, place.parent)
    made = Settings(**given)
    wrong += [] if wrong else _contradictions(made)
    if wrong:
        raise SettingsError(f"{place}: " + "; ".join(wrong))
    return made


def hash_password(password: str) -> str:
    """What to write as `password_hash`: scrypt with a salt of its own, so that the file does not tell the password."""
    salt = secrets.token_bytes(16)
    return "$".join(("scrypt", *(base64.b64encode(part).decode() for part in (salt, _scrypt(password, salt)))))


def check_password(password: str, hashed: str) -> bool:
    """Whether the password is the one that was hashed; takes as long for a nearly right one as for a wrong one."""
    salt, wanted = _parts(hashed)
    return hmac.compare_digest(_scrypt(password, salt), wanted)


def _scrypt(password: str, salt: bytes) -> bytes:
    """A digest of 64 bytes (RFC 7914) that takes 16 MB and some 50 ms, so that guessing is slow."""
    return hashlib.scrypt(password.encode("utf-8", "surrogatepass"), salt=salt, n=1 << 14, r=8, p=1, maxmem=1 << 26)


def _parts(hashed: str) -> tuple[bytes, bytes]:
    """Salt and digest; raises ValueError for what hash_password did not make."""
    kind, salt, digest = hashed.split("$")
    made = base64.b64decode(salt, validate=True), base64.b64decode(digest, validate=True)
    if kind != "scrypt" or len(made[0]) < 8 or len(made[1]) != 64:
        raise ValueError(kind)
    return made


def _fault(name: str, value: Any, kind: type) -> str:
    told: dict[type, Any] = {float: (int, float), tuple: list, Path: str}  # as TOML has them
    fits: bool = isinstance(value, told.get(kind, kind))
    if not fits or (isinstance(value, bool) and kind is not bool):
        return f"{name} = {value!r} は {kind.__name__} にしてください / wanted {kind.__name__}, got {type(value).__name__}"
    if kind is tuple and not all(isinstance(one, str) for one in value):
        return f"{name} は文字列の並びにしてください / wanted a list of strings"
    low, high = RANGES.get(name, (0, 0))
    if name in RANGES and not low <= value <= high:
        return f"{name} = {value!r} は {low}〜{high} にしてください / must be {low}–{high}"
    return ""


def _as(kind: type, value: Any, folder: Path) -> Any:
    return _placed(Path(value), folder) if kind is Path else tuple(value) if kind is tuple else float(value) if kind is float else value


def _placed(path: Path, folder: Path) -> Path:
    path = path.expanduser()
    return path if path.is_absolute() else (folder / path).absolute()


def _contradictions(made: Settings) -> list[str]:
    wrong = []
    if made.password_hash:
        try:
            _parts(made.password_hash)
        except (ValueError, binascii.Error):
            wrong.append(
                "password_hash が正しい形ではありません。`python -m demo.settings` で作ってください / "
                "password_hash is not one: make it by `python -m demo.settings`"
            )
    if made.public and not made.password_hash:
        wrong.append("public = true には password_hash が要ります / public = true wants a password_hash: make it by `python -m demo.settings`")
    if not made.public and not _is_loopback(made.address):
        wrong.append(
            f"address = {made.address!r} はほかの人からも見えます。public = true と password_hash を書いてください / "
            "can be reached by others: say public = true with a password_hash, or use 127.0.0.1"
        )
    if made.models and made.model not in made.models:
        wrong.append(f"model = {made.model!r} が models にありません / is not among models")
    return wrong


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


if __name__ == "__main__":
    from getpass import getpass

    sys.stdout.write(f'password_hash = "{hash_password(getpass("パスワード / password: "))}"\n')
