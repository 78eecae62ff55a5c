"""Every registered layer type and method against the shipped contracts, and every pair of them."""

from typing import ClassVar

import numpy as np
import pytest
from layer_examples import LAYERS

from loratk import LayerType, Method, ops
from loratk.lora.layer_types import LinearType
from loratk.lora.methods.dora import Dora
from loratk.lora.methods.lora import Lora
from loratk.nn import Linear
from loratk.plugins import default_registry
from loratk.testing import check_layer_type, check_method
from loratk.testing.layer_type import check_pair

TYPES, METHODS = default_registry().layer_types, default_registry().methods


def dora_with_held_norm(x, weight, p, at, scaling):
    """Liu et al. 2024, eq. 5, its norm taken at other parameters, as section 4.3 takes it as a constant."""
    norm = np.linalg.norm(weight + scaling * at["lora_A"] @ at["lora_B"], axis=0)
    return x @ ((weight + scaling * p["lora_A"] @ p["lora_B"]) * p["magnitude"] / norm - weight)


HELD = {"dora": dora_with_held_norm}


def test_the_four_layer_types_and_two_methods_are_there():
    assert {kind.name for kind in TYPES.values()} >= {"linear", "embedding", "conv2d", "qkv"}
    assert set(METHODS) >= {"lora", "dora"}


@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_layer_type(kind):
    check_layer_type(kind, *LAYERS[kind.module], methods=[])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
@pytest.mark.parametrize("kind", TYPES.values(), ids=lambda kind: kind.name)
def test_pair(kind, method, dtype):
    make_module, make_input = LAYERS[kind.module]
    check_pair(kind, method, make_module(dtype), make_input(dtype))


@pytest.mark.parametrize("method", METHODS.values(), ids=lambda method: method.name)
def test_method(method):
    check_method(method, held=HELD.get(method.name))


# The contracts find what is broken


class Truncating(LinearType):
    def write(self, module, matrix):
        super().write(module, np.round(matrix, 3).astype(matrix.dtype))


class Squared(LinearType):
    def apply(self, module, x, m):
        return ops.linear(x, m) if not hasattr(m, "requires_grad") else ops.linear(x, m * m)


class WithBias(LinearType):
    def apply(self, module, x, m):
        return super().apply(module, x, m) + module.bias


class Gaps(LinearType):
    def blocks(self, module):
        return {"left": (0, 1), "right": (2, 4)}


class WrongFused(LinearType):
    fused: ClassVar = {
        "lora": lambda m, w, x, adapter, scaling, mask, bias: LinearType.fused["lora"](m, w, x, adapter, 2 * scaling, mask, bias)
    }


class FusedWithoutDropout(LinearType):
    fused: ClassVar = {
        "lora": lambda m, w, x, adapter, scaling, mask, bias: LinearType.fused["lora"](m, w, x, adapter, scaling, None, bias)
    }


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Truncating, "to the last bit"),
        (Squared, "own_matrix|linear in the matrix"),
        (WithBias, "plus the bias"),
        (Gaps, "tile the columns in order"),
        (WrongFused, "fused and the generic path"),
        (FusedWithoutDropout, "dropout 0.5: the fused and the generic path"),
    ],
)
def test_the_layer_type_contract_finds(broken, said):
    with pytest.raises(AssertionError, match=said):
        check_layer_type(broken(), *LAYERS[Linear], methods=["lora"])


class Restless(Lora):
    def initial(self, weight, rank, rng, options):
        return super().initial(weight, rank, np.random.default_rng(), options)


class Eager(Lora):
    def initial(self, weight, rank, rng, options):
        return {name: p + 1 for name, p in super().initial(weight, rank, rng, options).items()}


class Wide(Lora):
    def shapes(self, d, k, rank):
        return {"lora_A": (d, rank), "lora_B": (k, rank)}


class Double(Lora):
    def initial(self, weight, rank, rng, options):
        return {name: p.astype(np.float64) for name, p in super().initial(weight, rank, rng, options).items()}


class Inconsistent(Lora):
    def delta(self, K, weight, parameters, scaling):
        return super().delta(K, weight, parameters, 1.0)


class StuckA(Lora):
    def update(self, call, parameters, scaling):
        return super().update(call, {**parameters, "lora_A": parameters["lora_A"].detach()}, scaling)


class Careless(Lora):
    def option_faults(self, options):
        return iter(())


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (Restless, "same seed"),
        (Eager, "first update"),
        (Wide, "shapes"),
        (Double, "dtype"),
        (Inconsistent, "x @ delta"),
        (StuckA, "no gradient"),
        (Careless, "option that the method does not have"),
        (Dora, "difference quotient"),
    ],
)
def test_the_method_contract_finds(broken, said):
    with pytest.raises(AssertionError, match=said):
        check_method(broken())


def test_the_bases_leave_their_heart_to_the_plugin():
    method = Method()
    with pytest.raises(NotImplementedError):
        LayerType().apply(None, None, None)
    for function, arguments in (
        (method.initial, (None, 1, None, {})),
        (method.shapes, (1, 1, 1)),
        (method.update, (None, {}, 1.0)),
        (method.delta, (None, None, {}, 1.0)),
    ):
        with pytest.raises(NotImplementedError):
            function(*arguments)
