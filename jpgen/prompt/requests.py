"""Requests: what asks for a picture goes, the picture stays.

A sentence is a request when it *ends* in one: 「猫の絵を描いてください」. A verb of drawing anywhere else (絵を描く少女) is part of the picture.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from jpgen.prompt import asking
from jpgen.prompt.change import Change, difference
from jpgen.prompt.characters import SHIELDED

_TERMINATORS = re.compile("([。!?！？\n]+|[:：]\\s*\n*|、(?!と|って|[Tt]h|ありがと))")
_ORNAMENTS = f"[ 、,…〜ー♪☆★♡♥{SHIELDED}]"
_AROUND = re.compile(f"^{_ORNAMENTS}+|{_ORNAMENTS}+$")


class _Sentence(NamedTuple):
    """A sentence, where it starts, where what ends it stops, and what ends it."""

    start: int
    stop: int
    text: str
    terminator: str


def requests(text: str) -> list[Change]:
    """A change for every sentence that asks; none where nothing would be left."""
    sentences = _split(text)
    said = [sentence for sentence in sentences if sentence.text.strip()]
    bodies = [_picture(sentence, alone=len(said) == 1) for sentence in sentences]
    if all(body is None for body in bodies) and not (len(said) > 1 and any(asking.PLEADING.fullmatch(_AROUND.sub("", s.text)) for s in said)):
        return []
    bodies = ["" if body is None and _is_polite(sentence) else body for sentence, body in zip(sentences, bodies, strict=True)]
    if not any(body if body is not None else sentence.text.strip() for body, sentence in zip(bodies, sentences, strict=True)):
        return []
    last = max(n for n, body in enumerate(bodies) if body != "")
    found: list[Change] = []
    for n, (sentence, body) in enumerate(zip(sentences, bodies, strict=True)):
        if body is None:
            continue
        lines = "\n" * sentence.terminator.count("\n")
        stop = "" if lines and sentence.terminator[0] not in "。!?" else "、" if sentence.terminator == "、" else "。"
        end = "" if not body or n >= last else f"{stop}{lines}"
        found += difference(text[sentence.start : sentence.stop], f"{body}{end}", sentence.start)
    return found


def _picture(sentence: _Sentence, *, alone: bool) -> str | None:
    """What is left of a sentence that asks, "" where it only asks, None where it asks nothing."""
    stripped = asking.AFTERWORD.sub("", _AROUND.sub("", sentence.text))
    lead = _without_lead(stripped)
    if asking.PLEADING.fullmatch(stripped):
        return None
    heads = not alone and any(sign in sentence.terminator for sign in ":：\n")
    if heads and asking.TITLE.fullmatch(stripped):
        return ""
    body = None if alone and asking.PERSONAL.match(lead) else _body(lead, heads=heads, alone=alone)
    if body is None:
        return None
    quoted = asking.QUOTED.match(body)
    return quoted[1] if quoted else body


def _is_polite(sentence: _Sentence) -> bool:
    """Whether the sentence is nothing but manners."""
    stripped = _AROUND.sub("", sentence.text)
    return bool(stripped) and (not _without_lead(stripped) or bool(asking.MANNERS.fullmatch(stripped)))


def _split(text: str) -> list[_Sentence]:
    found, at, depth, start = [], 0, 0, 0
    for match in _TERMINATORS.finditer(text):
        depth += sum((c in "「『(（") - (c in "」』)）") for c in text[at : match.start()])
        at = match.end()
        if (depth > 0 and "\n" not in match[0]) or (match[0] == "、" and not _ends_politely(text[start : match.start()])):
            continue
        depth = 0
        found.append(_Sentence(start, match.end(), text[start : match.start()], match[0]))
        start = match.end()
    if start < len(text):
        found.append(_Sentence(start, len(text), text[start:], ""))
    return found


def _ends_politely(text: str) -> bool:
    """Whether the text is a request of some length with a polite end."""
    return bool(asking.POLITE_END.search(text)) and asking.asks(text) and not asking.PLEADING.fullmatch(_AROUND.sub("", text))


def _without_lead(text: str) -> str:
    """The text after what is said before a request: a lead needs a pause after it, but for some."""
    while match := asking.LEAD.match(text):
        lead = match[0]
        if not lead or (match.end() < len(text) and lead[-1] not in "、,。!… がど" and not asking.FIRM.match(lead)):
            break
        text = text[match.end() :]
    return text


def _body(text: str, *, heads: bool, alone: bool) -> str | None:
    """What the sentence asks for; empty where it only asks; None where it asks nothing."""
    match = asking.REQUEST.search(text) if asking.ENDING.search(text) else None
    if match is None:
        return None
    verb = match["verb"] or ""
    body = asking.EAGER.sub("", text[: match.start()])
    if asking.EMPTY.match(body) or (heads and (not body or asking.HEADER.match(body))):
        return ""
    if not body or (verb and alone and asking.DAILY.match(verb) and not asking.PICTURE.search(body)):
        return None
    if verb.startswith(("書", "かい")) and (asking.WRITTEN.search(body) or body.endswith(("と", "」", "に"))):
        return None
    if re.match(asking.MAKING, verb):
        body = body.removesuffix("の")  # 海の絵の作成をお願いします
    if alone and not verb and asking.ERRAND.search(body):
        return None
    particle = asking.OBJECT.search(body)
    if particle:
        body = body[: particle.start()]
    else:
        manner = _manner(body, verb, alone)
        if manner is None:
            return None
        body = manner
    contents = _contents(body.rstrip("、, "))
    return "" if asking.EMPTY.match(contents) else contents


def _manner(body: str, verb: str, alone: bool) -> str | None:
    """The body with how to draw it as an item of its own: 猫を水彩画風に → 猫、水彩画風."""
    if body.endswith(("まで", "ように", "からで", "だけで")):
        return None
    match = asking.MANNER.match(body)
    if match is None or match["how"].endswith(("ない", "ず")):
        bare = asking.BARE.match(body)
        if bare:
            return bare[1] if verb or body.endswith("で") or not alone or asking.PICTURE.search(body) else None
        return body if not verb or asking.BARE_VERB.match(verb) or asking.BARE_BODY.search(body) else None
    what, how, end = match["what"], match["how"], match["end"]
    if asking.FORM.fullmatch(how):
        return what
    return f"{_contents(what)}、{how}{end if end in ('く', 'っぽく') else ''}"


def _contents(body: str) -> str:
    """The body without 「の画像」 and the like at its end."""
    body = asking.SUBJECT.sub("", re.sub(f"の{asking.MAKING}$", "", body))
    while True:
        shorter = asking.COUNTED.sub("", body)
        match = asking.CONTAINED.search(shorter)
        if match is None:
            return shorter if shorter else body
        head = shorter[: match.start()]
        joint = match["joint"]
        if not head:
            return ""
        if asking.SUBJECT.search(head):
            return asking.SUBJECT.sub("", head)
        if (not joint and head[-1] not in asking.CLAUSE_ENDS) or asking.DRAWINGS.search(head + joint):
            return shorter
        body = head
        if joint:
            return body
