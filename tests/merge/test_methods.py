"""Merge methods against fp64 references written from the papers, and against what must hold of any of them."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from jpgen.errors import UnknownNameError
from jpgen.merge import geometry, linear
from jpgen.merge.evaluation import TILE, Apply, Read, Target, compute, evaluate
from jpgen.merge.looks import largest
from jpgen.merge.methods import METHODS, find_method
from jpgen.merge.ranges import Part
from jpgen.merge.recipe import Merge, Model, Recipe

SHAPES = {"matrix": (24, 20), "kernel": (8, 6, 3, 3), "vector": (50,), "number": ()}
VALUES: dict[str, dict[str, Any]] = {
    "lerp": {"t": 0.3}, "weighted_sum": {"weights": (0.2, 0.3, 0.5)}, "slerp": {"t": 0.3}, "nuslerp": {"t": 0.3}, "rotate": {"t": 0.4},
    "truncate_rank": {"ratio": 0.5}, "cosine_a": {"t": 0.1}, "cosine_b": {"t": 0.1}, "dropout": {"p": 0.4}, "swap": {"start": 0.2, "end": 0.6},
}  # fmt: skip


def tensors(count: int, shape: tuple[int, ...], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator)
    return [base + 0.3 * torch.randn(shape, generator=generator) for _ in range(count)]


def generators(seed: int = 0) -> Any:
    return lambda index: np.random.Generator(np.random.SFC64(seed * 100 + index))


def run(name: str, *inputs: Tensor, **values: Any) -> Tensor:
    """The method on whole tensors; of those that are given tiles with whatever else they want."""
    method, given = find_method(name), {**VALUES.get(name, {}), **values}
    if method.elementwise:
        chance = {"generator": generators()} if method.chance else {}
        made: Tensor = method.call(*[one.clone() for one in inputs], **given, **chance)  # these may be written on
        return made
    counts = len(inputs) - method.first if method.variadic is not None else len(inputs)
    full = {one.name: given.get(one.name, one.default) for one in method.parameters.values()}
    full = {key: (value,) * counts if method.parameters[key].each and isinstance(value, float) else value for key, value in full.items()}
    nodes = tuple(Read(Model(str(index))) for index in range(len(inputs)))
    tree = Apply(method, nodes, tuple(full.items()), "root")
    own = {str(index): one if method.whole else one.clone() for index, one in enumerate(inputs)}
    return compute(tree, Target("x"), lambda model, _: own[model.name])


def close(made: Tensor, wanted: Tensor) -> None:
    """Within a unit in the last place of bf16 and fp16, and near it in fp32."""
    assert made.dtype == torch.float32 and made.shape == wanted.shape
    for dtype in (torch.float16, torch.bfloat16):
        got, told = made.to(dtype), wanted.to(dtype)
        step = torch.maximum(
            torch.nextafter(told, torch.full_like(told, math.inf)) - told, told - torch.nextafter(told, torch.full_like(told, -math.inf))
        )
        assert bool(((got - told).abs() <= step).all())
    torch.testing.assert_close(made.double(), wanted, rtol=1e-5, atol=1e-6)


def count(name: str) -> int:
    method = find_method(name)
    return method.first + (3 if method.first == 0 else 2 if method.variadic is not None else 0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", [name for name in METHODS if name != "add_lora"])
def test_a_model_with_itself_is_itself(name: str, shape: tuple[int, ...]) -> None:
    (one,) = tensors(1, shape)
    kept = one.clone()
    made = run(name, *[one] * count(name))
    torch.testing.assert_close(made, one, rtol=2e-6, atol=1e-6)
    assert torch.equal(one, kept)  # inputs are not changed


@pytest.mark.parametrize("name", [name for name in METHODS if name != "add_lora"])
def test_inputs_are_left_as_they_are(name: str) -> None:
    """By methods that need tensors whole, and of a recipe by any, also where a model is in it twice."""
    given = tensors(count(name), (12, 10))
    before = [one.clone() for one in given]
    if find_method(name).whole:
        run(name, *given)
    nodes = tuple(Model(str(index)) for index in range(len(given)))
    tree = Merge("add_difference", (Merge(name, nodes, VALUES.get(name, {})), nodes[0], nodes[1]))
    made = evaluate(Recipe(tree), "x", lambda model, _: given[int(model.name)])
    if not find_method(name).chance:
        torch.testing.assert_close(made, run(name, *given) + (given[0] - given[1]), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(given, before, strict=True))


@pytest.mark.parametrize(
    ("name", "values"),
    [("n_average", {}), ("geometric_median", {}), ("karcher_mean", {}), ("model_stock", {}), ("ties", {}), ("task_arithmetic", {}), ("sce", {}),
     ("breadcrumbs", {}), ("weighted_sum", {"weights": (1 / 3,) * 3})],
)  # fmt: skip
def test_the_order_of_models_does_not_matter(name: str, values: dict[str, Any]) -> None:
    base, *models = tensors(4, (30, 20))
    first = [base] if find_method(name).first else []
    one, other = run(name, *first, *models, **values), run(name, *first, *models[::-1], **values)
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_ways_between_two_go_both_ways() -> None:
    a, b = tensors(2, (30, 20))
    for name in ("lerp", "slerp", "nuslerp"):
        torch.testing.assert_close(run(name, a, b, t=0.3), run(name, b, a, t=0.7), rtol=1e-5, atol=1e-6)
        assert find_method(name).copies({"t": 0.0}, 2) == 0 and find_method(name).copies({"t": 1.0}, 2) == 1
        torch.testing.assert_close(run(name, a, b, t=0.0), a)
        torch.testing.assert_close(run(name, a, b, t=1.0), b)


# ── references in fp64 ─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_sums_and_differences() -> None:
    a, b, c = tensors(3, (40, 30))
    x, y, z = (one.double() for one in (a, b, c))
    close(run("lerp", a, b), 0.7 * x + 0.3 * y)
    close(run("weighted_sum", a, b, c), 0.2 * x + 0.3 * y + 0.5 * z)
    close(run("weighted_sum", a, b, c, weights=(2.0, 1.0, 1.0), normalize=True), 0.5 * x + 0.25 * y + 0.25 * z)
    close(run("n_average", a, b, c), (x + y + z) / 3)
    close(run("add_difference", a, b, c, alpha=0.7), x + 0.7 * (y - z))
    close(run("task_arithmetic", a, b, c, weights=(0.4, -0.2)), x + 0.4 * (y - x) - 0.2 * (z - x))
    learned, away = (y - z).abs(), (y - x).abs()
    close(run("train_difference", a, b, c, alpha=0.5), x + 0.9 * (y - z) * away / (learned + away))
    made = run("swap", a, b)
    assert torch.equal(made[8:24], b[8:24]) and torch.equal(made[:8], a[:8]) and torch.equal(made[24:], a[24:])


def test_slerp_is_shoemakes() -> None:
    a, b = tensors(2, (40, 30))
    x, y = a.double().flatten(), b.double().flatten()
    omega = torch.acos((x @ y) / (x.norm() * y.norm()))
    close(run("slerp", a, b), ((torch.sin(0.7 * omega) * x + torch.sin(0.3 * omega) * y) / torch.sin(omega)).reshape(a.shape))
    rows = []
    for x, y in zip(a.double(), b.double(), strict=True):
        omega = torch.acos((x @ y) / (x.norm() * y.norm()))
        rows.append((torch.sin(0.7 * omega) * x + torch.sin(0.3 * omega) * y) / torch.sin(omega))
    close(run("nuslerp", a, b), torch.stack(rows))


def ties_reference(base: Tensor, models: list[Tensor], weights: list[float], density: float) -> Tensor:
    trimmed = []
    for model in models:
        delta = (model - base).double()  # in fp32, as the files' values are
        keep = delta.abs().flatten().argsort(descending=True)[: int(density * delta.numel())]
        mask = torch.zeros(delta.numel(), dtype=torch.bool)
        mask[keep] = True
        trimmed.append(delta * mask.reshape(delta.shape))
    return elect_reference(base, trimmed, weights)


def elect_reference(base: Tensor, values: list[Tensor], weights: list[float]) -> Tensor:
    sign = torch.sign(sum(weight * delta for weight, delta in zip(weights, values, strict=True)))  # type: ignore[arg-type]
    total, share = torch.zeros_like(values[0]), torch.zeros_like(values[0])
    for weight, delta in zip(weights, values, strict=True):
        agrees = (torch.sign(delta) == sign) & (delta != 0)
        total += weight * delta * agrees
        share += weight * agrees
    return base.double() + torch.where(share > 0, total / share.clamp_min(1e-30), torch.zeros_like(total))


def test_ties_trims_elects_and_averages() -> None:
    base, *models = tensors(4, (300, 500))
    close(run("ties", base, *models, weights=(1.0, 0.5, 2.0), density=0.2), ties_reference(base, models, [1.0, 0.5, 2.0], 0.2))
    close(run("ties", base, *models, density=1.0), ties_reference(base, models, [1.0, 1.0, 1.0], 1.0))
    assert torch.equal(run("ties", base, *models, density=0.0), base)


def test_the_kth_largest_is_exact_in_whatever_tiles() -> None:
    generator = torch.Generator().manual_seed(1)
    passes = largest(lambda inputs: inputs, lambda values, _: values["ranks"])
    for values in (torch.randn(400_000, generator=generator).abs(), torch.rand(200_000, generator=generator).round(decimals=2), torch.zeros(150_000)):
        ranked, count = values.sort(descending=True).values, len(values)
        ks = (1, 2, 1000, 80_000, count - 1)
        seen: Any = None
        for look in passes:
            shares = [look.of([one, one * 2], {"ranks": (0, *ks, count)}, seen, Part(0, (count,))) for one in values.split(70_001)]
            seen = look.told(sum(shares, start=torch.tensor(0)), {"ranks": (0, *ks, count)}, seen, count)
        assert seen == [[math.inf, *(times * float(ranked[k - 1]) for k in ks), 0.0] for times in (1, 2)]


def test_dare_keeps_and_rescales() -> None:
    base, *models = tensors(3, (400, 300))
    made = run("dare", base, *models, weights=(0.5, 1.0), density=0.3)
    masks = [linear.kept(base, 0.3, generators()(index)) for index in range(2)]
    assert all(abs(float(mask.double().mean()) - 0.3) < 0.006 for mask in masks)
    wanted = base.double() + sum(w * m * (x - base).double() / 0.3 for w, m, x in zip((0.5, 1.0), masks, models, strict=True))
    close(made, wanted)
    values = [m * (x - base).double() / 0.3 for m, x in zip(masks, models, strict=True)]
    close(run("dare_ties", base, *models, density=0.3), elect_reference(base, values, [1.0, 1.0]))


def test_della_drops_small_deltas_more_often() -> None:
    base, model = tensors(2, (400, 1000))
    made = run("della", base, model, density=0.5, epsilon=0.4)
    delta, got = (model - base).double(), (made - base).double()
    rank = delta.abs().argsort(dim=1, descending=True).argsort(dim=1)
    keep = 1 - (0.5 - 0.2 + 0.4 * rank / delta.shape[1])
    kept = got.abs() > 1e-9
    torch.testing.assert_close(got[kept], (delta / keep)[kept], rtol=2e-3, atol=1e-5)
    for low, high in ((0, 100), (450, 550), (900, 1000)):
        chosen = (rank >= low) & (rank < high) & (delta.abs() > 1e-5)
        assert abs(float(kept[chosen].double().mean()) - float(keep[chosen].mean())) < 0.01


def test_breadcrumbs_leave_out_both_ends() -> None:
    base, model = tensors(2, (200, 300))
    made = run("breadcrumbs", base, model, density=0.7, gamma=0.1)
    delta = (model - base).double()
    rank = delta.abs().flatten().argsort(descending=True).argsort().reshape(delta.shape)
    close(made, base.double() + delta * ((rank >= 6000) & (rank < 48_000)))


def test_sce_selects_calculates_and_erases() -> None:
    base, *models = tensors(4, (100, 80))
    values = [(model - base).double() for model in models]
    spread = torch.stack(values).var(0, unbiased=False)
    mask = torch.zeros(8000, dtype=torch.bool)
    mask[spread.flatten().argsort(descending=True)[:800]] = True
    values = [value * mask.reshape(100, 80) for value in values]
    energy = torch.stack([value.square().sum() for value in values])
    weights = energy / energy.sum()
    sign = torch.sign(sum(values))  # type: ignore[arg-type]
    total, share = torch.zeros_like(sign), torch.zeros_like(sign)
    for weight, value in zip(weights, values, strict=True):
        agrees = (torch.sign(value) == sign) & (value != 0)
        total, share = total + weight * value * agrees, share + weight * agrees
    close(run("sce", base, *models, density=0.1), base.double() + total / share.masked_fill(share == 0, 1))


def test_model_stock_is_equation_2() -> None:
    base, *models = tensors(4, (50, 40))
    flat = [(model - base).double().flatten() for model in models]
    cosine = sum(float(flat[i] @ flat[j] / (flat[i].norm() * flat[j].norm())) for i, j in ((0, 1), (0, 2), (1, 2))) / 3
    t = 3 * cosine / (1 + 2 * cosine)
    close(run("model_stock", base, *models), t * sum(model.double() for model in models) / 3 + (1 - t) * base.double())


def test_the_geometric_median_has_the_least_distance() -> None:
    models = [one.double() for one in tensors(5, (20, 10))]
    models[4] += 5
    at = sum(models) / 5
    for _ in range(20_000):  # Weiszfeld, on the values themselves
        weights = [1 / float((at - model).norm()) for model in models]
        at = sum(weight * model for weight, model in zip(weights, models, strict=True)) / sum(weights)
    close(run("geometric_median", *[model.float() for model in models]), at)


def test_the_karcher_mean_has_no_pull_to_any_side() -> None:
    models, weights = tensors(3, (20, 10)), (1.0, 2.0, 3.0)
    flat = [model.double().flatten() for model in models]
    made = run("karcher_mean", *models, weights=weights).double().flatten()
    size = sum(weight * one.norm() for weight, one in zip(weights, flat, strict=True)) / 6
    torch.testing.assert_close(made.norm(), size, rtol=1e-6, atol=0)
    x = made / made.norm()
    pull = torch.zeros_like(x)
    for weight, one in zip(weights, flat, strict=True):
        u = one / one.norm()
        theta = torch.acos((x @ u).clamp(-1, 1))
        pull += weight * theta / torch.sin(theta) * (u - (x @ u) * x)
    assert float(pull.norm()) < 1e-5
    a, b = models[:2]
    two = run("karcher_mean", a / a.norm(), b / b.norm())
    torch.testing.assert_close(two, run("slerp", a / a.norm(), b / b.norm(), t=0.5), rtol=1e-5, atol=1e-6)


def test_the_karcher_mean_of_opposite_directions_is_finite() -> None:
    a = tensors(1, (20, 10))[0]
    close(run("karcher_mean", a, -a), torch.zeros_like(a).double())
    close(run("karcher_mean", a, -3 * a, weights=(3.0, 1.0)), 1.5 * a.double())  # on a's side, as long as both are on average
    close(run("karcher_mean", torch.tensor(1.25), torch.tensor(-0.5), torch.tensor(2.0)), torch.tensor(1.25).double())


def test_likeness_tells_how_far() -> None:
    a, b = tensors(2, (40, 30))
    x, y = a.double(), b.double()
    cosine = (x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0))
    k = 1 - (cosine - 0.1).clamp(0, 1)
    close(run("cosine_a", a, b), (1 - k) * x + k * y)
    k = 1 - ((cosine + (x * y).sum() / (x.norm() * y.norm())) / 2 - 0.1).clamp(0, 1)
    close(run("cosine_b", a, b), (1 - k) * x + k * y)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12)])
def test_a_rotated_model_is_rotated_back(shape: tuple[int, int]) -> None:
    (a,) = tensors(1, shape)
    side = min(shape)
    turn = torch.linalg.qr(torch.randn(side, side, dtype=torch.float64, generator=torch.Generator().manual_seed(3))).Q
    if float(torch.linalg.det(turn)) < 0:
        turn[:, 0] *= -1
    b = (turn @ a.double() if shape[0] == side else a.double() @ turn).float()
    torch.testing.assert_close(run("rotate", a, b, t=0.0), b, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(run("rotate", a, b, t=0.0, alignment=0.0), a, rtol=1e-4, atol=1e-5)
    half = geometry._power(turn, 0.5)
    torch.testing.assert_close(half @ half, turn, rtol=1e-9, atol=1e-9)
    c = tensors(1, shape, seed=5)[0]
    torch.testing.assert_close(run("rotate", a, c, t=1.0), c, rtol=1e-4, atol=1e-5)


def test_truncated_ranks_are_the_best_ones() -> None:
    base, model = tensors(2, (20, 16))
    made = (run("truncate_rank", base, model, ratio=0.25) - base).double()
    values = torch.linalg.svdvals((model - base).double())
    assert int((torch.linalg.svdvals(made) > 1e-4).sum()) == 4
    torch.testing.assert_close(((model - base).double() - made).norm(), values[4:].norm(), rtol=1e-5, atol=0)
    torch.testing.assert_close(run("truncate_rank", base, model, ratio=1.0), model, rtol=1e-5, atol=1e-5)


# ── chance, and the list ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────


def changed(name: str, method: str, place: int, seed: int = 0) -> Tensor:
    """Where the values of one model's deltas are kept in the tensor of this name."""
    shape = (300, TILE // 200)
    zero = torch.zeros(shape)
    inputs = tuple(Model(letter) for letter in "abc"[: 2 if method == "dropout" else 3])
    held = {letter: torch.ones(shape) if index == place else zero for index, letter in enumerate("abc")}
    node = Merge(method, inputs, {"p": 0.5} if method == "dropout" else {"density": 0.5})
    return (evaluate(Recipe(node, seed=seed), name, lambda model, _: held[model.name]) != 0).double().flatten()


@pytest.mark.parametrize("method", ["dare", "dare_ties", "della", "dropout"])
def test_lots_of_layers_models_and_seeds_are_independent(method: str) -> None:
    one = changed("a.weight", method, 1)
    others = [changed("b.weight", method, 1), changed("a.weight", method, 1, seed=1)] + (
        [changed("a.weight", method, 2)] if method != "dropout" else []
    )
    assert torch.equal(one, changed("a.weight", method, 1)) and 0.4 < float(one.mean()) < 0.6
    for other in others:
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.05
    if method != "della":  # tiles of one tensor, too
        assert abs(float(torch.corrcoef(torch.stack([one[: TILE // 4], one[TILE : TILE + TILE // 4]]))[0, 1])) < 0.05


def test_every_method_says_what_it_is() -> None:
    for name in METHODS:
        method = find_method(name)
        assert len(method.about) > 30 and all(one.range.low < one.range.high for one in method.parameters.values())
        assert method.whole == (name in ("add_lora", "rotate", "truncate_rank"))  # all others want a tile at a time
    with pytest.raises(UnknownNameError, match="'slerp'"):
        find_method("slrp")


@pytest.mark.parametrize("name", sorted(name for name in METHODS if find_method(name).elementwise and not find_method(name).chance))
def test_values_come_of_their_place_alone(name: str) -> None:
    given = tensors(count(name), (64, 40))
    whole = run(name, *given)
    halves = [run(name, *[one.flatten()[part] for one in given]) for part in (slice(0, 1280), slice(1280, None))]
    assert torch.equal(torch.cat(halves), whole.flatten())
