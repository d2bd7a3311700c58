"""From a name or a path to local files: terms first, then what is fetched, and the layout told."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from jpgen import hub
from jpgen.catalog import find_model
from jpgen.errors import LicenseError, OutputError, UnknownNameError, WeightsError
from jpgen.models import accept_license, license_accepted, license_file, open_model, recognise, require_licenses, restricted, whereabouts

SDXL = {
    "model_index.json": {"_class_name": "StableDiffusionXLPipeline"},
    "unet/config.json": {"_class_name": "UNet2DConditionModel", "addition_embed_type": "text_time", "sample_size": 64},
    "text_encoder/config.json": {"model_type": "clip_text_model"},
    "text_encoder_2/config.json": {"model_type": "clip_text_model"},
    "vae/config.json": {"block_out_channels": [1, 2, 3, 4]},
}
FLOW = {"model_index.json": {"_class_name": "ZImagePipeline"}}
COMMONART = {"config.json": {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}}


class Hub:
    """Stands for the hub: repositories as folders of JSON files, and what was asked of it."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, list[tuple[str, str, tuple[str, ...]]]()

    def put(self, repo: str, files: dict[str, Any]) -> Path:
        folder = self.root / repo
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(json.dumps(content), "utf-8")
        return folder

    def fetch(self, repo: str, *, revision: str, files: Sequence[str], sha256: object, on_progress: object = None) -> Path:
        self.asked.append((repo, revision, tuple(files)))
        return self.root / repo


@pytest.fixture(autouse=True)
def away(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No file of the user is read or written."""
    monkeypatch.delenv("JPGEN_CATALOG", raising=False)
    for variable in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "HF_HUB_CACHE"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr(hub, "fetch", made.fetch)
    return made


def catalogue(tmp_path: Path, text: str) -> None:
    (tmp_path / "XDG_CONFIG_HOME" / "jpgen").mkdir(parents=True)
    (tmp_path / "XDG_CONFIG_HOME" / "jpgen" / "models.toml").write_text(text, "utf-8")


def test_the_built_in_model_asks_for_nothing(library: Hub) -> None:
    assert open_model("mame") == find_model("mame")
    assert whereabouts(find_model("mame")) == "builtin"
    assert library.asked == []


def test_a_hub_model_is_fetched_at_its_commit_and_its_encoder_told(library: Hub) -> None:
    folder = library.put("stabilityai/stable-diffusion-xl-base-1.0", SDXL)
    opened, row = open_model("sdxl-base"), find_model("sdxl-base")
    assert (opened.path, opened.encoder, opened.folder) == (str(folder), "sdxl", folder)
    assert library.asked == [(row.repo, row.revision, row.files)]


def test_a_row_without_files_fetches_the_folders_of_the_pipeline(library: Hub) -> None:
    library.put("Tongyi-MAI/Z-Image-Turbo", FLOW)
    assert open_model("z-image-turbo").encoder == ""
    assert library.asked[0][2][0] == "model_index.json"
    assert all("/" in pattern for pattern in library.asked[0][2][1:])


def test_an_adapter_comes_with_its_base(library: Hub) -> None:
    base = library.put("stabilityai/stable-diffusion-xl-base-1.0", SDXL)
    adapter = library.put("ByteDance/SDXL-Lightning", {"sdxl_lightning_4step_lora.safetensors": 0})
    opened = open_model("sdxl-lightning")
    assert (opened.name, opened.path, opened.encoder) == ("sdxl-lightning", str(base), "sdxl")
    assert opened.parts["adapter"] == str(adapter / "sdxl_lightning_4step_lora.safetensors")
    assert opened.default.scheduler == "euler_trailing"


def test_parts_with_a_repository_become_local_folders(library: Hub) -> None:
    library.put("aipicasso/commonart-beta", COMMONART)
    opened = open_model("commonart-beta")
    assert opened.encoder == "llm"
    assert opened.parts["text_encoder"] == str(library.root / "cyberagent/calm2-7b")
    assert opened.parts["vae"] == str(library.root / "stabilityai/stable-diffusion-xl-base-1.0/vae")
    repo, revision, files = library.asked[2]
    assert (repo, revision, files) == (find_model("sdxl-base").repo, find_model("sdxl-base").revision, ("vae/*.json", "vae/*.safetensors"))


def test_a_repository_of_single_files(library: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jpgen.models

    monkeypatch.setattr(jpgen.models, "recognise", lambda path: find_model("sd15"))  # the file here is empty
    folder = library.put("subaqua/_unofficial-WD1.4-fp16-safetensors", {"a.safetensors": 0})
    assert open_model("waifu-diffusion-14").place == folder / "a.safetensors"
    library.put("subaqua/_unofficial-WD1.4-fp16-safetensors", {"b.safetensors": 0})
    with pytest.raises(WeightsError, match=r"a\.safetensors, b\.safetensors: say which"):
        open_model("waifu-diffusion-14")
    catalogue(tmp_path, '[waifu-diffusion-14]\nparts = { file = "b.safetensors" }\n')
    assert open_model("waifu-diffusion-14").place == folder / "b.safetensors"


def test_what_is_not_what_the_catalogue_says(library: Hub) -> None:
    library.put("stable-diffusion-v1-5/stable-diffusion-v1-5", SDXL)
    with pytest.raises(WeightsError, match="family sdxl, the catalogue says sd"):
        open_model("sd15")


def test_a_repository_that_wants_remote_code_is_refused(library: Hub) -> None:
    library.put("Tongyi-MAI/Z-Image-Turbo", {"model_index.json": {"_class_name": ["pipeline", "Mine"]}})
    with pytest.raises(WeightsError, match="jpgen never does"):
        open_model("z-image-turbo")


@pytest.mark.parametrize("name", ["evosdxl-jp", "evo-ukiyoe"])
def test_a_recipe_says_so(library: Hub, name: str) -> None:
    assert whereabouts(find_model(name)) == "recipe"
    with pytest.raises(WeightsError, match=r"is a recipe.*which merge it"):  # by jpgen.merged
        open_model(name)
    assert library.asked == []


def test_a_merged_recipe_opens_from_the_users_catalogue(library: Hub, tmp_path: Path) -> None:
    folder = library.put("merged", SDXL)
    catalogue(tmp_path, f'[evosdxl-jp]\npath = "{folder}"\n')
    with pytest.raises(LicenseError, match="evosdxl-jp"):
        open_model("evosdxl-jp")
    accept_license(find_model("evosdxl-jp"))
    assert open_model("evosdxl-jp").place == folder
    assert whereabouts(find_model("evosdxl-jp")) == "local"


def test_a_local_folder_is_recognised(library: Hub, tmp_path: Path) -> None:
    folder = library.put("私のモデル", SDXL)
    opened = open_model(folder)
    assert (opened.name, opened.family, opened.encoder, opened.path) == ("私のモデル", "sdxl", "sdxl", str(folder))
    assert (opened.default.width, opened.commercial, opened.license) == (512, "ask", "unknown (local files)")
    assert open_model("hub/私のモデル") == opened == recognise(folder)


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [("mamee", UnknownNameError, "'mame'"), ("./none", WeightsError, "check the path"), ("x.safetensors", WeightsError, "check the path")],
)
def test_what_is_not_there(name: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        open_model(name)


def test_a_part_alone_is_no_model(library: Hub) -> None:
    with pytest.raises(WeightsError, match="only a vae"):
        open_model(library.put("vae", {"config.json": {"_class_name": "AutoencoderKL"}}))


def test_whereabouts_follow_the_cache(tmp_path: Path) -> None:
    row = find_model("sdxl-lightning")
    snapshots = tmp_path / "HF_HUB_CACHE" / "models--ByteDance--SDXL-Lightning" / "snapshots" / row.revision
    snapshots.mkdir(parents=True)
    assert whereabouts(row) == "absent"
    (snapshots / row.files[0]).touch()
    assert whereabouts(row) == "absent"  # its base is
    base = find_model("sdxl-base")
    folder = tmp_path / "HF_HUB_CACHE" / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / base.revision
    for pattern in base.files:
        (folder / pattern.replace("*", "a")).parent.mkdir(parents=True, exist_ok=True)
        (folder / pattern.replace("*", "a")).touch()
    assert (whereabouts(base), whereabouts(row)) == ("fetched", "fetched")


def test_whereabouts_of_a_branch(tmp_path: Path) -> None:
    repo = tmp_path / "HF_HUB_CACHE" / "models--tohoku-nlp--stable-diffusion-xl-jp-base-1.0"
    for file, text in (("refs/main", "abc"), ("snapshots/abc/unet/w.safetensors", "")):
        (repo / file).parent.mkdir(parents=True, exist_ok=True)
        (repo / file).write_text(text)
    assert whereabouts(find_model("tohoku-sdxl-jp")) == "fetched"
    assert whereabouts(find_model("sd15")) == "absent"


# ── licences ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_terms_are_asked_for_before_anything_is_fetched(library: Hub) -> None:
    with pytest.raises(LicenseError) as caught:
        open_model("jsdxl")
    told = str(caught.value)
    assert len(told.splitlines()) == 1
    for words in ("STABILITY AI JAPANESE", "https://huggingface.co/stabilityai/japanese-stable-diffusion-xl", "--accept-license", "商用は要確認"):
        assert words in told
    assert library.asked == []


def test_accepted_terms_are_remembered(library: Hub) -> None:
    entry = find_model("dmd2")
    assert not license_accepted(entry)
    assert accept_license(entry) == [entry]
    assert accept_license(entry) == []
    assert license_accepted(entry)
    record = json.loads(license_file().read_text("utf-8"))["dmd2"]
    assert (record["license"], record["repo"]) == ("CC-BY-NC-SA-4.0", "tianweiy/DMD2")
    accept_license(find_model("kolors"))
    require_licenses(entry)
    assert os.listdir(license_file().parent) == ["licenses.json"]


def test_changed_terms_are_asked_for_again(tmp_path: Path) -> None:
    accept_license(find_model("dmd2"))
    catalogue(tmp_path, '[dmd2]\nlicense = "other terms"\n')
    with pytest.raises(LicenseError, match="other terms"):
        require_licenses(find_model("dmd2"))


def test_an_adapter_asks_for_the_terms_of_its_base(tmp_path: Path) -> None:
    catalogue(tmp_path, "[sdxl-base]\ngated = true\n")
    with pytest.raises(LicenseError, match="accept dmd2 sdxl-base"):
        require_licenses(find_model("dmd2"))
    assert [entry.name for entry in accept_license(find_model("dmd2"))] == ["dmd2", "sdxl-base"]
    require_licenses(find_model("dmd2"))


@pytest.mark.parametrize("name", ["mame", "sdxl-base", "commonart-beta", "sd15"])
def test_permissive_terms_need_nothing(name: str) -> None:
    assert not restricted(find_model(name))
    assert accept_license(find_model(name)) == []
    assert not license_file().exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"dmd2": 1}', '{"dmd2": {"license": "MIT"}}'])
def test_a_damaged_record_counts_as_nothing_accepted(text: str) -> None:
    license_file().parent.mkdir(parents=True)
    license_file().write_text(text, "utf-8")
    assert not license_accepted(find_model("dmd2"))
    accept_license(find_model("dmd2"))
    assert license_accepted(find_model("dmd2"))


def test_a_failed_write_keeps_the_old_record(monkeypatch: pytest.MonkeyPatch) -> None:
    accept_license(find_model("dmd2"))
    before = license_file().read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="No space"):
        accept_license(find_model("kolors"))
    assert license_file().read_bytes() == before
    assert os.listdir(license_file().parent) == ["licenses.json"]


def test_a_place_that_cannot_be_written_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    with pytest.raises(OutputError, match="書き込めません"):
        accept_license(find_model("dmd2"))
