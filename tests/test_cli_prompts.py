"""`jpgen prompts`: what it finds and lists."""

import json

import pytest
from click.testing import CliRunner, Result

from jpgen import prompts
from jpgen.cli import main


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["prompts", *arguments])


def test_search() -> None:
    done = run("search", "桜", "--tag", "kana")
    assert done.exit_code == 0
    assert [line.split("\t") for line in done.stdout.splitlines()] == [
        [pair.ja, pair.en, "、".join(pair.tags), pair.split] for pair in prompts.search("桜", tag="kana")
    ]
    assert "さくらのきのしたでおひるね" in done.stdout


def test_search_as_json() -> None:
    done = run("search", "深淵", "--split", prompts.search("深淵")[0].split, "--json")
    row = json.loads(done.stdout.splitlines()[0])
    assert (row["ja"], row["en"], row["tags"]) == ("深淵から登ってくる怪物", "a monster climbing up out of the abyss", ["object", "place"])


def test_search_for_nothing() -> None:
    done = run("search", "そんなことばはどこにもない", "--json")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "見つかりません" in done.stderr
    assert run("search", " ").exit_code == 2


def test_list_tells_how_many() -> None:
    rows = {row["kind"]: row for row in map(json.loads, run("list", "--json").stdout.splitlines())}
    assert rows["pairs"]["count"] == rows["pairs"]["dev"] + rows["pairs"]["held-out"] == len(prompts.pairs())
    assert rows["pairs/season"]["count"] == len(prompts.pairs(tag="season"))
    assert rows["culture/yokai"]["title"] == "妖怪"
    assert {"messy/emoji", "negatives", "styles", "wildcards"} <= set(rows)
    assert f"pairs\t日本語と英語の組\t{len(prompts.pairs())}" in run("list").stdout


@pytest.mark.parametrize(
    ("kind", "number", "first"),
    [
        ("pairs", len(prompts.pairs()), prompts.pairs()[0].ja),
        ("messy", len(prompts.messy()), prompts.messy()[0].ja),
        ("culture", len(prompts.culture()), prompts.culture()[0].ja),
        ("negatives", len(prompts.negatives()), "写真"),
    ],
)
def test_list_of_a_kind(kind: str, number: int, first: str) -> None:
    lines = run("list", kind).stdout.splitlines()
    assert len(lines) == number
    assert lines[0].startswith(f"{first}\t")


def test_list_of_styles_and_wildcards() -> None:
    assert "水彩画" in [json.loads(line)["name"] for line in run("list", "styles", "--json").stdout.splitlines()]
    assert "河童" in {row["name"]: row["lines"] for row in map(json.loads, run("list", "wildcards", "--json").stdout.splitlines())}["妖怪"]


def test_list_by_tag() -> None:
    assert len(run("list", "culture", "--tag", "yokai").stdout.splitlines()) == len(prompts.culture(category="yokai"))
    assert len(run("list", "messy", "--tag", "emoji").stdout.splitlines()) == len(prompts.messy(tag="emoji"))
    unknown, nowhere = run("list", "pairs", "--tag", "colours"), run("list", "styles", "--tag", "colour")
    assert (unknown.exit_code, nowhere.exit_code) == (2, 2)
    assert "もしかして colour ですか" in unknown.stderr
    assert "pairs、messy、culture に使えます" in nowhere.stderr
