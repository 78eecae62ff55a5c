"""Files of named arrays and strings: the store contract, HDF5, npz and safetensors."""

from .atomic import atomic_file
from .find import find_store
from .folder import opened_files, replaced_files
from .hdf5 import Hdf5Store
from .lazy import LazyArrays
from .npz import NpzStore
from .safetensors import SafetensorsStore, open_safetensors, write_safetensors
from .store import Contents, Reader, Store, StoreBase

__all__ = [
    "Contents", "Hdf5Store", "LazyArrays", "NpzStore", "Reader", "SafetensorsStore", "Store", "StoreBase", "atomic_file", "find_store",
    "open_safetensors", "opened_files", "replaced_files", "write_safetensors",
]  # fmt: skip
