"""Recipes read from YAML or JSON: bounded in size and depth, without aliases, all problems told at once with their places.

    root:
      method: slerp
      inputs: [a.safetensors, {model: sdxl-base, file: unet/diffusion_pytorch_model.safetensors}]
      t: {global: 0.4, attn: {free: [0, 1], initial: 0.5}}

A node that is used twice, or reads better by a name, stands under `parts` and is meant by `{part: NAME}`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from jpgen.errors import RecipeError, UnknownNameError
from jpgen.merge.recipe import MAX_DEPTH, MAX_NODES, VERSION, Free, Lora, Merge, Model, Node, Number, Param, Recipe, check

MAX_BYTES = 1 << 20
ENDINGS = (".yaml", ".yml", ".json")

TOP = {"version": int, "root": (dict, str), "parts": dict, "dtype": str, "layout": str, "seed": int, "name": str, "base": str, "text_encoder": str,
       "sources": list, "unverified": list}  # fmt: skip


def load_recipe(source: str | os.PathLike[str]) -> Recipe:
    """The recipe of this name that came with jpgen, in a YAML or JSON file at this path, or in this text (of several lines, or beginning with "{").

    Raises UnknownNameError, and RecipeError naming all that is wrong.

    >>> load_recipe("evo-ukiyoe").models
    ('sdxl-base', 'jsdxl', 'sdxl-dpo', 'juggernaut-xl-9')
    """
    name = os.fspath(source)
    if "\n" in name or name.lstrip().startswith("{"):
        return parse_recipe(name)
    known = resources.files("jpgen.merge") / "recipes"
    if name.lower().endswith(ENDINGS):
        place: Any = Path(name).expanduser()
    elif (known / f"{name}.yaml").is_file():
        place = known / f"{name}.yaml"
    else:
        names = [entry.name.removesuffix(".yaml") for entry in known.iterdir() if entry.name.endswith(".yaml")]
        raise UnknownNameError.of("レシピ / recipe", name, names)
    try:
        with place.open("rb") as file:
            text = file.read(MAX_BYTES + 1).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"レシピ {place} を読めません / cannot read the recipe {place}: {error}") from error
    return parse_recipe(text, Path(name).stem if name.lower().endswith(ENDINGS) else name)


def parse_recipe(text: str, name: str = "recipe") -> Recipe:
    """The recipe in a text of YAML or JSON; raises RecipeError naming all that is wrong."""
    try:
        table = _plain(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise RecipeError(f"レシピ {name} を読めません / cannot read the recipe {name}: {told}") from error
    reader = _Reader()
    recipe = reader.recipe(table, name)
    wrong = reader.wrong or check(recipe)
    if wrong:
        raise RecipeError(f"レシピ {name} が正しくありません / recipe {name}: {'; '.join(wrong)}; correct it")
    return recipe


def _plain(text: str) -> Any:
    """The values of a YAML document; raises ValueError for one that is too large or deep, has aliases, or names a key twice."""
    if len(text.encode()) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES} bytes")
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):  # a machine of states: it does not recurse
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: aliases (*name) are not read; use parts")
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > 3 * MAX_DEPTH:
            raise ValueError(f"line {event.start_mark.line + 1}: nested more than {3 * MAX_DEPTH} deep")
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        _require_once(node)
        return json.loads(json.dumps(loader.construct_document(node) if node else None))  # plain values alone: a date or a set is refused
    except TypeError as error:
        raise ValueError(str(error)) from error
    finally:
        loader.dispose()


def _require_once(node: Any) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.value in seen or key.value == "<<":
                raise ValueError(f"line {key.start_mark.line + 1}: the key {getattr(key, 'value', '')!r:.60} is there twice, or is none")
            seen.add(key.value)
            _require_once(value)
    elif isinstance(node, yaml.SequenceNode):
        for one in node.value:
            _require_once(one)


class _Reader:
    """Builds the tree and notes what is wrong."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self._parts: dict[str, Any] = {}
        self._open: list[str] = []
        self._count = 0

    def recipe(self, table: Any, name: str) -> Recipe:
        empty = Recipe(Model("none"), name=name)
        if not isinstance(table, dict):
            self.wrong.append(f"wanted a table with root, got {type(table).__name__}")
            return empty
        self._require("", table, TOP)
        if table.get("version", VERSION) != VERSION:
            self.wrong.append(f"version: {table['version']!r}, known: {VERSION}")
        if "root" not in table:
            self.wrong.append("no root")
        if self.wrong:
            return empty
        self._parts = table.get("parts", {})
        root = self._node("root", table["root"], 1)
        texts = {key: tuple(map(str, table.get(key, ()))) for key in ("sources", "unverified")}
        return Recipe(
            root, table.get("dtype", ""), table.get("seed", 0), table.get("name", name), table.get("base", ""), table.get("text_encoder", ""),
            layout=table.get("layout", ""), **texts,
        )  # fmt: skip

    def _node(self, place: str, told: Any, depth: int) -> Node:
        nothing = Model("none")
        self._count += 1
        if depth > MAX_DEPTH or self._count > MAX_NODES:
            if not any("too large" in one for one in self.wrong):
                self.wrong.append(f"{place}: the tree is too large: at most {MAX_NODES} nodes, {MAX_DEPTH} deep")
            return nothing
        if isinstance(told, str):
            return Model(told)
        if not isinstance(told, dict):
            self.wrong.append(f"{place}: wanted a name or a table, got {told!r:.40}")
            return nothing
        kinds = [kind for kind in ("method", "model", "lora", "part") if kind in told]
        if len(kinds) != 1:
            got = ", ".join(kinds or map(str, told)) or "nothing"
            self.wrong.append(f"{place}: wanted one of method, model, lora and part, got {got}")
            return nothing
        if kinds[0] == "part":
            return self._part(place, told, depth)
        before = len(self.wrong)
        if kinds[0] != "method":
            self._require(f"{place}: ", told, {"model": str, "file": str, "component": str} if "model" in told else {"lora": str, "file": str})
            if len(self.wrong) > before:
                return nothing
            file = told.get("file", "")
            return Model(told["model"], file, told.get("component", "")) if "model" in told else Lora(told["lora"], file)
        inputs = told.get("inputs")
        if not isinstance(told["method"], str) or not isinstance(inputs, list) or not inputs:
            self.wrong.append(f"{place}: a method wants a name and a list of inputs")
            return nothing
        nodes = tuple(self._node(f"{place}.{index}", one, depth + 1) for index, one in enumerate(inputs))
        params = {key: self._param(f"{place}.{key}", value) for key, value in told.items() if key not in ("method", "inputs")}
        return Merge(told["method"], nodes, params)

    def _part(self, place: str, told: Mapping[str, Any], depth: int) -> Node:
        name = told["part"]
        if len(told) > 1 or not isinstance(name, str) or name not in self._parts:
            self.wrong.append(f"{place}: no part {name!r:.60} alone; parts are {', '.join(map(str, self._parts)) or 'none'}")
        elif name in self._open:
            self.wrong.append(f"{place}: a cycle: {' → '.join([*self._open, name])}")
        else:
            self._open.append(name)
            made = self._node(place, self._parts[name], depth + 1)
            self._open.pop()
            return made
        return Model("none")

    def _param(self, place: str, told: Any) -> Param:
        if isinstance(told, dict) and "free" not in told:
            return {str(key): self._numbers(f"{place}.{key}", value) for key, value in told.items()}
        return self._numbers(place, told)

    def _numbers(self, place: str, told: Any) -> Number | tuple[Number, ...]:
        if isinstance(told, list):
            return tuple(self._free(f"{place}.{index}", one) for index, one in enumerate(told))
        return self._free(place, told)

    def _free(self, place: str, told: Any) -> Number:
        if not isinstance(told, dict):
            return float(told) if isinstance(told, bool) else self._number(place, told)
        ends = told.get("free")
        if told.keys() <= {"free", "initial"} and isinstance(ends, list) and len(ends) == 2:
            low, high = (self._number(place, one) for one in ends)
            return Free(low, high, self._number(place, told["initial"]) if told.get("initial") is not None else None)
        self.wrong.append(f"{place}: a free number is {{free: [low, high], initial: x}}")
        return 0.0

    def _number(self, place: str, told: Any) -> float:
        try:
            if isinstance(told, int | float | str) and not isinstance(told, bool):
                return float(told)  # a text, too: YAML takes 1e-3 for one
        except (ValueError, OverflowError):
            pass
        self.wrong.append(f"{place}: {told!r:.40} is no number")
        return 0.0

    def _require(self, place: str, table: Mapping[str, Any], kinds: Mapping[str, Any]) -> None:
        self.wrong += [f"{place}unknown {key!r:.60}" for key in sorted(map(str, table.keys() - kinds.keys()))]
        self.wrong += [
            f"{place}{key} = {value!r:.60} is of another kind"
            for key, value in table.items()
            if key in kinds and (not isinstance(value, kinds[key]) or isinstance(value, bool))
        ]
