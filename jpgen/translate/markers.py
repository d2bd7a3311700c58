"""Markers: one character that stands for a word of the glossary while a text is translated, told apart by what the word is.

They lie in Unicode's private use area, so nobody types them; the built-in translator has learnt to carry them over.
"""

from __future__ import annotations

NOUNS = tuple(map(chr, range(0xE000, 0xE006)))
LOOKS = tuple(map(chr, range(0xE010, 0xE014)))
PLACES = tuple(map(chr, range(0xE020, 0xE024)))
STYLES = tuple(map(chr, range(0xE030, 0xE034)))

MARKERS = (*NOUNS, *LOOKS, *PLACES, *STYLES)
"""Every marker, for a vocabulary to know."""

OF_KIND = {
    **dict.fromkeys(("colour", "onomatopoeia"), LOOKS),
    **dict.fromkeys(("place", "light", "weather", "season"), PLACES),
    **dict.fromkeys(("medium", "style"), STYLES),
}
"""The markers of a lexicon kind; those of all others are `NOUNS`."""
