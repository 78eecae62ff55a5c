"""Modules, losses and optimisers: what networks are built of and trained with."""

from .activations import ACTIVATIONS, GELU, Identity, ReLU, Sigmoid, SiLU, Softmax, Tanh
from .containers import MLP, Sequential
from .linear import Embedding, Linear
from .module import Module
from .parameter import Buffer, Parameter

__all__ = [
    "ACTIVATIONS", "GELU", "MLP", "Buffer", "Embedding", "Identity", "Linear", "Module", "Parameter", "ReLU", "Sequential", "SiLU",
    "Sigmoid", "Softmax", "Tanh",
]  # fmt: skip
