"""Adapters as loralib keeps them: a state dict in a file of torch.save, read without torch and without Python's pickle."""

from loratk import hookimpl
from loratk.exchange import AdapterFormat

from .loralib_format import LoralibFormat


@hookimpl
def register_formats() -> list[AdapterFormat]:
    """loralib."""
    return [LoralibFormat()]
