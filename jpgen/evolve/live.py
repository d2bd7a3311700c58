"""A recipe in an open pipeline: pictures with the merged weights, of which no file is written."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from jpgen.evolve.recipes import Formulas, Read, leaves, parents
from jpgen.evolve.recipes import Recipe as AnyRecipe
from jpgen.evolve.sources import Sources
from jpgen.evolve.trials import DENOISERS, live_modules
from jpgen.merge.live import LiveModules
from jpgen.merge.recipe import Recipe, require_fixed, require_valid
from jpgen.merged import REVISION, require_terms, terms_of
from jpgen.pipeline import Pipeline
from jpgen.safety import Stored


class LiveMerge:
    """An open pipeline that draws by recipes: only tensors whose numbers changed since the last one are computed again.

        >>> from jpgen import LiveMerge, Pipeline
        >>> from jpgen.merge import Recipe, model
        >>> live = LiveMerge(Pipeline())
        >>> with live.applied(Recipe(model("mame"), name="豆だけ")) as merged:
        ...     merged.generate("猫", seed=1, config=merged.config(steps=1)).model.name
        '豆だけ'
    """

    def __init__(self, pipeline: Pipeline, *, folder: Path = Path()) -> None:
        """`folder` is where paths in recipes begin, if they are not found from here."""
        self.pipeline, self._folder = pipeline, folder
        self._formulas: tuple[tuple[Any, ...], Sources] | None = None
        self._live: LiveModules | None = None

    @contextmanager
    def applied(self, recipe: Recipe) -> Iterator[Pipeline]:
        """For the time of the block a pipeline with the weights of the recipe, whose pictures tell its name and digest; not for two threads at once.

        Raises RecipeError, LicenseError (terms of a model that are not accepted), WeightsError (models that do not fit, values that are not finite),
        IncompatibleError (a pipeline that shows no modules).
        """
        require_valid(recipe)
        require_fixed(recipe)
        require_terms(recipe)
        modules = live_modules(self.pipeline)
        formulas = formulas_of(self.pipeline, recipe, self._folder, self._opened(recipe))
        if self._live is None or self._live.keys != set(formulas.keys):
            self._live = LiveModules(modules, formulas.keys)
        shown = copy.copy(self.pipeline)
        licenses = [terms.license for terms in terms_of(recipe).values()]
        told = " + ".join(dict.fromkeys(licenses)) or self.pipeline.info.license
        shown.info = replace(self.pipeline.info, name=recipe.name, revision=recipe.digest[:REVISION], license=told, weights_hash=recipe.digest[:10])
        with self._live.applied(formulas.merged({})):
            yield shown

    def _opened(self, recipe: Recipe) -> Sources:
        """The open files of the recipe's models, kept while the next recipe is of the same ones."""
        models = tuple(parents(recipe.root))
        if self._formulas is None or self._formulas[0] != models:
            self._formulas = models, Sources(models, default=_denoiser(self.pipeline), folder=self._folder)
        return self._formulas[1]


def formulas_of(pipeline: Pipeline, recipe: AnyRecipe, folder: Path, sources: Sources | None = None) -> Formulas:
    """The formulas of a recipe for the modules of a pipeline; `sources` are its models where they are open already."""
    from jpgen.merge.evaluation import Target, evaluate, expression
    from jpgen.merge.groups import block_namer

    models = parents(recipe.root)
    read_from = sources or Sources(models, default=_denoiser(pipeline), folder=folder)
    block = block_namer(read_from.keys(models[0]))
    shares = _shares(recipe, read_from, folder)

    def tensor(fixed: Any, key: str, read: Read) -> Tensor:
        made: Tensor = evaluate(fixed, key, read, block=block(key), shares=shares)
        return made

    def numbers(fixed: Any, key: str) -> Hashable:
        return expression(fixed.root, Target(key, block(key), fixed.seed, shares))

    return Formulas(recipe, read_from, evaluate=tensor, numbers=numbers)


def _denoiser(pipeline: Pipeline) -> str:
    return DENOISERS.get(getattr(pipeline.backbone, "family", ""), "unet")


def _shares(recipe: AnyRecipe, sources: Sources, folder: Path) -> dict[Any, Any]:
    """What each adapter of the recipe adds to which tensors."""
    from jpgen.lora import read_adapter
    from jpgen.merge.recipe import Lora
    from jpgen.merge.sources import shares_of

    adapters = [one for one in dict.fromkeys(leaves(recipe.root)) if isinstance(one, Lora)]
    model = parents(recipe.root)[0]
    stored = {key: Stored("F32", tuple(sources.read(model, key).shape)) for key in sources.keys(model)} if adapters else {}
    found = {}
    for one in adapters:
        path = Path(one.name).expanduser()
        found[one] = shares_of(read_adapter(path if path.is_file() else folder / one.name), stored)
    return found
