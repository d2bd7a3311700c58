"""What one has to know before using a model: its terms, where it is, its size, how it reads Japanese. A card for every row of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass

from jpgen.catalog import SCORERS, TRANSLATORS, Entry, find_model, load_catalog
from jpgen.merged import members
from jpgen.models import accept_license, license_accepted, license_page, restricted, whereabouts
from jpgen.types import SamplingConfig

HERE = ("builtin", "local", "fetched")
"""Places on this machine, of those `where` tells."""


@dataclass(frozen=True)
class ModelCard:
    """A model for a person to choose. `kind`: "model" (it draws), "translator" or "scorer"; `where`: as `jpgen.models.whereabouts` tells.

    `commercial`, `route` and `unverified` are as in the catalogue, `default` its best settings. `asks`: its terms want to be accepted before use,
    `accepted`: they are; `page` is where they are read. `bytes` are those of its weights, 0 where they are not here.
    """

    name: str
    title: str
    kind: str
    family: str
    where: str
    license: str
    commercial: str
    gated: bool
    asks: bool
    accepted: bool
    page: str
    route: str
    default: SamplingConfig
    unverified: tuple[str, ...]
    bytes: int

    @property
    def here(self) -> bool:
        """Whether it can be used at once."""
        return self.where in HERE


def model_cards() -> dict[str, ModelCard]:
    """The cards by name, in the catalogue's order.

    >>> model_cards()["mame"].where
    'builtin'
    """
    return {name: _card(entry) for name, entry in load_catalog().items()}


def accept_terms(name: str) -> list[str]:
    """Write down that the terms of a model, and of all it is made of, are read and accepted; gives the names that are new.

    Raises UnknownNameError, OutputError.
    """
    return [entry.name for entry in accept_license(*members(find_model(name)))]


def _card(entry: Entry) -> ModelCard:
    where, asks = whereabouts(entry), restricted(entry)
    kind = "translator" if entry.family in TRANSLATORS else "scorer" if entry.family in SCORERS else "model"
    return ModelCard(
        entry.name, entry.title, kind, entry.family, where, entry.license, entry.commercial, entry.gated, asks, asks and license_accepted(entry),
        license_page(entry), entry.route, entry.default, entry.unverified, _bytes(entry) if where in HERE and entry.path else 0,
    )  # fmt: skip


def _bytes(entry: Entry) -> int:
    place = entry.place
    return sum(file.stat().st_size for file in ([place] if place.is_file() else place.rglob("*.safetensors")))
