"""Recipes for optimisers: which parameters of a model go into which group."""

from typing import TYPE_CHECKING, Any

from ..errors import StateError
from ..nn.param_groups import number

if TYPE_CHECKING:
    from .model import LoraModel


def lora_plus(model: "LoraModel", lr: float, *, ratio: float = 16.0, embedding_lr: float | None = None) -> list[dict[str, Any]]:
    """Groups for an optimiser in which B learns `ratio` times as fast as A: `AdamW(lora_plus(model, 1e-4))`.

    Hayou et al. 2024 (LoRA+), section 4: lr_B = ratio lr_A, 16 by default. Vectors (magnitudes, gains, biases) go with B, what else trains
    with A, as in the authors' code. `embedding_lr`: that of adapters on embeddings, the authors use 1e-6; None for `lr` and `ratio` as
    everywhere. The groups hold what is active, each parameter once, and no group is empty. Raises ConfigError for a rate that is no
    number of at least 0, StateError where nothing trains.
    """
    lr, ratio = number("lr", lr), number("ratio", ratio)
    slow, fast, embedded = [], [], []
    on_embeddings: set[int] = set()
    names: dict[int, str] = {}
    for layer in model.layers.values():
        for adapter in layer.active:
            held = layer.adapter(adapter).tensors()
            names |= {id(parameter): key.rpartition(".")[2] for key, parameter in held.items()}
            if layer.layer_type is not None and layer.layer_type.name == "embedding":
                on_embeddings |= {id(parameter) for parameter in held.values()}
    for parameter in model.trainable():
        if embedding_lr is not None and id(parameter) in on_embeddings:
            embedded.append(parameter)
        elif id(parameter) in names and (names[id(parameter)] == "lora_B" or parameter.ndim == 1):
            fast.append(parameter)
        else:
            slow.append(parameter)
    if not slow and not fast and not embedded:
        raise StateError("Nothing of this model trains: activate an adapter with set_active() first.")
    rates = [(slow, lr), (fast, lr * ratio), (embedded, 0.0 if embedding_lr is None else number("embedding_lr", embedding_lr))]
    return [{"params": group, "lr": rate} for group, rate in rates if group]
