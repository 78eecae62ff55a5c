"""Adapters of llama.cpp: one GGUF file."""

from loratk import hookimpl
from loratk.exchange import AdapterFormat

from .gguf_format import GgufFormat


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """GGUF."""
    return [GgufFormat()]
