"""The built-in stores, registered as a plugin would register its own."""

from ..hookspecs import hookimpl
from .hdf5 import Hdf5Store
from .npz import NpzStore
from .store import Store


@hookimpl
def register_stores() -> list[Store]:
    """HDF5 and npz."""
    return [Hdf5Store(), NpzStore()]
