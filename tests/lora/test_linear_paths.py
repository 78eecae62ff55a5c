"""The shorter ways of LoKr, IA3 and the sparse delta on a linear layer, held to what any layer does."""

import copy

import numpy as np
import pytest

from loratk import LoraConfig, Tensor
from loratk.autograd import ops
from loratk.lora import LoraLayer
from loratk.lora.layer_types import LinearType
from loratk.nn import Linear

CASES = [
    ("lokr", 1, {}),
    ("lokr", 1, {"decompose_both": True}),
    ("lokr", 99, {"factor": 2}),
    ("lokr", 2, {"split": [16, 3]}),
    ("ia3", 1, {}),
    ("ia3", 1, {"side": "inputs"}),
    ("ia3", 1, {"side": "products"}),
    ("sparse", 1, {}),
    ("sparse", 9, {"choose": "random"}),  # of which a matrix is made
]


def layers(method, rank, options, dropout=0.0, bias=True):
    layer = LoraLayer(Linear(64, 48, bias=bias, rng=1, dtype=np.float64).freeze(), LinearType(), name="fc")
    layer.add("a", LoraConfig(rank, alpha=3.0, method=method, options=options, dropout=dropout))
    rng = np.random.default_rng(2)
    for parameter in layer.adapters.parameters():
        parameter.assign(parameter.numpy() + rng.standard_normal(parameter.shape))
    layer.activate("a")
    other = copy.deepcopy(layer)
    other.use_fused = False
    return layer, other


@pytest.mark.parametrize("shape", [(7, 64), (2, 3, 64), (64,), (0, 64)])
@pytest.mark.parametrize(("method", "rank", "options"), CASES, ids=str)
def test_values_and_gradients_are_those_of_the_way_for_all_layers(method, rank, options, shape):
    for dropout, weight, bias in ((0.0, 1.0, True), (0.0, -0.5, False), (0.3, 1.0, True)):
        found = []
        for layer in layers(method, rank, options, dropout, bias):
            layer.activate({"a": weight})
            x = Tensor(np.random.default_rng(0).standard_normal(shape), requires_grad=True)
            y = layer(x)
            (y * ops.cos(y)).sum().backward()
            grads = [x.grad, *(parameter.grad for parameter in layer.adapters.parameters())]
            found.append((y.numpy(), grads))
        (got, got_grads), (want, want_grads) = found
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
        for one, two in zip(got_grads, want_grads, strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-9, atol=1e-9)


def test_a_sparse_delta_makes_no_matrix(monkeypatch):
    layer, _ = layers("sparse", 1, {})
    monkeypatch.setattr(ops, "scatter", None)
    assert layer(np.ones((2, 64))).shape == (2, 48)
