"""A short run of the fuzz over every registered format, and that it would find what it looks for.

The long run is `python -m tests.fuzz --inputs 100000` (the tox environment `fuzz`).
"""

import sys

import h5py
import numpy as np
import pytest

from loratk.exchange import formats_of
from loratk.plugins import default_registry

if sys.platform == "win32":
    pytest.skip("limits and signals of POSIX", allow_module_level=True)

from tests.fuzz.checksums import repaired
from tests.fuzz.mutate import CHANGES, Mutator
from tests.fuzz.run import fuzz
from tests.fuzz.structures import change

INPUTS = 200
FORMATS = list(formats_of(default_registry()))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return fuzz(FORMATS, INPUTS, tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("name", FORMATS)
def test_broken_files_are_refused_and_no_more(name, results):
    result = results[name]
    assert result.problems == []
    assert result.count["inputs"] == INPUTS
    assert result.count["seeds_read"] > 0, "no seed is sound: nothing but the first check is tested"
    assert result.count["ways"] > 10


TROUBLES = {
    "raise KeyError('x')": "KeyError: 'x'",
    "os.kill(os.getpid(), signal.SIGSEGV)": "died with SIGSEGV",
    "open('/etc/hostname')": "opened '/etc/hostname'",
    "__import__('this_is_no_module')": "imported 'this_is_no_module'",
    "os.system('true')": "os.system",
    "np.ones(5 << 28, np.uint8)": "took 1",
    "pickle.loads(pickle.dumps(print))": "pickle.find_class",
    "np.empty(1 << 40)": "MemoryError",
    "[None for _ in iter(int, 1)]": "hung",
}

BROKEN = """
import os, pickle, signal, sys
import numpy as np
from tests.fuzz import worker
from loratk.errors import FormatError
read, calls = worker.load_adapter, []

def load(*arguments, **options):
    calls.append(1)
    number = len(calls)
    if number == 100:
        try:
            {trouble}
        except MemoryError as error:
            raise FormatError("hidden") from error
    return read(*arguments, **options)

worker.load_adapter = load
worker.main()
"""


@pytest.mark.parametrize(("trouble", "said"), TROUBLES.items())
def test_what_it_is_there_to_find_is_found(trouble, said, tmp_path, monkeypatch):
    script = tmp_path / "worker.py"
    script.write_text(BROKEN.format(trouble=trouble))
    monkeypatch.setattr("tests.fuzz.run.WORKER", [str(script)])
    if said == "hung":
        monkeypatch.setattr("tests.fuzz.run.SECONDS", 5.0)
    (result,) = fuzz(["safetensors"], 120, tmp_path).values()
    assert any(said in problem for problem in result.problems), result.problems
    assert list((tmp_path / "kept").iterdir())


def test_the_same_seed_gives_the_same_inputs():
    data, other = bytes(range(256)) * 4, b'{"a": [1, 2], "b": "c"}' * 9
    for make in (lambda m: m.change(data, other), lambda m: change(m, other, data)):
        once, again = ([make(Mutator(np.random.default_rng([at, 1]))) for at in range(50)] for _ in range(2))
        assert once == again
        assert len(set(once)) > 40


@pytest.mark.parametrize("made", CHANGES, ids=lambda made: made.__name__)
def test_changes_of_nearly_nothing(made):
    for data in (b"", b"a", b"123", bytes(9)):
        for at in range(20):
            assert isinstance(made(Mutator(np.random.default_rng(at)), data, b""), bytes)


@pytest.mark.parametrize("libver", ["v108", "latest"])
def test_checksums_of_hdf5_are_made_to_fit(libver, tmp_path):
    with h5py.File(tmp_path / "x", "w", libver=libver) as file:
        file["a"] = np.arange(3)
    whole = (tmp_path / "x").read_bytes()
    headers = [at for at in range(len(whole)) if whole[at : at + 4] == b"OHDR"]
    assert len(headers) == 2
    for at in (0, *headers):
        assert repaired(whole, at) == whole
    assert repaired(whole[:44] + bytes(4) + whole[48:], 0) == whole
    changed = repaired(whole[: headers[0] + 20] + bytes([whole[headers[0] + 20] ^ 1]) + whole[headers[0] + 21 :], headers[0])
    assert sum(old != new for old, new in zip(whole, changed, strict=True)) > 2
