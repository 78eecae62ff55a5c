"""Files of named arrays and strings: the store contract, HDF5 and npz."""

from .atomic import atomic_file
from .find import find_store
from .hdf5 import Hdf5Store
from .npz import NpzStore
from .store import Contents, Reader, Store, StoreBase

__all__ = ["Contents", "Hdf5Store", "NpzStore", "Reader", "Store", "StoreBase", "atomic_file", "find_store"]
