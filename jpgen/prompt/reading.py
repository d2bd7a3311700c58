"""A prompt as it was given, checked and read."""

from __future__ import annotations

from jpgen.errors import PromptError
from jpgen.prompt import chain
from jpgen.types import Prompt

MAX_CHARACTERS = 2000


def read_prompt(prompt: str | Prompt, negative: str = "", *, normalize: bool = True, seed: int = 0) -> Prompt:
    """What a pipeline draws: the prompt read by `normalize` (or as it stands), `seed` choosing among variants; a Prompt is taken as it is.

    Raises PromptError for what is empty, longer than MAX_CHARACTERS or not text.
    """
    if isinstance(prompt, Prompt):
        return prompt
    text, negative = _clean(prompt, "プロンプト / prompt"), _clean(negative, "ネガティブ / negative")
    if not text.strip():
        raise PromptError("プロンプトが空です。描きたいものを書いてください（例: 夕焼けの海に浮かぶ赤い船） / the prompt is empty: say what to draw")
    if not normalize:
        return Prompt(source=text, text=text, negative=negative, spans=((text, 1.0),))
    read = chain.normalize(text, negative=negative, seed=seed)
    if not read.text.strip() and not read.loras:
        raise PromptError(
            f"「{text.strip()[:40]}」から描くものが読み取れません。描きたいものを書くか、normalize=False で文のまま渡してください / "
            "nothing to draw is left: say what to draw, or pass normalize=False (--no-normalize) to take the text as it stands"
        )
    return read


def _clean(text: str, what: str) -> str:
    if not isinstance(text, str):
        raise PromptError(f"{what}: 文字列ではなく {type(text).__name__} です / wanted a string, got {type(text).__name__}")
    if len(text) > MAX_CHARACTERS:
        raise PromptError(
            f"{what}: 長すぎます（{len(text)} 文字、上限 {MAX_CHARACTERS}）。短くしてください / "
            f"{len(text)} characters, at most {MAX_CHARACTERS}: shorten it"
        )
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise PromptError(
            f"{what}: {error.start + 1} 文字目が壊れています（サロゲートの片割れ）。入力し直してください / "
            f"character {error.start + 1} is a lone surrogate: type it again"
        ) from error
    return text
