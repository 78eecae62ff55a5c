"""Data and losses that do not fit what a config asks for."""

import numpy as np
import pytest
from init_examples import mse, rows

from loratk import LoraConfig, LoraLinear, LoraModel, Tensor
from loratk.errors import AnomalyError, ConfigError, DtypeError
from loratk.nn import MLP, Embedding, Linear, Module

X = rows().astype(np.float32)


@pytest.mark.parametrize(
    ("init", "how", "error", "said"),
    [
        ("eva", {}, ConfigError, "the init 'eva' starts from data: give data=, an iterable of batches of x or"),
        (
            "lora_ga",
            {},
            ConfigError,
            r"the init 'lora_ga' starts from data: give data=, an iterable of batches of pairs \(x, y\), and loss=",
        ),
        ("lora_ga", {"data": [(X, X)]}, ConfigError, "the init 'lora_ga' starts from gradients: give loss="),
        ("lora_ga", {"data": [X], "loss": mse}, DtypeError, r"A batch of data must be a pair \(x, y\), found a ndarray"),
        ("lora_ga", {"data": [(X, X)], "loss": lambda y, _: y}, DtypeError, "loss must be a Tensor with a single number"),
        ("lora_ga", {"data": [(X, X)], "loss": 3}, ConfigError, "loss must be a function of outputs and y, found 3"),
        ("eva", {"data": [X], "loss": mse}, ConfigError, "a loss was given, but nothing in this config starts from gradients"),
        ("pissa", {"data": [X]}, ConfigError, "data was given, but nothing in this config starts from data"),
        ("eva", {"data": []}, ConfigError, "The data gave no batch"),
        ("eva", {"data": X}, DtypeError, "found a ndarray; put a single batch into a list"),
        ("eva", {"data": (X, X)}, DtypeError, "found a tuple; put a single batch into a list"),
        ("eva", {"data": [(X,)]}, DtypeError, r"must be a pair \(x, y\) or x alone, found a tuple of 1"),
        ("eva", {"data": [X[:2]]}, ConfigError, "Layer '0': the init 'eva' at rank 2 needs inputs that vary in as many.*2 rows of data"),
        ("eva 2", {"data": [X[:2]]}, ConfigError, "as many directions as there are ranks, 4; those of the layers, 2 rows.* vary in 2"),
        ("corda", {"data": [X * np.nan]}, AnomalyError, "The inputs of '0' hold NaN or infinity"),
    ],
)
def test_refused(init, how, error, said):
    config = LoraConfig(rank=2, init={"name": "eva", "rho": 2 if init == "eva 2" else 1} if init.startswith("eva") else init)
    with pytest.raises(error, match=said):
        LoraModel.adapt(MLP([6, 5, 4], rng=0), config, **how)


def test_layers_that_data_does_not_reach_are_named():
    class Half(Module):
        def __init__(self):
            self.used, self.unused = Linear(6, 4, rng=0), Linear(6, 4, rng=1)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(ConfigError, match="'unused' was not reached"):
        LoraModel.adapt(Half(), LoraConfig(rank=1, init="corda"), data=[X])
    config, one = LoraConfig(rank=1, init="lora_ga", targets="used"), Tensor(np.float32(1))
    with pytest.raises(ConfigError, match="the loss does not depend on 'used'"):
        LoraModel.adapt(Half(), config, data=[(X, 0)], loss=lambda y, _: one)


def test_an_adapter_alone_cannot_have_data():
    with pytest.raises(ConfigError, match=r"the init 'eva' starts from the inputs of the layer in data, and there are none"):
        LoraLinear(6, 5, LoraConfig(rank=2, init="eva"), rng=0)


def test_so_many_inputs_that_their_moments_would_fill_the_memory_are_refused():
    with pytest.raises(ConfigError, match=r"keeps a \(d, d\) matrix of the inputs, and d is 20000"):
        LoraModel.adapt(Embedding(20000, 4, rng=0), LoraConfig(rank=1, init="corda", targets="*"), data=[np.array([[1, 2]])])
