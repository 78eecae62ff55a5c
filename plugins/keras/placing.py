"""A state as layers of a Keras model: numbers, kernels, one rank. What Keras cannot say is told all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from loratk.errors import ConfigError, FormatError, faults
from loratk.exchange import AdapterState

from .einsum import axes_of
from .factors import einsum_of, kernel_axes, scattered
from .families import Family
from .family_fit import by_family
from .layers import Layer, path_fault, read_map
from .naming import find_family, indexes

Options = Mapping[str, Any]


@dataclass
class Placed:
    """A module with its layer number: record, a (*kernel axes but the last, r) and b (r, last), the scaling not yet in it.

    values: the singular values of factors that are the nearest ones, where they are.
    """

    index: int
    module: str
    record: dict[str, Any]
    a: np.ndarray
    b: np.ndarray
    values: np.ndarray | None = None


def place(state: AdapterState, options: Options, *, bake: bool) -> tuple[list[Placed], list[str]]:
    """The modules of a state as layers of one rank, in the order of their numbers, and notes. Raises ConfigError with all that hinders."""
    mapped, family = read_map(options["map"]), find_family(options["family"])
    numbers, found = indexes(state.modules.items(), mapped, family)
    if any("has no layer number" in fault for fault in found):
        found.append("give the numbers with the option map, or family for a known model (docs/keras.md says how to print them)")
    placed = []
    for module, held in state.parameters().items():
        if (fault := path_fault(module)) is not None:
            found.append(f"module {module!r}: its name {fault}; name it anew (--rename)")
        elif module in numbers:
            layer = _known(numbers[module], mapped, family, state.modules[module])
            try:
                placed.append(_placed(module, state.modules[module], held, numbers[module], layer, options, bake=bake))
            except FormatError as error:
                found.append(f"module {module!r}: {error}")
    if family is not None and not found:
        by_family(options["family"], family, {one.index: (*one.a.shape[:-1], one.b.shape[1]) for one in placed}, "keras")
    rank = _rank(placed, options["rank"], found, bake=bake)
    if found:
        raise ConfigError(faults(f"the adapter {state.name!r} cannot be written for Keras:", found))
    notes = [note for module in placed for note in _resize(module, rank)]
    return sorted(placed, key=lambda module: module.index), notes


def _known(index: int, mapped: Mapping[int, Layer], family: Family | None, record: Mapping[str, Any]) -> Layer:
    """What is known of a layer: by the map, the family, or the record of a module that was read from Keras."""
    layer = mapped.get(index, Layer())
    role = family.find(index) if family else None
    equation = layer.equation or (role[0].equation if role else None) or record.get("equation")
    kernel = layer.kernel or record.get("keras_kernel")
    return Layer(layer.name, layer.layer_type, equation, tuple(kernel) if kernel else None)


def _placed(
    module: str, record: Mapping[str, Any], held: Mapping[str, np.ndarray], index: int, layer: Layer, options: Options, *, bake: bool
) -> Placed:
    lora_a, lora_b = held["lora_A"], held["lora_B"]
    if "columns" in record:
        raise FormatError("a block of a fused projection is no layer of its own in Keras")
    new = {key: value for key, value in record.items() if key not in ("groups", "dtypes")}
    if record.get("groups", 1) != 1:
        lora_b = scattered(lora_b, record["groups"])
    heads = layer.equation is not None and axes_of(layer.equation).count > 2
    if record.get("layer_type") != "einsum" and (heads or layer.layer_type == "einsum"):
        return _with_heads(Placed(index, module, new, lora_a, lora_b), layer, options, bake=bake)
    inner = kernel_axes(record, len(lora_a), layer)
    if layer.equation and len(inner) > 1 and axes_of(layer.equation).count != len(inner) + 1:
        raise FormatError(f"its kernel {[*inner, lora_b.shape[1]]} does not fit the equation {layer.equation!r} of the layer")
    if layer.kernel is not None and layer.kernel != (*inner, lora_b.shape[1]) and "keras_kernel" not in record:
        raise FormatError(f"its kernel is {[*inner, lora_b.shape[1]]}, and that of the layer {list(layer.kernel)}")
    if record.get("layer_type") == "einsum":
        new |= {"kernel": [*inner, lora_b.shape[1]]} | ({"equation": layer.equation} if layer.equation else {})
    elif len(inner) > 1:
        new |= {"kernel": list(inner[:-1])} | ({"groups": record["groups"]} if record.get("groups", 1) != 1 else {})
    return Placed(index, module, new, lora_a.reshape(*inner, -1), lora_b)


def _with_heads(placed: Placed, layer: Layer, options: Options, *, bake: bool) -> Placed:
    """A linear module for an einsum kernel: exact where the last axis is the only output, else the nearest factors, if asked for."""
    d, k = len(placed.a), placed.b.shape[1]
    if layer.equation is None:
        raise FormatError("its layer is an EinsumDense there; the map must give its equation")
    kernel = layer.kernel or _kernel(layer.equation, d, k, options["head_dim"])
    a, b, values = einsum_of(placed.a, placed.b, layer.equation, kernel)
    if values is not None and not bake:
        raise FormatError(
            f"its layer is an EinsumDense with a kernel {list(kernel)} there, whose heads share lora_kernel_b: --bake writes the nearest "
            "factors, and says what they leave out"
        )
    record = {key: value for key, value in placed.record.items() if key != "keras_kernel"}
    record |= {"layer_type": "einsum", "kernel": list(kernel), "equation": layer.equation, "shape": [d * k // b.shape[1], b.shape[1]]}
    return Placed(placed.index, placed.module, record, a, b, values)


def _kernel(equation: str, d: int, k: int, head_dim: Any) -> tuple[int, ...]:
    """The shape of a kernel of three axes by its weight (d, k) and the size of a head."""
    axes = axes_of(equation)
    if head_dim is None or axes.count != 3:
        raise FormatError("its layer is an EinsumDense there, of heads; say how large one is (head_dim=), or give the kernel in the map")
    heads, two = (k if len(axes.outputs) == 2 else d) // head_dim, axes.outputs if len(axes.outputs) == 2 else axes.inputs
    sizes = {two[0]: heads, two[1]: head_dim}
    return tuple(sizes.get(axis, d if axis in axes.inputs else k) for axis in range(3))


def _rank(placed: list[Placed], asked: int | None, found: list[str], *, bake: bool) -> int:
    """The one rank of the file. What does not fit it goes to `found`."""
    fixed = {module.module: len(module.b) for module in placed if module.values is None}
    ranks = sorted(set(fixed.values()))
    if asked is not None:
        found += [f"module {module!r} has rank {rank}, above the {asked} that was asked" for module, rank in fixed.items() if rank > asked]
        return asked
    if len(ranks) > 1 and not bake:
        examples = ", ".join(f"{rank} ({next(module for module, own in fixed.items() if own == rank)!r})" for rank in ranks[:4])
        found.append(f"a file has one rank, found {examples}: --portable fills them up to the largest, exactly")
    return max([len(module.b) for module in placed], default=1)


def _resize(placed: Placed, rank: int) -> Iterator[str]:
    """Bring a module to a rank: filled up with zeros, or without the smallest singular values."""
    own = len(placed.b)
    if placed.values is not None:
        lost, whole = np.linalg.norm(placed.values[rank:]), np.linalg.norm(placed.values)
        share = float(lost / whole) if whole else 0.0
        kernel = placed.record["kernel"]
        yield f"module {placed.module!r}: nearest factors of rank {min(rank, own)} for the kernel {kernel}, {share:.2%} of it lost"
    elif own < rank:
        yield f"module {placed.module!r}: rank {own} filled up to {rank} with zeros, exactly"
    room = max(rank - own, 0)
    placed.a = np.pad(placed.a[..., :rank], [(0, 0)] * (placed.a.ndim - 1) + [(0, room)])
    placed.b = np.pad(placed.b[:rank], [(0, room), (0, 0)])
    scaling = float(placed.record["scaling"])
    if rank != placed.record["rank"]:
        placed.record |= {
            "rank": rank,
            "alpha": scaling * rank,
            "alpha_source": f"of rank {placed.record['rank']}, its scaling {scaling:g} kept",
        }
