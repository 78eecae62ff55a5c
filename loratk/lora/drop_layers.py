"""LoRA-drop: which layers an adapter matters on, and an adapter on these alone. Zhou et al. 2024.

After a short training, the importance of a layer is the sum over a sample of data of ||dW x||^2, and its share what that is of the sum over
all layers. The layers of the largest shares are kept, until together they have a share T; the others lose their adapters, or use one
together. Training goes on from there, with a new optimiser.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..errors import ConfigError, StateError
from ..exchange.configs import exact_pattern
from .evidence import checked, pair
from .parts import Part, parts_of, single
from .resizing import Change, apply
from .settings import is_number
from .sharing import tie
from .starting import all_names

if TYPE_CHECKING:
    from .model import LoraModel


@dataclass(frozen=True)
class LoraDrop:
    """What became of each layer (or column block) of an adapter.

    shares: its share of the importance, the largest first. kept: the layers that keep their own adapter. removed: those that lost it.
    shared: by layer the one whose adapter it uses now. alone: of those that should share, the ones without any other of their shape and
    settings; they keep their own.
    """

    shares: Mapping[str, float]
    kept: tuple[str, ...]
    removed: tuple[str, ...] = ()
    shared: Mapping[str, str] = field(default_factory=dict)
    alone: tuple[str, ...] = ()


def importance(model: "LoraModel", data: Iterable[Any], adapter: str = "default") -> dict[str, float]:
    """The sum over the data of ||dW x||^2 for every layer of an adapter, float64: what its update adds to the layer's outputs.

    `data`: batches x or (x, y). The model computes as ever meanwhile, in evaluation mode; the adapter must be active. Raises StateError if
    it is not, or is merged; ConfigError for data without a batch, or that does not reach a layer.
    """
    model._check(adapter)
    if adapter not in model.active or model.merged or not model.enabled:
        raise StateError(f"The adapter {adapter!r} must act for its importance to be seen: enable it, set_active() it, and merge nothing.")
    pieces = single(parts_of(model, adapter))
    found: dict[str, list[float]] = {part.name: [] for part in pieces}
    modes, batches = [(module, module.training) for _, module in model.modules()], 0
    with model._gate.alone, _watched(pieces, found), no_grad():
        try:
            model.eval()
            for batch in checked(data):
                model(pair(batch, needs_y=False)[0])
                batches += 1
        finally:
            for module, mode in modes:
                module.training = mode
    if not batches:
        raise ConfigError("The data gave no batch: it is empty, or an iterator that is used up.")
    if unseen := [name for name, values in found.items() if not values]:
        raise ConfigError(f"The data does not reach {unseen[0]!r}, so its adapter's worth cannot be told; exclude it, or give other data.")
    return {name: float(np.sum(values)) for name, values in found.items()}


def lora_drop(
    model: "LoraModel", data: Iterable[Any], adapter: str = "default", *, threshold: float = 0.9, rest: str = "remove"
) -> LoraDrop:
    """Keep an adapter on the layers that have together the share `threshold` of the importance, the fewest.

    `rest`: "remove" takes it from all others, "share" lets those of one shape and settings use that of the most important among them. The
    config follows (exclude, or share), and so does the file. Optimisers made before are to be made anew. Raises what `importance` raises.
    """
    if not is_number(threshold) or not 0 < threshold <= 1:
        raise ConfigError(f"threshold must be a number in (0, 1], found {threshold!r}.")
    if rest not in ("remove", "share"):
        raise ConfigError(f"rest must be 'remove' or 'share', found {rest!r}.")
    with model._gate.alone:
        return _dropped(model, data, adapter, threshold, rest)


def _dropped(model: "LoraModel", data: Iterable[Any], adapter: str, threshold: float, rest: str) -> LoraDrop:
    energies = importance(model, data, adapter)
    total = sum(energies.values())
    if not 0 < total < float("inf"):
        raise StateError(f"The updates of the adapter {adapter!r} add {total:g} to the outputs in all: train it a little first.")
    shares = {name: energies[name] / total for name in sorted(energies, key=lambda name: -energies[name])}
    before = np.cumsum([0.0, *shares.values()])[:-1]
    kept = tuple(name for name, sum_before in zip(shares, before, strict=True) if sum_before < threshold * (1 - 1e-12))
    others = [name for name in shares if name not in kept]
    if not others:
        return LoraDrop(shares, kept, (), {}, ())
    if rest == "share":
        shared, alone = _share(model, adapter, others)
        return LoraDrop(shares, kept, (), shared, alone)
    pieces = parts_of(model, adapter)
    gone = {id(part.adapter) for part in pieces if part.name in others}
    apply(model, adapter, [Change(p, None if id(p.adapter) in gone else p.adapter.settings, None) for p in pieces])
    return LoraDrop(shares, kept, tuple(others), {}, ())


def _share(model: "LoraModel", adapter: str, others: list[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """Let layers of one shape and settings use the adapter of the first among them."""
    pieces, config = {part.name: part for part in parts_of(model, adapter)}, model.adapters[adapter]
    groups: dict[Any, list[str]] = {}
    for name in others:
        held = pieces[name].adapter
        groups.setdefault((held.d, held.k, repr(held.settings)), []).append(name)
    shared = {name: first for first, *more in groups.values() for name in more}
    names = all_names(model)
    config = config.replace(share={**{exact_pattern(name, names): first for name, first in shared.items()}, **config.share})
    tie(model, adapter, config)
    model._configs[adapter] = config
    return shared, tuple(first for first, *more in groups.values() if not more)


@contextmanager
def _watched(pieces: list[Part], found: dict[str, list[float]]) -> Iterator[None]:
    """Note the squared norm of every update that the pieces make."""

    def note(name: str) -> Any:
        def seen(update: Tensor) -> None:
            found[name].append(float(np.sum(np.square(update.numpy(), dtype=np.float64))))

        return seen

    try:
        for part in pieces:
            part.adapter._seen = note(part.name)
        yield
    finally:
        for part in pieces:
            part.adapter._seen = None
