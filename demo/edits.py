"""Edits by words: 「もっと夕焼けに」「猫を犬に」「人を消して」 change the prompt, and show what was changed. No model is asked.

    reword("窓辺の猫", "猫を犬に").prompt          # "窓辺の犬"

What an instruction means is told by the first of PATTERNS that it matches and that finds its place in the prompt. One that fits none is not guessed
at: `understood` is then False, the prompt as it was, and `note` says what can be said.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from demo.edits_words import COLOURS, GROUPS, JAPANESE, KANJI, OPPOSITES, SLOTS, TABLES, core, find, folded, native, plain, styles, ways

MAX_INSTRUCTION = 300
MORE, LESS, MOST, LEAST = 1.3, 0.7, 2.0, 0.1
"""Weights for more and less of a thing, and how far they go."""

Piece = tuple[Literal["same", "out", "in"], str]


@dataclass(frozen=True)
class Rewording:
    """A prompt and negative prompt after an instruction; `kinds` are what was done ("replace", "remove", "add", "style", "more", "less", "set").

    `note` says in Japanese and English what a person should know. `difference` and `negative_difference` are what stayed, went and came.
    """

    prompt: str
    negative: str
    understood: bool = True
    kinds: tuple[str, ...] = ()
    note: str = ""
    difference: tuple[Piece, ...] = field(default=(), compare=False)
    negative_difference: tuple[Piece, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class _Text:
    """The two prompts while they are worked on."""

    prompt: str
    negative: str
    kind: str = ""
    note: str = ""


class _NotThere(Exception):
    """The thing that is to be changed is not in the prompt."""


def reword(prompt: str, instruction: str, *, negative: str = "") -> Rewording:
    """Change the prompt as the instruction says, in Japanese of any manner or English; several, one behind the other, are separated by 、 or 。"""
    before = _Text(prompt, negative)
    wanted = plain(instruction)
    if not wanted or len(wanted) > MAX_INSTRUCTION:
        return _puzzled(before, instruction)
    parts = [part.strip() for part in _BETWEEN.split(_begun(wanted)) if part.strip()]
    steps = [before]
    for part in parts:
        try:
            done = _applied(steps[-1], part)
        except _NotThere as error:
            note = f"「{error}」がプロンプトに見つかりません。プロンプトの言葉で書いてください / {error} is not in the prompt: use a word of it"
            return _unchanged(before, note)
        if done is None:
            return _puzzled(before, part)
        steps.append(done)
    return _shown(before, steps[1:]) if parts else _puzzled(before, instruction)


def difference(before: str, after: str) -> tuple[Piece, ...]:
    """What stayed, went ("out") and came ("in"), in order."""
    pieces: list[Piece] = []
    for kind, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        told: list[Piece] = [("same", before[a:b])] if kind == "equal" else [("out", before[a:b]), ("in", after[c:d])]
        pieces += [piece for piece in told if piece[1]]
    return tuple(pieces)


def _shown(before: _Text, steps: list[_Text]) -> Rewording:
    after = steps[-1]
    if (after.prompt, after.negative) == (before.prompt, before.negative):
        return _unchanged(before, "もうそうなっています / it already is so")
    return Rewording(
        after.prompt, after.negative, True, tuple(step.kind for step in steps), " ".join(filter(None, (step.note for step in steps))),
        difference(before.prompt, after.prompt), difference(before.negative, after.negative),
    )  # fmt: skip


def _unchanged(before: _Text, note: str) -> Rewording:
    same = difference(before.prompt, before.prompt), difference(before.negative, before.negative)
    return Rewording(before.prompt, before.negative, False, (), note, *same)


def _puzzled(before: _Text, instruction: str) -> Rewording:
    said = " ".join(instruction.split())[:40]
    return _unchanged(
        before,
        f"「{said}」をどう変えればよいか読み取れませんでした。「猫を犬に」「人を消して」「犬を追加」「もっと明るく」「水彩画風に」のように書くか、"
        'プロンプトを直してください / could not tell what to change: write "change the cat to a dog", "remove the person" or "add a dog", '
        "or edit the prompt",
    )


# ── what can be said ────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────

_X = "[^、。,\n]{1,40}?"
_SOFT = "[ぁ-んー〜ァ-ヶa-zw!?。…♪☆\\s]*(?:(?:下|頂|願|欲|貰|戴|致|思|嬉|変|方|感|描|直|頼|変更|良)[ぁ-んー〜a-zw!?。…♪☆\\s]*)*$"
"""How a request goes on to its end, whatever its manner or dialect: kana, and the kanji of politeness."""

_N = "[^、。,\nをば]{1,40}?"
_DEGREE = (
    "(?:もっと|もうちょっと|もうちょい|もう少し|もう一声|さらに|より|少し|すこし|ちょっと|ちょい|めっちゃ|めちゃ|ずっと|やや|うんと|でら|ばり|なまら)"
)
_BETWEEN = re.compile(r"[、。,;!\n]+|(?<=[てに])(?:そして|それから|あと)(?=\S)|\s+and\s+(?=change|add|remove|make|replace)", re.IGNORECASE)
_COUNT = re.compile("[一二三四五六七八九十百\\d]+[匹人個本枚羽頭つ台輪軒隻]")
_LEAD = re.compile(
    "^(?:えっと|えーと|あのー?|じゃあ|では|それでは|すみません(?:が)?|すいません|ごめん|できれば|できたら|ほな|ほんなら|やっぱり?|ねえ|なあ|お願い|悪いけど|"
    "please|can you|could you|would you|この?(?:絵|画像|写真|イラスト)(?:の中|全体)?(?:の|を|に|で|から)|その|全体(?:的に|を|に))[、,\\s]*",
    re.IGNORECASE,
)
_FORBIDDEN = re.compile(
    f"^(?P<a>{_X})(?:を|は|が|も)?(?:入れ|いれ|描か|かか|写さ|うつさ|出さ|つけ|付け|載せ|のせ)(?:ない(?:で|ように|こと)|んといて|んで)"
)
_NEGATED = re.compile("さない|さんといて|すな|ないで(?:ください|下さい|ね|よ|。|$)|へんといて|なくて(?:も)?(?:いい|よい|ええ)|don't|do not")


def _begun(wanted: str) -> str:
    """The instruction without what is said before it."""
    while (lead := _LEAD.match(wanted)) and lead.end() < len(wanted):
        wanted = wanted[lead.end() :]
    return wanted


def _applied(text: _Text, wanted: str) -> _Text | None:
    """The texts after one instruction, None if it is not understood."""
    wanted = _begun(wanted)
    if forbidden := _FORBIDDEN.match(wanted):
        return _remove(text, forbidden.groupdict())
    if _NEGATED.search(wanted) or any(manner in wanted for manner in TABLES["vague"]["manners"]):
        return None
    for pattern, act in PATTERNS:
        said = {name: plain(value) for name, value in match.groupdict().items() if value} if (match := pattern.match(wanted)) else {}
        if said and said.get("a") not in TABLES["vague"]["things"] and (done := act(text, said)):
            return done
    return None


def _replace(text: _Text, said: dict[str, str]) -> _Text | None:
    old, new = said["a"], said["b"]
    if slot := SLOTS.get(old):
        return _slot(text, slot, new)
    if adjective := COLOURS.get(new.lower()):
        return _qualify(text, {"a": old, "adjective": adjective})
    new = native(new, text.prompt)
    old = re.sub(r"^(?:an?|the)\s+", "", old, flags=re.IGNORECASE)
    place = find(old, text.prompt)
    if place is None:
        raise _NotThere(old)
    if _COUNT.fullmatch(new):
        return _counted(text, place, new)
    made = text.prompt[: place[0]] + new + text.prompt[place[1] :]
    return _Text(made, _without(text.negative, new), "replace")


def _counted(text: _Text, place: tuple[int, int], count: str) -> _Text:
    """So many of a thing, in the place of the number that is there."""
    before = re.sub(f"{_COUNT.pattern}の$", "", text.prompt[: place[0]])
    return _Text(f"{before}{count}の{text.prompt[place[0] :]}", text.negative, "replace")


def _slot(text: _Text, slot: str, new: str) -> _Text | None:
    if slot == "画風":
        return _style(text, {"s": new})
    if slot == "背景":
        told = re.compile(r"(^|[、,]\s*)背景(?:は|が|に|:)[^、。,\n]*")
        if told.search(text.prompt):
            return _Text(told.sub(lambda found: f"{found[1]}背景は{new}", text.prompt, count=1), text.negative, "replace")
        return _Text(_joined(text.prompt, f"背景は{new}" if JAPANESE.search(text.prompt + new) else f"{new} background"), text.negative, "add")
    return _set(text, {"b": new}) if new in GROUPS else None


def _remove(text: _Text, said: dict[str, str]) -> _Text | None:
    thing = native(said["a"], text.prompt)
    unwanted = _joined(text.negative, thing) if find(thing, text.negative) is None else text.negative
    place = find(thing, text.prompt)
    if place is None:
        note = f"文に「{thing}」はないので、ネガティブに入れました / not in the prompt: put into the negative one"
        return _Text(text.prompt, unwanted, "remove", note)
    made = _cut(text.prompt, *place)
    if made is None:
        note = f"「{thing}」を文から外しきれないので、ネガティブに入れました / put into the negative prompt; the prompt still names it"
        return _Text(text.prompt, unwanted, "remove", note)
    return _Text(made, unwanted, "remove")


_VERB = "[ぁ-んー一-鿿]{1,7}?(?:る|た|だ|く|ぶ|ぐ|つ|む|う|す|ない)"


def _cut(prompt: str, start: int, end: int) -> str | None:
    """The prompt without the thing that stands there and what hangs on it; None where that cannot be told."""
    left = max((prompt.rfind(one, 0, start) for one in "、。,\n"), default=-1) + 1
    right = min((at for one in "、。,\n" if (at := prompt.find(one, end)) >= 0), default=len(prompt))
    while start > left and KANJI.match(prompt[start]) and KANJI.match(prompt[start - 1]):  # 黒猫 goes as a whole
        start -= 1
    before, after = prompt[left:start], prompt[end:right]
    kept: str | None = None
    before = re.sub(r"(?:^|(?<=\s))(?:an?|the)\s+$", "", before, flags=re.IGNORECASE)
    own = re.sub("(?:^|(?<=[とやにでをへはがも]))[^とやにでをへはがも]+[のない]$", "", before)  # without what is said of the thing alone
    if joined := re.match(r"(?:と|や|\s+and\s+)(?=.)", after):  # AとB
        kept = own + after[joined.end() :]
    elif paired := re.search(r"(?:と|や|\s+and\s+)$", own):  # BとA
        kept = own[: paired.start()] + after
    elif clause := re.match(f"(?:の|が|を|に|は)(?:{_VERB}|{_VERB}て(?:い|あ)?る)(?=[一-鿿ァ-ヶ])", after):  # Aのいる街
        kept = own + after[clause.end() :]
    elif not after.strip():
        place = re.match(f"(.+?)(?:に|で|を|へ)(?:{_VERB})?(?:[^とやにでをへ]*の)?$", before)  # 海辺に立つA
        others = (prompt[:left] + prompt[right:]).strip("、。, \n")
        kept = place[1] if place else "" if others else None
    if kept is None or (not kept.strip() and not (prompt[:left] + prompt[right:]).strip("、。, \n")):
        return None
    if kept.strip():
        return prompt[:left] + kept + prompt[right:]
    return prompt[right:].lstrip("、。, \n") if left == 0 else prompt[: left - 1].rstrip() + prompt[right:]


def _add(text: _Text, said: dict[str, str]) -> _Text | None:
    thing = native(said["a"], text.prompt)
    if find(thing, text.prompt) is not None and len(thing) <= 20:
        return _more(text, {"a": thing})
    return _Text(_joined(text.prompt, thing), _without(text.negative, thing), "add")


def _wear(text: _Text, said: dict[str, str]) -> _Text | None:
    place = find(said["host"], text.prompt)
    if place is None:
        return None
    told = said["a"] + TABLES["wearing"][said["how"]]
    return _Text(text.prompt[: place[0]] + told + text.prompt[place[0] :], _without(text.negative, said["a"]), "add")


def _style(text: _Text, said: dict[str, str]) -> _Text | None:
    wanted = said["s"]
    if re.fullmatch("[A-Za-z -]+", wanted):
        wanted = native(wanted, text.prompt)
    suffix = said.get("suffix", "")
    known = core(wanted) in styles() or wanted in styles() or any(way in styles() for way in ways(wanted))
    if not known and not suffix:
        return None
    new = wanted if not suffix or not JAPANESE.search(wanted) or wanted.endswith(("風", "調")) else wanted + suffix
    clauses = re.split(r"([、。,\n]\s*)", text.prompt)
    for index, clause in enumerate(clauses):
        if clause.strip() and core(clause.strip()) in styles():
            return _Text("".join([*clauses[:index], new, *clauses[index + 1 :]]), text.negative, "style")
    return _Text(_joined(text.prompt, new), _without(text.negative, new), "style")


def _like(text: _Text, said: dict[str, str]) -> _Text | None:
    return _style(text, said | {"suffix": "風"})


def _set(text: _Text, said: dict[str, str]) -> _Text | None:
    """A time of day, season, weather: in the place of the one that is there; what else is told stands behind."""
    new = native(said["b"], text.prompt)
    if any(folded(new) in map(folded, row) for row in TABLES["same"]) and new not in GROUPS and core(new) not in styles():
        return None  # what is to become a dog?
    for other in GROUPS.get(new, ()):
        place = find(other, text.prompt)
        if place is not None:
            made = text.prompt[: place[0]] + new + text.prompt[place[1] :]
            return _Text(made, _without(text.negative, new), "replace" if other != new else "set")
    if core(new) in styles():
        return _style(text, {"s": new})
    return _Text(_joined(text.prompt, new), _without(text.negative, new), "set")


def _adjective(text: _Text, said: dict[str, str]) -> _Text | None:
    """Of the whole picture: in the place of its opposite, else behind."""
    adjective = said["stem"] + "い"
    opposite = OPPOSITES.get(adjective)
    place = find(opposite, text.prompt) if opposite else None
    if place is not None:
        return _Text(text.prompt[: place[0]] + adjective + text.prompt[place[1] :], text.negative, "replace")
    if find(adjective, text.prompt) is not None:
        return _more(text, {"a": adjective})
    return _Text(_joined(text.prompt, adjective), text.negative, "more")


def _qualify(text: _Text, said: dict[str, str]) -> _Text | None:
    """An adjective for a thing of the prompt, in the place of a colour or its opposite that stands there."""
    place = find(said["a"], text.prompt)
    adjective = said.get("adjective") or COLOURS.get(said["stem"]) or said["stem"] + "い"
    if place is None:
        return _Text(_joined(text.prompt, adjective + said["a"]), text.negative, "add")
    before, rest = text.prompt[: place[0]], text.prompt[place[0] :]
    others = sorted(set(COLOURS.values()) if adjective in COLOURS.values() else {OPPOSITES.get(adjective, "")} - {""}, key=len, reverse=True)
    for other in others:
        if before.endswith(other):
            return _Text(before.removesuffix(other) + adjective + rest, text.negative, "replace")
    return None if before.endswith(adjective) else _Text(before + adjective + rest, text.negative, "add")


def _more(text: _Text, said: dict[str, str]) -> _Text | None:
    thing = native(said["a"], text.prompt)
    place = find(thing, text.prompt)
    if place is None:
        if thing in GROUPS:
            return _set(text, {"b": thing})
        if core(thing) in styles():
            return _style(text, {"s": thing})
        return replace(text, prompt=_joined(text.prompt, thing), negative=_without(text.negative, thing), kind="more")
    return _weighted(text, place, MORE, "more")


def _less(text: _Text, said: dict[str, str]) -> _Text | None:
    place = find(native(said["a"], text.prompt), text.prompt)
    return None if place is None else _weighted(text, place, LESS, "less")


def _weighted(text: _Text, place: tuple[int, int], times: float, kind: str) -> _Text:
    """The thing with its weight (A1111's notation) made larger or smaller."""
    start, end = place
    thing, weight = text.prompt[start:end], 1.0
    behind = re.match(r":(\d+(?:\.\d+)?)\)", text.prompt[end:])
    if behind and text.prompt[start - 1 : start] == "(":
        start, end, weight = start - 1, end + behind.end(), float(behind[1])
    weight = min(MOST, max(LEAST, weight * times))
    return _Text(f"{text.prompt[:start]}({thing}:{weight:.2g}){text.prompt[end:]}", text.negative, kind)


def _joined(prompt: str, words: str) -> str:
    """The words behind the prompt, once."""
    bare = prompt.rstrip("、。,. \n")
    if words in re.split(r"[、。,\n]\s*", bare):
        return prompt
    return words if not bare else f"{bare}{'、' if JAPANESE.search(prompt + words) else ', '}{words}"


def _without(negative: str, words: str) -> str:
    """The negative prompt without what is now wanted."""
    kept = [clause for clause in re.split(r"[、,]\s*", negative) if folded(clause) not in map(folded, ways(words))]
    return negative if len(kept) == len(re.split(r"[、,]\s*", negative)) else ("、" if "、" in negative else ", ").join(kept)


_REMOVING = (
    "消(?:し|す|せ|え|去)|けし(?:て|た)|削除|除去|取り?(?:除|去|っ|り)|とって|のぞい|除い|除外|抜い|外し|はずし|どけ|どかし|のけ|無くし|なくし|なし(?:に|で|$)|無し|ナシ|"
    "い(?:ら|り)(?:ない|ん|まへん|ません|へん)|要ら(?:ない|ん)|要りません|不要|カット|ボツ|消去|捨て|ほかし"
)
_ADDING = (
    "追加|足[しす]|たし(?:て|た)|加え|くわえ|入れ|いれ|描き(?:足|加)|書き(?:足|加)|描い|増やし|ふやし|置い|おい(?:て|と)|付け|つけ|乗せ|のせ|飛ばし|咲か|降らせ|"
    "散らし|浮かべ|立たせ|並べ|ほしい|欲し|プラス|頼|お願い|お(?:って|らせ)|いて(?:ほし|欲し)"
)

_MAKING = "(?:し|せ|変更?|替|換|代|か[えわ]|チェンジ|置き?換|差し?替|直|なお|なっ|なら|やっ|お願い|頼|描|$)"
_SET = "(?:し|せ|変更?|替|換|か[えわ]|なら|なっ|お願い|頼|描|$)"

PATTERNS: tuple[tuple[re.Pattern[str], Callable[[_Text, dict[str, str]], _Text | None]], ...] = tuple(
    (re.compile(f"^{pattern}", re.IGNORECASE), act)
    for pattern, act in (
        (f"(?P<a>{_X})\\s*(?:→|->|=>|⇒|➡)\\s*(?P<b>{_X})$", _replace),
        (f"(?P<a>{_X})(?:じゃ|では|や|で)(?:なくて?|のうて|なしに)(?P<b>{_X})(?:に|が|で|を|や)?(?:し|描)?{_SOFT}", _replace),
        (f"(?P<a>{_X})をやめて(?P<b>{_X})(?:に|を){_MAKING}{_SOFT}", _replace),
        (f"(?P<a>{_X})の?(?:代わり|かわり|替わり)に(?P<b>{_X})(?:を|に|で)?(?:描い|入れ|し|置い|$){_SOFT}", _replace),
        (f"(?P<host>{_X})に(?P<a>{_X})を(?P<how>{'|'.join(TABLES['wearing'])}){_SOFT}", _wear),
        (f"(?P<a>{_X})[をはが]?{_DEGREE}*(?:に)?(?:強く|強め|強調|目立た(?!な)|多く|多め|濃く|濃い目|際立た){_SOFT}", _more),
        (f"(?P<a>{_X})[をはが]?{_DEGREE}*(?:弱く|弱め|控えめ|ひかえめ|薄く|薄め|減ら|へらし|抑え|おさえ|少な|目立たなく){_SOFT}", _less),
        (f"(?P<a>{_X})(?:を|は|が|も|とか|ば)?(?:全部|ぜんぶ|すべて|全て|みんな)?(?:{_REMOVING}){_SOFT}", _remove),
        (f"(?P<a>{_X})[をば]{_DEGREE}?(?P<stem>[ぁ-ん一-鿿ァ-ヶ]{{1,6}}?)く(?:し|せ|なら|なっ|$|お願い|変){_SOFT}", _qualify),
        (f"(?P<a>{_X})[をば](?!を){_DEGREE}?(?P<b>{_X})(?:に|へ|と){_MAKING}{_SOFT}", _replace),
        (f"{_DEGREE}?(?P<s>{_N})(?P<suffix>風|調|タッチ)(?:な感じ|の絵|の感じ)?(?:に|で|へ|と|の|が|$){_SOFT}", _style),
        (f"(?P<s>{_N})(?:っぽく|みたいに|みたいな(?:絵|感じ)に?){_SOFT}", _like),
        (f"{_DEGREE}(?P<stem>[ぁ-ん一-鿿ァ-ヶ]{{1,8}}?)く(?:し|せ|なら|なっ|$|お願い|て){_SOFT}", _adjective),
        (f"{_DEGREE}(?P<a>{_N})(?:っぽく|らしく|な感じに|感を?出し|[をが](?:強|増|足|ほし|欲)|を$|に|へ)?{_SET}{_SOFT}", _more),
        (f"(?P<a>{_N})(?:を|も|が|とか|ば)?{_DEGREE}?(?:{_COUNT.pattern})?(?:{_ADDING}){_SOFT}", _add),
        (f"(?P<stem>[ぁ-ん一-鿿]{{1,6}}?)く(?:し|せ|なら|なっ|お願い|$){_SOFT}", _adjective),
        (f"(?P<b>{_N})(?:に|で){_SET}{_SOFT}", _set),
        (r"(?:change|turn|swap|make)\s+(?P<a>.{1,40}?)\s+(?:to|into|for|with)\s+(?P<b>.{1,40}?)[.!]*$", _replace),
        (r"replace\s+(?P<a>.{1,40}?)\s+(?:with|by)\s+(?P<b>.{1,40}?)[.!]*$", _replace),
        (r"(?P<b>.{1,40}?)\s+instead of\s+(?P<a>.{1,40}?)[.!]*$", _replace),
        (r"(?:remove|delete|erase|get rid of|take out|no|without)\s+(?P<a>.{1,40}?)(?:\s+please)?[.!]*$", _remove),
        (r"(?:add|put in|include|draw)\s+(?P<a>.{1,60}?)(?:\s+please)?[.!]*$", _add),
        (r"(?:more|stronger)\s+(?P<a>.{1,40}?)(?:\s+please)?[.!]*$", _more),
        (r"(?:less|fewer)\s+(?P<a>.{1,40}?)(?:\s+please)?[.!]*$", _less),
        (r"(?:in the style of|in|as)\s+(?:an?\s+)?(?P<s>.{1,40}?)(?:\s+style)?[.!]*$", _style),
        (r"make (?:it|this)\s+(?:look like\s+)?(?:an?\s+)?(?P<s>[a-z -]{1,40}?)(?:\s+style)?[.!]*$", _style),
        (r"make (?:it|this)\s+(?P<b>[a-z -]{1,40}?)[.!]*$", _set),
    )
)
"""What an instruction looks like, and what is done; the first that does something counts."""
