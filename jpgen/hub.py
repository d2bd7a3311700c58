"""Models from the hub: fetched by huggingface_hub into its cache, pinned by revision and hash, never a pickle, a script or an archive."""

from __future__ import annotations

import errno
import importlib.util
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from jpgen.errors import JpgenError, LicenseError, WeightsError
from jpgen.safety import PICKLES, read_json, refuse_pickle, sha256_of

Progress = Callable[[int, int], None]
"""Called while files arrive with the bytes that are here and the bytes there will be."""

SCRIPTS = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh", ".bat", ".cmd", ".ps1", ".js", ".ipynb")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl", ".egg", ".h5", ".keras", ".msgpack")
NEVER = tuple("*" + "".join(f"[{c}{c.upper()}]" if c.isalpha() else c for c in ending) for ending in (*PICKLES, *SCRIPTS, *ARCHIVES))
"""Patterns of the files that are never fetched, however their endings are written."""

STOCK = ("diffusers", "transformers")
"""Libraries whose classes a model may name."""

_GLOB = re.compile(r"[*?\[]")


def fetch(
    repo: str,
    *,
    revision: str,
    files: Sequence[str] = (),
    sha256: Mapping[str, str] | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """The local folder of a hub repository at a revision (commit, tag or branch), with the files of these patterns (none: all) fetched and checked.

    What is there already is not fetched again, and a fetch that broke off goes on with the files that are missing. Patterns without * ? [ name files
    that must be there. `sha256` maps files to their hashes; a file that differs is never handed out. With HF_HUB_OFFLINE=1 nothing is asked of the
    network. Raises LicenseError for a gated repository, else WeightsError: no such repository or revision, no network, no space, a wrong hash.

        >>> fetch("someone/model", revision="main", files=("unet/*.bin",))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        jpgen.errors.WeightsError: unet/*.bin は pickle 形式で...
    """
    from huggingface_hub import constants, errors, snapshot_download

    _require_safe(repo, revision, files)
    offline = constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    wanted: dict[str, Any] = {"revision": revision, "allow_patterns": list(files) or None, "ignore_patterns": list(NEVER)}
    unreachable: BaseException | None = None
    try:
        total = 0
        if not offline:
            try:
                total = _require_space(repo, wanted, Path(constants.HF_HUB_CACHE))
            except errors.DryRunError as error:  # the cache may still hold all of it
                unreachable = error.__cause__ or error
        report = on_progress if on_progress and total else lambda _done, _total: None
        local = offline or unreachable is not None
        folder = Path(snapshot_download(repo, local_files_only=local, tqdm_class=_bars(report, total), **wanted))
    except Exception as error:  # whatever its many layers raise becomes one line; what jpgen raised, and bugs, pass
        reason = unreachable if unreachable and isinstance(error, errors.LocalEntryNotFoundError) else error
        explained = None if isinstance(error, JpgenError) else _explained(reason, repo, revision, files, offline)
        if explained is None:
            raise
        raise explained from reason
    _require_there(folder, repo, revision, files, sha256 or {}, offline)
    for name, digest in (sha256 or {}).items():
        _require_hash(folder / name, digest)
    return folder


def require_no_remote_code(folder: Path) -> None:
    """Raise WeightsError if a model's folder asks for code that is not part of diffusers or transformers; the message names the safe ways.

    Looks at `model_index.json` (a pipeline or a part from a file or another library) and at `auto_map` in each part's configs, except in parts whose
    stock class `model_index.json` names. Reads JSON alone and imports nothing.
    """
    asks: list[str] = []
    stock: set[str] = set()
    index = folder / "model_index.json"
    if index.is_file():
        table = read_json(index)
        if not isinstance(table.get("_class_name"), str):
            asks.append(f"model_index.json: _class_name {table.get('_class_name')!r:.80}")
        for part, value in table.items():
            if part.startswith("_") or not isinstance(value, list) or value == [None, None]:
                continue
            library, name = value if len(value) == 2 else (None, None)
            if not isinstance(library, str) or not isinstance(name, str):
                if not all(isinstance(number, int | float) for number in value):
                    asks.append(f"model_index.json: {part} {value!r:.80}")
            elif not _is_stock(library) or not name.isidentifier():
                asks.append(f"model_index.json: {part} from {library!r:.80}")
            elif not name.startswith("Auto"):
                stock.add(part)
    for config in sorted([*folder.glob("*config.json"), *folder.glob("*/*config.json")]):
        inside = config.parent != folder
        if not (inside and config.parent.name in stock) and read_json(config).get("auto_map"):
            asks.append(f"{config.relative_to(folder).as_posix()}: auto_map")
    if asks:
        raise WeightsError(
            f"{folder} はモデル付属のプログラムの実行を求めますが、jpgen は実行しません（{'、'.join(asks[:3])}）。"
            "`jpgen models` にある同じモデルの項目か、付属のプログラムが要らない diffusers 形式の版を使ってください / "
            f"this model wants to run code of its own ({'; '.join(asks[:3])}), which jpgen never does: "
            "use its entry in `jpgen models`, which loads the same weights with stock classes, or a version in diffusers' layout without custom code"
        )


def _is_stock(library: str) -> bool:
    """Whether it is diffusers, transformers, or a folder of pipelines in diffusers (which a model_index.json names like a library)."""
    if library in STOCK:
        return True
    spec = importlib.util.find_spec("diffusers")  # a place on disk: nothing is imported
    return bool(spec and spec.origin and library.isidentifier() and (Path(spec.origin).parent / "pipelines" / library).is_dir())


def _require_safe(repo: str, revision: str, files: Iterable[str]) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII) or ".." in repo:
        raise WeightsError(f"{repo!r} はハブの名前ではありません / {repo!r} is no repository of the hub: write owner/name")
    if not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", revision, re.ASCII) or ".." in revision:
        raise WeightsError(f"{repo}: revision={revision!r} は使えません / is no revision: write a commit (40 hex digits), a tag or a branch")
    for pattern in files:
        refuse_pickle(PurePath(pattern))
        if pattern.lower().endswith((*SCRIPTS, *ARCHIVES)):
            raise WeightsError(
                f"{repo}: {pattern} はプログラムか書庫なので取得しません / {pattern} is a program or an archive: never fetched; "
                "name .safetensors, .json, .txt and tokenizer files"
            )


def _require_space(repo: str, wanted: Mapping[str, Any], cache: Path) -> int:
    """The bytes that are still to be fetched; raises WeightsError if the disk of the cache has no room for them."""
    from huggingface_hub import snapshot_download

    plan = snapshot_download(repo, dry_run=True, tqdm_class=_bars(lambda _done, _total: None, 0), **wanted)
    total = sum(file.file_size or 0 for file in plan if file.will_download)
    place = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if total > free:
        raise _no_space(repo, place, f"{_size(total)} wanted, {_size(free)} free")
    return total


def _no_space(repo: str, place: Path | str, what: str) -> WeightsError:
    return WeightsError(
        f"{repo}: ディスクの空きが足りません / no space for {repo} on the disk of {place} ({what}): "
        "free some (`hf cache rm`), or name a folder on another disk with the variable HF_HOME"
    )


def _explained(error: BaseException, repo: str, revision: str, files: Sequence[str], offline: bool) -> JpgenError | None:
    """What went wrong in one line; None for what is no failure of fetching."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{repo}"
    response = getattr(error, "response", None)
    if isinstance(error, errors.GatedRepoError):
        known = response is not None and response.status_code == 403
        state = (
            "ログイン済みですが利用条件に未同意です / you are logged in, but its terms are not accepted" if known else "ログインが必要です / log in"
        )
        return LicenseError(
            f"{repo} は利用条件への同意が要るモデルです（{state}）: ① {page} を開き、ログインして「Agree and access repository」を押す "
            f"② `hf auth login` を実行する（または HF_TOKEN を設定する） ③ もう一度実行する / a gated model: open {page}, log in and click "
            "“Agree and access repository” (some owners answer later), then run `hf auth login` (or set HF_TOKEN) and try again"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return WeightsError(f"{repo} に revision {revision} はありません / {repo} has no revision {revision}: see {page}/commits/main")
    if isinstance(error, errors.RepositoryNotFoundError):
        return WeightsError(
            f"ハブに {repo} がないか、非公開です / no repository {repo} on the hub, or a private one: "
            "correct its name, or log in with `hf auth login`"
        )
    if isinstance(error, errors.DisabledRepoError):
        return WeightsError(f"{repo} は公開が止められています / {repo} has been disabled on the hub: use another model")
    if offline and isinstance(error, errors.LocalEntryNotFoundError):
        return _not_here(repo, revision, files, _missing_names(error) or ", ".join(files) or "all files")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _no_space(repo, constants.HF_HUB_CACHE, error.strerror or "full")
    if isinstance(error, PermissionError):
        return WeightsError(
            f"{error.filename} に書き込めません / cannot write {error.filename}: "
            "correct its permissions, or name another folder with the variable HF_HOME"
        )
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception) else error
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        login = "log in with `hf auth login`, with a token that may read it"
        advice = {401: login, 403: login, 429: "wait some minutes, or log in with `hf auth login`"}.get(status, "try again later")
        return WeightsError(f"{repo}: ハブがエラー {status} を返しました / the hub answered {status} for {repo}: {advice}")
    if isinstance(error, errors.HFValidationError):
        return WeightsError(f"{repo!r} はハブの名前ではありません / {repo!r} is no repository of the hub: {_first_line(error)}")
    transfer = (getattr(errors, "HTTPError", OSError), getattr(errors, "XetDownloadError", OSError), OSError, RuntimeError)  # the last: of hf_xet
    if isinstance(error, transfer):
        return WeightsError(
            f"{repo}: ハブにつながりません / cannot reach the hub for {repo} ({type(cause).__name__}: {_first_line(cause)}): "
            "check the network and the proxy and run it again (files that have arrived stay), or copy the model's cache from another machine"
        )
    return None


def _not_here(repo: str, revision: str, files: Sequence[str], missing: str) -> WeightsError:
    include = "".join(f" --include '{pattern}'" for pattern in files)
    return WeightsError(
        f"{repo}@{revision} の {missing} が手元になく、オフライン（HF_HUB_OFFLINE）です / "
        f"offline (HF_HUB_OFFLINE is set), and {missing} of {repo}@{revision} is not in the cache: unset HF_HUB_OFFLINE, "
        f"or run `hf download {repo} --revision {revision}{include}` on a machine with network and copy its HF_HOME"
    )


def _missing_names(error: BaseException) -> str:
    """The files that huggingface_hub says are missing."""
    found = re.search(r"missing \(([^()]+)", str(error))
    return found[1].strip(" .,") if found else ""


def _require_there(folder: Path, repo: str, revision: str, files: Sequence[str], sha256: Mapping[str, str], offline: bool) -> None:
    """Raise WeightsError unless the files named without wildcards and those with a hash are there, and at least one file is."""
    outside = [name for name in sha256 if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts]
    if outside:
        raise WeightsError(f"{repo}: sha256 の {outside[0]!r} は使えません / sha256 names {outside[0]!r}, which is not in the repository")
    missing = [name for name in dict.fromkeys([*(name for name in files if not _GLOB.search(name)), *sha256]) if not (folder / name).is_file()]
    if not missing and any(path.is_file() for pattern in files or ("*",) for path in folder.rglob("*") if _matches(path, folder, pattern)):
        return
    named = ", ".join(missing[:5]) or ", ".join(files) or "any file"
    if offline:
        raise _not_here(repo, revision, files, named)
    raise WeightsError(
        f"{repo}@{revision} に {named} がありません / {repo}@{revision} has no {named}: correct `files` in the catalogue, or use another repository "
        "of the same model (one with .safetensors, if this one holds only pickles)"
    )


def _matches(path: Path, folder: Path, pattern: str) -> bool:
    from fnmatch import fnmatchcase  # as huggingface_hub matches: * runs across folders

    name = path.relative_to(folder).as_posix()
    return fnmatchcase(name, pattern + "*" if pattern.endswith("/") else pattern) and not any(fnmatchcase(name, never) for never in NEVER)


def _require_hash(path: Path, wanted: str) -> None:
    """Raise WeightsError unless the file has this SHA-256."""
    found = sha256_of(path)
    if found == wanted.lower():
        return
    real = path.resolve()
    damaged = re.fullmatch(r"[0-9a-f]{64}", real.name) and real.name != found  # the cache names large files by the hub's own hash
    changed = "the repository has changed: pin another revision, or do not use it"
    advice = f"it was damaged on the way: delete {real} and run it again" if damaged else changed
    raise WeightsError(f"{path} の SHA-256 が違うので使いません / not used, wrong SHA-256 of {path}: got {found}, wanted {wanted.lower()}; {advice}")


def _bars(report: Progress, total: int) -> type[Any]:
    """A progress bar class for huggingface_hub that draws nothing and reports bytes instead."""
    from huggingface_hub.utils.tqdm import tqdm

    lock = threading.Lock()
    most = 0.0

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.arrived = kwargs.get("initial") or 0
            self.bytes = kwargs.get("unit") == "B"
            super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal most
            with lock:
                self.arrived += n or 0
                if self.bytes and total and self.arrived > most:  # the furthest of its bars: bytes from the network, bytes written
                    most = self.arrived
                    report(min(int(most), total), total)
            return None

    return Bar


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
