"""A recipe in an open pipeline: pictures with the merged weights, of which no file is written."""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from jpgen.errors import OutputError, WeightsError
from jpgen.evolve.recipes import Formulas, Read, leaves, parents
from jpgen.evolve.recipes import Recipe as AnyRecipe
from jpgen.evolve.sources import Sources
from jpgen.evolve.trials import DENOISERS, live_modules
from jpgen.merge.live import LiveModules
from jpgen.merge.provenance import RECIPE_KEY
from jpgen.merge.recipe import Recipe, require_fixed, require_valid
from jpgen.merged import REVISION, require_terms, terms_of
from jpgen.pipeline import Pipeline
from jpgen.safety import Stored
from jpgen.weights import save_weights


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
        self._sources: tuple[tuple[Any, ...], Sources] | None = None
        self._live: LiveModules | None = None

    @contextmanager
    def applied(self, recipe: Recipe) -> Iterator[Pipeline]:
        """For the time of the block a pipeline with the weights of the recipe, whose pictures tell its name and digest; not for two threads at once.

        Raises RecipeError, LicenseError (terms of a model that are not accepted), WeightsError (models that do not fit, values that are not finite),
        IncompatibleError (a pipeline that shows no modules).
        """
        formulas = self._formulas_of(recipe)
        if self._live is None or self._live.keys != set(formulas.keys):
            self._live = LiveModules(live_modules(self.pipeline), formulas.keys)
        shown = copy.copy(self.pipeline)
        shown.info = replace(
            self.pipeline.info, name=recipe.name, revision=recipe.digest[:REVISION], license=self._license(recipe), weights_hash=recipe.digest[:10]
        )
        with self._live.applied(formulas.merged({})):
            yield shown

    def write(self, recipe: Recipe, output: Path) -> Path:
        """Write the merged weights as one fp32 file of the component, as they are drawn with here.

        All of it is in memory at once. Raises as `applied` does, and OutputError.
        """
        formulas = self._formulas_of(recipe)
        formula = formulas.merged({})
        tensors = {key.partition(".")[2]: formula.tensor(key) for key in formulas.keys}
        about = {"format": "pt", RECIPE_KEY: json.dumps(recipe.to_data(), ensure_ascii=False), "modelspec.license": self._license(recipe)}
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            save_weights(output, tensors, bits=lambda _name, _tensor: 32, metadata=about)
        except (OSError, SafetensorError) as error:
            raise OutputError(
                f"{output.name} に書き込めません（{error}）。空きを作ってください / cannot write {output.name}: free some space"
            ) from error
        return output

    def _formulas_of(self, recipe: Recipe) -> Formulas:
        require_valid(recipe)
        require_fixed(recipe)
        require_terms(recipe)
        return formulas_of(self.pipeline, recipe, self._folder, self._opened(recipe))

    def _license(self, recipe: Recipe) -> str:
        """The licences of the recipe's models of the catalogue, else that of the open one."""
        return " + ".join(dict.fromkeys(terms.license for terms in terms_of(recipe).values())) or self.pipeline.info.license

    def _opened(self, recipe: Recipe) -> Sources:
        """The open files of the recipe's models, kept while the next recipe is of the same ones."""
        models = tuple(parents(recipe.root))
        if self._sources is None or self._sources[0] != models:
            opened = Sources(models, default=_denoiser(self.pipeline), folder=self._folder)
            _require_alike(models, opened)
            self._sources = models, opened
        return self._sources[1]


def _require_alike(models: Sequence[Any], sources: Sources) -> None:
    """Raise WeightsError unless all models have the same tensors of the same shapes as the first."""
    wanted = {key: sources.read(models[0], key).shape for key in sources.keys(models[0])}
    for model in models[1:]:
        got = {key: sources.read(model, key).shape for key in sources.keys(model)}
        if differing := sorted(key for key in wanted.keys() | got.keys() if wanted.get(key) != got.get(key)):
            raise WeightsError(
                f"{Path(model.name).name} は {Path(models[0].name).name} と形が違うので混ぜられません / "
                f"{len(differing)} tensors differ in name or shape: {', '.join(differing[:5])}; merge models of one kind"
            )


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
