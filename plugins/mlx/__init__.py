"""Adapters of mlx-lm: a folder with adapters.safetensors and adapter_config.json."""

from loratk import hookimpl
from loratk.exchange import AdapterFormat

from .mlx_format import MlxFormat


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """mlx-lm."""
    return [MlxFormat()]
