"""What may be opened: safetensors whose header tells the truth. Pickles, pages, pointers and lies are refused before anything is loaded.

A safetensors file is 8 bytes that give the length of a header, the header (a JSON object: of each tensor its type, shape and place), and the values.
Here only the first two are read, and they are believed only where they agree with each other and with the size of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, NoReturn, TypeGuard

from jpgen.errors import WeightsError

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".joblib")
"""Endings of weights that Python's pickle wrote: opening one can run any program."""

MAX_HEADER = 100_000_000
"""Bytes of header or JSON that are read at most, as in safetensors itself."""

BITS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
    "F4": 4,
}
"""Bits a value of each type that torch can hold."""

NOTED_FROM = 64 << 20
"""Bytes from which the hash of a file is noted."""

CHUNK = 4 << 20

_START = 512
"""Bytes looked at to tell what a file is that is no safetensors."""

_KINDS = (
    (b"PK\x03\x04", "zip（PyTorch の pickle かもしれません）です / is a zip archive, perhaps a PyTorch pickle, with another ending"),
    (b"PK\x05\x06", "zip です / is an empty zip archive with another ending"),
    (b"GGUF", "GGUF です / is a GGUF file with another ending"),
    (b"\x1f\x8b", "gzip です / is a gzip archive with another ending"),
    (b"7z\xbc\xaf", "7z です / is a 7z archive with another ending"),
    (b"\x89HDF", "HDF5 です / is an HDF5 file with another ending"),
)


@dataclass(frozen=True)
class Stored:
    """A tensor as a file's header has it: its type in safetensors' words ("F16", "BF16" …), its shape, and the byte of the file it begins at."""

    dtype: str
    shape: tuple[int, ...]
    begin: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Header:
    """What a safetensors file says it holds: each tensor by name, and the texts of its metadata."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def check_safetensors(path: Path) -> Header:
    """The header of a safetensors file, sane and true to the file; reads 8 bytes and the header, allocates no tensor, executes nothing.

    Raises WeightsError for a pickle (by its ending, unopened, or by its first bytes), for what is no file, empty, cut off or no safetensors,
    and for a header with tensors named twice, unknown types, shapes unlike their bytes, or places that overlap, leave gaps or lie outside the file.

        >>> from importlib.resources import files
        >>> header = check_safetensors(Path(str(files("jpgen") / "mame/vae/diffusion_pytorch_model.safetensors")))
        >>> header.metadata["format"]
        'pt'
    """
    refuse_pickle(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise WeightsError(f"{path} はフォルダーです / is a folder: name a .safetensors file")
        if not stat.S_ISREG(mode):
            raise WeightsError(f"{path} は普通のファイルではありません / is not a regular file: name a .safetensors file")
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(_START)
            _refuse_other_kinds(path, start)
            length = int.from_bytes(start[:8], "little")
            if length > size - 8:
                _damaged(
                    path, "途中で切れているか safetensors ではありません", f"cut off, or no safetensors: {size} bytes, the header wants {length}"
                )
            if length > MAX_HEADER:
                _damaged(path, "ヘッダーが大きすぎます", f"a header of {length} bytes; at most {MAX_HEADER} are read")
            file.seek(8)
            text = file.read(length)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} がありません / no weight file {path}; install jpgen again or fetch the model again") from error
    except OSError as error:
        raise WeightsError(f"{path} を読めません / cannot read {path}: {error.strerror or error}") from error
    return _checked(path, text, size - 8 - length)


def refuse_pickle(path: PurePath) -> None:
    """Raise WeightsError, without opening it, if the file's ending says that it is a pickle; the message names the safe ways."""
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path} は pickle 形式で、開くとプログラムが動きうるため開きません。{_SAFE_WAY_JA} / "
            f"is a pickle, which can run any program when opened: not opened; {_SAFE_WAY_EN}"
        )


def refuse_pickles(folder: Path) -> None:
    """Raise WeightsError if the folder's only weights are pickles (none of them is opened)."""
    names = sorted(entry.name for entry in folder.iterdir())
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles and not any(name.lower().endswith(".safetensors") for name in names):
        raise WeightsError(
            f"{folder} の重みは pickle 形式だけなので開きません（{_some(pickles)}）。{_SAFE_WAY_JA} / "
            f"holds only pickles ({_some(pickles)}), which can run any program when opened: not opened; {_SAFE_WAY_EN}"
        )


_SAFE_WAY_JA = "同じモデルの .safetensors 版を使うか、信頼できる隔離した環境で変換してください"
_SAFE_WAY_EN = (
    "use a .safetensors version of the same model, or convert it on a machine you trust with it: "
    'd = torch.load(FILE, weights_only=True); safetensors.torch.save_file(d.get("state_dict", d), "model.safetensors")'
)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model; raises WeightsError if it is missing, too long, not JSON, no object, or names a key twice."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_HEADER + 1)
    except FileNotFoundError as error:
        raise WeightsError(f"{path} がありません / no file {path}; fetch the model again") from error
    except OSError as error:
        raise WeightsError(f"{path} を読めません / cannot read {path}: {error.strerror or error}") from error
    if len(text) > MAX_HEADER:
        raise WeightsError(f"{path} は大きすぎます / is longer than {MAX_HEADER} bytes: no file of a model")
    return _object(path, text)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, 64 hex digits; raises WeightsError if it cannot be read.

    Of a large file it is noted, with the file's size and time, so that it is read through only once.
    """
    try:
        real = path.resolve()
        state = real.stat()
        base = os.environ.get("XDG_CACHE_HOME", "")
        cache = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
        note = cache / "jpgen" / "hashes" / hashlib.sha256(os.fsencode(real)).hexdigest()
        of = f"{state.st_size} {state.st_mtime_ns}"
        try:
            noted, _, told = note.read_text("ascii").strip().partition(" ")
            if told == of and len(noted) == 64:
                return noted
        except (OSError, UnicodeDecodeError):
            pass
        digest = hashlib.sha256()
        with real.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(f"{path} を読めません / cannot read {path}: {error.strerror or error}") from error
    if state.st_size >= NOTED_FROM:
        try:
            note.parent.mkdir(parents=True, exist_ok=True)
            partial = note.with_name(f".{note.name}.{os.getpid()}.tmp")
            partial.write_text(f"{digest.hexdigest()} {of}\n", "ascii")
            os.replace(partial, note)
        except OSError:  # then it is hashed again next time
            pass
    return digest.hexdigest()


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Raise WeightsError for a file that is recognisably something else."""
    if not start:
        _damaged(path, "空のファイルです", "an empty file")
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        raise WeightsError(
            f"{path} は重みではなく git-lfs のポインターです。git lfs pull を実行するか、モデルを取得し直してください / "
            "is a git-lfs pointer, not the weights: run `git lfs pull` there, or fetch the model again"
        )
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<head", b"<?xml", b"<script")):
        raise WeightsError(
            f"{path} は重みではなくウェブページ（HTML）です。ファイルそのものをダウンロードし直してください / "
            "is a web page (HTML) saved as weights: download the file itself (the hub's download link, not its page)"
        )
    for magic, kind in _KINDS:
        if start.startswith(magic):
            raise WeightsError(f"{path} の中身は {kind}: not opened; {_SAFE_WAY_EN}")
    if start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05" and start[8:9] != b"{":  # 80 02 … can also begin a header's length
        raise WeightsError(f"{path} の中身は pickle です。{_SAFE_WAY_JA} / is a pickle with another ending: not opened; {_SAFE_WAY_EN}")
    if len(start) < 8:
        _damaged(path, "途中で切れています", f"cut off after {len(start)} bytes")
    if start[8:9] not in (b"{", b""):
        _damaged(path, "safetensors ではありません", f"no safetensors: it begins with {start[:12]!r}")


def _checked(path: Path, text: bytes, room: int) -> Header:
    """The header in `text` of a file with `room` bytes of values behind it."""
    table = _object(path, text)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _damaged(path, "メタデータが文字列ではありません", "its metadata are not texts")
    tensors: dict[str, Stored] = {}
    places: list[tuple[int, int, str]] = []
    for name, entry in table.items():
        dtype, shape, offsets = (entry.get(key) for key in ("dtype", "shape", "data_offsets")) if isinstance(entry, dict) else (None, None, None)
        if not isinstance(dtype, str) or not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
            _damaged(path, f"{_short(name)} の記述が変です", f"tensor {_short(name)} lacks a sane dtype, shape or data_offsets")
        if dtype not in BITS:
            _damaged(path, f"{_short(name)} の型が不明です", f"tensor {_short(name)} has a dtype torch does not know, {_short(dtype)}")
        begin, end = offsets
        wanted = _bits(shape, BITS[dtype])
        if end < begin or wanted != 8 * (end - begin):
            what = f"tensor {_short(name)} of shape {_short(shape)}, {dtype}, cannot be bytes {begin} to {end}"
            _damaged(path, f"{_short(name)} の形と大きさが合いません", what)
        tensors[name] = Stored(dtype, tuple(shape), 8 + len(text) + begin)
        places.append((begin, end, name))
    reached = 0
    for begin, end, name in sorted(places):
        if begin != reached:
            fault, meaning = ("重なっています", "overlaps another") if begin < reached else ("離れています", "leaves a gap before it")
            _damaged(path, f"{_short(name)} の位置が前と{fault}", f"tensor {_short(name)} {meaning}: it begins at byte {begin}, not {reached}")
        reached = end
    if reached > room:
        _damaged(path, "途中で切れています", f"cut off, or its header lies: {room} bytes of values, the header wants {reached}")
    if reached < room:
        _damaged(path, "余分なデータがあります", f"{room - reached} bytes at its end belong to no tensor")
    return Header(tensors, metadata)


def _naturals(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)


def _bits(shape: Iterable[int], bits: int) -> int | None:
    """Bits that a tensor of this shape takes; None for more than any file has."""
    for side in shape:
        bits *= side
        if bits >= 2**66:
            return None
    return bits


def _object(path: Path, text: bytes) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"{_short(name)} is there twice")
            found[name] = value
        return found

    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        _damaged(path, "JSON として読めません", f"its JSON cannot be read ({error})")
    if not isinstance(value, dict):
        _damaged(path, "JSON のオブジェクトではありません", "its JSON is no object")
    return value


def _damaged(path: Path, fault: str, meaning: str) -> NoReturn:
    raise WeightsError(f"{path} は壊れています: {fault}。取得し直してください / damaged file {path}: {meaning}; fetch it again")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" + {len(names) - 3}" if len(names) > 3 else "")
