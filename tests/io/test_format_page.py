"""docs/format.md, taken at its word: a file is read, and one written, by following only that page."""

import hashlib
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from urllib.parse import unquote

import h5py
import numpy as np
import pytest

from loratk.exchange import AdapterState, read_adapters, write_adapters
from loratk.io import Hdf5Store, NpzStore

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
STORES = {"hdf5": Hdf5Store(), "npz": NpzStore()}
RECORD = {"method": "lora", "layer_type": "Linear", "shape": [5, 3], "rank": 2, "alpha": 4.0, "scaling": 2.0, "code": "4"}
A = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((2, 3)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "adapter.h5"
    tensors = {"layers.0.q.lora_A": A, "layers.0.q.lora_B": B}
    state = AdapterState("a/b", {"rank": 2}, tensors, {"layers.0.q": RECORD}, "f00d", {"author": "me"})
    write_adapters(path, [state], stores=STORES)
    return path


def test_plain_h5py_reads_it(path):
    with h5py.File(path, "r") as file:
        assert (file.attrs["format"], file.attrs["format_version"]) == ("loratk-adapter", "1")
        ((name, adapter),) = file["adapters"].items()
        assert unquote(name) == "a/b"
        assert json.loads(adapter.attrs["config"]) == {"rank": 2}
        assert json.loads(adapter.attrs["metadata"]) == {"author": "me"}
        assert adapter.attrs["fingerprint"] == "f00d"
        module = adapter["layers.0.q"]
        assert module.attrs["method"] == "lora"
        assert (int(module.attrs["rank"]), float(module.attrs["alpha"]), float(module.attrs["scaling"])) == (2, 4.0, 2.0)
        assert json.loads(module.attrs["shape"]) == [5, 3]
        assert json.loads(module.attrs["code"]) == "4"
        assert (module["lora_A"][:] == A).all()
        assert (module["lora_B"][:] == B).all()
        delta = float(module.attrs["scaling"]) * module["lora_A"][:] @ module["lora_B"][:]
        assert delta.shape == (5, 3)
        assert module["lora_A"].chunks is None


@pytest.mark.skipif(shutil.which("h5dump") is None, reason="h5dump is not installed (package hdf5-tools)")
def test_h5dump_reads_it(path, tmp_path):
    def h5dump(*arguments):
        run = subprocess.run(["h5dump", *map(str, arguments), str(path)], capture_output=True, text=True, check=False)
        assert (run.returncode, run.stderr) == (0, "")
        return run.stdout

    listing = h5dump("-A")
    for said in (
        '"loratk-adapter"',
        'GROUP "a%2Fb"',
        'GROUP "layers.0.q"',
        'ATTRIBUTE "scaling"',
        '"2.0"',
        "( 5, 2 ) / ( 5, 2 )",
        "H5T_IEEE_F32LE",
    ):
        assert said in listing
    raw = tmp_path / "lora_A.bin"
    h5dump("-d", "/adapters/a%2Fb/layers.0.q/lora_A", "-b", "LE", "-o", raw)
    assert (np.fromfile(raw, "<f4").reshape(5, 2) == A).all()


def test_the_seal_is_as_described(path):
    data = path.read_bytes()
    magic, body, block, digest = struct.unpack("<16sQQ32s", data[-64:])
    assert magic == b"loratk-seal-1\r\n\0"
    table = b"".join(hashlib.sha256(data[at : min(at + block, body)]).digest() for at in range(0, body, block))
    assert data == data[:body] + table + data[-64:]
    assert hashlib.sha256(table + data[-64:-32]).digest() == digest


def test_the_example_of_the_page_loads(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code)
    (got,) = read_adapters(tmp_path / "adapter.h5", stores=STORES)
    assert got.name == "mine"
    assert got.modules == {"layers.0": {"method": "lora", "rank": 4, "alpha": 8.0, "scaling": 2.0}}
    assert {key: tensor.shape for key, tensor in got.tensors.items()} == {"layers.0.lora_A": (64, 4), "layers.0.lora_B": (4, 32)}


def test_all_that_the_page_allows_loads(tmp_path):
    path = tmp_path / "rich.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["format"], file.attrs["format_version"] = np.bytes_(b"loratk-adapter"), 1
        file.attrs["created_by"], file.attrs["matrix"] = "another program", np.eye(2)
        adapter = file.create_group("adapters/%2E%2E")
        adapter["config"] = '{"long": "' + "x" * 70_000 + '"}'
        module = adapter.create_group("%")
        module.attrs["method"], module.attrs["rank"], module.attrs["alpha"], module.attrs["scaling"] = "lora", 2, "4", 2.0
        module.create_dataset("lora_A", data=A.astype(">f4"), compression="gzip", shuffle=True, fletcher32=True)
        module["lora_B"] = B
        module["lora_B"].attrs["sha256"] = hashlib.sha256(B.tobytes()).hexdigest()
        module["lora_B"].attrs["unit"] = "none"
        file["lora/8/vars/lora_kernel_b"] = module["lora_B"]
    (got,) = read_adapters(path, stores=STORES)
    assert got.name == ".."
    assert len(got.config["long"]) == 70_000
    assert (got.tensors["lora_A"] == A).all()
    assert (got.tensors["lora_B"] == B).all()


def test_the_npz_twin_is_as_described(tmp_path):
    path = tmp_path / "twin.npz"
    write_adapters(path, [AdapterState("a", {}, {"m.lora_A": A, "m.lora_B": B}, {"m": RECORD})], stores=STORES)
    with np.load(path) as archive:
        assert (archive["adapters/a/m/lora_A"] == A).all()
        record = json.loads(archive["__loratk__.json"])
    assert record["strings"]["format"] == "loratk-adapter"
    assert record["strings"]["adapters/a/m/rank"] == "2"
