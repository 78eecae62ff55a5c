"""Arguments to try grouped low-rank updates on."""

from typing import Any

import numpy as np

from ..kernels import get_backend
from .kernel_examples import Example, draw, examples, strided, transposed


def _groups(rng: np.random.Generator, dtype: Any, rows: int) -> list[tuple[Any, ...]]:
    """Product, x, index, mask, bias, factors and scalings: ranks of all kinds, rows without adapter, adapters without rows."""
    made: list[tuple[Any, ...]] = []
    for d, k, ranks, extras in ((33, 40, (4, 17, 1, 33), True), (5, 3, (2, 5), False), (20, 32, (None, 16), True)):
        factors: list[Any] = []
        for at, rank in enumerate(ranks):
            factors += [None, None] if rank is None else [draw(rng, dtype, d, rank), draw(rng, dtype, rank, k)]
            factors += [draw(rng, dtype, k) if extras and at % 3 == 0 else None, draw(rng, dtype, k) if extras and at % 2 == 0 else None]
        index = rng.integers(-1, min(3, len(ranks)), rows)
        product, x, scalings = draw(rng, dtype, rows, k), draw(rng, dtype, rows, d), tuple(0.5 + at for at in range(len(ranks)))
        mask, bias = (rng.random((rows, d)) > 0.3).astype(dtype) * dtype(1.5), draw(rng, dtype, k)
        made.append((product, x, index, mask if extras else None, bias, factors, scalings))
        if not extras:
            turned = [None if factor is None else transposed(factor) for factor in factors]
            made.append((transposed(product), strided(x), np.sort(index), None, None, turned, scalings))
    return made


@examples("grouped_lora")
def _grouped_lora(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    return [((*given, *factors), {"scalings": scalings}) for *given, factors, scalings in _groups(rng, dtype, rows)]


@examples("grouped_lora_grad")
def _grouped_lora_grad(rng: np.random.Generator, dtype: Any, rows: int) -> list[Example]:
    made: list[Example] = []
    reference = get_backend("reference")
    for product, x, index, mask, bias, factors, scalings in _groups(rng, dtype, rows):
        _, xa, z = reference.grouped_lora(product, x, index, mask, bias, *factors, scalings=scalings)
        g = draw(rng, dtype, *product.shape)
        given = x, xa, z, index, mask, *factors
        made += [((way(g), *given), {"scalings": scalings, "need_x": need}) for way, need in ((np.asarray, True), (transposed, False))]
    return made
