"""How Japanese reaches a backbone: which of the four routes a pipeline takes, and what to do where the wanted one is not open."""

from __future__ import annotations

from jpgen.errors import IncompatibleError, UnknownNameError

ROUTES = ("auto", "native", "adapter", "translate", "raw")
"""auto: the first that is open of what was given and what the catalogue says; native: the model reads Japanese; adapter: a Japanese encoder speaks
the model's language; translate: the prompt is put into English first; raw: the model gets the prompt as it is, whatever it reads."""


def choose_route(wanted: str, own: str, model: str, *, adapter: bool, translator: bool) -> str:
    """The route of a pipeline: `wanted` of ROUTES, for a model whose catalogue row says `own`, with what is at hand.

    Raises UnknownNameError, and IncompatibleError saying what to do for a route that is not open.

        >>> choose_route("auto", "translate", "sdxl-base", adapter=False, translator=False)
        'raw'
    """
    if wanted not in ROUTES:
        raise UnknownNameError.of("経路 / route", wanted, ROUTES)
    if wanted == "auto":
        if adapter or translator:
            return "adapter" if adapter else "translate"
        return "raw" if own in ("translate", "adapter") else own
    lacking = {
        "native": "" if own == "native" else f"{model} は日本語を読みません / reads no Japanese: use the route translate, adapter or raw",
        "adapter": "" if adapter else f"{model} に合うアダプタを adapter= に / give an adapter trained for {model} (jpgen train adapter)",
        "translate": "" if translator else "翻訳モデルを translator= に / give a translator (a name that jpgen models lists, or a folder)",
        "raw": "",
    }[wanted]
    if lacking:
        raise IncompatibleError(f"経路 {wanted} は使えません / the route {wanted} is not open: {lacking}")
    return wanted
