"""Characters: one way to write each, the meaning untouched. NFKC, but for what would turn into prompt syntax or lose a face."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from jpgen.prompt.change import Change, substitute

WORDS = Path(__file__).parent / "words"

JAPANESE = "々〆ぁ-ゖァ-ヺー一-鿿㐀-䶿𠀀-𯿿"
"""A class of the characters that Japanese words are written in, for patterns."""

_MARKS = "、。,.:：;!?！？・（）()「」『』［］｛｝"
_FIRST_SHIELD = 0xF0000
SHIELDED = "\U000f0000-\U000ffffd"
"""A class of the characters that stand for kaomoji, for patterns."""

_SHIELDS = re.compile(f"[{SHIELDED}]")

_SIGN = r"[^()（）\[\]{}<>\n0-9A-Za-zぁ-ゖァ-ヺ々一-鿿\\|:：]"
_KAOMOJI = re.compile(
    rf"[ヽヾ＼ノo٩m╰ԅ乂໒⊂]*(?P<open>\\?)[(（](?P<face>(?:{_SIGN}|[<>:：|]|[oO0xXtTvVuUwWд3づツシ口皿人目益丿]){{2,14}})(?P<close>\\?)[)）]"
    "[ノﾉﾞ゛b۶و丿シﾌｼm╯♡☆♪!^＼/／づっ]*"
)
_MARK = re.compile(r"[^\s,.!?！？、。:：+/&%$#@\"…0-9A-Za-zツシ口皿人目益丿]")
_EMOJI = re.compile("[\u2600-\u27bf\u2b50\u2b55\u2b1b\u2b1c\u231a-\u23ff\u3297\u3299\U0001f000-\U0001faff]")
_GESTURE = re.compile(
    "[\U0001f600-\U0001f64f\U0001f910-\U0001f92f\U0001f970-\U0001f97a\U0001f44a-\U0001f450\U0001f493-\U0001f49f✨❤♡♥💦💨💪💡🎵🎶✌☺]"
)
"""What a person does, not what is drawn, when it follows a request (描いてください🙏)."""

_TRAILING = " 、。!?！？〜ー…"
_SKIN = re.compile("_[^_]*肌色")
_PARTICLE = re.compile("[がをにのとはでもへや]|から|まで|より|みたい|っぽい|風")

_INVISIBLE = re.compile(
    "\r\n?|[\u2028\u2029\x85]|[\x00-\x08\x0b-\x1f\x7f-\x84\x86-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e"
    "\u2060-\u206f\u20e3\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]+"
)
_CIRCLED = re.compile("(?<=([^\\s]))?([\u2460-\u2473\u24ea-\u24ff\u2776-\u2793\u3251-\u325f\u32b1-\u32bf]+)(?=([^\\s]))?")
_KEPT = "（）［］｛｝：｜＜＞＼＿＄"  # they are, or would become, syntax
_ODD = re.compile(
    f"[^\x00-\x7f\u2025\u2026\u3001-\u3015\u301c\u303d\u3041-\u3096\u309d\u309e\u30a1-\u30fe\u4e00-\u9fff\u3400-\u4dbf{_KEPT}]+"
)
_SPECIAL = re.compile(
    "[～〰⁓]|[\xa8\xaf\xb4\xb8\u02d8-\u02dd\u037a\u0384\u0385\u1fbd\u1fbf-\u1fc1\u1fcd-\u1fcf\u1fdd-\u1fdf\u1fed-\u1fef\u1ffd\u1ffe\u2017\u203e\u309b\u309c\ufe49-"
    "\ufe4c\uffe3\ufc5e-\ufc63\ufe70-\ufe7e]|[⁽⁾₍₎⑴-⒵⩴㈀-㉃︓︵︶︷︸﹇﹈﹕﹙-﹜﹟﹤﹥﹨🄐-🄩]"
)
_WIDE = str.maketrans("()[]{}<>:|\\#$", "（）［］｛｝＜＞：｜＼＃＄")
_RUN = re.compile("ー{3,}|〜{3,}|!{2,}|[?]{2,}")
_LAUGHTER = re.compile(rf"(?<=[{JAPANESE}。、!?)）])\s?(?:[wW]+草?|[(（]笑[)）]|笑笑+)(?=[\s、。!?]|$)")
_EDGES = re.compile(r"^\s+|\s+$")


def shield(text: str) -> tuple[str, list[str]]:
    """The text with every kaomoji as one private character, and the kaomoji."""
    faces: list[str] = []

    def hide(match: re.Match[str]) -> str:
        face = match[0]
        if match.re is _KAOMOJI:
            arm = match["open"] and not match["close"] and face[-1] in "/／ノ"
            if not _MARK.search(match["face"]) or (match["open"] != match["close"] and not arm):
                return face
            if match["close"]:  # escaped as the web UI wants it
                face = face.replace("\\(", "(").replace("\\)", ")").replace("\\（", "（").replace("\\）", "）")
        faces.append(face)
        return chr(_FIRST_SHIELD + len(faces) - 1)

    if _SHIELDS.search(text):  # somebody's own private characters are as whole as a face
        text = _SHIELDS.sub(hide, text)
        return text, faces
    if "(" in text or "（" in text:
        text = _KAOMOJI.sub(hide, text)
    return text, faces


def unshield(text: str, faces: Sequence[str]) -> str:
    """The text with its kaomoji back."""
    return _SHIELDS.sub(lambda match: faces[ord(match[0]) - _FIRST_SHIELD], text) if faces else text


def emoji(text: str) -> list[Change]:
    """Emoji become their Japanese names (CLDR), set off with 、 from the words beside them.

    After a request a gesture goes and anything else begins a sentence of its own; a name that stands there already is not said twice (桜🌸).
    """
    if not _EMOJI.search(text):
        return []
    from emoji import demojize, emoji_list

    from jpgen.prompt.asking import asks  # it stands on this module

    found: list[Change] = []
    asked = False
    for match in emoji_list(text):
        start, end, sign = match["match_start"], match["match_end"], match["emoji"]
        name = _SKIN.sub("", demojize(sign, language="ja").strip(":")).replace("_", "、")
        if name == sign or not _EMOJI.search(sign):
            continue
        joined = bool(found) and found[-1].end == start
        asked = asked if joined else asks(text[:start].rstrip(_TRAILING))
        stop = "。" if asked else "、"
        before = start and text[start - 1] not in " 、。,!?！？\n「（(" and not joined
        follows = end < len(text) and text[end] not in " 、。,\n」）)!?" and not _PARTICLE.match(text, end)
        if (asked and _GESTURE.match(sign)) or text.endswith(name, 0, start):
            found.append(Change(start, end, stop if follows else ""))
        else:
            found.append(Change(start, end, f"{stop if before else ''}{name}{stop if follows else ''}"))
    return found


def invisible(text: str) -> list[Change]:
    """Zero-width and control characters and variation selectors go; every line break becomes a newline."""
    return substitute(_INVISIBLE, lambda match: "\n" if match[0][0] in "\r\u2028\u2029\x85" else "", text)


@lru_cache(maxsize=1)
def _kanji() -> dict[str, str]:
    rows = (WORDS / "kanji.tsv").read_text(encoding="utf-8").splitlines()[1:]
    return dict(row.split("\t")[:2] for row in rows)


def kanji(text: str) -> list[Change]:
    """Variants of names (髙, 﨑 …) become the common form; old forms that say something else (龍, 櫻) stay."""
    table = _kanji()
    return [Change(at, at + 1, table[character]) for at, character in enumerate(text) if character in table]


def width(text: str) -> list[Change]:
    """NFKC of what it may touch; what is or would become syntax, and lone accents, stay."""
    changes = [*substitute(_CIRCLED, _circled, text)]
    if changes:
        return changes
    found = []
    for match in _ODD.finditer(text):
        start = match.start()
        start -= start > 0 and text[start - 1] not in _KEPT  # a mark joins the character before it
        before = text[start : match.end()]
        after = _fold(before)
        if after != before:
            same = start < match.start() and after[:1] == before[:1]
            found.append(Change(start + same, match.end(), after[same:]))
    return found


def _circled(match: re.Match[str]) -> str:
    digits = " ".join(unicodedata.normalize("NFKC", sign) for sign in match[2])
    return f"{' ' if match[1] and match[1] not in _MARKS else ''}{digits}{' ' if match[3] and match[3] not in _MARKS else ''}"


def _fold(text: str) -> str:
    kept = _SPECIAL.split(text)
    special = _SPECIAL.findall(text)
    pieces = [unicodedata.normalize("NFKC", kept[0])]
    for sign, plain in zip(special, kept[1:], strict=True):
        pieces += [_special(sign), unicodedata.normalize("NFKC", plain)]
    return "".join(pieces)


def _special(sign: str) -> str:
    if sign in "～〰⁓":
        return "〜"
    folded = unicodedata.normalize("NFKC", sign)
    return sign if folded[0] == " " or unicodedata.combining(folded[-1]) else folded.translate(_WIDE)


def runs(text: str) -> list[Change]:
    """ーーー, 〜〜〜, !! and ?? become one."""
    return substitute(_RUN, lambda match: match[0][0], text)


def laughter(text: str) -> list[Change]:
    """A trailing w, （笑） after Japanese goes."""
    return substitute(_LAUGHTER, "", text)


def edges(text: str) -> list[Change]:
    """Spaces at both ends go."""
    return substitute(_EDGES, "", text)
