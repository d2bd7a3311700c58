"""What a prompt holds beside words: LoRA tags `<lora:名前:0.8>` and comments."""

from __future__ import annotations

import math
import re

from jpgen.prompt.scan import NUMBER, to_ascii

REST = rf"(?:[:：]\s*(?P<{{0}}>{NUMBER})\s*(?:[:：][^<>＜＞\n]*)?)?[>＞]"
TAG = re.compile(
    r"[<＜](?P<kind>lora|lyco|ｌｏｒａ|ｌｙｃｏ)"
    # After an ASCII colon a full-width one may be part of the file's name, unless a number follows it.
    rf"(?::(?P<name>[^<>＜＞\n:]*?[^<>＜＞\n:\s][^<>＜＞\n:]*?){REST.format('weight')}"
    rf"|：(?P<wide_name>[^<>＜＞\n:：]*?[^<>＜＞\n:：\s][^<>＜＞\n:：]*?){REST.format('wide_weight')})",
    re.IGNORECASE,
)
"""A regular expression: a LoRA tag of either width. More fields after the weight are allowed."""

SEPARATORS = ",、，"
COMMENT = re.compile(r"(?:^|(?<=\s))#(?=\s|$)")


def extract_loras(text: str) -> tuple[str, list[tuple[str, float]]]:
    """The text without its LoRA tags, and their names (as typed) and weights in order.

    `<lora:名前>`, `<lora:名前:0.8>`, `<lyco:…>` and their full-width twins; a second weight is ignored. Of two separators around a tag one goes,
    at either end of the text or of a bracket both do. A tag that is not well formed stays text.

        >>> extract_loras("猫、<lora:水彩 絵柄:0.8>、夕焼け")
        ('猫、夕焼け', [('水彩 絵柄', 0.8)])
    """
    found: list[tuple[str, float]] = []
    kept, at = "", 0
    for tag in TAG.finditer(text):
        weight = float(to_ascii(tag["weight"] or tag["wide_weight"] or "1"))
        if not math.isfinite(weight):
            continue
        found.append((tag["name"] or tag["wide_name"], weight))
        between = text[at : tag.start()]
        if not at:
            kept = between
        elif between.strip():
            kept = _joined(kept, between)
        at = tag.end()
    return (_joined(kept, text[at:]) if found else text), found


def strip_comments(text: str) -> str:
    """The text without comments: from a # that stands at the start of a line or after a space, and before a space, to the end of its line.

    A line that starts with # also is one without the space, unless all lines start so: then they are hashtags (#猫 #夕焼け). Lines that held nothing
    but a comment go.

        >>> strip_comments("#構図\\n猫、夕焼け # 色は後で")
        '猫、夕焼け'
    """
    if "#" not in text:
        return text
    lines = text.split("\n")
    mixed = any(line.strip() and not line.lstrip().startswith("#") for line in lines)
    kept = []
    for line in lines:
        comment = 0 if mixed and line.lstrip().startswith("#") else found.start() if (found := COMMENT.search(line)) else None
        if comment is None:
            kept.append(line)
        elif words := line[:comment].rstrip():
            kept.append(words)
    return "\n".join(kept)


def _joined(left: str, right: str) -> str:
    """Two texts with the tag between them gone: one separator where there were two, none at an end, and the longer of the two breaks."""
    words, rest = left.rstrip(), right.lstrip()
    space = max(left[len(words) :], right[: len(right) - len(rest)], key=lambda blank: (blank.count("\n"), len(blank)))
    starts, ends = not words or words[-1] in "([{（［｛", not rest or rest[0] in ")]}）］｝"
    if rest and rest[0] in SEPARATORS and (starts or words[-1] in SEPARATORS):
        after = rest[1:]
        rest = after.lstrip()
        space = max(space, after[: len(after) - len(rest)], key=lambda blank: blank.count("\n"))
    if ends and words and words[-1] in SEPARATORS:
        words = words[:-1].rstrip()
    if starts or ends:
        return words + rest
    return words + ("" if rest and rest[0] in SEPARATORS else space) + rest
