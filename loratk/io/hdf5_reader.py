"""Reading an HDF5 file that anyone may have written: the whole tree is checked before an array is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import h5py
import numpy as np

from ..errors import FormatError, StateError, faults
from .bfloat16 import to_float32
from .hdf5 import Hdf5Store
from .hdf5_check import ObjectCheck
from .hdf5_chunks import FILTERS, read_chunks
from .names import RESERVED, dtype_fault, name_fault, text_fault
from .seal import SealedFile
from .store import bomb_fault, check_known

CHECKSUM = "sha256"
BFLOAT16 = np.dtype("V2")  # as Keras keeps it: two opaque bytes, under an attribute `dtype` that says what they are


class Hdf5Reader:
    """An open HDF5 file that has passed the checks."""

    def __init__(self, tree: h5py.File, file: SealedFile, check: ObjectCheck) -> None:
        self.strings: dict[str, str] = {}
        self.bfloat16: set[str] = set()
        """The arrays that the file holds as bfloat16; they read as float32."""
        self._tree, self._file = tree, file
        self._check = check
        self._datasets: dict[str, h5py.Dataset] = {}
        found = list(self._walk())
        if found:
            raise FormatError(faults(f"'{file.path}' holds what a loratk file must not hold (docs/format.md):", found))

    def names(self) -> list[str]:
        """The name of every array, sorted."""
        return list(self._datasets)

    def info(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """The shape and dtype of an array, without loading it."""
        dataset = self._dataset(name)
        return dataset.shape, np.dtype(np.float32) if name in self.bfloat16 else dataset.dtype.newbyteorder("=")

    def array(self, name: str) -> np.ndarray:
        """One array, loaded now, checked against the seal and its own checksum where the file has them."""
        with self._file.guard(Hdf5Store.name):
            dataset = self._dataset(name)
            if dataset.size and dataset.chunks is not None:
                array = read_chunks(self._file, dataset).astype(dataset.dtype.newbyteorder("="), copy=False)
            else:
                array = np.empty(dataset.shape, dataset.dtype.newbyteorder("="))
                if array.size:
                    dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, array)
            want = _attribute(dataset, CHECKSUM)
            if want is not None and want.lower() != (got := checksum(array)):
                raise FormatError(
                    f"'{self._file.path}': dataset {name!r} has the SHA-256 {got}, but its attribute {CHECKSUM!r} says {want!r}. "
                    f"Get a new copy of the file, or delete the attribute if the data were changed on purpose"
                )
        return to_float32(array.view("<u2").astype(np.uint16)) if name in self.bfloat16 else array

    def verify(self) -> None:
        """Check the whole file against its seal now. Raises FormatError."""
        self._file.verify()

    def _dataset(self, name: str) -> h5py.Dataset:
        if not self._tree:
            raise StateError(f"'{self._file.path}' is closed; read inside the 'with' block of open()")
        check_known([name], self._datasets)
        return self._datasets[name]

    def _walk(self) -> Iterator[str]:
        """Collect datasets and strings; yield every fault."""
        seen = {self._tree.id}
        groups = [("", self._tree)]
        while groups:
            path, group = groups.pop()
            yield from self._read_strings(path, group)
            for key in sorted(group, key=str):
                if isinstance(key, bytes):
                    yield f"the group '/{path}' holds the name {key!r}, which is not UTF-8"
                    continue
                name = f"{path}/{key}" if path else key
                if (fault := name_fault(name)) is not None:
                    yield f"the name {name!r} {fault}"
                    continue
                link = group.get(key, getlink=True)
                if not isinstance(link, h5py.HardLink):
                    yield f"{name!r} is a {'soft' if isinstance(link, h5py.SoftLink) else 'external'} link"
                    continue
                if (fault := self._check.fault(group.id.links.get_info(key.encode()).u)) is not None:
                    yield f"{name!r} {fault}"
                    continue
                item = group[key]
                if isinstance(item, h5py.Dataset):
                    yield from self._add(name, item)
                elif not isinstance(item, h5py.Group):
                    yield f"{name!r} is neither a group nor a dataset"
                elif item.id in seen:
                    yield f"{name!r} is a group that is also reached by another path"
                else:
                    seen.add(item.id)
                    groups.append((name, item))
        self._datasets = dict(sorted(self._datasets.items()))
        if (fault := bomb_fault(sum(dataset.nbytes for dataset in self._datasets.values()), self._file.size)) is not None:
            yield f"with all its names it {fault}"

    def _read_strings(self, path: str, group: h5py.Group) -> Iterator[str]:
        for key in sorted(group.attrs, key=str):
            name = f"{path}/{key}" if path else key
            if isinstance(key, bytes) or "/" in key or key.startswith(RESERVED) or name_fault(name) is not None:
                continue  # not a name that could be asked for
            if (value := _attribute(group, key)) is None:
                continue
            if (fault := text_fault(value)) is not None:
                yield f"the attribute {key!r} of group '/{path}' {fault}"
            else:
                self.strings[name] = value

    def _add(self, name: str, dataset: h5py.Dataset) -> Iterator[str]:
        try:
            dtype = dataset.dtype
        except TypeError as error:
            yield f"{name!r} has a type that NumPy does not know ({error})"
            return
        if h5py.check_string_dtype(dtype) is not None and dataset.shape == ():
            value = _text(dataset[()])
            if (fault := text_fault(value)) is not None or name in self.strings:
                yield f"the string dataset {name!r} {fault or 'has an attribute of the same name beside it'}"
            else:
                self.strings[name] = value
            return
        if dtype == BFLOAT16 and _attribute(dataset, "dtype") == "bfloat16":
            self.bfloat16.add(name)
        found = list(_dataset_faults(dataset, dtype, self._file.size, bfloat16=name in self.bfloat16))
        yield from (f"{name!r} {fault}" for fault in found)
        if not found:
            self._datasets[name] = dataset


def checksum(array: np.ndarray) -> str:
    """SHA-256 of an array's values in C order, little-endian, in hexadecimal digits."""
    return hashlib.sha256(np.asarray(array, array.dtype.newbyteorder("<"), order="C").reshape(-1).view(np.uint8).data).hexdigest()


def _dataset_faults(dataset: h5py.Dataset, dtype: np.dtype, file_size: int, *, bfloat16: bool = False) -> Iterator[str]:
    if dataset.shape is None:
        yield "has no shape"
        return
    if not bfloat16 and (fault := dtype_fault(dtype)) is not None:
        yield fault
        return
    if h5py.check_enum_dtype(dtype) is not None:
        yield "is an enumeration other than the boolean one"
        return
    if not bfloat16 and not dataset.id.get_type().equal(h5py.h5t.py_create(dtype, logical=True)):
        yield f"has a number type that is close to {dtype} but not the same"
        return
    layout = dataset.id.get_create_plist()
    stored, declared = dataset.id.get_storage_size(), dataset.size * dtype.itemsize
    if dataset.is_virtual:
        yield "is a virtual dataset, whose data lie in other files"
    elif layout.get_external_count():
        yield "keeps its data in an external file"
    elif stored > file_size:
        yield f"claims {stored} stored bytes in a file of {file_size}"
    elif (fault := bomb_fault(declared, stored)) is not None:
        yield fault
    elif declared and not stored:
        yield f"declares {declared} bytes, but stores none: its writer did not finish"
    for index in range(layout.get_nfilters()):
        code, _, _, label = layout.get_filter(index)
        if code not in FILTERS:
            yield f"uses the filter {label.decode(errors='replace') or code!r}; only {', '.join(FILTERS.values())} are read"


def _attribute(item: h5py.HLObject, key: str) -> str | None:
    """An attribute that is one string, number or boolean, as text; None for others, which belong to other programs, and for none."""
    if key not in item.attrs:
        return None
    kind = item.attrs.get_id(key)
    if kind.get_space().get_simple_extent_npoints() != 1 or kind.dtype.kind not in "OSbiuf":
        return None
    if kind.dtype.kind == "O" and h5py.check_string_dtype(kind.dtype) is None:
        return None
    try:
        return _text(item.attrs[key])
    except UnicodeDecodeError:
        return "\udc80"


def _text(value: object) -> str:
    """A scalar attribute as text; numbers as JSON writes them."""
    if isinstance(value, np.ndarray):
        value = value.reshape(-1)[0]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, np.bool_ | bool):
        return "true" if value else "false"
    if isinstance(value, np.generic):
        return str(value.item())
    return str(value)
