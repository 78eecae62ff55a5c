"""A module of the base model with adapters around it."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np

from ..autograd import Tensor, ops
from ..errors import ConfigError, StateError, UnknownNameError, choices
from ..kernels import Backend
from ..nn import Module, Parameter
from ..nn.chain import Link
from ..plugins import Registry
from .adapter import LoraAdapter
from .config import LoraConfig
from .layer_adapter import LayerAdapter, check_adapter_name
from .layer_arrays import layer_arrays
from .layer_types import LayerType
from .mixed import forward_rows
from .selection import Owner, chosen
from .weight_forms import WeightForms, block_matrix, without_first
from .weights import Active, as_weights


class LoraLayer(Module):
    """A frozen module and its adapters by name, any subset of them active with weights, all or none of it merged.

    The output is the base's plus, for each active adapter, weight times its update. With no adapter active, or switched
    off, it is the base's output to the last bit.
    """

    use_fused = True
    """Whether a layer type's fused path may be taken; without it the generic path computes the same to rounding."""

    def __init__(self, base: Module, layer_type: LayerType[Any] | None, *, name: str = "", registry: Registry | None = None) -> None:
        if isinstance(base, LoraLayer):
            raise StateError(f"{name or 'This layer'} has a LoraLayer around it already; add() another adapter to that one.")
        self.base, self.layer_type, self.name = base, layer_type, name
        self.adapters = Module()
        self._registry = registry
        self.active: Mapping[str, float] = {}  # replaced, never changed: setting it is what a kept chain notices
        self.enabled = True
        self.merged: dict[str, float] | None = None
        self._originals: list[tuple[Parameter, Any, Backend]] = []
        self._forms = WeightForms()
        self.owner(Owner())

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles take: all but what is kept to be quick."""
        return {name: value for name, value in vars(self).items() if name != "_mixtures"}

    def owner(self, owner: Owner) -> None:
        """Say for whom calls choose adapters that this layer then acts by."""
        self._owner = owner

    # Adapters

    def adapter(self, name: str) -> LayerAdapter:
        """The adapter of that name. Raises UnknownNameError."""
        found = vars(self.adapters).get(name)
        if not isinstance(found, LayerAdapter):
            raise UnknownNameError(f"There is no adapter {name!r} on {self.name or 'this layer'}. Adapters: {choices(self.names())}.")
        return found

    def names(self) -> list[str]:
        """The names of all adapters."""
        return [name for name, _ in self.adapters.children()]

    def add(
        self,
        name: str,
        config: LoraConfig,
        *,
        blocks: Iterable[str] | None = None,
        bias: bool = False,
        check_rank: bool = True,
        evidence: Mapping[str, Any] | None = None,
        filled: bool = True,
    ) -> None:
        """Add an adapter, which starts without effect and is not active yet.

        `blocks`: the column blocks it adapts, all if None. `bias`: whether it trains a change of the base's bias. `evidence`, by block,
        and `filled` are those of LoraAdapter.
        """
        self._no_merge("add an adapter")
        check_adapter_name(name)
        if name in self.names():
            raise StateError(
                f"There is an adapter {name!r} on {self.name or 'this layer'} already; remove it first, or choose another name."
            )
        adapters: dict[str, LoraAdapter] = {}
        if self.layer_type is not None:
            matrix, ranges = self.layer_type.read(self.base), self.layer_type.blocks(self.base)
            window = self.layer_type.window(self.base)
            for block in ranges if blocks is None else blocks:
                start, stop = ranges[block]
                adapters[block] = LoraAdapter(
                    matrix[:, start:stop],
                    config,
                    name=".".join(part for part in (self.name, block) if part),
                    within=self.name,
                    linear=self.layer_type.linear,
                    registry=self._registry,
                    backend=self.base.backend,
                    check_rank=check_rank,
                    evidence=(evidence or {}).get(block),
                    filled=filled,
                    window=window,
                )
        own = self.base_bias()
        if bias and own is None:
            raise ConfigError(f"{self.name or 'This layer'} has no bias that could train.")
        change = Parameter(np.zeros(own.shape, own.dtype), backend=own.backend) if bias and own is not None else None
        setattr(self.adapters, name, LayerAdapter(adapters, change).train(self.training))

    def remove(self, name: str) -> None:
        """Forget an adapter. Raises UnknownNameError, or StateError while anything is merged."""
        self._no_merge("remove an adapter")
        self.adapter(name)
        delattr(self.adapters, name)
        self.active = {other: weight for other, weight in self.active.items() if other != name}

    def rename(self, old: str, new: str) -> None:
        """Give an adapter another name, if the layer has it; it keeps its place and weight, merged or not."""

        def renamed(mapping: Mapping[str, Any]) -> dict[str, Any]:
            return {new if name == old else name: value for name, value in mapping.items()}

        if old in vars(self.adapters):
            adapters = Module()
            for name, adapter in self.adapters.children():
                setattr(adapters, new if name == old else name, adapter)
            self.adapters, self.active = adapters.train(self.training), renamed(self.active)
            self.merged = None if self.merged is None else renamed(self.merged)

    def activate(self, active: Active) -> None:
        """Choose the active adapters: a name, names, or a mapping of names to weights (1 otherwise); none if empty."""
        self._no_merge("change the active adapters")
        weights = as_weights(active)
        for name in weights:
            self.adapter(name)
        self.active = weights

    def base_bias(self) -> Parameter | None:
        """The base's own bias (k,), or None."""
        return self.layer_type.bias(self.base) if self.layer_type is not None else getattr(self.base, "bias", None)

    # Forward

    def forward(self, x: Any) -> Any:
        """What the base makes of x, and the updates of the adapters that are active, or that the call selects."""
        if not self.enabled or self.merged is not None:
            return self.base(x)
        selected = chosen(self._owner)
        if selected is not None and selected.index is not None:
            return forward_rows(self, x, selected)
        weights = self.active if selected is None else selected.groups[0]
        active = [(self.adapter(name), weight) for name, weight in weights.items() if selected is None or name in vars(self.adapters)]
        return self.act(x, active) if active else self.base(x)

    def act(self, x: Any, active: list[tuple[LayerAdapter, float]]) -> Any:
        """What the base makes of x, and the updates of these adapters with their weights, at least one."""
        if self.layer_type is None:
            return self._with_bias(self.base(x), None, active)
        x, bias = self.base.input(x), self.base_bias()
        y = self._fused(x, bias, active)
        return self._with_bias(self._generic(x, bias, active), bias, active) if y is None else self._with_bias(y, None, active)

    def link(self) -> Link | None:
        """The layer as a link of a chain: a frozen linear layer as it is, or with one LoRA adapter that drops nothing."""
        if self.layer_type is None or not self.layer_type.chains or type(self).forward is not LoraLayer.forward:
            return None
        link: Link | None = self.base.link()
        if link is None or not self.enabled or self.merged is not None:
            return link
        selected = chosen(self._owner)
        if selected is not None and selected.index is not None:
            return None
        weights = self.active if selected is None else {n: w for n, w in selected.groups[0].items() if n in vars(self.adapters)}
        if not weights:
            return link
        if len(weights) > 1 or not self.use_fused:
            return None
        ((name, weight),) = weights.items()
        layer_adapter = self.adapter(name)
        adapter = layer_adapter.block("")
        if adapter is None or layer_adapter.bias is not None or adapter.form != "lora" or adapter.drops:
            return None
        if adapter.training and vars(adapter)["lora_A"].frozen:  # a chain keeps the inputs of its layers, which nobody needs then
            return None
        w = link.weight if adapter.first() is None else self._forms.own(self.layer_type, self.base, [(layer_adapter, weight)])
        return Link(w, link.bias, vars(adapter)["lora_A"], vars(adapter)["lora_B"], adapter.scaling * weight)

    def _fused(self, x: Tensor, bias: Parameter | None, active: list[tuple[LayerAdapter, float]]) -> Tensor | None:
        assert self.layer_type is not None
        if len(active) > 1 or not self.use_fused or self.layer_type.weight(self.base).requires_grad:
            return None
        layer_adapter, weight = active[0]
        adapter = layer_adapter.block("")
        fused = None if adapter is None else self.layer_type.fused.get(adapter.form)
        if fused is None or adapter is None or not (adapter.method.proportional or (weight == 1.0 and not adapter.drops)):
            return None
        if adapter.training and (adapter.settings.rank_dropout or adapter.settings.module_dropout):
            return None
        w = self._forms.own(self.layer_type, self.base, active)
        return fused(self.base, w, x, adapter, adapter.scaling * weight, adapter.mask(x), bias)

    def _generic(self, x: Tensor, bias: Parameter | None, active: list[tuple[LayerAdapter, float]]) -> Tensor:
        layer_type, base = self.layer_type, self.base
        assert layer_type is not None
        own = self._forms.own(layer_type, base, active)
        product = layer_type.apply(base, x, own)
        if layer_type.weight(base).requires_grad:
            product = without_first(layer_type, base, x, product, active)
        ranges = layer_type.blocks(base)
        pieces = []
        for block, (start, stop) in ranges.items():
            cut = partial(_columns, start=start, stop=stop) if len(ranges) > 1 else _all_columns
            piece = total = cut(product)
            for layer_adapter, weight in active:
                adapter = layer_adapter.block(block)
                if adapter is not None and not adapter.skips():
                    update = adapter.update(
                        x,
                        piece,
                        partial(layer_type.apply, base),
                        lambda x, cut=cut: cut(layer_type.apply(base, x, own)),  # type: ignore[misc]
                        partial(self.weight_handle, block),
                        None if bias is None else cut(bias),
                        partial(block_matrix, layer_type, base, block),
                    )
                    total = total + (update if weight == 1.0 else update * weight)
            pieces.append(total)
        return pieces[0] if len(pieces) == 1 else ops.concat(pieces, axis=-1)

    def weight_handle(self, block: str) -> Any:
        """A handle of the weight's columns of a block, for the kernels; kept while the weight stays the same."""
        assert self.layer_type is not None
        return self._forms.handle(self.layer_type, self.base, block)

    def _with_bias(self, y: Tensor, bias: Parameter | None, active: list[tuple[LayerAdapter, float]]) -> Tensor:
        if bias is not None:
            y = y + bias
        for adapter, weight in active:
            if adapter.bias is not None:
                y = y + (adapter.bias if weight == 1.0 else adapter.bias * weight)
        return y

    # Merging

    def merged_arrays(self, active: Active | None = None) -> dict[str, np.ndarray]:
        """The base's weight, in its own shape, and bias with adapters folded in, as new arrays; the layer stays as it is.

        Keys `weight` and `bias`, a bias only where there is one. Takes the active adapters if none are named.
        """
        return layer_arrays(self, self.active if active is None else as_weights(active))

    def targets(self) -> dict[str, Parameter]:
        """The base's parameters that merging changes, under the keys of `merged_arrays`."""
        weight = None if self.layer_type is None else self.layer_type.weight(self.base)
        return {key: p for key, p in (("weight", weight), ("bias", self.base_bias())) if p is not None}

    def merge(self, active: Active | None = None) -> None:
        """Fold adapters (the active ones if none are named) into the base's weight and bias, until `unmerge`.

        Raises StateError if anything is merged already or a merged value is not finite; nothing has changed then.
        """
        if self.merged is not None:
            raise StateError(
                f"{self.name or 'This layer'} has {choices(self.merged)} merged into it already; merging again would count "
                "them twice. unmerge() first."
            )
        weights = dict(self.active) if active is None else as_weights(active)
        arrays = self.merged_arrays(weights) if weights else {}
        if not all(np.isfinite(array).all() for array in arrays.values()):
            raise StateError(
                f"Merging into {self.name or 'this layer'} gives values that are not finite; nothing was merged. Check the adapter."
            )
        targets = self.targets()
        self._originals = [(targets[key], targets[key].data, targets[key].backend) for key in arrays]
        for key, array in arrays.items():
            targets[key].assign(array)
        self.merged = weights

    def unmerge(self) -> None:
        """Put the original arrays back, the very same bits. Raises StateError if nothing is merged."""
        if self.merged is None:
            raise StateError(f"Nothing is merged into {self.name or 'this layer'}.")
        for target, data, backend in self._originals:
            target.data = data if target.backend is backend else target.backend.asarray(backend.numpy(data))
        self._originals, self.merged = [], None

    def _no_merge(self, what: str) -> None:
        if self.merged is not None:
            raise StateError(f"Cannot {what} while {choices(self.merged)} is merged into {self.name or 'this layer'}; unmerge() first.")

    def originals(self) -> dict[int, np.ndarray]:
        """By id of a parameter of the base, the array it had before merging; empty while nothing is merged."""
        return {id(target): backend.numpy(data) for target, data, backend in self._originals}

    def __getattr__(self, name: str) -> Any:  # what the layer does not have, the base has: weight, bias, heads, ...
        if name.startswith("_") or "base" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.base, name)

    def describe(self) -> str:
        """Active and merged adapters, for the repr."""
        state = f"active={self.active}" if self.merged is None else f"merged={self.merged}"
        return state if self.enabled else state + ", enabled=False"


def _columns(x: Tensor, start: int, stop: int) -> Tensor:
    return x[..., start:stop]


def _all_columns(x: Tensor) -> Tensor:
    return x
