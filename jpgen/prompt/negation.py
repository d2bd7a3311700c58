"""Negation: what must not appear leaves the text for the negative prompt, told by the words' parts of speech (see letters.py)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from jpgen.prompt.asking import ASKING, LEAD, REQUEST
from jpgen.prompt.change import Change
from jpgen.prompt.letters import TABLES, Spelling, letter, spell
from jpgen.prompt.morphology import Word, words

_TRIGGER = re.compile(
    "ない|なく|なし|無し|無い|無く|ナシ|ません|ぬ|ず|以外|抜き|ヌキ|除|のぞ|不要|いらん|要らん|避け|さけ|禁止|厳禁|NG|無用|カット|排除|削除|消し|省|ゼロ|なき|"
    "んで|んと|へん|抜い|らん|やめ|ダメ|だめ|駄目|あかん|いけ|[るすくぐむぶぬつう]な"
)
"""Without one of these nothing is negated, and no word need be read."""

_CLAUSES = re.compile("((?:[、。,.!?;]| *\n)+(?: |(?<=\n)[・•*\\-] ?)*|^[・•*\\-] ?|(?<=[^\x00-\x7f]) +(?=[^\x00-\x7f]))")

_QUOTED = re.compile("「[^「」]*」|『[^『』]*』")
_UNSEEN, _PERSONS, _NO_HEADS = (frozenset(TABLES[name]) for name in ("unseen", "persons", "no_heads"))
_COMPOUNDS, _CLEARED = frozenset(TABLES["compounds"]), frozenset(TABLES["cleared"])
_DRAWN_ALONE = frozenset(TABLES["drawn_alone"])
_DRAWN = _DRAWN_ALONE | frozenset(TABLES["drawn"])
_NOBODY = frozenset({"誰", "だれ", "誰一人", "誰ひとり"})

# ── the ways to negate, over the letters ───────────────────────────────────────────────────────────────────────────────────────────────────

_NOUN = "(?:[NWJ]|Q+(?=[NW]))+e?"
_MODIFIER = "(?:D|A|[NJ]+a|R(?=A))*"
_LIST = f"(?<![ADaoN]){_NOUN}(?:s?&+s?{_NOUN})+&*"
_BARE = f"(?P<things>{_LIST}|{_MODIFIER}{_NOUN}&*)"
_FULL = f"(?P<things>{_NOUN}(?:m{_NOUN})+(?=m)|{_MODIFIER}{_NOUN}(?:(?:o|s?&+s?){_MODIFIER}{_NOUN})*&*)"
_PLACE = f"(?:Ri?)*(?:{_NOUN}(?:o{_NOUN})*[id]h?)?"
_ADVERB = "(?:Ri?)*"
_ANY = f"{_ADVERB}(?:N?Q+N?m?)?{_ADVERB}"
_VERB = "(?:VP?|Ww?S|(?<=w)S|(?<=wR)S)y?"
_APPEARS = "(?:B|VP?|Z)y?"
_NOT = "(?:tB|tm?B|T)?x(?!k)"
_HEAD = "(?=[NWJDAQVvRZB])"
_WAYS = tuple(
    re.compile(pattern)
    for pattern in (
        f"{_PLACE}{_BARE}o{_ANY}(?:X|(?:{_APPEARS}|{_VERB}){_NOT}){_HEAD}",  # 人のいない街
        f"{_PLACE}{_FULL}(?:[gwhm]{_ANY}|{_ANY})(?:X|Bx|{_VERB}{_NOT}){_HEAD}",  # 帽子をかぶっていない少年
        f"{_PLACE}{_FULL}[gm]{_ANY}{_APPEARS}{_NOT}{_HEAD}",  # 鳥が飛んでいない空
        f"{_PLACE}(?P<nobody>Nm|N?Q+m){_APPEARS}{_NOT}{_HEAD}",  # 誰もいない教室
        f"{_PLACE}{_FULL}[gwhm]?{_ANY}{_VERB}x[it](?=[NWJDAQVvRSZB])",  # 傘を持たずに歩く人
        f"{_PLACE}{_FULL}[gwhm]?R*K(?:do|o|d|i|$|(?=[^NWU]))",  # 帽子なしの少年
        f"{_FULL}Eo",  # 猫以外の動物
        f"{_FULL}U(?:o|d|i|$|(?=[NW]))",  # パクチー抜きのラーメン
        f"{_FULL}w?C[kt]?{_HEAD}",  # 人物を除く風景
        f"{_FULL}(?:dh?|zh?)(?:X|Gt?){_HEAD}",  # 人間ではない生き物
    )
)
"""Before the thing that is without: the match leaves the text, `things` go to the negative prompt (`nobody`: 人)."""

_WISHES = tuple(
    re.compile(pattern)
    for pattern in (
        f"{_PLACE}{_FULL}[gwhm]?{_ANY}(?:VP?|WS)y?(?:tB|T)?(?:[xq](?P<rest>.*)|(?P<never>j))$",  # 文字を入れないで, 文字を入れるな
        f"{_PLACE}{_FULL}[gwhm]?{_ANY}(?:F|Iy?x|Y[hg]?(?:X|By?x))(?P<rest>.*)$",  # 文字は不要, 文字はいらない
        f"{_PLACE}{_FULL}[gwhm]?{_ANY}(?:C|cS?)(?:t|$|(?=N))(?P<rest>.*)$",  # 影は避けて
        f"^{_PLACE}{_FULL}h{_ANY}ut(?P<rest>.*)$",  # 人は消して
        f"^{_PLACE}{_FULL}[gwh]?{_ANY}r(?:yt|tVt|tL)(?P<rest>.*)$",  # ピクルスは抜いといて
        f"^{_PLACE}{_FULL}[gwhm]?{_ANY}V(?P<must>.*)$",  # 文字を入れちゃだめ
        f"^{_PLACE}{_FULL}[ghm]{_ANY}(?:X|By?x)$",  # 人はいない
        f"^{_PLACE}{_BARE}o{_ANY}(?:X|By?x)$",  # 人のいない、静かな街
    )
)
"""At the end of a clause: it goes whole if what follows the negation (`rest`, `must`) asks."""

_FORBIDS = re.compile(
    "(?:とい)?ても?(?:いい|良い|よい|ええ|結構|大丈夫|構いません|かまいません|や|な|ね)(?:です)?[よねでな]*|で(?:ええ|いい)[よでな]*|"
    f"(?:で|ように?|こと|に|)(?:してね?)?{ASKING}|(?:ように)?で?(?:お願い(?:いた)?(?:します)?|です|ね)*"
)
_MUST_NOT = re.compile(
    "[ぁ-ん一-鿿]{1,4}(?:ちゃ|ては|たら|んといて|んで)(?:ダメ|だめ|駄目|あかん|いけない|いけません|ならない|[やなねよ]*$)[ぁ-ん]*$"
)


class _Clause(NamedTuple):
    """A clause, where it starts, and the separator that follows it."""

    start: int
    text: str
    after: str


def negation(text: str) -> list[Change]:
    """A change for every stretch that says what must not appear, with the things in `negative`."""
    if not _TRIGGER.search(text):
        return []
    clauses = list(_split(text))
    alone = sum(bool(clause.text.strip()) for clause in clauses) < 2
    quoted = [match.span() for match in _QUOTED.finditer(text)]
    changes: list[Change] = []
    before = ""  # the separator that stands before the clause once the changes are made
    for n, clause in enumerate(clauses):
        found = [change for change in _negations(clause, alone) if not any(start < change.start < end for start, end in quoted)]
        if len(found) == 1 and found[0].end - found[0].start == len(clause.text.strip()):
            first = _list_start(clauses, n)
            if first < n:
                changes = [change for change in changes if change.start < clauses[first].start]
                before = clauses[first - 1].after if first else ""
            things = (*(listed.text.strip() for listed in clauses[first:n]), *found[0].negative)
            change = _whole(clauses[first].start, clause, before, things)
            before = clause.after if change.start < clauses[first].start else before
            changes.append(change)
        else:
            changes += found
            before = clause.after if clause.text else before + clause.after
    return changes


def _split(text: str) -> Iterator[_Clause]:
    pieces = _CLAUSES.split(text)
    at = 0
    for body, after in zip(pieces[::2], [*pieces[1::2], ""], strict=True):
        yield _Clause(at, body, after)
        at += len(body) + len(after)


def _list_start(clauses: list[_Clause], n: int) -> int:
    """The first clause of the list that clause n ends (人物、建物はなしで), when a sentence is nothing but that list; else n."""
    first = n
    while first and not _strong(clauses[first - 1].after):
        first -= 1
    nouns = all(clause.text and all(letter(word) in "NWn" for word in words(clause.text.strip())) for clause in clauses[first:n])
    others = any(clause.text.strip() for clause in [*clauses[:first], *clauses[n + 1 :]])
    topic = "h" in spell(clauses[n].text).letters
    return first if nouns and others and topic and (_strong(clauses[n].after) or not clauses[n].after) else n


def _whole(start: int, last: _Clause, before: str, things: tuple[str, ...]) -> Change:
    """The change of whole clauses from `start` to the end of `last`: it takes one separator with it."""
    end = last.start + len(last.text)
    if before and (not _strong(before) or (not last.after and "\n" in before)):
        return Change(start - len(before), end, "", things)
    return Change(start, end + len(last.after), "", things)


def _strong(separator: str) -> bool:
    return any(sign in separator for sign in "。!?\n")


def _negations(clause: _Clause, alone: bool) -> list[Change]:
    """The changes inside one clause; `alone`: it is all there is."""
    lead = LEAD.match(clause.text)
    skip = lead.end() if lead else 0
    found: list[Change] = []
    while skip < len(clause.text) and _TRIGGER.search(clause.text, skip):
        change = _first(spell(clause.text[skip:]), clause.start + skip, alone)
        if change is None:
            break
        found.append(change)
        skip = change.end - clause.start
    return found


def _first(spelling: Spelling, start: int, alone: bool) -> Change | None:
    asks = bool(REQUEST.search(spelling.text))
    ways = [
        match
        for way in _WAYS
        for match in way.finditer(spelling.letters)
        if _is_seen(match, spelling) and not _is_headless(match, spelling) and (asks or not _tells(match))
    ]
    row = spelling.words
    if ways:
        match = min(ways, key=lambda m: (m.start(), -m.end()))
        return Change(start + row[match.start()].start, start + row[match.end() - 1].end, "", _things(match, row))
    for wish in _WISHES:
        found = wish.search(spelling.letters)
        if found and _is_seen(found, spelling) and _is_wished(found, spelling, alone):
            return Change(start + row[found.start()].start, start + len(spelling.text), "", _things(found, row))
    return None


def _is_seen(match: re.Match[str], spelling: Spelling) -> bool:
    """Whether the things can be seen, and the words are no name of something (袖なし)."""
    row, things = spelling.words, _things(match, spelling.words)
    if not things or any(thing in _UNSEEN for thing in things) or _is_name(things[-1], match[0]):
        return False
    end = match.end("things") if _group(match, "things") else match.end("nobody")
    if "C" in match[0] and things[-1] in _CLEARED:
        return False
    if match.start():
        before = match.string[match.start() - 1]
        if row[match.start() - 1].surface in _PERSONS or (before in "vrVZBSTkxy" and match[0][0] in "NWQ"):
            return False  # a clause of its own says which thing: 帰る場所のない, 見る影もない
    compound = match.string[end - 2 : end] in ("NN", "WN")  # 観光客 is no 客
    first = next((word.surface for word, sign in zip(row[match.start() :], match[0], strict=False) if sign in "NWJQ"), "")
    return (compound or row[end - 1].surface not in _UNSEEN) and first not in _PERSONS


def _is_name(thing: str, letters: str) -> bool:
    """Whether it makes a word of its own with the なし or 抜き that follows, or is a manner (言いよう)."""
    followed = ("抜き",) if "U" in letters else ("なし", "無し") if "K" in letters else ()
    return thing.endswith(("よう", "間違い", "文句")) or any(f"{thing}{none}" in _COMPOUNDS for none in followed)


def _is_headless(match: re.Match[str], spelling: Spelling) -> bool:
    """Whether nothing that can be drawn follows (…ないわけ, …ないように)."""
    return match.end() < len(spelling.words) and spelling.words[match.end()].lemma in _NO_HEADS


def _tells(match: re.Match[str]) -> bool:
    """Whether it tells a story rather than what to draw: the clause has a topic and ends in what it does."""
    letters, end = match.string, match.end()
    does = letters.rstrip("s")[-1:] not in "NWJQKU"
    return does and end < len(letters) and ("h" in letters[: match.start()] or letters[end - 1] in "dit" or letters[end] == "h")


def _is_wished(match: re.Match[str], spelling: Spelling, alone: bool) -> bool:
    """Whether a clause that ends in a negation is a wish for the picture rather than a story: by what follows it, or beside other clauses."""
    must, never = _group(match, "must"), _group(match, "never")
    if must or never:
        verb = spelling.words[match.start("must" if must else "never") - 1]
        if verb.lemma not in (_DRAWN_ALONE if alone else _DRAWN):
            return False
        return bool(never) or bool(_MUST_NOT.match(spelling.text, verb.start))
    at = match.start("rest") if "rest" in match.re.groupindex else len(match.string)
    ends = at == len(match.string)
    if "u" in match[0] or (ends and match.string[-1] in "xX" and "I" not in match[0]):
        return match.start() == 0 and not alone
    rest = "" if ends else spelling.text[spelling.words[at].start :]
    return bool(_FORBIDS.fullmatch(rest.strip(" !。")))


def _things(match: re.Match[str], row: tuple[Word, ...]) -> tuple[str, ...]:
    """The nouns of the match that go to the negative prompt."""
    if _group(match, "nobody"):
        return ("人",) if row[match.start("nobody")].surface in _NOBODY or "人" in row[match.start("nobody")].surface else ()
    start, end = match.span("things")
    things: list[str] = [""]
    for sign, word in zip(match.string[start:end], row[start:end], strict=True):
        if sign in "&m":
            things.append("")
        elif word.surface not in ("など", "、", "・"):
            things[-1] += word.surface
    return tuple("人" if thing in _NOBODY else thing for thing in things if thing)


def _group(match: re.Match[str], name: str) -> str | None:
    return match[name] if name in match.re.groupindex else None
