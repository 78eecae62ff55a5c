"""What training changes in a model, what it leaves alone, and how to put a model back as it was."""

import contextlib
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..nn import Module, Parameter


def moving(model: Module) -> dict[str, Parameter]:
    """What training changes, by name: the parameters that are not frozen, and the buffers."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad} | dict(model.named_buffers())


def frozen(model: Module) -> list[tuple[str, Parameter]]:
    """The parameters that training leaves alone, sorted by name."""
    return sorted(((name, value) for name, value in model.named_parameters() if not value.requires_grad), key=lambda item: item[0])


def fingerprint(model: Module) -> str:
    """SHA-256 of the names, shapes, dtypes and bytes of all frozen parameters."""
    digest = hashlib.sha256()
    for name, parameter in frozen(model):
        values = np.ascontiguousarray(parameter.numpy())
        digest.update(f"{name}\0{values.dtype.str}\0{values.shape}\0".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextlib.contextmanager
def in_mode(model: Module, *, training: bool) -> Iterator[None]:
    """The whole model in training or evaluation mode inside the block; afterwards each module as it was."""
    before = [(module, module.training) for _, module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in before:
            module.training = mode


class Draft:
    """What a forward pass changes by itself, taken down so that a step that fails leaves no trace: random generators, buffers."""

    def __init__(self, model: Module) -> None:
        self._generators = list({id(generator): generator for generator in model.generators().values()}.values())
        self._buffers = [buffer for _, buffer in model.named_buffers()]
        self._states: list[Any] = []
        self._values: list[np.ndarray] = []

    def begin(self) -> None:
        """Take down how it is now."""
        self._states = [generator.bit_generator.state for generator in self._generators]
        self._values = [np.array(buffer.numpy()) for buffer in self._buffers]

    def discard(self) -> None:
        """Put it back as it was at `begin`."""
        for generator, state in zip(self._generators, self._states, strict=True):
            generator.bit_generator.state = state
        for buffer, values in zip(self._buffers, self._values, strict=True):
            buffer.assign(values)
