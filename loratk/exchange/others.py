"""What each other method (LoHa, LoKr, AdaLoRA, VeRA, ...) adds to a weight, by the parameters that PEFT and LyCORIS keep of it.

method    parameters                                     update (k, d), before its scaling           also needs
loha      hada_w1_a, ... (hada_t1, hada_t2)              (w1_a w1_b) * (w2_a w2_b), entry by entry
lokr      lokr_w1 or its halves, lokr_w2 (lokr_t2)       w1 kron w2
locon     lora_up, lora_down (lora_mid, bias_*)          up mid down, and a sparse matrix
adalora   adalora_A, adalora_B, adalora_E                B (E * A)
vera      vera_lambda_b, vera_lambda_d                   b * B[:k] (d * A[:, :d])                    A and B, d
glora     a1, a2, b1, b2 (bm)                            b1 bm b2 + W a1 a2                          W
ia3       ia3_l, or weight and on_input                  W * (l - 1), or W * weight                  W
sparse    sparse_index, sparse_values                    the values at the places j d + i
dora_in   lora_up, lora_down (lora_mid), dora_scale      W' - W, a norm for each input               W

Any but VeRA, AdaLoRA, IA3 and sparse may have a dora_scale: of outputs it is DoRA's magnitude, of inputs it is as for dora_in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ConfigError, FormatError, LoratkError, choices
from . import lowrank
from .lowrank import Pair, Parameters

LOW: Mapping[str, Callable[[Other], Pair]] = {
    "loha": lambda other: lowrank.loha(other.wide),
    "lokr": lambda other: lowrank.lokr(other.wide),
    "locon": lambda other: lowrank.locon(other.wide),
    "dora_in": lambda other: lowrank.locon(other.wide),
    "adalora": lambda other: lowrank.adalora(other.wide),
    "vera": lambda other: lowrank.vera(other.wide, *other.sizes),
    "glora": lambda other: lowrank.glora(other.wide, other.weight),
}
"""The methods whose update is a product of small matrices."""
KNOWN = frozenset({*LOW, "ia3", "sparse"})
NEEDED: Mapping[str, tuple[tuple[tuple[str, ...], ...], ...]] = {
    "loha": ((("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"),),),
    "lokr": ((("lokr_w1",), ("lokr_w1_a", "lokr_w1_b")), (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))),
    "locon": ((("lora_up", "lora_down"),),),
    "dora_in": ((("lora_up", "lora_down", "dora_scale"),),),
    "adalora": ((("adalora_A", "adalora_B", "adalora_E"),),),
    "vera": ((("vera_lambda_b", "vera_lambda_d"),),),
    "glora": ((("a1", "a2", "b1", "b2"),),),
    "ia3": ((("ia3_l",), ("weight", "on_input")),),
    "sparse": ((("sparse_index", "sparse_values"),),),
}
"""By method the sets of parameters of which one must be there; LoKr needs one of two such lists each."""
OF_VERA = {"vera_A", "vera_B"}
"""The parameters of the module of an adapter that is VeRA's shared matrices, and no update itself."""
EPSILON = float(np.finfo(np.float32).eps)
"""What LyCORIS adds to the norm of an input."""


def no_weight() -> np.ndarray:
    """Raises ConfigError: there is no base."""
    raise ConfigError("it depends on the base's weight; give the base (--base)")


@dataclass(frozen=True)
class Other:
    """A module of another method: its record and parameters, its window, VeRA's shared matrices, and the base's arrays.

    Everything is output first, with d counted as (channels, window), as torch lays a weight out. `base_weight` gives W (k, d) and raises
    ConfigError where there is none; `base_bias` the base's bias (k,) or None.
    """

    record: Mapping[str, Any]
    held: Parameters
    window: tuple[int, ...] = ()
    shared: Parameters = field(default_factory=dict)
    base_weight: Callable[[], np.ndarray] = no_weight
    base_bias: Callable[[], np.ndarray | None] = lambda: None

    @property
    def method(self) -> str:
        """Its name."""
        return str(self.record["method"])

    @property
    def scaling(self) -> float:
        """The factor of the update."""
        return float(self.record.get("scaling", 1.0))

    @cached_property
    def wide(self) -> dict[str, np.ndarray]:
        """Its parameters and the shared ones, numbers in float64."""
        return {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in {**self.shared, **self.held}.items()
        }

    @cached_property
    def weight(self) -> np.ndarray:
        """W, (k, d), float64."""
        return self.base_weight().astype(np.float64)

    @property
    def sizes(self) -> tuple[int, int]:
        """k and d, by the record or the base."""
        d, k = self.record.get("shape") or self.weight.shape[::-1]
        return k, d

    @property
    def magnitude(self) -> np.ndarray | None:
        """DoRA's magnitude, if its scale is one for each output."""
        scale = self.wide.get("dora_scale")
        return None if scale is None or not scale.shape[:1] == self.sizes[:1] == (scale.size,) else scale.reshape(-1)

    @property
    def low(self) -> bool:
        """Whether the update, before a magnitude, is a product of small matrices."""
        of_inputs = "dora_scale" in self.held and self.magnitude is None
        core = self.method == "glora" and bool(self.window or "bm" in self.held)
        return self.method in LOW and not of_inputs and not core and "bias_values" not in self.held

    @contextmanager
    def fitting(self) -> Iterator[None]:
        """While it runs, parameters whose shapes do not fit each other are a FormatError that lists them."""
        try:
            yield
        except LoratkError:
            raise
        except (ArithmeticError, LookupError, ValueError) as error:
            shapes = ", ".join(f"{name} {array.shape}" for name, array in sorted(self.held.items()))
            raise FormatError(f"its parameters do not fit each other, or the weight: {shapes}") from error

    def pair(self) -> Pair:
        """left (k, R), right (R, d) of a low update, without its scaling; R is at most the smaller of k and d."""
        with self.fitting():
            left, right = LOW[self.method](self)
            if left.shape[1] != right.shape[0]:
                raise ValueError
            return lowrank.smallest(left, right)

    def update(self) -> np.ndarray:
        """What it adds, with its scaling, before a magnitude of outputs: (k, d), float64. Raises FormatError for what does not fit."""
        lowrank.check_size(*self.sizes)
        with self.fitting():
            return self._update()

    def _update(self) -> np.ndarray:
        if self.method == "ia3":
            return self.weight * self.factor()
        if self.method == "sparse":
            return self.scaling * self._scattered()
        if self.method == "glora" and not self.low:
            return self.scaling * self._glora()
        left, right = LOW[self.method](self)
        update = left @ right
        if "bias_values" in self.held:
            update = update + self._sparse(update.shape)
        update = self.scaling * update
        return update if "dora_scale" not in self.held or self.magnitude is not None else self._of_inputs(update)

    def delta(self) -> np.ndarray:
        """W' - W, (k, d), float64: the update, under the magnitude where there is one."""
        update = self.update()
        if update.shape != self.sizes:
            raise FormatError(f"its update is {update.shape}, output first, of a weight {self.sizes}")
        if (magnitude := self.magnitude) is None:
            return update
        moved = self.weight + update
        norm = np.linalg.norm(moved, axis=1)
        ratio = np.divide(magnitude, norm, out=np.zeros_like(norm), where=norm > 0)
        return np.asarray(moved * ratio[:, None] - self.weight)

    def check_names(self) -> None:
        """Raises FormatError where a parameter of the method is not there."""
        for sets in NEEDED.get(self.method, ()):
            if not any(self.held.keys() >= set(names) for names in sets):
                wanted = " or ".join(choices(names) for names in sets)
                raise FormatError(f"its method {self.method!r} needs the parameters {wanted}, found {choices(self.held)}")

    def check(self) -> None:
        """Raises FormatError or ConfigError for missing parameters, or shapes (of VeRA, IA3) that do not fit the weight."""
        self.check_names()
        if self.method == "vera":
            lowrank.check_vera(self.wide, *self.sizes)
        elif self.method == "ia3":
            self.factor()

    def bias(self) -> np.ndarray | None:
        """What it adds to the base's bias (k,), float64: PEFT's IA3 multiplies outputs, and the bias with them. None for nothing."""
        if not self.on_bias or (bias := self.base_bias()) is None:
            return None
        return bias * (self.wide["ia3_l"].reshape(-1) - 1)

    @property
    def on_bias(self) -> bool:
        """Whether it changes the base's bias in proportion to it."""
        return self.method == "ia3" and "ia3_l" in self.held and self._by_outputs()

    def factor(self) -> np.ndarray:
        """What IA3 multiplies the weight by to get the update: (k, 1) or (1, d)."""
        k, d = self.sizes
        peft = "ia3_l" in self.held
        values = self.wide["ia3_l"].reshape(-1) - 1 if peft else self.wide["weight"].reshape(-1)
        size = math.prod(self.window)
        wanted = k if self._by_outputs() else d // size
        if len(values) != wanted:
            raise FormatError(f"it has {len(values)} factors for {wanted} {'outputs' if self._by_outputs() else 'inputs'} of the base")
        return values[:, None] if self._by_outputs() else np.repeat(values, size)[None]

    def _by_outputs(self) -> bool:
        """Whether IA3's factors are for outputs."""
        if "on_input" in self.held:
            return not self.wide["on_input"].any()
        factors, (k, d) = self.wide["ia3_l"], self.sizes
        if "side" in self.record:
            return bool(self.record["side"] == "outputs")
        if factors.ndim == 2:
            return factors.shape[1] == 1
        channels = d // math.prod(self.window)
        if k == channels:
            raise ConfigError("it is IA3 of a convolution with as many inputs as outputs, which does not tell for which of them it is")
        return factors.size == k

    def _glora(self) -> np.ndarray:
        """b1 b2 + W a1 a2 of a convolution: a1 and a2 change the channels under every place of the window."""
        core = {"lora_up": self.wide["b1"], "lora_down": self.wide["b2"]} | ({"lora_mid": self.wide["bm"]} if "bm" in self.held else {})
        left, right = lowrank.locon(core)
        a1, a2 = (self.wide[name].reshape(self.wide[name].shape[:2]) for name in ("a1", "a2"))
        weight = self.weight.reshape(len(self.weight), len(a1), -1)
        moved = np.einsum("kcw,cr,re->kew", weight, a1, a2, optimize=True).reshape(len(weight), -1)
        return np.asarray(left @ right + moved)

    def _scattered(self) -> np.ndarray:
        """A sparse change, (k, d)."""
        (k, d), index, values = self.sizes, self.held["sparse_index"], self.wide["sparse_values"]
        if index.dtype.kind not in "iu" or index.shape != values.shape or ((index < 0) | (index >= k * d)).any():
            raise FormatError(f"its places must be integers below {k * d}, one for each value; found {index.dtype} {index.shape}")
        dense = np.zeros(k * d)
        dense[index] = values
        return dense.reshape(k, d)

    def _sparse(self, shape: tuple[int, int]) -> np.ndarray:
        """The sparse part of an extracted LoCon, (k, d)."""
        size = tuple(int(length) for length in self.wide["bias_size"].reshape(-1)[:6])
        indices, values = self.wide["bias_indices"].astype(np.int64), self.wide["bias_values"].reshape(-1)
        inside = indices.shape == (len(size), len(values)) and all(
            ((row >= 0) & (row < n)).all() for row, n in zip(indices, size, strict=True)
        )
        if not inside or math.prod(size) != math.prod(shape):
            raise FormatError(f"its sparse part, of size {size} with {len(values)} numbers at places {indices.shape}, does not fit {shape}")
        dense = np.zeros(size)
        np.add.at(dense, tuple(indices), values)
        return dense.reshape(shape)

    def _of_inputs(self, update: np.ndarray) -> np.ndarray:
        """W' - W with W' = scale (W + update) / ||W + update||, the norm over outputs and window of each input."""
        weight = self.weight
        scale = self.wide["dora_scale"].reshape(-1)
        moved = (weight + update).reshape(len(weight), len(scale), -1)
        norm = np.sqrt(np.square(moved).sum(axis=(0, 2))) + EPSILON
        return np.asarray((moved * (scale / norm)[:, None]).reshape(weight.shape) - weight)
