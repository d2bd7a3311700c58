"""Functions for today, where `Pipeline` is the object for tomorrow: a picture of a prompt, many of them, and one made again from its file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from jpgen.adapters import Loras
from jpgen.errors import MetadataError
from jpgen.metadata import read_settings
from jpgen.pictures import UPSCALE_STRENGTH, Sources
from jpgen.pipeline import DEFAULT_MODEL, PAIRING, Pipeline
from jpgen.types import AdapterInfo, Control, Generation, InitImage, StepCallback, require_seed


@lru_cache(maxsize=1)
def open_pipeline(
    model: str | Path = DEFAULT_MODEL, vae: str | Path | None = None, optimize: bool = False, adapter: str | Path | None = None, route: str = "auto"
) -> Pipeline:
    """The pipeline of this model (a name, a folder, a file), with what is given in the place of its own parts, kept open for the next call."""
    return Pipeline(model, vae=vae, optimize=optimize, adapter=adapter, route=route)


def opened(
    model: str | Path, *, vae: str | Path | None = None, translator: str | Path | None = None, adapter: str | Path | None = None, route: str = "auto",
    optimize: bool = False,
) -> Pipeline:  # fmt: skip
    """What `open_pipeline` keeps open of this model and its parts, with a translator if there is to be one."""
    given = (vae, optimize, adapter, "auto" if translator is not None and route == "translate" else route)
    pipeline = open_pipeline(model) if given == (None, False, None, "auto") else open_pipeline(model, *given)
    return pipeline if translator is None else pipeline.with_translator(translator)


def generate(
    prompt: str,
    *,
    model: str | Path = DEFAULT_MODEL,
    negative: str = "",
    seed: int | None = None,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    emphasis: str | None = None,
    clip_skip: int | None = None,
    normalize: bool = True,
    translator: str | Path | None = None,
    adapter: str | Path | None = None,
    route: str = "auto",
    loras: Loras | None = None,
    on_step: StepCallback | None = None,
    init: InitImage | None = None,
    controls: Sequence[Control] = (),
    tile: bool = False,
    upscale: float = 1.0,
    upscale_strength: float = UPSCALE_STRENGTH,
    vae: str | Path | None = None,
) -> Generation:
    """One picture of a Japanese (or English) prompt by a model of the catalogue; see `Pipeline.generate`.

    `translator` (a name of the catalogue, a local folder) puts it into English for a model that reads no Japanese; `adapter` (a file of `jpgen train
    adapter`) pairs a Japanese encoder with it. `route` is one of `jpgen.routes.ROUTES`.

    >>> from jpgen import generate
    >>> generate("夕焼けの海に浮かぶ赤い船", seed=1).image.size
    (256, 256)
    """
    pipeline = opened(model, vae=vae, translator=translator, adapter=adapter, route=route)
    config = pipeline.config(
        width=width, height=height, steps=steps, guidance_scale=guidance_scale, scheduler=scheduler, emphasis=emphasis, clip_skip=clip_skip
    )
    return pipeline.generate(
        prompt, negative=negative, seed=seed, config=config, normalize=normalize, loras=loras, on_step=on_step,
        init=init, controls=controls, tile=tile, upscale=upscale, upscale_strength=upscale_strength,
    )  # fmt: skip


def generate_many(
    prompts: Iterable[str],
    *,
    model: str | Path = DEFAULT_MODEL,
    negative: str = "",
    seed: int | None = None,
    count: int = 1,
    width: int | None = None,
    height: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    scheduler: str | None = None,
    emphasis: str | None = None,
    clip_skip: int | None = None,
    normalize: bool = True,
    translator: str | Path | None = None,
    adapter: str | Path | None = None,
    route: str = "auto",
    loras: Loras | None = None,
    on_step: StepCallback | None = None,
    init: InitImage | None = None,
    controls: Sequence[Control] = (),
    tile: bool = False,
    upscale: float = 1.0,
    upscale_strength: float = UPSCALE_STRENGTH,
    vae: str | Path | None = None,
) -> list[Generation]:
    """`count` pictures of each prompt by a model of the catalogue; see `Pipeline.generate_many` and, for the routes, `generate`.

    >>> from jpgen import generate_many
    >>> [g.seed for g in generate_many(["猫", "犬"], seed=5, count=2, steps=1)]
    [5, 6, 5, 6]
    """
    pipeline = opened(model, vae=vae, translator=translator, adapter=adapter, route=route)
    config = pipeline.config(
        width=width, height=height, steps=steps, guidance_scale=guidance_scale, scheduler=scheduler, emphasis=emphasis, clip_skip=clip_skip
    )
    return pipeline.generate_many(
        prompts, negative=negative, seed=seed, count=count, config=config, normalize=normalize, loras=loras, on_step=on_step,
        init=init, controls=controls, tile=tile, upscale=upscale, upscale_strength=upscale_strength,
    )  # fmt: skip


def load_generation(
    path: str | Path, *, model: str | None = None, init: InitImage | None = None, controls: Sequence[Control] = (), vae: str | Path | None = None,
    adapter: str | Path | None = None,
) -> Generation:  # fmt: skip
    """Make the picture of a file again from the settings inside it, by the same model (or `model`): the very same picture.

    What it was made from besides words must be given again, the same pictures and nets (their strengths are in the file). Raises MetadataError if the
    file holds no settings of jpgen, if the weights of the model, of a LoRA or of an embedding are no longer those that made it, or for other
    pictures, naming the wanted ones by hash; UnknownNameError if a LoRA is not in its folder.
    """
    settings = read_settings(Path(path))
    given = Sources(init, tuple(controls)).repeating(settings.inputs)
    route = settings.route if settings.route in ("raw", "translate") else "auto"  # the model may have an adapter of its own
    pipeline = opened(model or settings.model, vae=vae, adapter=adapter, route=route)
    require_pairing(pipeline, settings.adapters, path)
    if model is None and pipeline.info.weights_hash != settings.weights_hash:
        raise MetadataError(
            f"{path} を作った {settings.model}@{settings.revision} の重みは今のもの（@{pipeline.info.revision}）と違います。"
            f"model= で指定すると今の重みで作ります / made by other weights; pass model={settings.model!r} to use the present ones"
        )
    if pipeline.vae_hash != settings.inputs.vae:
        raise MetadataError(
            f"{path} を作った VAE（{settings.inputs.vae or 'モデルのもの'}）を vae= で渡してください / made with the autoencoder "
            f"{settings.inputs.vae or 'of the model'}, got {pipeline.vae_hash or 'that of the model'}: pass the same one as vae="
        )
    config = settings.config.validated(pipeline.backbone.size_multiple)
    sources = given.checked(config, pipeline.backbone)
    (prompt,), adapters = pipeline._adapters.named([settings.prompt], {})
    pipeline._adapters.require_same(prompt, adapters, [one for one in settings.adapters if one.kind != PAIRING], path)
    return pipeline._batch([prompt], config, [require_seed(settings.seed)], None, adapters, sources, settings.inputs)[0]


def require_pairing(pipeline: Pipeline, told: Sequence[AdapterInfo], picture: str | Path) -> None:
    """Raise MetadataError unless the adapter behind the encoder is the one that a picture tells of, or neither has one."""
    wanted = next((one for one in told if one.kind == PAIRING), None)
    if wanted != pipeline.pairing:
        name, got = (f"{one.name} ({one.hash})" if one else "なし / none" for one in (wanted, pipeline.pairing))
        raise MetadataError(
            f"{picture} のアダプタは {name} です。adapter= で渡してください（渡されたのは {got}） / made with the adapter {name}, got {got}: pass "
            "the same one as adapter="
        )
