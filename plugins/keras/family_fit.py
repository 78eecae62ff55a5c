"""Whether the kernels in a file can be the layers that a family's table says they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from loratk.errors import ConfigError, faults

from .einsum import axes_of
from .families import Family, Role
from .layers import Layer

Shape = tuple[int, ...]


def by_family(name: str, family: Family, shapes: Mapping[int, Shape], style: str) -> dict[int, Layer]:
    """The layers of a file by a family's table; `shapes` are those of their kernels. Raises ConfigError with every layer that does not fit.

    All blocks must have equal kernels in equal roles, and all attentions one width, one size of a head and fitting numbers of heads: so a
    table of another family, or of another version of keras-hub, is found out.
    """
    found: list[str] = []
    layers: dict[int, Layer] = {}
    sizes: dict[str, dict[int, str]] = {}
    first: dict[str, Shape] = {}
    for index, shape in sorted(shapes.items()):
        role = family.find(index)
        path = family.name(*role, style) if role else None
        if role is None or path is None:
            found.append(f"layer {index} is none of its layers" + (" that transformers has too" if role else ""))
            continue
        axes = axes_of(role[0].equation).count if role[0].equation else 2
        like = first.setdefault(role[0].keras, shape)
        if len(shape) != axes:
            found.append(f"layer {index}, {path!r}, has a kernel of {axes} axes there, and {list(shape)} here")
        elif shape != like:
            found.append(f"layer {index}, {path!r}, has a kernel {list(shape)} here, and that of another block is {list(like)}")
        elif axes == 3:
            for what, size in _sizes(role[0], shape).items():
                sizes.setdefault(what, {}).setdefault(size, path)
        layers[index] = Layer(path, "einsum" if axes > 2 else "linear", role[0].equation if axes > 2 else None, tuple(shape))
    found += _disagreements(sizes)
    if found:
        title = f"the file does not fit the family {name!r}; give another, or a map of layer numbers (docs/keras.md):"
        raise ConfigError(faults(title, found))
    return layers


def _sizes(role: Role, shape: Shape) -> dict[str, int]:
    """What the kernel of an attention says of its model."""
    axes = axes_of(role.equation or "")
    (width,), (heads, size) = sorted(([shape[axis] for axis in part] for part in (axes.inputs, axes.outputs)), key=len)
    of = "keys" if role.keras.endswith((".key", ".value")) else "queries"
    return {"width": width, "size of a head": size, f"number of heads of {of}": heads}


def _disagreements(sizes: Mapping[str, Mapping[int, str]]) -> Iterator[str]:
    for what, held in sizes.items():
        if len(held) > 1:
            yield f"its layers disagree about the {what}: " + ", ".join(f"{size} ({path!r})" for size, path in held.items())
    for what, held in sizes.items():
        if what.startswith("number") and (width := min(sizes["width"])) < min(held):
            yield f"a {what} of {min(held)} would be more than the width {width} of the model"
    queries, keys = (list(sizes.get(f"number of heads of {of}", {})) for of in ("queries", "keys"))
    if len(queries) == len(keys) == 1 and queries[0] % keys[0]:
        yield f"{queries[0]} heads of queries cannot share {keys[0]} heads of keys"
