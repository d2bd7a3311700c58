"""normalize: from what a person typed to what an encoder sees, by the rules in their one order."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from jpgen.errors import UnknownNameError
from jpgen.prompt import characters
from jpgen.prompt.change import Change, Rule, difference, splice
from jpgen.prompt.counts import counts
from jpgen.prompt.fullwidth import ascii_syntax
from jpgen.prompt.lexicon import reading_notes
from jpgen.prompt.negation import negation
from jpgen.prompt.requests import requests
from jpgen.prompt.schedule import has_schedule, schedule
from jpgen.prompt.syntax import escape, parse_attention, render, split_and
from jpgen.prompt.tags import extract_loras, strip_comments
from jpgen.prompt.variants import expand
from jpgen.prompt.wildcards import Wildcards
from jpgen.types import Edit, Prompt

Spans = list[tuple[str, float]]

BREAK = "BREAK"

CHARACTERS: dict[str, Rule] = {
    "emoji": characters.emoji,
    "invisible": characters.invisible,
    "kanji": characters.kanji,
    "width": characters.width,
    "runs": characters.runs,
    "laughter": characters.laughter,
    "edges": characters.edges,
}
"""Rules of single characters, for any text that is not plain ASCII; before the syntax is read."""

MEANING: dict[str, Rule] = {
    "negation": negation,
    "requests": requests,
    "counts": counts,
}
"""Rules of meaning, for the text without its syntax."""

RULES = ("lora", *CHARACTERS, "width_of_syntax", "comments", "variants", "syntax", *MEANING, "notes")
"""Every rule by name, in the order they are applied; `off` takes these names."""

_ACROSS_MARKS = {name: CHARACTERS[name] for name in ("width", "runs", "laughter", "edges")}
"""Rules of characters that see more where the marks of the syntax are gone."""

_WIDE_MARKS = re.compile("[（）［］｛｝：｜]")
_MOST_ROUNDS = 20
_STOPS = " 、。,.!?\n"


def normalize(
    text: str,
    *,
    negative: str = "",
    off: Collection[str] = (),
    seed: int = 0,
    lexicon: Sequence[Path] = (),
    wildcards: Wildcards | None = None,
) -> Prompt:
    """What the text asks for, as an encoder should see it, and what must not appear.

    `negative` is what was said apart; it stays in front of what the text says. `off` names rules to leave out (see `RULES`), or one rewrite of a rule
    of CHARACTERS or MEANING ("counts:三" leaves 三 as it is); `seed` chooses among {a|b} and __wildcards__, `lexicon` adds files of expressions,
    `wildcards` are others than jpgen's own.
    Raises PromptError for a wildcard or a lexicon file that cannot be read, UnknownNameError for a rule that is not there.

        >>> from jpgen import normalize
        >>> normalize("帽子をかぶっていない少年の絵を描いてください").text
        '少年'
    """
    for name in off:
        rule, single, _ = name.partition(":")
        if rule not in ((*CHARACTERS, *MEANING) if single else RULES):
            raise UnknownNameError.of("規則 / rule", name, RULES)
    edits: list[Edit] = []
    notes: list[str] = []
    body, loras = (text, []) if "lora" in off else extract_loras(text)
    edits += _edit("lora", text, body)
    body, faces = characters.shield(body)
    body = _written_plainly(body, off, edits)
    if "variants" not in off and ("{" in body or "__" in body):
        before = body
        body, chosen = expand(body, seed, wildcards or Wildcards.default())
        edits += _edit("variants", before, body)
        notes += chosen
    spans, plan = _spans(body, notes) if "syntax" not in off else ([(body, 1.0)], "")
    unwanted: list[str] = []
    rules = _without(MEANING, off) | ({} if text.isascii() else _without(_ACROSS_MARKS, off))
    for _ in range(_MOST_ROUNDS):  # what a rule takes away may bring together what another one reads
        before_round = spans
        for name, apply in rules.items():
            spans = _apply(name, apply, spans, edits, unwanted)
        if spans == before_round:
            break
    spans = [(characters.unshield(run, faces), weight) for run, weight in spans if run]
    text_seen = _text(spans)
    if "notes" not in off and not text_seen.isascii():
        notes += reading_notes(text_seen, lexicon)
    return Prompt(
        source=text,
        text=text_seen,
        negative=_joined(_negative(negative, off), [escape(characters.unshield(item, faces)) for item in unwanted]),
        spans=tuple(spans),
        edits=tuple(edits),
        notes=tuple(notes),
        loras=tuple(loras),
        schedule=plan,
        written=" ".join(filter(None, (_written(spans), "".join(f"<lora:{name}:{weight:g}>" for name, weight in loras)))),
    )


def _without(rules: dict[str, Rule], off: Collection[str]) -> dict[str, Rule]:
    """The rules without those, and the single rewrites, that are left out."""
    return {name: _sparing(name, rule, off) for name, rule in rules.items() if name not in off} if off else rules


def _sparing(name: str, rule: Rule, off: Collection[str]) -> Rule:
    """The rule, leaving as they are the stretches of text that are named behind its name."""
    return lambda text: [change for change in rule(text) if f"{name}:{text[change.start : change.end]}" not in off]


def _written_plainly(text: str, off: Collection[str], edits: list[Edit]) -> str:
    """The text after the rules of characters, width of syntax and comments."""
    for name, rule in _without(CHARACTERS, off).items():
        if not text.isascii():
            text = _until_done(rule, text, name, edits)
    for name, step in (("width_of_syntax", ascii_syntax), ("comments", strip_comments)):
        if name not in off:
            before, text = text, step(text)
            edits += _edit(name, before, text)
    return text


def _negative(text: str, off: Collection[str]) -> str:
    """A negative prompt typed apart, in the notation of stable-diffusion-webui."""
    body, faces = characters.shield(extract_loras(text)[0])
    return "".join(escape(face) if sign != face else sign for sign in _written_plainly(body, off, []) for face in (characters.unshield(sign, faces),))


def _joined(typed: str, found: Sequence[str]) -> str:
    if not typed.strip():
        return "、".join(found)
    items = [item for item in found if item not in re.split("[、,] *", typed)]
    return (", " if typed.isascii() and not items else "、").join([typed, *items])


def _written(spans: Spans) -> str:
    """The spans in the notation of stable-diffusion-webui, full-width brackets escaped where they would be read as syntax."""
    written = render(spans)
    return written if ascii_syntax(written) == written else _WIDE_MARKS.sub(r"\\\g<0>", written)


def _text(spans: Spans) -> str:
    """What the spans say; a BREAK leaves one 、 unless a stop stands there."""
    text = ""
    for run, weight in spans:
        if (run, weight) != (BREAK, -1.0):
            text += run
        elif text and text[-1] not in _STOPS:
            text += "、"
    return text


def _until_done(rule: Rule, text: str, name: str, edits: list[Edit]) -> str:
    for _ in range(_MOST_ROUNDS):
        changes = rule(text)
        if not changes:
            break
        edits += [Edit(name, text[change.start : change.end], change.after) for change in changes]
        text = splice(text, changes)
    return text


def _edit(name: str, before: str, after: str) -> list[Edit]:
    return [Edit(name, before[change.start : change.end], change.after) for change in difference(before, after)]


def _spans(body: str, notes: list[str]) -> tuple[Spans, str]:
    """The weighted spans of a text with syntax, and its schedule as typed ("" for none)."""
    if not any(sign in body for sign in "([\\BA"):
        return [(body, 1.0)], ""
    plan = ""
    if has_schedule(body):
        plan, body = body, schedule(body, 100)[-1][1]
        notes.append("[a:b:0.5] などのスケジュールは読み取りましたが、モデルには最後の形を渡します")
    parts = split_and(body)
    if len(parts) > 1:
        notes.append("AND（合成）は BREAK と同じ区切りとして扱い、重みは各部分に掛けます")
    spans: Spans = []
    for part, weight in parts:
        if spans:
            spans.append((BREAK, -1.0))
        spans += [(run, w if run == BREAK and w == -1 else w * weight) for run, w in parse_attention(part.strip() if len(parts) > 1 else part)]
    return spans, plan


def _apply(name: str, rule: Rule, spans: Spans, edits: list[Edit], negative: list[str]) -> Spans:
    """The spans after a rule has run on every part between BREAKs; a replacement takes the weight of what it replaces."""
    result: Spans = []
    for part in _parts(spans):
        if part == [(BREAK, -1.0)]:
            result += part
            continue
        for _ in range(_MOST_ROUNDS):
            text = "".join(run for run, _ in part)
            changes = rule(text)
            if not changes:
                break
            edits += [Edit(name, text[change.start : change.end], change.after) for change in changes]
            negative += [item for change in changes for item in change.negative if item not in negative]
            part = _spliced(part, changes)
        result += part
    return result


def _parts(spans: Spans) -> Iterator[Spans]:
    part: Spans = []
    for span in spans:
        if span == (BREAK, -1.0):
            yield part
            yield [span]
            part = []
        else:
            part.append(span)
    yield part


def _spliced(spans: Spans, changes: Sequence[Change]) -> Spans:
    text = "".join(run for run, _ in spans)
    if len(spans) == 1:
        return [(splice(text, changes), spans[0][1])]
    weights = [weight for run, weight in spans for _ in run]
    pieces: list[tuple[str, float]] = []
    done = 0
    for change in changes:
        pieces += zip(text[done : change.start], weights[done : change.start], strict=True)
        inherited = weights[change.start] if change.start < change.end else weights[max(change.start - 1, 0)]
        pieces += [(sign, inherited) for sign in change.after]
        done = change.end
    pieces += zip(text[done:], weights[done:], strict=True)
    return _merged(pieces)


def _merged(spans: Sequence[tuple[str, float]]) -> Spans:
    merged: Spans = []
    for run, weight in spans:
        if merged and merged[-1][1] == weight and run != BREAK:
            merged[-1] = (merged[-1][0] + run, weight)
        else:
            merged.append((run, weight))
    return merged
