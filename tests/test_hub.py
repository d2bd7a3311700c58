"""The hub, played by this file: what is asked of huggingface_hub, and what each of its failures becomes; and by a server on this machine."""

import errno
import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.utils import filter_repo_objects

from jpgen.errors import LicenseError, WeightsError
from jpgen.hub import NEVER, fetch, require_no_remote_code

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
FILES = {"model_index.json": b"{}", WEIGHTS: bytes(300_000), "unet/evil.py": b"", "unet/x.BIN": b"", "LICENSE": b"terms"}
COMMIT = "a" * 40
DIGEST = hashlib.sha256(FILES[WEIGHTS]).hexdigest()


class Hub:
    """What snapshot_download is asked, and what it shall raise."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.fail: Exception | None = None
        self.size = len(FILES[WEIGHTS])

    def download(self, repo: str, *, dry_run: bool = False, tqdm_class: Any, **asked: Any) -> Any:
        self.asked.append(asked | {"repo": repo, "dry_run": dry_run})
        if dry_run:
            return [SimpleNamespace(file_size=self.size, will_download=True), SimpleNamespace(file_size=10**15, will_download=False)]
        if self.fail:
            raise self.fail
        written, network, files = tqdm_class(total=0, unit="B"), tqdm_class(total=0, unit="B"), tqdm_class(total=2)
        for name in filter_repo_objects(FILES, allow_patterns=asked["allow_patterns"], ignore_patterns=asked["ignore_patterns"]):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(FILES[name])
        network.update(250_000)
        written.update(200_000)
        written.update(100_000)
        files.update(1)
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path / "snapshot")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return hub


def refused(expected: str, kind: type[Exception] = WeightsError, **asked: Any) -> str:
    """The line it is refused with."""
    with pytest.raises(kind, match=expected) as caught:
        fetch(asked.pop("repo", "owner/model"), **{"revision": COMMIT, **asked})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def response(status: int) -> Any:
    return SimpleNamespace(status_code=status, headers={}, request=None)


# ── what is fetched ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_only_weights_and_texts_are_fetched(hub: Hub) -> None:
    folder = fetch("owner/model", revision=COMMIT, files=("unet/*", "LICENSE"), sha256={WEIGHTS: DIGEST})
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["LICENSE", "diffusion_pytorch_model.safetensors"]
    assert all(asked["revision"] == COMMIT and asked["allow_patterns"] == ["unet/*", "LICENSE"] for asked in hub.asked)


@pytest.mark.parametrize("name", ["a.ckpt", "x/a.PT", "a.pth", "a.bin", "a.pkl", "pipeline.py", "x/y.Py", "a.zip", "a.tar.gz", "a.so", "a.h5"])
def test_no_pattern_brings_programs_or_archives(name: str) -> None:
    assert not list(filter_repo_objects([name], allow_patterns=["*"], ignore_patterns=list(NEVER)))
    refused("never fetched|pickle", files=(name,))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "m.safetensors.index.json", "vocab.txt", "spiece.model", "source.spm", "LICENSE"]
)
def test_weights_texts_and_tokenizers_pass(name: str) -> None:
    assert list(filter_repo_objects([name], ignore_patterns=list(NEVER))) == [name]


@pytest.mark.parametrize("repo", ["", "model", "a/b/c", "../x", "a/..", "a b/c", "https://huggingface.co/a/b", "a/b\n"])
def test_what_is_no_repository_is_refused(hub: Hub, repo: str) -> None:
    refused("owner/name", repo=repo)
    assert not hub.asked


@pytest.mark.parametrize("revision", ["", "../../x", "/etc", "a b", "main\n"])
def test_what_is_no_revision_is_refused(hub: Hub, revision: str) -> None:
    refused("no revision", revision=revision)
    assert not hub.asked


def test_progress_is_bytes_and_runs_forwards(hub: Hub) -> None:
    seen: list[tuple[int, int]] = []
    fetch("owner/model", revision=COMMIT, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(250_000, 300_000), (300_000, 300_000)]


def test_a_file_that_must_be_there_is_named(hub: Hub) -> None:
    refused(r"has no vae/config\.json", files=("unet/*", "vae/config.json"))
    refused(r"has no \*\.gguf", files=("*.gguf",))
    refused("has no gone.safetensors", sha256={"gone.safetensors": DIGEST})
    refused("not in the repository", sha256={"../gone.safetensors": DIGEST})


# ── hashes ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_wrong_hash_shows_both(hub: Hub) -> None:
    line = refused("not used, wrong SHA-256", sha256={WEIGHTS: "0" * 64})
    assert DIGEST in line and "0" * 64 in line and "the repository has changed" in line


def test_damage_in_the_cache_is_told_from_a_changed_repository(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blob = tmp_path / ("b" * 64)
    blob.write_bytes(b"damaged")
    hub.folder.mkdir()
    (hub.folder / "w.safetensors").symlink_to(blob)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, dry_run=False, **__: [] if dry_run else str(hub.folder))
    refused(f"delete {blob}", sha256={"w.safetensors": "b" * 64})


def test_a_hash_is_computed_once_and_again_when_the_file_changes(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.safety.NOTED_FROM", 100_000)
    folder = fetch("owner/model", revision=COMMIT, sha256={WEIGHTS: DIGEST.upper()})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, dry_run=False, **__: [] if dry_run else str(folder))
    with monkeypatch.context() as once:
        once.setattr("jpgen.safety.CHUNK", "not read")
        fetch("owner/model", revision=COMMIT, sha256={WEIGHTS: DIGEST})
    (folder / WEIGHTS).write_bytes(bytes(299_999) + b"\1")
    refused("wrong SHA-256", sha256={WEIGHTS: DIGEST})


def test_hashes_need_no_place_to_note_them(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jpgen.safety.NOTED_FROM", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    fetch("owner/model", revision=COMMIT, sha256={WEIGHTS: DIGEST})


# ── failures ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("status", "state"), [(401, "log in"), (403, "terms are not accepted")])
def test_a_gated_repository_says_what_to_click(hub: Hub, status: int, state: str) -> None:
    hub.fail = errors.GatedRepoError("long\nstory", response=response(status))
    line = refused(state, LicenseError)
    assert "https://huggingface.co/owner/model" in line and "Agree and access repository" in line and "hf auth login" in line


FAILURES: dict[str, tuple[Any, str]] = {
    "no repository": (errors.RepositoryNotFoundError("x\ny", response=response(404)), "no repository owner/model"),
    "no revision": (errors.RevisionNotFoundError("x\ny", response=response(404)), f"no revision {COMMIT}"),
    "disabled": (errors.DisabledRepoError("x\ny", response=response(403)), "disabled"),
    "server": (errors.HfHubHTTPError("x\ny", response=response(503)), "answered 503.*try again later"),
    "too often": (errors.HfHubHTTPError("x\ny", response=response(429)), "answered 429.*wait"),
    "forbidden": (errors.HfHubHTTPError("x\ny", response=response(403)), "answered 403.*log in"),
    "network": (errors.LocalEntryNotFoundError("x\ny"), "cannot reach the hub"),
    "connection": (errors.HTTPError("Name or service not known"), "cannot reach the hub.*Name or service not known"),
    "reset": (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "cannot reach the hub.*reset by peer"),
    "transfer": (RuntimeError("CAS Client Error"), "cannot reach the hub.*CAS Client Error"),
    "full": (OSError(errno.ENOSPC, "No space left on device"), "no space for owner/model.*HF_HOME"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space.*quota"),
    "read-only": (PermissionError(errno.EACCES, "Permission denied", "/ro/hub"), "cannot write /ro/hub"),
    "name": (errors.HFValidationError("Cannot have -- in repo_id"), "no repository of the hub"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_each_failure_is_one_line(hub: Hub, failure: str) -> None:
    hub.fail, expected = FAILURES[failure]
    refused(expected)


def test_a_bug_is_no_failure_of_the_network(hub: Hub) -> None:
    hub.fail = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        fetch("owner/model", revision=COMMIT)


def test_a_full_disk_is_seen_before_the_first_byte(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.size = 7_000_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000_000))
    refused("7.0 GB wanted, 2.0 GB free")
    assert [asked["dry_run"] for asked in hub.asked] == [True]


def test_offline_asks_nothing_and_says_how_to_get_what_is_missing(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("owner/model", revision=COMMIT, files=("unet/*",)) == hub.folder
    hub.fail = errors.LocalEntryNotFoundError("nothing")
    line = refused("offline", files=("vae/*", "unet/*"))
    assert f"hf download owner/model --revision {COMMIT} --include 'vae/*' --include 'unet/*'" in line and "unset HF_HUB_OFFLINE" in line
    hub.fail = errors.LocalEntryNotFoundError("snapshot is incomplete: 2 file(s) are missing (vae/a.json, vae/b.json). Outgoing traffic is disabled.")
    refused("and vae/a.json, vae/b.json of")
    hub.fail = None
    refused("offline.* vae/config.json", files=("unet/*", "vae/config.json"))
    assert all(asked["local_files_only"] and not asked["dry_run"] for asked in hub.asked)


# ── a hub on this machine, with huggingface_hub as it is ───────────────────────────────────────────────────────────────────────────────────


class Answers(BaseHTTPRequestHandler):
    """The answers of the hub's interface that snapshot_download reads."""

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.asked.append(path)  # type: ignore[attr-defined]
        if path.startswith("/api/models/owner/none"):
            self.answer(401, {"X-Error-Code": "RepoNotFound"})
        elif path.startswith("/owner/gated/resolve"):
            self.answer(401, {"X-Error-Code": "GatedRepo"})
        elif path.endswith("/revision/nope"):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
        elif "/revision/" in path:
            self.answer(200, {}, json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": []}).encode())
        elif "/tree/" in path:
            rows = [{"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()} for name, body in FILES.items()]
            self.answer(200, {}, json.dumps(rows).encode())
        else:
            body = FILES[path.split(f"/resolve/{COMMIT}/")[1]]
            self.answer(200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(body).hexdigest()}"'}, body)

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body)), "Content-Type": "application/json"}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": address,
        "HUGGINGFACE_CO_URL_TEMPLATE": address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_TOKEN_PATH": str(tmp_path / "no token"),
        "HF_HUB_OFFLINE": False,
    }.items():
        monkeypatch.setattr(constants, name, value)
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name.startswith("HF_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    huggingface_hub.close_session()
    yield server.asked  # type: ignore[attr-defined]
    huggingface_hub.close_session()
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_model_comes_once_and_is_there_offline(server: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    asked: dict[str, Any] = {"revision": "main", "files": ("unet/*",), "sha256": {WEIGHTS: DIGEST}}
    folder = fetch("owner/model", on_progress=lambda done, total: seen.append((done, total)), **asked)
    assert [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()] == [WEIGHTS]
    assert folder.name == COMMIT and seen[-1] == (300_000, 300_000)
    server.clear()
    assert fetch("owner/model", **{**asked, "revision": COMMIT}) == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetch("owner/model", **asked) == folder
    refused("offline", files=("*.json", "unet/*"), revision="v2")
    assert not server, "a pinned revision that is here asks the network nothing, offline nothing is asked at all"


def test_what_the_hub_refuses(server: list[str]) -> None:
    refused("no repository owner/none", repo="owner/none")
    refused("no revision nope", revision="nope")
    refused("Agree and access repository", LicenseError, repo="owner/gated")
    assert not any(re.search(r"evil|x\.BIN", path) for path in server)


# ── remote code ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

STOCK_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.42.1",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "feature_extractor": [None, None],
    "requires_safety_checker": True,
}
OWN = {"auto_map": {"AutoModel": "modeling.Model"}}


def layout(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model_index.json": STOCK_INDEX, "unet/config.json": {}},
        {"model_index.json": STOCK_INDEX, "text_encoder/config.json": OWN},  # its class is stock, whatever its config says
        {"config.json": {"model_type": "llama"}},
    ],
)
def test_stock_models_pass(tmp_path: Path, files: dict[str, Any]) -> None:
    require_no_remote_code(layout(tmp_path, files))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"model_index.json": STOCK_INDEX | {"_class_name": ["pipeline_japanese", "JapanesePipeline"]}}, "pipeline_japanese"),
        ({"model_index.json": {}}, "_class_name None"),
        ({"model_index.json": STOCK_INDEX | {"unet": ["my_unet", "MyUNet"]}}, "unet from 'my_unet'"),
        ({"model_index.json": STOCK_INDEX | {"unet": ["os", "system"]}}, "unet from 'os'"),
        ({"model_index.json": STOCK_INDEX | {"unet": ["../x", "A"]}}, "unet from"),
        ({"model_index.json": STOCK_INDEX | {"unet": ["diffusers", "a.b"]}}, "unet from"),
        ({"model_index.json": STOCK_INDEX | {"unet": ["a", "b", "c"]}}, "unet"),
        (
            {"model_index.json": STOCK_INDEX | {"text_encoder": ["transformers", "AutoModel"]}, "text_encoder/config.json": OWN},
            "text_encoder/config.json",
        ),
        ({"config.json": OWN}, "config.json: auto_map"),
        ({"tokenizer/tokenizer_config.json": OWN}, "tokenizer_config.json: auto_map"),
    ],
)
def test_a_model_that_wants_to_run_code_is_refused(tmp_path: Path, files: dict[str, Any], expected: str) -> None:
    (tmp_path / "modeling.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(WeightsError, match=f"{re.escape(expected)}.*jpgen models") as caught:
        require_no_remote_code(layout(tmp_path, files))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1, "a": 2}'])
def test_a_damaged_index_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(WeightsError, match=r"model_index\.json"):
        require_no_remote_code(layout(tmp_path, {"model_index.json": content}))
