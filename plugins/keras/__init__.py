"""Adapters as keras-hub keeps them, `.lora.h5`, and one file for loratk and keras-hub both."""

from loratk import hookimpl
from loratk.exchange import AdapterFormat


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """The format keras."""
    from .keras_format import KerasFormat

    return [KerasFormat()]
