"""The scaling of an adapter by what data says of it, in place of a guess."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import no_grad
from ..errors import ConfigError, StateError, choices, faults
from .adapter import LoraAdapter
from .evidence import Watch, checked, number, observe, pair
from .methods.lora import Lora
from .pinned import Block, pinned
from .settings import scaling as scaling_of
from .starting import all_names

if TYPE_CHECKING:
    from .layer import LoraLayer
    from .model import LoraModel

RULES = ("gradient", "loss")
GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class AlphaChoice:
    """One layer: its alpha and scaling before and after."""

    name: str
    alpha_before: float
    alpha: float
    scaling_before: float
    scaling: float


@dataclass(frozen=True)
class ChosenAlpha:
    """What `choose_alpha` did. For the rule "loss" also the weight that it found best, and the mean losses at 1 and there."""

    adapter: str
    rule: str
    layers: list[AlphaChoice]
    weight: float | None = None
    loss_before: float | None = None
    loss: float | None = None


@dataclass(frozen=True)
class _Place:
    """One adapter of a layer or column block."""

    name: str
    layer: "LoraLayer"
    block: str
    part: LoraAdapter


def choose_alpha(
    model: "LoraModel",
    adapter: str = "default",
    *,
    data: Iterable[Any],
    loss: Callable[[Any, Any], Any],
    rule: str = "gradient",
    span: float = 16.0,
    tolerance: float = 0.01,
) -> ChosenAlpha:
    """Give each layer of an adapter the alpha that `data`, batches (x, y), asks for; the model's config for it says so afterwards.

    "gradient", for an adapter that has not been trained: the first step of gradient descent on A and B, of one learning rate, moves W as
    far as that step of full fine-tuning would. With G (d, k) the mean gradient of the loss, W moves by scaling^2 (A A^T G + G B^T B), so
    scaling = sqrt(||G|| / ||A A^T G + G B^T B||), Frobenius norms (after Wang et al. 2024, LoRA-GA, eq. 6, where the directions are chosen
    instead). "loss", for a trained one: all scalings times the weight in [1/span, span] at which the mean loss is least, by a grid and
    golden section search on a logarithmic scale, to `tolerance` of its size; never one that is worse than 1.

    For methods whose update is scaling A B. Raises ConfigError, StateError for an adapter that does not fit the rule.
    """
    places = _places(model, adapter, rule)
    if rule == "loss":
        if not (span > 1 and math.isfinite(span) and 0 < tolerance < 1):
            raise ConfigError(f"span must be a number above 1 and tolerance one in (0, 1), found {span!r} and {tolerance!r}.")
        batches = [pair(batch) for batch in checked(data)]
        if not batches:
            raise ConfigError("The data gave no batch: it is empty, or an iterator that is used up.")
        found = _search(model, adapter, batches, loss, span, tolerance)
        chosen = _set(model, adapter, places, [place.part.scaling * found.weight for place in places])
        for layer in model.layers.values():
            if adapter in layer.names() and (bias := layer.adapter(adapter).bias) is not None:
                bias.assign((bias.numpy() * found.weight).astype(bias.dtype))
        return ChosenAlpha(adapter, rule, chosen, found.weight, found.before, found.loss)
    watches = {place.layer.name: Watch(place.layer.layer_type, gradient=True) for place in places}
    with model.disabled():
        observe(model.base, watches, checked(data), loss)
    scalings = [_by_gradient(place, watches[place.layer.name].mean()) for place in places]
    if still := [place.name for place, scaling in zip(places, scalings, strict=True) if scaling is None]:
        raise ConfigError(f"The gradient of {choices(still)} is 0, or A does not reach it: data and loss say nothing of its scaling.")
    return ChosenAlpha(adapter, rule, _set(model, adapter, places, [scaling for scaling in scalings if scaling is not None]))


def _places(model: "LoraModel", adapter: str, rule: str) -> list[_Place]:
    if rule not in RULES:
        raise ConfigError(f"rule must be one of {choices(RULES)}, found {rule!r}.")
    model._check(adapter)
    model._no_merge("choose alphas")
    places = []
    for name, layer in model.layers.items():
        if adapter in layer.names():
            for block, part in layer.adapter(adapter).blocks().items():
                places.append(_Place(".".join(piece for piece in (name, block) if piece), layer, block, part))
    if odd := sorted({place.part.method.name for place in places if not _scales(place.part)}):
        raise ConfigError(f"An alpha can be chosen for an update that is scaling A B; that of the method {choices(odd)} is not.")
    found = [f"{place.name!r} has been trained" for place in places if rule == "gradient" and _moved(place.part)]
    if found:
        raise StateError(faults("The rule 'gradient' is for an adapter that adds nothing yet; for a trained one take rule='loss':", found))
    return places


def _scales(part: LoraAdapter) -> bool:
    return isinstance(part.method, Lora) and part.method.proportional


def _moved(part: LoraAdapter) -> bool:
    held, first = vars(part), part.first()
    if first is not None:
        return not all(np.array_equal(held[name].numpy(), one.numpy()) for name, one in zip(("lora_A", "lora_B"), first, strict=True))
    a, b = (held[name].numpy().astype(np.float64) for name in ("lora_A", "lora_B"))
    size = float(np.linalg.norm(a) * np.linalg.norm(b))
    return bool(np.linalg.norm(a @ b) > 1e-5 * size)


def _by_gradient(place: _Place, gradient: np.ndarray) -> float | None:
    start, stop = place.layer.layer_type.blocks(place.layer.base)[place.block]  # type: ignore[union-attr]
    gradient = gradient[:, start:stop]
    a, b = (vars(place.part)[name].numpy().astype(np.float64) for name in ("lora_A", "lora_B"))
    trains = place.part.trainable()
    moved = np.zeros_like(gradient)
    if any(p is vars(place.part)["lora_A"] for p in trains):
        moved += (gradient @ b.T) @ b
    if any(p is vars(place.part)["lora_B"] for p in trains):
        moved += a @ (a.T @ gradient)
    full, ours = float(np.linalg.norm(gradient)), float(np.linalg.norm(moved))
    return math.sqrt(full / ours) if full > 0 and ours > 1e-12 * full else None


def _set(model: "LoraModel", adapter: str, places: Sequence[_Place], scalings: Sequence[float]) -> list[AlphaChoice]:
    """Give parts new scalings, and the config the alphas that make them."""
    chosen, blocks = [], []
    for place, scaling in zip(places, scalings, strict=True):
        part = place.part
        alpha = scaling * (math.sqrt(part.rank) if part.settings.rslora else part.rank)
        linear = place.layer.layer_type.linear  # type: ignore[union-attr]
        blocks.append(Block(place.name, place.layer.name, linear, part.rank, alpha))
        made = scaling_of(part.rank, alpha, part.settings.rslora)  # the scaling but for rounding
        chosen.append(AlphaChoice(place.name, part.alpha, alpha, part.scaling, made))
    config = pinned(model.adapters[adapter], blocks, among=all_names(model))
    for place, choice in zip(places, chosen, strict=True):
        part = place.part
        part.config, part.settings = config, replace(part.settings, alpha=choice.alpha)
        part.alpha, part.scaling = choice.alpha, part.settings.scaling
    model._configs[adapter] = config
    return chosen


@dataclass(frozen=True)
class _Found:
    weight: float
    before: float
    loss: float


def _search(
    model: "LoraModel", adapter: str, batches: Sequence[tuple[Any, Any]], loss: Callable[[Any, Any], Any], span: float, tolerance: float
) -> _Found:
    """The weight of an adapter at which the mean loss is least, the others as they are; the model is left as it was."""
    active, modes = model.active, [(module, module.training) for _, module in model.modules()]
    known: dict[float, float] = {}

    def at(log: float) -> float:
        if log not in known:
            model.set_active({**active, adapter: math.exp(log)})
            with no_grad():
                known[log] = math.fsum(number(loss(model(x), y)).item() for x, y in batches) / len(batches)
        return known[log]

    enabled = model.enabled
    try:
        model.eval().enable()
        edge = math.log(span)
        grid = [edge * step / 4 for step in range(-4, 5)]  # 0 among them
        best = min(range(len(grid)), key=lambda place: at(grid[place]))
        low, high = grid[max(0, best - 1)], grid[min(len(grid) - 1, best + 1)]
        left, right = high - GOLDEN * (high - low), low + GOLDEN * (high - low)
        while high - low > tolerance:
            if at(left) <= at(right):
                high, right, left = right, left, right - GOLDEN * (right - low)
            else:
                low, left, right = left, right, left + GOLDEN * (high - left)
        chosen = min(known, key=lambda log: (known[log], abs(log)))
        return _Found(math.exp(chosen), at(0.0), known[chosen])
    finally:
        model.set_active(active)
        for module, mode in modes:
            module.training = mode
        if not enabled:
            model.disable()
