"""Modules, losses and optimisers: what networks are built of and trained with."""

from .activations import ACTIVATIONS, GELU, Identity, ReLU, Sigmoid, SiLU, Softmax, Tanh
from .attention import MultiHeadAttention, QKVProjection
from .containers import MLP, Sequential
from .conv import AvgPool2d, Conv2d, Flatten, MaxPool2d
from .dropout import Dropout
from .linear import Embedding, Linear
from .module import Module
from .norms import BatchNorm, LayerNorm, RMSNorm
from .parameter import Buffer, Parameter
from .positions import PositionalEncoding
from .recurrent import GRU, LSTM, RNN
from .transformer import FeedForward, Transformer, TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "ACTIVATIONS", "GELU", "GRU", "LSTM", "MLP", "RNN", "AvgPool2d", "BatchNorm", "Buffer", "Conv2d", "Dropout", "Embedding",
    "FeedForward", "Flatten", "Identity", "LayerNorm", "Linear", "MaxPool2d", "Module", "MultiHeadAttention", "Parameter",
    "PositionalEncoding", "QKVProjection", "RMSNorm", "ReLU", "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "Transformer",
    "TransformerDecoderLayer", "TransformerEncoderLayer",
]  # fmt: skip
