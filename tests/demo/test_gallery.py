"""The gallery: found by Japanese words, kept over restarts, made again from the pictures when its index is damaged, whole when the disk is full."""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import jpgen
from demo import gallery_index
from demo.gallery import Gallery, GalleryError
from demo.gallery_rows import FILE, clean_tags, new_id
from jpgen import Generation, ModelInfo, Prompt, SamplingConfig
from jpgen.types import Translation

MAME = ModelInfo("mame", "0.1.0", "Apache-2.0", "0123abcdef")


def made(prompt: str, *, seed: int = 7, model: ModelInfo = MAME, english: str = "", negative: str = "") -> Generation:
    read = Prompt(prompt, prompt, negative, translation=Translation("opus", english) if english else Translation())
    return Generation(Image.new("RGB", (24, 16), "tomato"), read, SamplingConfig(24, 16, 4, 4.5), seed, model, "bert", "native", 0.5)


@pytest.fixture
def gallery(tmp_path: Path) -> Gallery:
    return Gallery(tmp_path / "絵")


def prompts(gallery: Gallery, *text: str, **filters: object) -> list[str]:
    return [item.prompt for item in gallery.search(*text, **filters).items]  # type: ignore[arg-type]


def test_what_was_added_is_there_after_a_restart_with_all_its_settings(gallery: Gallery) -> None:
    item = gallery.add(made("夕焼けの海に浮かぶ赤い船", negative="人", seed=2**63 - 1), kind="edit", tags=["船", " 海 辺 "])
    gallery.close()
    (again,) = Gallery(gallery.folder).search().items
    assert again == item == gallery.get(item.id)
    assert (again.kind, again.prompt, again.negative, again.seed) == ("edit", "夕焼けの海に浮かぶ赤い船", "人", 2**63 - 1)
    assert again.tags == ("船", "海 辺")
    assert jpgen.read_settings(again.path).prompt.source == "夕焼けの海に浮かぶ赤い船"
    assert again.download_name == "夕焼けの海に浮かぶ赤い船-9223372036854775807.png"


@pytest.mark.parametrize("trigrams", [True, False])
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("猫", {"窓辺の猫", "ネコとねこじゃらし、猫"}),  # one character
        ("ねこ", {"ネコとねこじゃらし、猫"}),  # katakana and hiragana are one
        ("ネコ", {"ネコとねこじゃらし、猫"}),
        ("ﾈｺ", {"ネコとねこじゃらし、猫"}),  # half-width
        ("赤い船", {"夕焼けの海に浮かぶ赤い船"}),
        ("船 夕焼け", {"夕焼けの海に浮かぶ赤い船"}),  # both words, in any order
        ("船　猫", set()),
        ("RED SHIP", {"夕焼けの海に浮かぶ赤い船"}),  # the English
        ("ｒｅｄ", {"夕焼けの海に浮かぶ赤い船"}),
        ("お気に入りの", {"窓辺の猫"}),  # a tag
        ("sdxl", {"100%の\"引用\"と_線"}),  # the model
        ("100%", {"100%の\"引用\"と_線"}),
        ("%", {"100%の\"引用\"と_線"}),
        ("_", {"100%の\"引用\"と_線"}),
        ('"引用"', {"100%の\"引用\"と_線"}),
        ("' OR 1=1 --", set()),
        ('" OR words MATCH "猫', set()),
        ("NEAR(猫 船)", set()),
        ("\0\ud800", {"窓辺の猫", "ネコとねこじゃらし、猫", "夕焼けの海に浮かぶ赤い船", "100%の\"引用\"と_線"}),  # no words
    ],
)
def test_found_by_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trigrams: bool, text: str, found: set[str]) -> None:
    if not trigrams:
        monkeypatch.setattr(gallery_index, "TRIGRAMS", "CREATE VIRTUAL TABLE words USING no_such_module(words)")
    gallery = Gallery(tmp_path)
    gallery.add(made("夕焼けの海に浮かぶ赤い船", english="a red ship on a sunset sea"))
    gallery.tag(gallery.add(made("窓辺の猫")).id, ["お気に入りの一枚"])
    gallery.add(made("ネコとねこじゃらし、猫"))
    gallery.add(made('100%の"引用"と_線', model=replace(MAME, name="sdxl")))
    assert set(prompts(gallery, text)) == found


def test_filters_pages_and_facets(gallery: Gallery) -> None:
    models, kinds = (MAME, replace(MAME, name="jsdxl")), ["create"] * 5 + ["merge"]
    items = [gallery.add(made(f"絵 {n}", model=models[n % 2]), kind=kind) for n, kind in enumerate(kinds)]
    gallery.favourite(items[3].id)
    gallery.tag(items[4].id, ["冬", "夜"])
    assert prompts(gallery) == [f"絵 {n}" for n in (5, 4, 3, 2, 1, 0)]
    assert prompts(gallery, favourite=True) == ["絵 3"]
    assert prompts(gallery, model="mame") == ["絵 4", "絵 2", "絵 0"]
    assert prompts(gallery, kind="merge") == ["絵 5"]
    assert prompts(gallery, tag="冬") == ["絵 4"]
    assert prompts(gallery, tag="冬\n夜") == ["絵 4"]
    assert prompts(gallery, "絵", model="jsdxl", favourite=True) == ["絵 3"]
    page = gallery.search(limit=2, offset=3)
    assert ([item.prompt for item in page.items], page.total) == (["絵 2", "絵 1"], 6)
    assert gallery.facets() == {"model": ["jsdxl", "mame"], "kind": ["create", "merge"], "tag": ["冬", "夜"]}
    gallery.favourite(items[3].id, False)
    assert prompts(gallery, favourite=True) == []


def test_the_bin_gives_back_until_it_is_emptied(gallery: Gallery) -> None:
    kept, gone, back = (gallery.add(made(text)) for text in ("残す", "消す", "戻す"))
    assert gallery.thumbnail(gone)
    gallery.delete([gone.id, back.id])
    assert prompts(gallery) == ["残す"]
    assert set(prompts(gallery, deleted=True)) == {"消す", "戻す"}
    assert gone.path.is_file()
    gallery.restore([back.id])
    assert gallery.empty_bin() == 1
    assert set(prompts(gallery)) == {"残す", "戻す"}
    assert (kept.path.is_file(), gone.path.exists(), gallery.get(gone.id)) == (True, False, None)
    assert not prompts(gallery, "消す", deleted=True)
    assert len(list((gallery.folder / "thumbnails").iterdir())) == 0


def test_another_owner_sees_changes_and_exports_nothing(gallery: Gallery, tmp_path: Path) -> None:
    taro, hanako = gallery.of("太郎"), gallery.of("花子/../..")
    item = taro.add(made("太郎の秘密"))
    hanako.favourite(item.id), hanako.tag(item.id, ["盗"]), hanako.delete([item.id]), hanako.remember(item.id, "clip", [1.0])
    assert hanako.empty_bin() == 0
    assert (hanako.get(item.id), hanako.search("秘密").total, hanako.facets()["model"], hanako.nearest("clip", [1.0])) == (None, 0, [], [])
    with zipfile.ZipFile(hanako.export([item.id], tmp_path / "a.zip")) as archive:
        assert archive.namelist() == []
    assert taro.get(item.id) == item
    mine = hanako.add(made("花子の絵"))
    assert gallery.folder / "pictures" in mine.path.resolve().parents
    assert "太郎" not in str(item.path)
    gallery.close()
    assert prompts(Gallery(gallery.folder).of("太郎")) == ["太郎の秘密"]


def test_a_zip_of_pictures_with_names_that_say_what_they_are(gallery: Gallery, tmp_path: Path) -> None:
    items = [gallery.add(made(text)) for text in ("船/../../etc", "あ" * 300, "船/../../etc")]
    items[1].path.with_name("stranger.png").write_bytes(b"")
    target = gallery.export([item.id for item in items] + ["none"], tmp_path / "出力" / "all.zip")
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
        assert [archive.read(name) for name in names] == [item.path.read_bytes() for item in items]
    assert [names[0], names[2]] == ["0001_船_.._.._etc-7.png", "0003_船_.._.._etc-7.png"]
    assert max(len(name.encode()) for name in names) <= 255
    assert [path.name for path in target.parent.iterdir()] == ["all.zip"]


def damage_middle(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = os.urandom(len(data) - 4096)
    path.write_bytes(data)


def other_version(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    connection.close()


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE bookmarks(id)")
    connection.close()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("これはデータベースではありません" * 500),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:6000]),
    "middle": damage_middle,
    "version": other_version,
    "foreign": foreign,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_index_is_put_aside_and_made_again_from_the_pictures(gallery: Gallery, damage: str) -> None:
    items = [gallery.add(made(text), kind="edit") for text in ("夕焼けの船", "窓辺の猫")]
    gallery.favourite(items[0].id)
    gallery.add(made("別の人")).path.write_bytes(b"\x89PNG broken")
    other = gallery.of("花子").add(made("花子の絵"))
    gallery.close()
    index = gallery.folder / "gallery.sqlite"
    for ending in ("-wal", "-shm"):
        index.with_name(index.name + ending).unlink(missing_ok=True)
    DAMAGES[damage](index)
    again = Gallery(gallery.folder)
    assert "作り直しました" in again.notice and "絵 3 枚" in again.notice
    assert {(item.id, item.prompt, item.kind, item.made) for item in again.search().items} == {(i.id, i.prompt, "edit", i.made) for i in items}
    assert prompts(again.of("花子"), "花子") == [other.prompt]
    assert prompts(again, favourite=True) == (["夕焼けの船"] if damage == "version" else [])
    assert len(list(gallery.folder.glob("gallery.damaged-*.sqlite"))) == 1
    again.close()
    assert Gallery(gallery.folder).notice == ""


def test_an_index_that_goes_bad_while_open_is_made_again(gallery: Gallery) -> None:
    gallery.add(made("夕焼けの船"))

    def forge(connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute("UPDATE sqlite_master SET rootpage=99999 WHERE name='pictures'")
        connection.execute("PRAGMA schema_version=4242")

    gallery._index.write(forge)
    assert prompts(gallery, "夕焼け") == ["夕焼けの船"]
    assert "作り直しました" in gallery.notice
    gallery.add(made("窓辺の猫"))
    assert prompts(gallery) == ["窓辺の猫", "夕焼けの船"]


def test_an_index_that_another_process_has_put_aside_is_not_used_any_more(gallery: Gallery) -> None:
    gallery.add(made("夕焼けの船"))
    other = Gallery(gallery.folder)
    other._index.close()
    (gallery.folder / "gallery.sqlite").rename(gallery.folder / "gallery.damaged.sqlite")
    assert prompts(other) == []  # made anew; what is there already is found by whoever had the old one open
    other.add(made("窓辺の猫"))
    assert prompts(gallery) == prompts(other) == ["窓辺の猫", "夕焼けの船"]


def test_a_missing_or_emptied_index_is_made_again_quietly(gallery: Gallery) -> None:
    gallery.add(made("夕焼けの船"))
    gallery.close()
    (gallery.folder / "gallery.sqlite").unlink()
    again = Gallery(gallery.folder)
    assert prompts(again, "夕焼け") == ["夕焼けの船"]
    again.close()
    (gallery.folder / "gallery.sqlite").write_bytes(b"")
    assert prompts(Gallery(gallery.folder), "船") == ["夕焼けの船"]


def test_pictures_that_were_written_but_not_indexed_are_found_at_the_next_start(gallery: Gallery) -> None:
    folder = gallery.add(made("夕焼けの船")).path.parent
    made("取り残された絵").save(folder / new_id("create"))
    made("よその絵").save(folder / "other.png")
    outside = made("外の絵").save(gallery.folder.parent / "outside.png")
    (folder / new_id("create")).symlink_to(outside)
    gallery.close()
    assert sorted(prompts(Gallery(gallery.folder))) == ["取り残された絵", "夕焼けの船"]


def test_a_full_disk_while_a_picture_is_written_leaves_nothing_and_says_so(gallery: Gallery, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    generation = made("夕焼けの船")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(GalleryError, match="空きがありません"):
            gallery.add(generation)
    assert not [path for path in (gallery.folder / "pictures").rglob("*") if path.is_file()]
    assert gallery.search().total == 0
    assert gallery.add(generation).prompt == "夕焼けの船"


def test_a_full_disk_while_the_index_is_written_leaves_nothing_and_what_is_there_is_read(gallery: Gallery) -> None:
    kept = gallery.add(made("残っている絵"))
    full = gallery._index.read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    gallery._index.read(lambda connection: connection.execute(f"PRAGMA max_page_count={full}").fetchall())
    with pytest.raises(GalleryError, match=r"ギャラリーを読み書きできません.*full"):
        for n in range(1000):
            gallery.add(made(f"{n} " + "夕焼けの海に浮かぶ赤い船" * 40))
    files = {path.name for path in (gallery.folder / "pictures").rglob("*.png")}
    listed = {item.id for item in gallery.search(limit=10_000).items}
    assert files == listed and kept.id in listed
    gallery._index.read(lambda connection: connection.execute("PRAGMA max_page_count=1000000").fetchall())
    assert gallery.add(made("空きができた")).prompt == "空きができた"


def test_a_full_disk_while_a_zip_is_written_leaves_nothing(gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = gallery.add(made("夕焼けの船"))

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "write", full)
    with pytest.raises(GalleryError, match="ZIP を書けません"):
        gallery.export([item.id], tmp_path / "out" / "all.zip")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(GalleryError, match="読み書きできません"):
        Gallery(tmp_path / "file")


def test_many_threads_and_two_galleries_of_one_folder_write_at_once(gallery: Gallery) -> None:
    second, errors = Gallery(gallery.folder), []

    def work(which: Gallery, name: str) -> None:
        try:
            for n in range(5):
                item = which.add(made(f"{name} {n}"))
                which.favourite(item.id)
                assert which.search(f"{name} {n}").total == 1
        except Exception as error:
            errors.append(error)

    writers = ((gallery, "甲"), (gallery, "乙"), (second, "丙"), (second, "丁"))
    threads = [threading.Thread(target=work, args=writer) for writer in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert errors == []
    assert gallery.search(favourite=True).total == second.search().total == 20


def test_thumbnails_are_small_and_what_is_gone_has_none(gallery: Gallery) -> None:
    large = replace(made("大きい"), image=Image.new("RGB", (900, 300), "navy"))
    item = gallery.add(large)
    first = gallery.thumbnail(item)
    with Image.open(gallery.folder / "thumbnails" / f"{item.path.stem}.webp") as image:
        assert (image.size, image.format) == ((320, 107), "WEBP")
    assert gallery.thumbnail(item) == first
    gone = gallery.add(made("消えた"))
    gone.path.unlink()
    assert gallery.thumbnail(gone) == b""


def test_nearest_by_features(gallery: Gallery) -> None:
    red, blue, unread = (gallery.add(made(text)) for text in ("赤", "青", "未"))
    gallery.remember(red.id, "clip", np.array([1.0, 0.0]))
    gallery.remember(blue.id, "clip", [0.0, 2.0])
    gallery.remember(unread.id, "another", [1.0, 1.0, 1.0])
    assert [(item.prompt, round(cosine, 3)) for item, cosine in gallery.nearest("clip", [3.0, 4.0])] == [("青", 0.8), ("赤", 0.6)]
    assert gallery.unread("clip") == (unread,)
    gallery.delete([blue.id])
    assert [item.prompt for item, _ in gallery.nearest("clip", [3.0, 4.0])] == ["赤"]


def test_kinds_and_tags_are_checked(gallery: Gallery) -> None:
    for kind in ("", "Edit", "a-b", "../x", "かな"):
        with pytest.raises(ValueError):
            gallery.add(made("絵"), kind=kind)
    assert FILE.fullmatch(new_id("create"))
    assert clean_tags(["a\nb", "a b", "", "x" * 99, "\ud800", *map(str, range(99))])[:3] == ("a b", "x" * 40, "?")
    assert len(clean_tags([*map(str, range(99))])) == 20
