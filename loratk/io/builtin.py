"""The built-in stores, registered as a plugin would register its own."""

from ..hookspecs import hookimpl
from .hdf5 import Hdf5Store
from .npz import NpzStore
from .safetensors import SafetensorsStore
from .store import Store


@hookimpl
def register_stores() -> list[Store]:
    """HDF5, npz and safetensors."""
    return [Hdf5Store(), NpzStore(), SafetensorsStore()]
