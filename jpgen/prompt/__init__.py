"""The prompt layer: from what a person typed to what an encoder sees."""

from jpgen.prompt.chain import RULES, normalize
from jpgen.prompt.lexicon import Entry, Lexicon, load_lexicon
from jpgen.prompt.schedule import schedule
from jpgen.prompt.styles import Style, apply_style, load_styles
from jpgen.prompt.wildcards import Wildcards

__all__ = ["RULES", "Entry", "Lexicon", "Style", "Wildcards", "apply_style", "load_lexicon", "load_styles", "normalize", "schedule"]
