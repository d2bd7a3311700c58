"""Captions: what a scene shows, said in varied natural Japanese and English.

Both languages tell the same facts (things, colours, count, place, size, background, style) in the words a person would type, and each way one has
to say something has its like in the other (真っ黒な, pitch-black; 一頭の, a single): what captions never say is drawn wrongly in that language.
Some carry a word of praise, or the phrases the style's button adds (`prompts/styles.tsv`): they show in no picture, and must not look like another
thing.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from jpgen.errors import MissingExtraError
from jpgen.prompt import load_styles
from jpgen.train.scenes import Scene, Thing
from jpgen.train.styles import Style

ANIMATE_COUNTERS = frozenset({"匹", "頭", "羽", "人", "体"})
KANJI_DIGITS = "〇一二三四五"
FULL_WIDTH_DIGITS = "０１２３４５"
KANA_NUMBERS = ("", "ひとつ", "ふたつ", "みっつ", "よっつ", "いつつ")
ENGLISH_DIGITS = ("", "one", "two", "three", "four", "five")
NO_ARTICLE = ("the ", "Mount", "Tokyo", "Earth", "Saturn", "Santa", "T-Rex")

JAPANESE_PLURALS = frozenset({"sushi", "oden", "bento", "kadomatsu", "koinobori", "dango"})
"""English words from Japanese that stay as they are in the plural."""

PRAISE = (
    ("かわいい", "cute"), ("きれいな", "pretty"), ("美しい", "beautiful"), ("素敵な", "lovely"),
    ("古い", "old"), ("新しい", "new"), ("不思議な", "strange"),
)  # fmt: skip
"""Words in both languages that go with anything and show in no picture."""

DRAWN = ("画", "絵", "アート", "CG")
"""How the name of a style ends that is a picture itself: 犬の水彩画."""

ONE = 0.12
"""Share of the captions of a single thing that say there is one."""

Wording = np.random.Generator | None
"""What chooses among words that say the same; None always takes the usual ones."""


def caption(scene: Scene, language: str, rng: Wording) -> str:
    """One caption of the scene in `language` ("ja" or "en"); the generator chooses the wording, never the facts (None: the usual words)."""
    return _japanese(scene, rng) if language == "ja" else _english(scene, rng)


def _pick(rng: Wording, *choices: str) -> str:
    return choices[int(rng.integers(len(choices))) if rng else 0]


def _chance(rng: Wording, share: float) -> bool:
    return rng is not None and bool(rng.random() < share)


def _word(rng: Wording, words: tuple[str, ...]) -> str:
    """The usual word half the time, else any."""
    return words[0] if _chance(rng, 0.5) else _pick(rng, *words)


def _praise(rng: Wording, language: int) -> str:
    """A word of `PRAISE`, or mostly none."""
    return _pick(rng, *(words[language] for words in PRAISE)) if _chance(rng, 0.12) else ""


@cache
def touches(style: Style) -> tuple[str, ...]:
    """The phrases that the style of this name in `prompts/styles.tsv` adds to a prompt, but its name and any background; none if it is not there."""
    named = [one for one in load_styles().values() if one.name in style.ja]
    return tuple(part for part in named[0].prompt.split("、")[2:] if "背景" not in part) if named else ()


# --- Japanese ---------------------------------------------------------------------------------------------------------


def _ja_thing(thing: Thing, rng: Wording) -> str:
    return _praise(rng, 0) + (_word(rng, thing.color.ja) if thing.color else "") + _word(rng, thing.concept.ja)


def _ja_number(count: int, counter: str, rng: Wording) -> str:
    """Digits more often than kanji: `jpgen.prompt` makes 三匹 and 三つ of a prompt 3匹 and 3つ."""
    if counter == "人":
        return _pick(rng, f"{KANJI_DIGITS[count]}人", f"{count}人")
    if counter == "つ" or (counter not in ANIMATE_COUNTERS and _chance(rng, 0.3)):
        return _pick(rng, f"{KANJI_DIGITS[count]}つ", f"{count}つ", f"{count}つ", KANA_NUMBERS[count])
    return _pick(rng, KANJI_DIGITS[count], str(count), FULL_WIDTH_DIGITS[count], str(count)) + counter


def _ja_core(scene: Scene, rng: Wording) -> str:
    first = _ja_thing(scene.things[0], rng)
    if scene.layout == "count":
        number = _ja_number(scene.count, scene.things[0].concept.counter, rng)
        return _pick(rng, f"{number}の{first}", f"{number}の{first}", f"{first}が{number}", f"{first}{number}")
    if scene.layout == "one" and _chance(rng, ONE):
        number = _ja_number(1, scene.things[0].concept.counter, rng)
        return _pick(rng, f"{number}の{first}", f"{first}が{number}", f"{first}が{number}", f"{first}が{number}だけ")
    if len(scene.things) == 1:
        size = {"large": ("大きな", "大きい", "巨大な"), "small": ("小さな", "小さい"), "one": ("",)}[scene.layout]
        return _pick(rng, *size) + first
    second = _ja_thing(scene.things[1], rng)
    if scene.layout == "beside":
        return _pick(
            rng,
            f"左に{first}、右に{second}", f"左に{first}、右に{second}", f"左側に{first}、右側に{second}", f"左が{first}、右が{second}",
            f"{first}が左、{second}が右", f"{first}の右に{second}", f"{first}の右に{second}", f"{second}の左に{first}", f"{second}の左に{first}",
            f"{first}と、その右に{second}", f"{first}と{second}", f"{first}と{second}", f"{first}の隣に{second}",
        )
    if scene.layout == "above":
        return _pick(rng, f"{second}の上に{first}", f"{first}の下に{second}", f"上に{first}、下に{second}")
    return _pick(rng, f"{second}の前に{first}", f"{first}の後ろに{second}", f"手前に{first}、奥に{second}")


def _japanese(scene: Scene, rng: Wording) -> str:
    text = _ja_core(scene, rng)
    if scene.background.key:
        place = _word(rng, scene.background.ja)
        ends_in_number = text[-1] in "つ人" + scene.things[0].concept.counter or text.endswith("だけ")
        at = place + _pick(rng, *scene.background.at.ja)
        if scene.background.plain:
            forms = [f"{place}の{text}", f"{place}に{text}", f"{text}、{place}"]
        elif len(scene.things) > 1 or ends_in_number:
            forms = [f"{at}に{text}", f"{at}に{text}", f"{place}で、{text}", f"{text}、{place}", f"{place}、{text}", f"{text}、背景は{place}"]
        else:
            be = "にいる" if scene.things[0].concept.counter in ANIMATE_COUNTERS else "にある"
            forms = [f"{at}の{text}", f"{at}の{text}", f"{place}と{text}", f"{text}と{place}", f"{text}、{place}"]
            forms += [f"{at}{be}{text}", f"{place}を背景にした{text}"]
        text = _pick(rng, *forms)
    if scene.style.key:
        style = _word(rng, scene.style.ja)
        forms = [f"{style}の{text}", f"{text}、{style}", f"{text}、{style}", f"{style}、{text}", f"{style}で描いた{text}"]
        if style.endswith(DRAWN) and "、" not in text:
            forms += [f"{text}の{style}", f"{text}の{style}"]
        text = _pick(rng, *forms)
        if rng is not None and touches(scene.style) and rng.random() < 0.3:
            return "、".join([text, *touches(scene.style)[: int(rng.integers(1, 6))]])
    return text + (_pick(rng, "の絵", "のイラスト", "。") if rng is not None and not _chance(rng, 0.92) else "")


# --- English ----------------------------------------------------------------------------------------------------------


@cache
def _inflect():  # type: ignore[no-untyped-def]
    try:
        import inflect
    except ImportError as error:
        raise MissingExtraError("英語の説明文には inflect が要ります / English captions need inflect: pip install 'jpgen[train]'") from error
    return inflect.engine()


def _is_plural(noun: str) -> bool:
    return noun.endswith("s") and not noun.endswith(("ss", "us"))


@cache
def plural(noun: str) -> str:
    """The plural of an English noun; of one that is plural, or Japanese, itself."""
    if _is_plural(noun) or noun in JAPANESE_PLURALS:
        return noun
    head, of, rest = noun.partition(" of ")
    return f"{_inflect().plural_noun(head)}{of}{rest}"


@cache
def article(noun: str) -> str:
    """An English noun with its indefinite article, if it takes one."""
    return noun if _is_plural(noun) or noun.startswith(NO_ARTICLE) else _inflect().a(noun)


def _en_noun(thing: Thing, rng: Wording, size: str = "") -> str:
    return " ".join(part for part in (_praise(rng, 1), size, _word(rng, thing.color.en) if thing.color else "", _word(rng, thing.concept.en)) if part)


def _en_thing(thing: Thing, rng: Wording, size: str = "") -> str:
    noun = _en_noun(thing, rng, size)
    return noun if _chance(rng, 0.4) else article(noun)


def _en_core(scene: Scene, rng: Wording) -> str:
    if scene.layout == "count":
        thing = scene.things[0]
        color = f"{_word(rng, thing.color.en)} " if thing.color else ""
        return f"{_pick(rng, ENGLISH_DIGITS[scene.count], str(scene.count))} {color}{plural(_word(rng, thing.concept.en))}"
    if scene.layout == "one" and _chance(rng, ONE):
        noun = _en_noun(scene.things[0], rng)
        return f"{_pick(rng, 'one', 'a single', 'a single', 'just one')} {noun}" if article(noun) != noun else noun
    if len(scene.things) == 1:
        sizes = {"large": ("big", "large", "huge"), "small": ("small", "little", "tiny"), "one": ("",)}
        return _en_thing(scene.things[0], rng, _pick(rng, *sizes[scene.layout]))
    first, second = (_en_thing(thing, rng) for thing in scene.things)
    if scene.layout == "beside":
        return _pick(
            rng,
            f"{first} on the left, {second} on the right", f"{first} on the left, {second} on the right",
            f"{first} on the left and {second} on the right", f"{first} on the left and {second} on the right",
            f"{first} on the left side and {second} on the right side", f"{first} to the left of {second}", f"{first} to the left of {second}",
            f"{second} to the right of {first}", f"{second} to the right of {first}", f"{first} with {second} to its right",
            f"{first} and {second}", f"{first} and {second}", f"{first} next to {second}",
        )
    if scene.layout == "above":
        return _pick(rng, f"{first} above {second}", f"{second} below {first}", f"{first} at the top, {second} at the bottom")
    return _pick(rng, f"{first} in front of {second}", f"{second} behind {first}")


def _english(scene: Scene, rng: Wording) -> str:
    text = _en_core(scene, rng)
    if scene.background.key:
        place = _word(rng, scene.background.en)
        if scene.background.plain:
            text = _pick(rng, f"{text} on a {place}", f"{text}, {place}")
        else:
            within = " ".join(part for part in (text, _pick(rng, *scene.background.at.en), place) if part)
            behind = f"{text} with {place} in the background"
            text = _pick(rng, f"{text}, {place}", f"{text}, {place}", within, within, within, behind, f"{text} and {place}", f"{place}, {text}")
    if scene.style.key:
        style = _word(rng, scene.style.en)
        text = _pick(rng, f"{text}, {style}", f"{text}, {style}", f"{style} of {text}", f"{style}, {text}", f"{text} in {style}")
    return text
