"""Where an adapter goes beyond what its patterns say: ranks that fit, and biases that train."""

from collections.abc import Sequence

from ..errors import ConfigError
from ..nn import Module, Parameter
from ..plugins import Registry
from .config import LoraConfig
from .targets import Candidate


def rank_faults(chosen: Sequence[tuple[Candidate, Sequence[str]]], config: LoraConfig) -> list[str]:
    """The layers and column blocks for which the config's rank is too high, a line each."""
    found = []
    for candidate, blocks in chosen:
        d, _ = candidate.layer_type.shape(candidate.module)
        for block in blocks:
            start, stop = candidate.blocks[block]
            try:
                config.validate(d, stop - start, candidate.block_name(block), candidate.name, linear=candidate.layer_type.linear)
            except ConfigError as error:
                found.append(str(error))
    return found


def biased_modules(modules: Sequence[tuple[str, Module]], chosen: set[str], config: LoraConfig, registry: Registry) -> list[str]:
    """The names of the modules whose bias trains under a config that gives the `chosen` ones an adapter.

    Raises ConfigError if it asks for biases and there is none, or one of which nobody knows how it is used.
    """
    if config.bias == "none":
        return []
    found = []
    for name, module in modules:
        layer_type = registry.layer_type(module)
        bias = layer_type.bias(module) if layer_type else getattr(module, "bias", None)
        if not isinstance(bias, Parameter) or (config.bias == "lora_only" and name not in chosen):
            continue
        if layer_type is None and not getattr(module, "adds_bias", False):
            raise ConfigError(
                f"bias='all' would have to train the bias of {name!r}, but a {type(module).__name__} does not say how it uses it; "
                "use bias='lora_only', or set adds_bias = True on the class if it adds its bias along the output's last axis."
            )
        found.append(name)
    if not found:
        raise ConfigError(f"bias={config.bias!r} finds no bias to train: none of the layers it means has one. Use bias='none'.")
    return found
