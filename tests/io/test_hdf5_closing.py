"""HDF5 files are closed whatever is in them: one left open crashes Python at its end, when HDF5 asks a Python that is gone to close it."""

import re
import subprocess
import sys

import h5py
import numpy as np
import pytest

from loratk.errors import LoratkError
from loratk.io import Hdf5Store


def still_open():
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


@pytest.fixture(scope="module", params=["earliest", "latest"])
def sound(request, tmp_path_factory):
    """A file of another program: it has no seal, so that what is wrong with it comes to light while HDF5 reads it.

    The header of its root group goes on elsewhere: HDF5 opens the file without a look at that part.
    """
    path = tmp_path_factory.mktemp("sound") / "x.h5"
    with h5py.File(path, "w", libver=request.param) as file:
        for number in range(6):
            file.attrs[f"text{number}"] = f"some text of {number}"
        file["a"] = np.arange(3.0)
    return path.read_bytes()


def places(sound):
    """Where structures of HDF5 begin, and everything near the beginning."""
    return sorted({*range(40, 200), *(found.start() for found in re.finditer(b"OHDR|OCHK|TREE|HEAP|SNOD|GCOL", sound))})


def refused_with(sound, place, path):
    """Whether the file is refused with the beginning of a heap of strings at a place where there is none."""
    path.write_bytes(sound[:place] + b"GCOL" + sound[place + 4 :])
    try:
        Hdf5Store().read(path)
    except LoratkError:
        return True
    return False


def test_damage_anywhere_leaves_no_file_open(sound, tmp_path):
    before = still_open()
    refused = [place for place in places(sound) if refused_with(sound, place, tmp_path / "x.h5")]
    assert len(refused) > 20
    assert still_open() == before


def test_python_ends_well_after_refusing_a_file(sound, tmp_path):
    """Each of the files in one process, which then ends."""
    for place in places(sound):
        (tmp_path / f"{place}.h5").write_bytes(sound[:place] + b"GCOL" + sound[place + 4 :])
    code = """
import contextlib, pathlib, sys
from loratk.errors import LoratkError
from loratk.io import Hdf5Store
for path in pathlib.Path(sys.argv[1]).glob("*.h5"):
    with contextlib.suppress(LoratkError):
        Hdf5Store().read(path)
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stderr) == (0, "")
