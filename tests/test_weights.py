"""Weight files: exact where they say so, near where they say 8 or 4 bits, whole or absent."""

import json
import os
import pickle
import re
import sys
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from jpgen.errors import WeightsError
from jpgen.safety import Stored, check_safetensors, refuse_pickle
from jpgen.weights import BLOCK, METADATA_KEY, load_sharded, load_weights, save_weights


def test_exact_and_bf16(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 5), "b": torch.arange(4)}
    save_weights(tmp_path / "w.safetensors", {"a": tensors["a"]}, bits=lambda *_: 32)
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], tensors["a"])
    save_weights(tmp_path / "w.safetensors", {"a": tensors["a"]})
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], tensors["a"].bfloat16().float())


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), rows=st.integers(1, 9), scale=st.sampled_from([1e-4, 1.0, 50.0]))
def test_eight_bits_err_by_half_a_step_at_most(tmp_path_factory: pytest.TempPathFactory, seed: int, rows: int, scale: float) -> None:
    value = torch.randn(rows, 3, 7, generator=torch.Generator().manual_seed(seed)) * scale
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_weights(path, {"a": value}, bits=lambda *_: 8)
    step = value.abs().amax(dim=(1, 2), keepdim=True) / 127
    assert bool(((load_weights(path)["a"] - value).abs() <= 0.56 * step + 1e-6).all())


def test_four_bits_give_back_what_was_four_bits(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    scale = torch.rand(64, 1, generator=generator).half().float() + 0.01
    scale = scale.half().float()
    nibbles = torch.randint(-8, 8, (64, BLOCK), generator=generator).float()
    nibbles[:, 0] = -8  # the peak that such quantisers always use
    value = (nibbles * scale).reshape(32, 64)
    save_weights(tmp_path / "w.safetensors", {"a": value}, bits=lambda *_: 4)
    assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], value)


def test_zeros_survive(tmp_path: Path) -> None:
    for bits in (4, 8):
        save_weights(tmp_path / "w.safetensors", {"a": torch.zeros(4, 64)}, bits=lambda *_, bits=bits: bits)
        assert torch.equal(load_weights(tmp_path / "w.safetensors")["a"], torch.zeros(4, 64))


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2)})
    before = path.read_bytes()

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(WeightsError, match="No space"):
        save_weights(path, {"a": torch.zeros(2)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.safetensors"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text"])
def test_damage_is_explained(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(64)})
    whole = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "cut":
            path.write_bytes(whole[:-7])
        case "text":
            path.write_text("not weights")
    with pytest.raises(WeightsError) as caught:
        load_weights(path)
    assert "w.safetensors" in str(caught.value)


def test_a_scale_that_is_gone_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "w.safetensors"
    save_weights(path, {"a": torch.ones(2, 64)}, bits=lambda *_: 8)
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    del tensors["a.scale"]
    save_file(tensors, path, metadata=header)
    with pytest.raises(WeightsError, match="scale"):
        load_weights(path)


def write(path: Path, header: object, values: bytes = b"", *, length: int | None = None) -> Path:
    """A file of safetensors' layout, whatever its header says."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + values)
    return path


def tensor(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES = {
    "empty": (b"", "空のファイル"),
    "five bytes": (b"hello", "cut off"),
    "no header": ((900).to_bytes(8, "little") + b'{"a"', "header wants 900"),
    "header longer than the file": ((2**63).to_bytes(8, "little") + b"{}", "cut off, or no safetensors"),
    "not JSON": ((4).to_bytes(8, "little") + b"{ no", "JSON"),
    "not UTF-8": ((3).to_bytes(8, "little") + b"{\xff}", "JSON"),
    "a list": ((2).to_bytes(8, "little") + b"[]", "no safetensors"),
    "deep": ((200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995, "JSON"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "git lfs pull"),
    "HTML": (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
    "zip": (b"PK\x03\x04" + bytes(60), "zip archive, perhaps a PyTorch pickle"),
    "pickle": (b"\x80\x02}q\x00X\x01\x00\x00\x00a" + bytes(60), "pickle"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(60), "GGUF"),
    "text": (b"Entry not found, sorry", "no safetensors"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_is_no_safetensors_is_refused_by_its_kind(tmp_path: Path, lie: str) -> None:
    content, expected = LIES[lie]
    (tmp_path / "w.safetensors").write_bytes(content)
    refused(tmp_path / "w.safetensors", expected)


HEADERS: dict[str, tuple[object, str]] = {
    "unknown dtype": ({"a": tensor("F31")}, "dtype torch does not know"),
    "too few bytes": ({"a": tensor(shape=[3])}, "cannot be bytes 0 to 8"),
    "backwards": ({"a": tensor(offsets=[8, 0])}, "cannot be bytes 8 to 0"),
    "past the end": ({"a": tensor(shape=[4], offsets=[0, 16])}, "the header wants 16"),
    "one terabyte": ({"a": tensor(shape=[250_000, 1_000_000], offsets=[0, 10**12])}, "the header wants 1000000000000"),
    "astronomic": ({"a": tensor(shape=[2**62] * 1000, offsets=[0, 8])}, "cannot be"),
    "beyond 64 bits": ({"a": tensor(shape=[2**70, 0], offsets=[0, 0])}, "sane"),
    "overlap": ({"a": tensor(), "b": tensor(shape=[1], offsets=[4, 8])}, "overlaps"),
    "same place": ({"a": tensor(), "b": tensor()}, "overlaps"),
    "gap": ({"a": tensor(shape=[1], offsets=[0, 4]), "b": tensor("I8", [2], [6, 8])}, "gap"),
    "late start": ({"a": tensor("I8", [4], [4, 8])}, "gap"),
    "left over": ({"a": tensor(shape=[1], offsets=[0, 4])}, "belong to no tensor"),
    "negative": ({"a": tensor(shape=[-2], offsets=[0, -8])}, "sane"),
    "true is no side": ({"a": tensor(shape=[True, 2])}, "sane"),
    "a fraction": ({"a": tensor(shape=[2.0])}, "sane"),
    "three offsets": ({"a": tensor(offsets=[0, 4, 8])}, "sane"),
    "no entry": ({"a": 3}, "sane"),
    "no fields": ({"a": {}}, "sane"),
    "metadata": ({"__metadata__": {"format": 1}, "a": tensor()}, "metadata"),
    "twice": (b'{"a":%s,"a":%s}' % ((json.dumps(tensor()).encode(),) * 2), "'a' is there twice"),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_a_header_that_lies_is_refused_before_anything_is_opened(tmp_path: Path, lie: str, monkeypatch: pytest.MonkeyPatch) -> None:
    header, expected = HEADERS[lie]
    monkeypatch.setattr("jpgen.weights.safe_open", lambda *_args, **_kwargs: pytest.fail("opened"))
    refused(write(tmp_path / "w.safetensors", header, bytes(8)), expected)


def refused(path: Path, expected: str) -> None:
    """Both ways in refuse it in one line that names the file, and take no memory for it."""
    for function in (check_safetensors, load_weights):
        tracemalloc.start()
        with pytest.raises(WeightsError, match=re.escape(expected)) as caught:
            function(path)
        assert tracemalloc.get_traced_memory()[1] < 20 * path.stat().st_size + 200_000
        tracemalloc.stop()
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_length_that_looks_like_a_pickle_is_a_length(tmp_path: Path) -> None:
    header = json.dumps({"a": tensor()}).encode()
    path = write(tmp_path / "w.safetensors", header + b" " * (0x280 - len(header)), bytes(8))
    assert path.read_bytes()[:2] == b"\x80\x02"
    assert load_weights(path)["a"].tolist() == [0, 0]


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "w.safetensors", {"__metadata__": {"a": "b"}, "a": tensor("U8", [2**36], [0, 2**36])})
    os.truncate(path, path.stat().st_size + 2**36)  # 64 GiB of hole
    header = check_safetensors(path)
    assert (header.tensors, header.metadata) == ({"a": Stored("U8", (2**36,))}, {"a": "b"})


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    os.mkfifo(tmp_path / "pipe.safetensors")  # opening it would wait for ever
    for name, expected in (("folder", "folder"), ("pipe", "regular file"), ("nothing", "no weight file")):
        with pytest.raises(WeightsError, match=expected):
            check_safetensors(tmp_path / f"{name}.safetensors")


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_no_damage_gets_past_the_check_to_crash_the_loader(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    save_weights(path, {"a": torch.ones(4, 64), "b": torch.zeros(3, 32)}, bits=lambda name, _: 4 if name == "a" else 32)
    whole = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, min(len(whole), 420) - 1), min_size=1, max_size=3)):
        whole[place] = data.draw(st.integers(0, 255))
    path.write_bytes(whole[: data.draw(st.sampled_from([len(whole), len(whole), len(whole) - 1, 100, 9]))])
    try:
        load_weights(path)
    except WeightsError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    "table", ["[]", "7", "{", '{"a": 1}', '{"a": {"bits": 8, "shape": [9, 9]}}', '{"a": {"bits": 3, "shape": [2, 64]}}', '{"a": {}}']
)
def test_a_table_of_quantised_tensors_that_lies_is_refused(tmp_path: Path, table: str) -> None:
    header = {"__metadata__": {METADATA_KEY: table}, "a": tensor("I8", [2, 64], [0, 128]), "a.scale": tensor("F32", [2, 1], [128, 136])}
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(write(tmp_path / "w.safetensors", header, bytes(136)))


def test_a_scale_that_would_blow_a_tensor_up_is_refused(tmp_path: Path) -> None:
    table = {METADATA_KEY: json.dumps({"a": {"bits": 8, "shape": [1, 64]}})}
    header = {"__metadata__": table, "a": tensor("I8", [1, 64], [0, 64]), "a.scale": tensor("F32", [10_000, 1], [64, 40_064])}
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(write(tmp_path / "w.safetensors", header, bytes(40_064)))


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".pth", ".bin", ".pkl", ".CKPT"])
def test_pickles_are_refused_unopened(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"model{ending}"
    path.write_bytes(pickle.dumps(Bomb()))
    monkeypatch.setattr(Path, "open", lambda *_args, **_kwargs: pytest.fail("opened"))
    for function in (check_safetensors, load_weights, refuse_pickle):
        with pytest.raises(WeightsError, match=r"safetensors 版.*convert it on a machine you trust"):
            function(path)
    with pytest.raises(WeightsError, match=f"only pickles.*model{ending}"):
        load_sharded(tmp_path)


def test_a_pickle_by_another_name_is_not_run(tmp_path: Path) -> None:
    torch.save({"a": Bomb()}, tmp_path / "zip.safetensors")
    torch.save({"a": Bomb()}, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for name in ("zip", "old"):
        with pytest.raises(WeightsError, match="pickle"):
            load_weights(tmp_path / f"{name}.safetensors")


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return pytest.fail, ("a pickle ran",)


# ── folders ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

STEM = "diffusion_pytorch_model"


def shards(folder: Path, **changes: object) -> Path:
    """Two shards of two tensors with their index, the index changed so."""
    for number, names in enumerate(("ab", "cd"), 1):
        save_file({name: torch.full((2, 2), ord(name), dtype=torch.float32) for name in names}, folder / f"{STEM}-0000{number}-of-00002.safetensors")
    places = {name: f"{STEM}-0000{1 + (name > 'b')}-of-00002.safetensors" for name in "abcd"} | changes
    (folder / f"{STEM}.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": {k: v for k, v in places.items() if v}}))
    return folder


def test_shards_make_one_model(tmp_path: Path) -> None:
    loaded = load_sharded(shards(tmp_path), dtype=torch.float16)
    assert {name: (value[0, 0].item(), value.dtype) for name, value in loaded.items()} == {name: (ord(name), torch.float16) for name in "abcd"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"a": "../a.safetensors"}, "only .safetensors files beside the index"),
        ({"a": "/etc/a.safetensors"}, "only .safetensors files beside the index"),
        ({"a": "..\\a.safetensors"}, "only .safetensors files beside the index"),
        ({"a": "C:a.safetensors"}, "only .safetensors files beside the index"),
        ({"a": "a\0.safetensors"}, "only .safetensors files beside the index"),
        ({"a": "a.txt"}, "only .safetensors files beside the index"),
        ({"a": "pytorch_model-00001.bin"}, "pickle"),
        ({"a": "gone.safetensors"}, "gone.safetensors"),
        ({"a": 3}, "weight_map"),
        ({"e": f"{STEM}-00001-of-00002.safetensors"}, r"e \(not in diffusion_pytorch_model-00001"),
        ({"b": None}, r"b \(in diffusion_pytorch_model-00001-of-00002.safetensors, not in the index\)"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(WeightsError, match=expected):
        load_sharded(shards(tmp_path, **changes))


@pytest.mark.parametrize("index", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "\xff"])
def test_a_damaged_index_is_refused(tmp_path: Path, index: str) -> None:
    (tmp_path / f"{STEM}.safetensors.index.json").write_bytes(index.encode("latin-1"))
    with pytest.raises(WeightsError, match=r"index\.json"):
        load_sharded(tmp_path)


def test_every_missing_shard_is_named(tmp_path: Path) -> None:
    for shard in shards(tmp_path).glob("*.safetensors"):
        shard.unlink()
    with pytest.raises(WeightsError, match=r"2 of 2 shards are missing: .*00001-of.*00002-of"):
        load_sharded(tmp_path)


def test_variants_are_found_and_the_wanted_type_comes_first(tmp_path: Path) -> None:
    save_file({"half": torch.ones(2, dtype=torch.float16)}, tmp_path / "m.fp16.safetensors")
    assert load_sharded(tmp_path, "m", None)["half"].dtype == torch.float16
    assert load_sharded(tmp_path, "m")["half"].dtype == torch.float32
    save_file({"full": torch.ones(2)}, tmp_path / "m.safetensors")
    assert list(load_sharded(tmp_path, "m")) == list(load_sharded(tmp_path, "m", torch.bfloat16)) == ["full"]
    assert list(load_sharded(tmp_path, "m", torch.float16)) == ["half"]


@pytest.mark.parametrize("index", [f"{STEM}.safetensors.index.fp16.json", f"{STEM}.fp16.safetensors.index.json"])
def test_shards_of_a_variant_are_found(tmp_path: Path, index: str) -> None:
    os.rename(shards(tmp_path) / f"{STEM}.safetensors.index.json", tmp_path / index)
    assert sorted(load_sharded(tmp_path)) == ["a", "b", "c", "d"]


def test_a_folder_without_weights_says_what_it_has(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsError, match=r"no diffusion_pytorch_model\.safetensors.*there is: other\.safetensors"):
        load_sharded(tmp_path)
    with pytest.raises(WeightsError, match="no folder"):
        load_sharded(tmp_path / "gone")


def test_pickles_beside_safetensors_do_no_harm(tmp_path: Path) -> None:
    shards(tmp_path)
    (tmp_path / f"{STEM}.bin").write_bytes(pickle.dumps(Bomb()))
    assert len(load_sharded(tmp_path)) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_weights_of_the_wanted_type_are_mapped_not_copied(tmp_path: Path) -> None:
    size = 32 << 20
    save_file({"a": torch.ones(size // 4, dtype=torch.bfloat16), "b": torch.ones(size // 4, dtype=torch.bfloat16)}, tmp_path / "m.safetensors")
    before = anonymous_memory()
    loaded = load_sharded(tmp_path, "m", torch.bfloat16)
    total = sum(float(value.float().sum()) for value in (loaded["a"][:: 1 << 12], loaded["b"][:: 1 << 12]))
    assert total == 2 * (size // 4 >> 12)
    assert anonymous_memory() - before < size // 8
    regions = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith("m.safetensors")]
    assert all(any(int(low, 16) <= value.data_ptr() < int(high, 16) for low, high in regions) for value in loaded.values())
    loaded["a"].zero_()  # private: what is written stays in memory
    assert load_sharded(tmp_path, "m", None)["a"][0] == 1


def anonymous_memory() -> int:
    [line] = re.findall(r"^Anonymous: +(\d+) kB", Path("/proc/self/smaps_rollup").read_text(), re.MULTILINE)
    return int(line) * 1024
