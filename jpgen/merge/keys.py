"""Key spaces: the same tensors by the names of single files (A1111, LDM, Black Forest Labs, PixArt's authors) and by those of diffusers' folders.

Pure maps of names, with views of tensors that lose nothing: rows of one, several one below the other, transposed, reshaped. `keys.tsv` is the table.
Canonical names are "<component>.<diffusers name>"; what only a single file has (a logit scale, the noise schedule) is "extra.<its name there>".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from itertools import pairwise

import torch
from torch import Tensor

from jpgen.errors import WeightsError
from jpgen.layout import UNET
from jpgen.merge.places import places_of
from jpgen.safety import Stored

Headers = Mapping[str, Stored]
"""Tensors by name, as headers of files have them."""

COMPONENTS = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
EXTRA = "extra"

FAMILIES: dict[str, dict[str, tuple[str, str]]] = {
    "sd1": {"unet": (UNET, "unet"), "vae": ("first_stage_model.", "vae"), "text_encoder": ("cond_stage_model.transformer.", "clip")},
    "sd2": {"unet": (UNET, "unet"), "vae": ("first_stage_model.", "vae"), "text_encoder": ("cond_stage_model.model.", "openclip")},
    "sdxl": {
        "unet": (UNET, "unet"), "vae": ("first_stage_model.", "vae"), "text_encoder": ("conditioner.embedders.0.transformer.", "clip"),
        "text_encoder_2": ("conditioner.embedders.1.model.", "openclip"),
    },
    "sdxl-refiner": {
        "unet": (UNET, "unet"), "vae": ("first_stage_model.", "vae"), "text_encoder_2": ("conditioner.embedders.0.model.", "openclip"),
    },
    "unet": {"unet": ("", "unet")}, "vae": {"vae": ("", "vae")},
    "flux": {"transformer": ("", "flux")}, "flux-prefixed": {"transformer": (UNET, "flux")},
    "pixart": {"transformer": ("", "pixart")}, "pixart-prefixed": {"transformer": (UNET, "pixart")},
}  # fmt: skip
"""Family of single files -> component -> what its names begin with there, and its part of the table."""

SIGNS = (
    (r"conditioner\.embedders\.1\.model\.", "sdxl"), (r"conditioner\.embedders\.0\.model\.", "sdxl-refiner"),
    (r"conditioner\.embedders\.0\.transformer\.", "sdxl"), (r"cond_stage_model\.model\.", "sd2"), (r"cond_stage_model\.transformer\.", "sd1"),
    (r"double_blocks\.\d+\.img_attn\.", "flux"), (r"model\.diffusion_model\.double_blocks\.\d+\.img_attn\.", "flux-prefixed"),
    (r"blocks\.\d+\.cross_attn\.kv_linear\.", "pixart"), (r"model\.diffusion_model\.blocks\.\d+\.cross_attn\.kv_linear\.", "pixart-prefixed"),
    (r"model\.diffusion_model\.label_emb\.", "sdxl"), (r"model\.diffusion_model\.input_blocks\.|first_stage_model\.", "sd"),
    (r"input_blocks\.\d+\.", "unet"), (r"(encoder\.down|decoder\.up)\.\d+\.", "vae"),
)  # fmt: skip
"""How a family of single files is told: by a tensor whose name begins so; the first that fits counts."""

BARE = (
    (r"(down|up)_blocks\.\d+\.", "unet"), (r"(encoder\.down|decoder\.up)_blocks\.\d+\.", "vae"),
    (r"(single_)?transformer_blocks\.\d+\.", "transformer"), (r"(text_model\.)?embeddings\.token_embedding\.", "text_encoder"),
)  # fmt: skip
"""How a component's own file is told, which is named as in diffusers."""

LEFT_ASIDE = re.compile(
    r"(^|\.)(logit_scale|attn_mask)$|^model_ema\.|^(first_stage_model\.)?loss\.|^denoiser\.|^(v_pred|ztsnr|edm_\w+(\.\w+)?)$"
    r"|^(betas|alphas_cumprod(_prev)?|sqrt_\w+|log_one_minus_\w+|posterior_\w+|lvlb_weights|logvar|scale_factor)$"
    r"|^(model\.diffusion_model\.)?(pos_embed|y_embedder\.y_embedding)$|^caption_projection\.y_embedding$|^pos_embed\.pos_embed$"
)
"""Tensors that no component of a diffusers folder has a place for."""

ALIASES = (
    *(
        (re.compile(rf"(vae\.\w+\.mid_block\.attentions\.\d+)\.{old}\."), rf"\1.{new}.")
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    ),
    (re.compile(r"(text_encoder(?:_2)?)\.(embeddings\.(?:token|position)|encoder\.layers|final_layer_norm)"), r"\1.text_model.\2"),
)  # fmt: skip
"""Names of older and newer versions of diffusers and transformers -> those of most folders."""


@dataclass(frozen=True)
class Slice:
    """A tensor of a source, or its rows (of the first dimension) from `rows[0]` to before `rows[1]`."""

    source: str
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class Moved:
    """A tensor of one layout out of another: slices one below the other, then "transpose", "flatten" or "kernel" ([o, i, 1, 1])."""

    stored: Stored
    slices: tuple[Slice, ...]
    view: str = ""

    def made(self, read: Callable[[Slice], Tensor]) -> Tensor:
        """Its values, where `read` gives those of a slice."""
        pieces = [read(one) for one in self.slices]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return whole.T.contiguous() if self.view == "transpose" else whole.reshape(self.stored.shape)


@dataclass(frozen=True)
class KeySpace:
    """What names were found: of a "single" file of a `family`, or "diffusers" (where `family` is the component of bare names, else "")."""

    layout: str
    family: str


@dataclass(frozen=True)
class _Rule:
    single: str
    diffusers: tuple[str, ...]
    view: str


def key_space(headers: Headers) -> KeySpace:
    """The key space of these tensors; raises WeightsError for names of none that is known."""
    if any(name.split(".", 1)[0] in COMPONENTS and not name.startswith("transformer.resblocks.") for name in headers):
        return KeySpace("diffusers", "")
    for pattern, family in SIGNS:
        if any(re.match(pattern, name) for name in headers):
            return KeySpace("single", _sd_kind(headers, UNET) if family == "sd" else family)
    for pattern, component in BARE:
        if any(re.match(pattern, name) for name in headers):
            return KeySpace("diffusers", component)
    raise WeightsError(
        f"知らないキーの並びです / unknown set of keys: {_some(headers)}; known are single files of Stable Diffusion 1, 2 and XL, FLUX and PixArt, "
        "their U-Nets, transformers and VAEs, and diffusers' folders of them"
    )


def canonical(headers: Headers) -> dict[str, Moved]:
    """Every tensor of a single file, or of a folder's components ("unet.conv_in.weight" …, or one component's bare names), by its canonical name.

    Raises WeightsError, listing them, for tensors that the key space does not know or whose shapes cannot be cut as it says.
    """
    space = key_space(headers)
    return _from_folder(headers, space.family) if space.layout == "diffusers" else _from_single(headers, space.family)


def single(headers: Headers, family: str = "") -> dict[str, Moved]:
    """The tensors of a single file out of canonical ones; `family` "" is told by the tensors (see FAMILIES).

    Raises WeightsError, listing them, for tensors that have no place in such a file.
    """
    family = family or family_of(headers)
    made: dict[str, Moved] = {}
    lost: list[str] = []
    parts: dict[str, dict[str, Stored]] = {}
    for name, stored in headers.items():
        component, _, inner = name.partition(".")
        if component == EXTRA:
            _put(made, inner, Moved(stored, (Slice(name),)), lost)
        else:
            parts.setdefault(component, {})[inner] = stored
    for component, own in parts.items():
        if component not in FAMILIES[family]:
            lost += [f"{component}.{name}" for name in own]
            continue
        prefix, part = FAMILIES[family][component]
        rules = {source: (rule, n) for rule in _rules(part, own, "diffusers") for n, source in enumerate(rule.diffusers)}
        done: set[str] = set()
        for name in own:
            if name in done:
                continue
            rule, n, rest = _match(rules, name)
            group = [] if rule is None else [start + rest for start in rule.diffusers]
            if rule is None or n or any(one not in own for one in group):
                if rule is None or any(one not in own for one in group):
                    lost.append(f"{component}.{name}")
                continue
            done.update(group)
            sources = {f"{component}.{one}": own[one] for one in group}
            moved = _to_single(rule.view, rest, sources)
            if moved is None:
                lost.append(f"{component}.{name} {list(own[name].shape)}")
            else:
                _put(made, prefix + rule.single + rest, moved, lost)
    if lost:
        raise WeightsError(
            f"単一ファイル（{family}）に置けないテンソルが {len(lost)} 個あります / {len(lost)} tensors have no place in a single file of {family}: "
            f"{_some(lost)}; convert a component by itself, or take only those that have one"
        )
    return made


def family_of(headers: Headers) -> str:
    """The family of single files that canonical tensors make up; raises WeightsError if they are of none."""
    there = {name.split(".", 1)[0] for name in headers}
    if "unet" in there:
        if there - {EXTRA} == {"unet"}:
            return "unet"
        if any(name.startswith("unet.add_embedding.") for name in headers):
            return "sdxl-refiner" if "text_encoder_2" in there and "text_encoder" not in there else "sdxl"
        return _sd_kind(headers, "unet.")
    if "transformer" in there:
        return "flux" if any(name.startswith("transformer.single_transformer_blocks.") for name in headers) else "pixart"
    if there - {EXTRA} == {"vae"}:
        return "vae"
    raise WeightsError(f"単一ファイルにできません / these make up no single file: {_some(headers)}; wanted a U-Net, a transformer or a VAE")


# ── to canonical names ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _from_folder(headers: Headers, component: str) -> dict[str, Moved]:
    made: dict[str, Moved] = {}
    lost: list[str] = []
    for name, stored in headers.items():
        new = f"{component}.{name}" if component else name
        known, _, inner = new.partition(".")
        if known not in (*COMPONENTS, EXTRA):
            lost.append(name)
            continue
        if known != EXTRA and LEFT_ASIDE.search(inner):
            new = f"{EXTRA}.{inner}"
        for pattern, put in ALIASES:
            new = pattern.sub(put, new) if pattern.match(new) else new
        _put(made, new, Moved(stored, (Slice(name),)), lost)
    if lost:
        raise _unknown("diffusers", lost)
    return made


def _from_single(headers: Headers, family: str) -> dict[str, Moved]:
    made: dict[str, Moved] = {}
    lost: list[str] = []
    own: dict[str, dict[str, str]] = {component: {} for component in FAMILIES[family]}
    for name in headers:
        component = next((one for one, (prefix, _) in FAMILIES[family].items() if name.startswith(prefix)), None)
        if LEFT_ASIDE.search(name):
            _put(made, f"{EXTRA}.{name}", Moved(headers[name], (Slice(name),)), lost)
        elif component is None:
            lost.append(name)
        else:
            own[component][name[len(FAMILIES[family][component][0]) :]] = name
    for component, names in own.items():
        part = FAMILIES[family][component][1]
        if family == "sd2" and part == "openclip":
            for inner in _beyond_penultimate(names):
                name = names.pop(inner)
                _put(made, f"{EXTRA}.{name}", Moved(headers[name], (Slice(name),)), lost)
        inside = {inner: headers[name] for inner, name in names.items()}
        rules = {rule.single: (rule, 0) for rule in _rules(part, inside, "single")}
        width = inside["img_in.weight"].shape[0] if part == "flux" and "img_in.weight" in inside else 0
        for inner, name in names.items():
            spelt = f"text_model.{inner}" if part == "clip" and re.match(r"(embeddings|encoder|final_layer_norm)\.", inner) else inner
            rule, _, rest = _match(rules, spelt)
            moved = None if rule is None else _to_diffusers(rule, rest, name, headers[name], width)
            if rule is None or moved is None:
                lost.append(name if rule is None else f"{name} {list(headers[name].shape)}")
                continue
            for start, one in zip(rule.diffusers, moved, strict=True):
                _put(made, f"{component}.{start}{rest}", one, lost)
    if lost:
        raise _unknown(family, lost)
    return made


def _beyond_penultimate(names: Iterable[str]) -> list[str]:
    """What Stable Diffusion 2 does not use of a whole OpenCLIP encoder: the last layer and the projection. Files out of diffusers have neither."""
    if "text_projection" not in names:
        return []
    last = max((int(found[1]) for name in names if (found := re.match(r"transformer\.resblocks\.(\d+)\.", name))), default=-1)
    return [name for name in names if name == "text_projection" or name.startswith(f"transformer.resblocks.{last}.")]


def _to_diffusers(rule: _Rule, rest: str, name: str, stored: Stored, width: int) -> list[Moved] | None:
    """The tensors that one of a single file is; None if its shape does not allow it."""
    shape, view = stored.shape, rule.view
    rows, count = (shape[0] if shape else 0), len(rule.diffusers)
    if view in ("rows", "inner"):
        height = width if view == "inner" else rows // count
        if not shape or height <= 0 or (rows <= height * (count - 1) if view == "inner" else rows % count):
            return None
        cuts = [*(height * n for n in range(count)), rows]
        return [Moved(Stored(stored.dtype, (b - a, *shape[1:])), (Slice(name, (a, b)),)) for a, b in pairwise(cuts)]
    if view == "swap":
        return None if not shape or rows % 2 else [Moved(stored, (Slice(name, (rows // 2, rows)), Slice(name, (0, rows // 2))))]
    if view == "transpose":
        return None if len(shape) != 2 else [Moved(Stored(stored.dtype, shape[::-1]), (Slice(name),), view)]
    if view == "kernel" and len(shape) == 4:
        return [Moved(Stored(stored.dtype, shape[:2]), (Slice(name),), "flatten")] if shape[2:] == (1, 1) else None
    return [Moved(stored, (Slice(name),))]


def _to_single(view: str, rest: str, sources: Headers) -> Moved | None:
    """The tensor of a single file that these are; None if their shapes or types do not allow it."""
    first = next(iter(sources.values()))
    shape, slices = first.shape, tuple(Slice(name) for name in sources)
    if view in ("rows", "inner"):
        alike = all(one.dtype == first.dtype and one.shape[1:] == shape[1:] and one.shape for one in sources.values())
        equal = [one.shape[0] == shape[0] for one in sources.values()] if alike else [False]
        if not all(equal[:-1] if view == "inner" else equal) or not alike:
            return None
        return Moved(Stored(first.dtype, (sum(one.shape[0] for one in sources.values()), *shape[1:])), slices)
    (name,) = sources
    if view == "swap":
        rows = shape[0] if shape else 1
        return None if rows % 2 else Moved(first, (Slice(name, (rows // 2, rows)), Slice(name, (0, rows // 2))))
    if view == "transpose":
        return None if len(shape) != 2 else Moved(Stored(first.dtype, shape[::-1]), slices, view)
    if view == "kernel" and len(shape) == 2:
        return Moved(Stored(first.dtype, (*shape, 1, 1)), slices, "kernel")
    return Moved(first, slices)


# ── the table ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


@lru_cache(maxsize=1)
def _table() -> dict[str, list[_Rule]]:
    made: dict[str, list[_Rule]] = {}
    for line in (resources.files("jpgen.merge") / "keys.tsv").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            part, in_single, in_diffusers, view = [*line.split("\t"), ""][:4]
            made.setdefault(part, []).append(_Rule(in_single, tuple(in_diffusers.split(" ")), view))
    return made


def _rules(part: str, names: Iterable[str], layout: str) -> list[_Rule]:
    """The part's rules for a model of these names: each for every place that it has there."""
    where = places_of(part, list(names), layout)
    made = []
    for rule in _table()[part]:
        found = re.search(r"\{(\w+)\}", rule.single)
        for here, there in where.get(found[1], []) if found else [("", "")]:
            hole = found[0] if found else "{}"
            made.append(_Rule(rule.single.replace(hole, here), tuple(one.replace(hole, there) for one in rule.diffusers), rule.view))
    return made


def _match(rules: Mapping[str, tuple[_Rule, int]], name: str) -> tuple[_Rule | None, int, str]:
    """The rule for this name, which of its tensors it is, and what of the name the rule leaves as it is."""
    at = len(name)
    while at > 0:
        if name[:at] in rules:
            return (*rules[name[:at]], name[at:])
        at = name.rfind(".", 0, at - 1) + 1
    return None, 0, ""


def _put(made: dict[str, Moved], name: str, moved: Moved, lost: list[str]) -> None:
    if name in made:
        lost.append(f"{name} (there twice, by two names)")
    made[name] = moved


def _sd_kind(headers: Headers, prefix: str) -> str:
    """Stable Diffusion 2 projects with matrices where 1 has kernels."""
    flat = any(name.startswith(prefix) and name.endswith(".proj_in.weight") and len(stored.shape) == 2 for name, stored in headers.items())
    return "sd2" if flat else "sd1"


def _unknown(family: str, lost: list[str]) -> WeightsError:
    return WeightsError(
        f"知らないキーが {len(lost)} 個あります / {len(lost)} keys of this file of {family} are unknown or of shapes that do not fit: {_some(lost)}; "
        "nothing is dropped unasked: remove them, or name a file without"
    )


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:5]) + (f" … (+{len(listed) - 5})" if len(listed) > 5 else "") or "(none)"
