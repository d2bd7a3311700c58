"""From the name or path of a model to files on this machine: its terms accepted, its parts fetched, its layout told."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jpgen.catalog import LATEST, SCORERS, TRANSLATORS, Entry, find_model, load_catalog, xdg_folder
from jpgen.errors import IncompatibleError, LicenseError, OutputError, UnknownNameError, WeightsError
from jpgen.safety import sha256_of

if TYPE_CHECKING:
    from jpgen.hub import Progress
    from jpgen.layout import Layout

HUB = "https://huggingface.co/"
WEIGHTS = "*.safetensors"
PIPELINE_FILES = ("model_index.json", *(f"*/*{ending}" for ending in (".safetensors", ".json", ".txt", ".model", ".jinja")))
"""What is fetched of a repository in diffusers' layout: its folders, not the whole models in single files that often lie beside them."""

TEXT_FAMILY = "diffusers"
"""The family whose pipelines encode the text themselves, with the classes that the model's files name."""

ENGLISH = ("clip", "sdxl", "t5", "flux", "")
"""Encoders that read English alone, unless their files show otherwise ("": whatever the pipeline of the family `diffusers` brings)."""

SENTENCEPIECE = ("spiece.model", "sentencepiece.model", "tokenizer.model", "spm.model")
"""What Japanese tokenizers are called in place of CLIP's."""

REPO = "_repo"
"""Ends the name of a part that is a repository of its own: `vae_repo` is fetched, and its local folder becomes the part `vae`."""


# ── opening ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def open_model(name: str | Path, *, on_progress: Progress | None = None) -> Entry:
    """The entry of a catalogue name, a local folder or a local `.safetensors` file, its `path` a place on this machine.

    Of an adapter `path` is that of its base and the part `adapter` the local file; a part `NAME_repo` gives the part `NAME`, a local folder. What
    is only on the hub is fetched (see jpgen.hub). Raises UnknownNameError, LicenseError (see `accept_license`), WeightsError.

        >>> open_model("mame").family
        'pixart'
    """
    catalog = load_catalog()
    if str(name) not in catalog:
        return _open_path(str(name), catalog)
    entry = catalog[str(name)]
    if entry.builtin:
        return entry
    if is_recipe(entry):
        raise WeightsError(
            f"{entry.name} は配合（レシピ {entry.parts['recipe']}）で、重みは配られていません。jpgen.Pipeline か jpgen generate で開くと配合します / "
            f"{entry.name} is a recipe, nobody publishes its weights: open it by jpgen.Pipeline or jpgen generate, which merge it"
        )
    require_licenses(entry)
    return _with_encoder(_opened(entry, on_progress))


def with_vae(entry: Entry, vae: str | Path) -> Entry:
    """The entry with this autoencoder (a folder or file) in the place of its own; raises WeightsError (there is none), IncompatibleError."""
    place = Path(vae).expanduser()
    if entry.family == TEXT_FAMILY:
        raise IncompatibleError(
            f"{entry.name} の VAE は替えられません / the autoencoder of {entry.name} cannot be replaced; "
            "替えられるもの / what can: sd, sdxl, pixart, flux"
        )
    if not place.exists():
        raise WeightsError(f"VAE {vae} がありません / no file or folder {vae}: check the path")
    return replace(entry, parts={**entry.parts, "vae": str(place.resolve())})


def recognise(path: str | Path) -> Entry:
    """The entry of a local folder or `.safetensors` file, told by its JSON files and headers alone; raises WeightsError for what is no model."""
    from jpgen.layout import recognise as recognise_layout

    place = Path(path).expanduser().resolve()
    layout = recognise_layout(place)
    if not layout.is_model or layout.default is None:
        raise WeightsError(
            f"{path} は {layout.kind}（{layout.variant}）だけなので、単独では絵を作れません / {path} is only a {layout.kind} ({layout.variant}): "
            "give the path of a whole model and add this to it"
        )
    name = place.stem if place.is_file() else place.name
    return Entry(
        name, layout.family, encoder=layout.encoder, path=str(place), revision="local", license="unknown (local files)", title=str(place),
        default=layout.default, route=_route(place, layout), unverified=("条件が未確認の手元のファイル / local files whose terms are not known",),
    )  # fmt: skip


def _route(place: Path, layout: Layout) -> str:
    """How Japanese reaches local files: not through encoders of English, but for CLIP's with a SentencePiece model in place of its tokenizer."""
    if layout.encoder not in ENGLISH:
        return "native"
    japanese = layout.encoder in ("clip", "sdxl") and place.is_dir() and any((place / "tokenizer" / name).is_file() for name in SENTENCEPIECE)
    return "native" if japanese else "translate"


def whereabouts(entry: Entry) -> str:
    """Where its files are: "builtin", "local", "fetched", "absent", or "recipe" (nobody publishes them: they are merged)."""
    if entry.builtin:
        return "builtin"
    if is_recipe(entry):
        return "recipe"
    if any(whereabouts(base) == "absent" for base in _bases(entry)):
        return "absent"
    if entry.path:
        return "local" if entry.place.exists() else "absent"
    return "fetched" if _snapshot(entry) else "absent"


def weights_hash(entry: Entry) -> str:
    """The first 10 hex digits of the SHA-256 over the entry's weight files, by name: its file or folder, and its local parts (U-Net, adapter …)."""
    files = _weight_files(entry.place, "")
    for part in ("adapter", "unet", "vae", "text_encoder", "text_encoder_2"):
        if told := entry.parts.get(part):
            place = entry.folder / Path(str(told)).expanduser()
            files |= _weight_files(place / part if (place / part).is_dir() else place, f"{part}:")
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode())
        digest.update(bytes.fromhex(sha256_of(files[name])))
    return digest.hexdigest()[:10]


def _weight_files(place: Path, prefix: str) -> dict[str, Path]:
    if place.is_dir():
        return {prefix + file.relative_to(place).as_posix(): file for file in place.rglob("*.safetensors")}
    return {prefix + place.name: place} if place.is_file() else {}


def hub_folder() -> Path:
    """Where huggingface_hub keeps what was fetched: the same environment variables, without importing it."""
    for variable, inside in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")):
        if chosen := os.environ.get(variable):
            return Path(os.path.expandvars(chosen)).expanduser() / inside
    return Path("~/.cache/huggingface/hub").expanduser()


def _open_path(name: str, known: dict[str, Entry]) -> Entry:
    place = Path(name).expanduser()
    if place.exists():
        return recognise(place)
    if place.suffix or place.is_absolute() or name.startswith((".", "~")):
        raise WeightsError(f"{name} がありません / there is no file or folder {name}: check the path, or give a name that `jpgen models` lists")
    raise UnknownNameError.of("モデル / model", name, known)


def _opened(entry: Entry, on_progress: Progress | None) -> Entry:
    """The entry with everything of it on this machine."""
    place = entry.place if entry.path else _fetched(entry.repo, entry, entry.files or PIPELINE_FILES, on_progress)
    if not place.exists():
        raise WeightsError(f"{entry.name}: {place} がありません / {place} is missing: correct the path of {entry.name} in your catalogue")
    if entry.family == TEXT_FAMILY:
        from jpgen.hub import require_no_remote_code

        require_no_remote_code(place)
    parts = dict(entry.parts)
    for name in [name for name in parts if name.endswith(REPO) and name.removesuffix(REPO) not in parts]:
        part = name.removesuffix(REPO)
        parts[part] = str(_fetched_part(entry, part, on_progress))
    for base in _bases(entry):
        opened = _opened(base, on_progress)
        parts["adapter"] = str(_inside(place, str(parts.get("adapter", "")), entry))
        return replace(entry, path=opened.path, encoder=entry.encoder or opened.encoder, parts={**opened.parts, **parts})
    return replace(entry, path=str(_single_file(place, entry)), parts=parts)


def _fetched(repo: str, entry: Entry, files: Sequence[str], on_progress: Progress | None) -> Path:
    from jpgen.hub import fetch

    return Path(fetch(repo, revision=entry.revision, files=tuple(files), sha256=entry.sha256, on_progress=on_progress))


def _fetched_part(entry: Entry, part: str, on_progress: Progress | None) -> Path:
    """The local folder of a part with a repository of its own; `PART_folder` and `PART_revision` say where in it, and which commit."""
    repo, inside = str(entry.parts[part + REPO]), str(entry.parts.get(f"{part}_folder", ""))
    files = (f"{inside}/*.json", f"{inside}/{WEIGHTS}") if inside else ()
    own = replace(entry, revision=str(entry.parts.get(f"{part}_revision", LATEST)), sha256={})
    return _fetched(repo, own, files, on_progress) / inside


def _single_file(place: Path, entry: Entry) -> Path:
    """The model file in a folder that is no diffusers layout: that which the part `file` names, or the only one."""
    if place.is_file() or "file" in entry.parts:
        return place if place.is_file() else _inside(place, str(entry.parts["file"]), entry)
    if any((place / name).is_file() for name in ("model_index.json", "config.json")) or (place / "vae").is_dir():
        return place
    files = sorted(place.glob(WEIGHTS))
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files) or "(none)"
    raise WeightsError(
        f"{entry.name}: どの重みファイルか決められません / {place} holds the weight files {names}: "
        f"say which in your catalogue, [{entry.name}] parts.file = \"…\""
    )


def _inside(place: Path, name: str, entry: Entry) -> Path:
    file = place if place.is_file() else place / name
    if not file.is_file():
        raise WeightsError(f"{entry.name}: {file} がありません / {file} is missing: fetch {entry.name} again, or correct its parts in the catalogue")
    return file


def _with_encoder(entry: Entry) -> Entry:
    """The entry with the encoder its files want, where the catalogue leaves that to them."""
    if entry.encoder or entry.family in (TEXT_FAMILY, *TRANSLATORS, *SCORERS):
        return entry
    found = recognise(entry.path)
    if found.family != entry.family:
        raise WeightsError(
            f"{entry.name}: {entry.path} は {found.family} のモデルです / {entry.path} holds a model of the family {found.family}, "
            f"the catalogue says {entry.family}: correct one of them"
        )
    return replace(entry, encoder=found.encoder)


def is_recipe(entry: Entry) -> bool:
    """Whether nobody publishes its weights: `jpgen.merged` makes them of others."""
    return "recipe" in entry.parts and not (entry.path or entry.repo)


def _bases(entry: Entry) -> Iterator[Entry]:
    """The model that an adapter is for, if this is one."""
    if "base" in entry.parts:
        base = find_model(str(entry.parts["base"]))
        if "base" in base.parts:
            raise WeightsError(f"カタログの [{entry.name}] / catalogue entry [{entry.name}]: its base {base.name} is an adapter itself")
        yield base


def _snapshot(entry: Entry) -> Path | None:
    """The folder in the hub's cache that holds something for every pattern of the entry, if there is one."""
    repo = hub_folder() / f"models--{entry.repo.replace('/', '--')}"
    try:
        commit = (repo / "refs" / entry.revision).read_text("utf-8").strip()
    except OSError:
        commit = entry.revision
    folder = repo / "snapshots" / commit
    if not folder.is_dir():
        return None
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.exists()]
    return folder if all(any(fnmatchcase(name, wanted) for name in names) for wanted in entry.files or (f"*{WEIGHTS}",)) else None


# ── licences ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def restricted(entry: Entry) -> bool:
    """Whether its terms must be accepted before the first use: those that are gated, and all but those known to allow commercial use."""
    return entry.gated or entry.commercial != "yes"


def require_licenses(*entries: Entry) -> None:
    """Raise LicenseError, naming all that is missing, unless the terms of the entries and of their bases are accepted or ask for nothing."""
    missing = _not_accepted(entries)
    if missing:
        names = " ".join(one.name for one in missing)
        told = "、".join(f"{one.name}（{one.license}、{COMMERCIAL_JA[one.commercial]}）" for one in missing)
        pages = ", ".join(license_page(one) for one in missing)
        english = ", ".join(f"{one.name} ({one.license}; commercial use: {one.commercial})" for one in missing)
        raise LicenseError(
            f"利用条件をまだ承諾していません: {told}。"
            f"{pages} を読み、よければ --accept-license を付けるか jpgen models accept {names} を実行してください / "
            f"terms not accepted yet: {english}; read {pages}, then pass --accept-license or run: jpgen models accept {names}"
        )


COMMERCIAL_JA = {"yes": "商用可", "no": "商用不可", "ask": "商用は要確認"}


def license_page(entry: Entry) -> str:
    """Where its terms are read: its page on the hub, else its first source."""
    if unet := entry.parts.get("unet_repo"):  # its terms are what is special: `repo` brings the rest
        return HUB + str(unet)
    return HUB + entry.repo if entry.repo else entry.sources[0].split(" (")[0].replace("hf:", HUB) if entry.sources else entry.path


def license_file() -> Path:
    """Where accepted terms are written down: licenses.json under $XDG_STATE_HOME/jpgen (~/.local/state/jpgen)."""
    return xdg_folder("XDG_STATE_HOME", ".local/state") / "licenses.json"


def license_accepted(entry: Entry) -> bool:
    """Whether these terms of this repository were accepted on this machine: other terms under the same name are asked for again."""
    record = _records().get(entry.name)
    return isinstance(record, dict) and (record.get("license"), record.get("repo")) == (entry.license, entry.repo)


def accept_license(*entries: Entry) -> list[Entry]:
    """Write down that the terms of the entries, and of their bases, are accepted; gives those that were not yet. Raises OutputError."""
    new = _not_accepted(entries)
    if new:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        records = _records() | {one.name: {"license": one.license, "repo": one.repo, "accepted": now} for one in new}
        _write(license_file(), json.dumps(records, ensure_ascii=False, indent=2) + "\n")
    return new


def _not_accepted(entries: Iterable[Entry]) -> list[Entry]:
    whole = {one.name: one for entry in entries for one in (entry, *_bases(entry))}
    return [one for one in whole.values() if restricted(one) and not license_accepted(one)]


def _records() -> dict[str, Any]:
    try:
        found = json.loads(license_file().read_text("utf-8"))
    except (OSError, ValueError):
        return {}  # what cannot be read counts as nothing accepted
    return found if isinstance(found, dict) else {}


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise OutputError(f"{path} に書き込めません / cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial.parent.is_dir():
            partial.unlink(missing_ok=True)
