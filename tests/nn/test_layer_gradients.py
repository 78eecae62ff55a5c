import inspect

import numpy as np
import pytest
from gradients import check_gradients

from loratk import nn
from loratk.autograd import Tensor, detect_anomaly

D = {"rng": 3, "dtype": np.float64}
PADDING = np.array([[False, False, True, True], [True, True, True, True]])
MEMORY_PADDING = np.array([[False, True, True], [False, False, False]])


def x(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape)


CASES = {
    "GELU": (lambda: nn.GELU(), [x(3, 4)]),
    "GELU tanh": (lambda: nn.GELU(tanh=True), [x(3, 4)]),
    "Identity": (lambda: nn.Identity(), [x(3, 4)]),
    "ReLU": (lambda: nn.ReLU(), [x(3, 4)]),
    "SiLU": (lambda: nn.SiLU(), [x(3, 4)]),
    "Sigmoid": (lambda: nn.Sigmoid(), [x(3, 4)]),
    "Softmax": (lambda: nn.Softmax(), [x(3, 4)]),
    "Tanh": (lambda: nn.Tanh(), [x(3, 4)]),
    "Linear": (lambda: nn.Linear(4, 3, **D), [x(2, 5, 4)]),
    "Linear no bias": (lambda: nn.Linear(4, 3, bias=False, **D), [x(4)]),
    "Embedding": (lambda: nn.Embedding(5, 3, **D), [np.array([[0, 4, 4], [1, 0, 4]])]),
    "MLP": (lambda: nn.MLP([4, 6, 5, 2], activation="tanh", output_activation=True, **D), [x(3, 4)]),
    "Sequential": (lambda: nn.Sequential(nn.Linear(4, 3, **D), nn.SiLU()), [x(3, 4)]),
    "LayerNorm": (lambda: nn.LayerNorm(4, dtype=np.float64), [x(2, 3, 4)]),
    "LayerNorm no bias": (lambda: nn.LayerNorm(4, bias=False, dtype=np.float64), [x(2, 3, 4)]),
    "RMSNorm": (lambda: nn.RMSNorm(4, dtype=np.float64), [x(2, 3, 4)]),
    "BatchNorm": (lambda: nn.BatchNorm(3, dtype=np.float64), [x(2, 4, 2, 3)]),
    "BatchNorm eval": (lambda: nn.BatchNorm(3, dtype=np.float64).eval(), [x(5, 3)]),
    "Dropout": (lambda: nn.Dropout(0.4, 5), [x(4, 5)]),
    "Conv2d": (lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), **D), [x(2, 5, 6, 2)]),
    "MaxPool2d": (lambda: nn.MaxPool2d(2, stride=1), [x(2, 4, 3, 2)]),
    "AvgPool2d": (lambda: nn.AvgPool2d((2, 3)), [x(2, 4, 6, 2)]),
    "Flatten": (lambda: nn.Flatten(), [x(2, 4, 3, 2)]),
    "QKVProjection": (lambda: nn.QKVProjection(4, heads=2, kv_heads=1, **D), [x(2, 3, 4)]),
    "MultiHeadAttention": (lambda: nn.MultiHeadAttention(6, 2, **D), [x(2, 4, 6)]),
    "MultiHeadAttention causal": (lambda: nn.MultiHeadAttention(8, 4, kv_heads=2, causal=True, **D), [x(2, 4, 8)], {"padding": PADDING}),
    "MultiHeadAttention cross": (lambda: nn.MultiHeadAttention(6, 2, cross=True, **D), [x(2, 4, 6), x(2, 3, 6)],
                                 {"padding": MEMORY_PADDING}),
    "MultiHeadAttention dropout": (lambda: nn.MultiHeadAttention(6, 2, dropout=0.3, **D), [x(2, 4, 6)]),
    "FeedForward": (lambda: nn.FeedForward(4, 7, activation="gelu", dropout=0.2, **D), [x(2, 3, 4)]),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, **D), [x(2, 4, 6)], {"padding": PADDING}),
    "TransformerEncoderLayer pre": (lambda: nn.TransformerEncoderLayer(6, 2, 8, pre_norm=True, causal=True, **D), [x(2, 4, 6)]),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(6, 2, 8, dropout=0.1, **D), [x(2, 4, 6), x(2, 3, 6)],
                                {"memory_padding": MEMORY_PADDING}),
    "TransformerDecoderLayer pre": (lambda: nn.TransformerDecoderLayer(6, 2, 8, pre_norm=True, **D), [x(2, 4, 6), x(2, 3, 6)]),
    "Transformer": (lambda: nn.Transformer(4, 2, 6, layers=2, pre_norm=True, activation="silu", **D), [x(2, 3, 4), x(2, 2, 4)]),
    "PositionalEncoding": (lambda: nn.PositionalEncoding(5), [x(2, 3, 5)]),
    "RNN": (lambda: nn.RNN(3, 4, **D), [x(2, 5, 3), x(2, 4)]),
    "GRU": (lambda: nn.GRU(3, 4, **D), [x(2, 5, 3), x(2, 4)]),
    "LSTM": (lambda: nn.LSTM(3, 4, **D), [x(2, 5, 3)]),
    "MSELoss": (lambda: nn.MSELoss(), [x(3, 4), x(4, 3).T]),
    "CrossEntropyLoss": (lambda: nn.CrossEntropyLoss(label_smoothing=0.1), [x(3, 4), np.array([3, -100, 0])]),
    "BCEWithLogitsLoss": (lambda: nn.BCEWithLogitsLoss(), [x(3, 4), np.random.default_rng(0).random((3, 4))]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_gradients_of_inputs_and_parameters_are_the_difference_quotients(case):
    make, inputs, *options = CASES[case]
    module, rng = make(), np.random.default_rng(1)
    for parameter in module.parameters():  # away from the ones and zeros that some start at
        parameter.assign(parameter.numpy() + 0.3 * rng.standard_normal(parameter.shape))
    check_gradients(module, inputs, *options)


def test_every_layer_has_a_case():
    layers = {name for name in nn.__all__ if inspect.isclass(getattr(nn, name)) and issubclass(getattr(nn, name), nn.Module)}
    want = layers - {"Module"}
    got = {case.split()[0] for case in CASES}
    assert want <= got


def to_float32(value):
    return value.astype(np.float32) if value.dtype.kind == "f" else value


@pytest.mark.parametrize("case", CASES)
def test_float32_on_the_cpu_backend_agrees_with_float64_on_the_reference(case):
    make, inputs, *options = CASES[case]
    wide = make().to("reference")
    narrow = make()
    for _, holder in narrow.modules():
        for value in vars(holder).values():
            if isinstance(value, nn.Parameter):
                value.data = to_float32(value.numpy())
    options = options[0] if options else {}
    want, got = wide(*reference(inputs), **options), narrow(*map(to_float32, inputs), **options)
    while isinstance(want, tuple):
        want, got = want[0], got[0]
    assert got.dtype == np.float32
    assert got.backend.name == "cpu"
    np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=2e-5, atol=2e-5)


def reference(inputs):
    return [Tensor(x, backend="reference") if x.dtype.kind == "f" else x for x in inputs]


@pytest.mark.parametrize("case", [case for case in CASES if "ention" in case or "Transformer" in case])
def test_anomaly_mode_finds_nothing_in_masked_attention(case):
    make, inputs, *options = CASES[case]
    module = make()
    with detect_anomaly():
        y = module(*inputs, **(options[0] if options else {}))
        y.sum().backward()
    assert all(np.isfinite(parameter.grad).all() for parameter in module.parameters())
