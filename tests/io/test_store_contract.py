"""Every registered store, and a plugin's in 25 lines, against the shipped contract."""

import json

import numpy as np
import pytest

from loratk.io import Contents, StoreBase
from loratk.io.builtin import register_stores
from loratk.testing.store import check_store

STORES = register_stores()


class JsonStore(StoreBase):
    """What a plugin author writes."""

    name = "json"
    suffixes = (".json",)
    magic = b'{"arrays"'

    def save(self, file, arrays, strings):
        rows = {
            name: [array.dtype.newbyteorder("=").str, array.shape, array.astype(array.dtype.newbyteorder("=")).tobytes().hex()]
            for name, array in arrays.items()
        }
        file.write(json.dumps({"arrays": rows, "strings": dict(strings)}).encode())

    def load(self, file):
        record = json.loads(file.read())
        arrays = {
            name: np.frombuffer(bytes.fromhex(raw), dtype).reshape(shape).copy() for name, (dtype, shape, raw) in record["arrays"].items()
        }
        return Contents(arrays, record["strings"])


@pytest.mark.parametrize("store", [*STORES, JsonStore()], ids=lambda store: store.name)
def test_contract(store, tmp_path):
    check_store(store, tmp_path)


class Rounding(JsonStore):
    def load(self, file):
        contents = super().load(file)
        return Contents(
            {name: np.round(array, 3) if array.dtype == "f8" else array for name, array in contents.arrays.items()}, contents.strings
        )


class InPlace(JsonStore):
    def write(self, path, arrays, strings):
        with open(path, "wb") as file:
            self.save(file, arrays, strings)


@pytest.mark.parametrize(("broken", "said"), [(Rounding, "values changed"), (InPlace, "must raise")])
def test_contract_finds_a_broken_store(broken, said, tmp_path):
    with pytest.raises(AssertionError, match=said):
        check_store(broken(), tmp_path)
