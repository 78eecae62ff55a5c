"""Modules, losses and optimisers: what networks are built of and trained with."""

from .activations import ACTIVATIONS, GELU, Identity, ReLU, Sigmoid, SiLU, Softmax, Tanh
from .attention import MultiHeadAttention, QKVProjection
from .clip import clip_grad_norm, clip_grad_value
from .containers import MLP, Sequential
from .conv import AvgPool2d, Conv2d, Flatten, MaxPool2d
from .dropout import Dropout
from .linear import Embedding, Linear
from .losses import BCEWithLogitsLoss, CrossEntropyLoss, MSELoss
from .module import Module
from .norms import BatchNorm, LayerNorm, RMSNorm
from .optim import SGD, Adam, AdamW, Optimizer
from .parameter import Buffer, Parameter
from .positions import PositionalEncoding
from .recurrent import GRU, LSTM, RNN
from .schedules import constant, cosine, linear_warmup, step_decay
from .transformer import FeedForward, Transformer, TransformerDecoderLayer, TransformerEncoderLayer

__all__ = [
    "ACTIVATIONS", "GELU", "GRU", "LSTM", "MLP", "RNN", "SGD", "Adam", "AdamW", "AvgPool2d", "BCEWithLogitsLoss", "BatchNorm", "Buffer",
    "Conv2d", "CrossEntropyLoss", "Dropout", "Embedding", "FeedForward", "Flatten", "Identity", "LayerNorm", "Linear", "MSELoss",
    "MaxPool2d", "Module", "MultiHeadAttention", "Optimizer", "Parameter", "PositionalEncoding", "QKVProjection", "RMSNorm", "ReLU",
    "Sequential", "SiLU", "Sigmoid", "Softmax", "Tanh", "Transformer", "TransformerDecoderLayer", "TransformerEncoderLayer",
    "clip_grad_norm", "clip_grad_value", "constant", "cosine", "linear_warmup", "step_decay",
]  # fmt: skip
