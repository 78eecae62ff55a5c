"""Adapters as kohya keeps them."""

from loratk import hookimpl
from loratk.exchange import AdapterFormat


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """None yet."""
    return []
