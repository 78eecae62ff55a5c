"""Optimisers, clipping, losses, activations and norms give what PyTorch gives."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed: it is only compared with, never needed")

from loratk import nn  # noqa: E402
from loratk.autograd import Tensor, ops  # noqa: E402

DTYPES = {np.float32: 1e-6, np.float64: 1e-12}
F = torch.nn.functional

OPTIMIZERS = [
    (nn.SGD, "SGD", {"lr": 0.1}),
    (nn.SGD, "SGD", {"lr": 0.1, "weight_decay": 0.05}),
    (nn.SGD, "SGD", {"lr": 0.05, "momentum": 0.9}),
    (nn.SGD, "SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.05}),
    (nn.Adam, "Adam", {"lr": 0.01}),
    (nn.Adam, "Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-4, "weight_decay": 0.1}),
    (nn.AdamW, "AdamW", {"lr": 0.01}),
    (nn.AdamW, "AdamW", {"lr": 0.01, "weight_decay": 0.3}),
]


def near(got, want, dtype):
    """Equal to the tolerance of the dtype, relative to the largest entry."""
    want = want.detach().numpy() if isinstance(want, torch.Tensor) else np.asarray(want)
    assert got.dtype == want.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=0, atol=DTYPES[dtype] * max(1.0, float(np.abs(want).max())))


@pytest.fixture(params=["reference", "cpu"])
def backend(request):
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "name", "options"), OPTIMIZERS)
def test_twenty_steps(kind, name, options, dtype, backend):
    rng = np.random.default_rng(0)
    start = [rng.standard_normal(shape).astype(dtype) for shape in [(7, 5), (5,), (3, 2, 4)]]
    mine = [nn.Parameter(p, backend=backend) for p in start]
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in start]
    optimizer = kind([{"params": mine[:2]}, {"params": mine[2:], "lr": options["lr"] * 2}], **options)
    peer = getattr(torch.optim, name)([{"params": theirs[:2]}, {"params": theirs[2:], "lr": options["lr"] * 2}], **options)
    for step in range(20):
        for i, (p, q) in enumerate(zip(mine, theirs, strict=True)):
            g = rng.standard_normal(p.shape).astype(dtype)
            skip = i == 1 and step % 3 == 0
            p.grad, q.grad = (None, None) if skip else (g, torch.tensor(g))
        optimizer.step()
        peer.step()
    for p, q in zip(mine, theirs, strict=True):
        near(p.numpy(), q, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bound", [0.5, 100.0])
def test_clipping(bound, dtype):
    rng = np.random.default_rng(0)
    mine, theirs = [], []
    for shape in [(4, 3), (3,)]:
        g = rng.standard_normal(shape).astype(dtype)
        mine.append(nn.Parameter(np.zeros(shape, dtype), backend="reference"))
        theirs.append(torch.nn.Parameter(torch.zeros(shape, dtype=torch.tensor(g).dtype)))
        mine[-1].grad, theirs[-1].grad = g, torch.tensor(g)
    want = float(torch.nn.utils.clip_grad_norm_(theirs, bound))
    assert nn.clip_grad_norm(mine, bound) == pytest.approx(want, rel=1e-6)
    for p, q in zip(mine, theirs, strict=True):
        np.testing.assert_allclose(p.grad, q.grad.numpy(), rtol=2e-6)  # PyTorch divides by norm + 1e-6


_x, _y = np.random.default_rng(1).standard_normal((2, 6, 5))
_t, _labels = np.random.default_rng(2).random((6, 5)), np.array([0, 4, -1, 2, 2, -1])
_zeros = np.zeros((6, 5))

FUNCTIONS = {
    "relu": (ops.relu, F.relu, (_x,)),
    "gelu": (ops.gelu, F.gelu, (_x * 3,)),
    "gelu tanh": (lambda x: ops.gelu(x, tanh=True), lambda x: F.gelu(x, approximate="tanh"), (_x * 3,)),
    "silu": (ops.silu, F.silu, (_x * 3,)),
    "tanh": (ops.tanh, torch.tanh, (_x,)),
    "sigmoid": (ops.sigmoid, torch.sigmoid, (_x * 5,)),
    "softmax": (ops.softmax, lambda x: F.softmax(x, -1), (_x * 5,)),
    "log_softmax": (ops.log_softmax, lambda x: F.log_softmax(x, -1), (_x * 5,)),
    "absolute at zero": (ops.absolute, torch.abs, (np.zeros(3),)),
    "maximum": (ops.maximum, torch.maximum, (_x, np.where(_t > 0.5, _x, _y))),  # ties too
    "minimum": (ops.minimum, torch.minimum, (_x, np.where(_t > 0.5, _x, _y))),
    "max_over with ties": (lambda x: ops.max_over(x, 1), lambda x: torch.amax(x, 1), (np.round(_x),)),
    "layer_norm": (ops.layer_norm, lambda x, w, b: F.layer_norm(x, (5,), w, b), (_x, _y[0], _y[1])),
    "rms_norm": (ops.rms_norm, lambda x, w: F.rms_norm(x, (5,), w, 1e-6), (_x, _y[0])),
    "mse": (nn.MSELoss(), F.mse_loss, (_x, _y)),
    "cross entropy": (
        lambda x: nn.CrossEntropyLoss(ignore_index=-1)(x, _labels),
        lambda x: F.cross_entropy(x, torch.tensor(_labels), ignore_index=-1),
        (_x,),
    ),
    "cross entropy, smoothed": (
        lambda x: nn.CrossEntropyLoss(ignore_index=-1, label_smoothing=0.2)(x, _labels),
        lambda x: F.cross_entropy(x, torch.tensor(_labels), ignore_index=-1, label_smoothing=0.2),
        (_x,),
    ),
    "binary cross entropy": (
        lambda x: nn.BCEWithLogitsLoss()(x, _t.astype(x.dtype)),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(_t, dtype=x.dtype)),
        (_x * 5,),
    ),
    "binary cross entropy at zero": (
        lambda x: nn.BCEWithLogitsLoss()(x, _t.astype(x.dtype)),
        lambda x: F.binary_cross_entropy_with_logits(x, torch.tensor(_t, dtype=x.dtype)),
        (_zeros,),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_value_and_gradients(name, dtype, backend):
    mine, theirs, arrays = FUNCTIONS[name]
    inputs = [Tensor(array.astype(dtype), requires_grad=True, backend=backend) for array in arrays]
    peers = [torch.tensor(array.astype(dtype), requires_grad=True) for array in arrays]
    got, want = mine(*inputs), theirs(*peers)
    near(got.numpy(), want, dtype)
    g = np.random.default_rng(3).standard_normal(got.shape).astype(dtype)
    got.backward(np.asarray(g))
    want.backward(torch.tensor(g))
    for x, q in zip(inputs, peers, strict=True):
        near(np.asarray(x.grad), q.grad, dtype)
