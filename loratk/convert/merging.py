"""A base's arrays plus what adapters change: planned and checked by shapes alone, then computed array by array."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..errors import ConfigError, FormatError, UnknownNameError, choices
from ..exchange import AdapterState
from ..exchange.base import EMBEDDINGS, input_first
from ..exchange.joining import joined
from ..exchange.others import KNOWN, Other
from ..exchange.plain import input_first as to_input_first
from ..exchange.plain import is_shared, shared_of
from ..exchange.plain import output_first as to_output_first
from ..exchange.transform import cast_array
from ..io.lazy import info
from ..lora import Method
from ..plugins import Registry
from . import experts
from .deltas import Arrays, Delta, Record, add_product, as_slice, by_outputs, delta_of, is_product, wide
from .products import Product

Adding = Callable[[np.ndarray, np.ndarray], object]
"""Given the sum so far, which it changes, and the base's own array."""
Part = Callable[[np.ndarray], np.ndarray]
"""A view of an array, input first: all of a weight, some columns of it, or one expert."""


@dataclass(frozen=True, eq=False)
class Change:
    """Something that is added to an array, and its factors where it is a plain product for the array or some outputs of it."""

    add: Adding
    product: Product | None = None


def merged_arrays(
    base: Mapping[str, np.ndarray],
    states: Sequence[AdapterState],
    registry: Registry,
    found: list[str],
    dtype: str | None,
    order: str = "input-first",
) -> Arrays:
    """A base's arrays plus the updates of adapters, in the base's dtypes if None is given; what does not fit is added to `found`.

    Updates are computed and summed in float64 and rounded once. Arrays without an update are the base's own. `order` is that of the base's
    axes, as in `Checkpoint`.
    """
    merging = Merging(base, registry, order)
    merging.plan(states, found)
    return dict(base) | {name: merging.array(name, dtype or base[name].dtype.name, found) for name in merging.changed}


class Merging:
    """What becomes of each array of a base under some adapters. A plan loads no array of the base, `array` one."""

    def __init__(self, base: Mapping[str, np.ndarray], registry: Registry, order: str, conv1d: Collection[str] = ()) -> None:
        """`conv1d`: the modules whose weights lie input first whatever the order, as in `Checkpoint.input_first`."""
        self.base, self.registry, self.order, self._conv1d = base, registry, order, conv1d
        self._changes: dict[str, list[Change]] = {}
        self._replaced: set[str] = set()
        self._weight = 1.0  # of the adapter that is planned

    @property
    def changed(self) -> list[str]:
        """The names of the arrays that change."""
        return list(self._changes)

    def plan(self, states: Sequence[AdapterState], found: list[str], weights: Sequence[float] | None = None) -> None:
        """Add what adapters change, each times its weight; what does not fit is added to `found`."""
        for state, self._weight in zip(states, weights or [1.0] * len(states), strict=True):
            shared = shared_of(state)
            for module, held in state.parameters().items():
                if is_shared(state.modules[module], held):
                    continue
                try:
                    self._add(module, state.modules[module], held, shared)
                except (ConfigError, FormatError, UnknownNameError) as error:
                    found.append(f"adapter {state.name!r}, module {module!r}: {error}")
        found += [f"{name!r} is replaced, and changed besides" for name in sorted(self._replaced) if len(self._changes[name]) > 1]

    def products(self, name: str) -> list[Product]:
        """The changes of an array as products of one order of axes; none where one of them is something else."""
        products = [change.product for change in self._changes[name] if change.product is not None]
        same = len(products) == len(self._changes[name]) and len({product.turned for product in products}) == 1
        return products if same else []

    def total(self, name: str, own: np.ndarray) -> np.ndarray:
        """An array with its changes, in float64; `own` is the array as it is."""
        total = np.array(own, np.float64, order="C")
        with np.errstate(over="ignore", invalid="ignore"):
            for change in self._changes[name]:
                change.add(total, own)
        return total

    def array(self, name: str, dtype: str, found: list[str]) -> np.ndarray:
        """An array as it becomes, summed in float64 and rounded once (bfloat16 as float32); what is not finite then is added to `found`."""
        total = self.total(name, self.base[name])
        if np.isfinite(total).all():
            return cast_array(name, total, dtype, found)
        found.append(f"{name!r} is not finite after merging; check the adapter")
        with np.errstate(over="ignore", invalid="ignore"):
            return total.astype("float32" if dtype == "bfloat16" else dtype)

    def _add(self, module: str, record: Record, held: Arrays, shared: Arrays) -> None:
        record, held = joined(record, held)
        if "experts" in record:
            self._experts(module, record, held, shared)
            return
        if record["method"] in ("full", "diff"):
            for key, tensor in held.items():
                self._whole(module, record["method"], key, tensor)
            return
        for key, scale in (("bias", 1.0), ("lora_bias", record.get("scaling", 1.0))):
            if key in held:
                self._bias(module, held.pop(key), scale)
        if held:
            self._update(module, record, held, shared)

    def _experts(self, module: str, record: Record, held: Arrays, shared: Arrays) -> None:
        """A stack of experts: each is planned as a module of its own, or as a part of the one array that has them all."""
        if not {"lora_A", "lora_B"} <= held.keys():
            raise FormatError(f"it is a stack of experts of the method {record['method']!r}, which loratk cannot merge")
        if (name := experts.one_array(self.base, module)) is None:
            for number, path in enumerate(experts.each(self.base, module, record["experts"])):
                self._add(path, *experts.expert(record, held, number), shared)
            return
        self._check(name)
        factors = held["lora_A"], held["lora_B"]
        turned = experts.output_first(self.base, name, factors, None if name == module else self.order)
        if more := sorted(held.keys() & {"bias", "lora_bias"}):
            raise FormatError(f"it is a stack of experts in one array, of which loratk does not know where {choices(more)} would go")
        for number in range(record["experts"]):

            def part(array: np.ndarray, number: int = number) -> np.ndarray:
                return array[number].T if turned else array[number]

            self._change(module, name, part, *experts.expert(record, held, number), shared)

    def _bias(self, module: str, change: np.ndarray, scale: float) -> None:
        name = self._name(module, "bias")
        if (shape := info(self.base, name)[0]) != change.shape:
            raise FormatError(f"its bias has shape {change.shape}, {name!r} {shape}")
        scale *= self._weight
        self._put(name, lambda total, own: np.add(total, change.astype(np.float64) * scale, out=total))

    def _update(self, module: str, record: Record, held: Arrays, shared: Arrays) -> None:
        owner, columns = module, slice(None)
        if "columns" in record:  # a block of a fused projection, named after it
            owner, columns = module.rpartition(".")[0], as_slice(record["columns"])

        def part(array: np.ndarray) -> np.ndarray:
            return self._oriented(array, owner, record)[..., columns]

        name = self._name(owner, "weight")
        product = None
        if is_product(record) and held.keys() == {"lora_A", "lora_B"} and len(info(self.base, name)[0]) > 1:
            scale = float(record["scaling"]) * self._weight
            product = Product(held["lora_A"], held["lora_B"], scale, columns, self._turned(owner, record, info(self.base, name)[0]))
        self._change(owner, name, part, record, held, shared, product)

    def _change(
        self, owner: str, name: str, part: Part, record: Record, held: Arrays, shared: Arrays, product: Product | None = None
    ) -> None:
        """Plan what is added to a part of an array."""
        shape = part(np.broadcast_to(np.float32(0), info(self.base, name)[0])).shape
        acts_as = math.prod(shape[:-1]), shape[-1]
        if record.get("shape", list(acts_as)) != list(acts_as):
            raise FormatError(f"it was made for a weight of shape {record['shape']}, {name!r} acts as {list(acts_as)}")
        if record["method"] in KNOWN and (record.get("orientation") == "torch" or record["method"] not in self.registry.methods):
            delta = self._other(owner, record, held, shared, shape)
        else:
            delta = delta_of(acts_as, record, held, self.registry)
            self._bias_of(owner, record, held)

        times = self._weight

        def change(total: np.ndarray, own: np.ndarray) -> None:
            into = part(total)
            tensors = {key: wide(tensor) for key, tensor in held.items()}
            if is_product(record) and into.ndim == 2:
                add_product(into, tensors["lora_A"], tensors["lora_B"] * (float(record["scaling"]) * times))
                return
            for some, those in by_outputs(record, tensors):
                block = part(own)[..., some]
                weight = np.ascontiguousarray(block, np.float64).reshape(acts_as[0], -1)
                update = delta(weight, those).reshape(block.shape)
                into[..., some] += update if times == 1 else times * update

        self._put(name, change, product)

    def _put(self, name: str, add: Adding, product: Product | None = None) -> None:
        self._changes.setdefault(name, []).append(Change(add, product))

    def _other(self, module: str, record: Record, held: Arrays, shared: Arrays, shape: tuple[int, ...]) -> Delta:
        """What gives the update of a method that is none of loratk's own; what it changes in the bias is planned."""
        window = shape[:-2]
        whole = {**record, "shape": [math.prod(shape[:-1]), shape[-1]]}
        other = Other(whole, held, window, shared)
        other.check()
        if other.on_bias and self._has(module, "bias"):
            times = self._weight

            def change(total: np.ndarray, own: np.ndarray) -> None:
                more = replace(other, base_bias=lambda: own.astype(np.float64)).bias()
                total += 0.0 if more is None else times * more

            self._put(self._name(module, "bias"), change)

        def delta(weight: np.ndarray, tensors: Arrays) -> np.ndarray:
            return to_input_first(replace(other, base_weight=lambda: to_output_first(weight, window)).delta(), window)

        return delta

    def _bias_of(self, module: str, record: Record, held: Arrays) -> None:
        """Plan what a method of loratk's own changes in the bias."""
        method = self.registry.method(record["method"])
        if type(method).bias_delta is Method.bias_delta or not self._has(module, "bias"):
            return
        columns, times = as_slice(record["columns"]) if "columns" in record else slice(None), self._weight

        def change(total: np.ndarray, own: np.ndarray) -> None:
            tensors = {key: wide(tensor) for key, tensor in held.items()}
            more = method.bias_delta(own[columns].astype(np.float64), tensors, float(record.get("scaling", 1.0)))
            total[columns] += 0.0 if more is None else times * more

        self._put(self._name(module, "bias"), change)

    def _whole(self, module: str, method: str, key: str, tensor: np.ndarray) -> None:
        """A parameter that replaces the base's, or is added to it; it comes in torch's order. Of a weight other than 1 it goes that far."""
        name = self._name(module, key)
        tensor = tensor if self.order == "output-first" else input_first(tensor, module)
        if tensor.shape != (shape := info(self.base, name)[0]):
            raise FormatError(f"its {key} has shape {tensor.shape}, {name!r} {shape}")
        times = self._weight
        if method == "diff":
            self._put(name, lambda total, own: np.add(total, tensor if times == 1 else times * tensor.astype(np.float64), out=total))
        else:
            self._put(name, lambda total, own: np.copyto(total, tensor if times == 1 else total + times * (tensor - total)))
            self._replaced.add(name)

    def _oriented(self, array: np.ndarray, module: str, record: Record) -> np.ndarray:
        return input_first(array, module) if self._turned(module, record, array.shape) else array

    def _turned(self, module: str, record: Record, shape: Sequence[int]) -> bool:
        """Whether a weight lies output first."""
        if self.order == "input-first" or record.get("layer_type") == "embedding" or module in self._conv1d or len(shape) < 2:
            return False
        return len(shape) > 2 or module.rpartition(".")[2] not in EMBEDDINGS

    def _has(self, module: str, kind: str) -> bool:
        return f"{module}.{kind}" in self.base or (module == "root" and kind in self.base)

    def _name(self, module: str, kind: str) -> str:
        """The name of a module's array. A base that is one layer has no dotted names, and its module is `root`."""
        name = f"{module}.{kind}"
        if name not in self.base and module == "root":
            name = kind
        if name not in self.base:
            raise FormatError(f"the base has no array {name!r}")
        self._check(name)
        return name

    def _check(self, name: str) -> None:
        shape, dtype = info(self.base, name)
        if dtype.kind != "f" or not shape:
            raise FormatError(f"{name!r} must be an array of floating-point numbers, found {dtype} {shape}")
