"""The short readers of docs/format.md, run by Octave and R where they are installed, on files that loratk wrote."""

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from loratk.exchange import AdapterState, portable, write_adapters
from loratk.io import Hdf5Store

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
A = np.random.default_rng(0).standard_normal((130, 40)).astype(np.float32)
B = np.random.default_rng(1).standard_normal((40, 110)).astype(np.float32)
RECORD = {"method": "lora", "layer_type": "linear", "shape": [130, 110], "rank": 40, "alpha": 60.0, "scaling": 1.5}
WANT = 1.5 * A.astype(np.float64) @ B.astype(np.float64)


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(params=[0, 6], ids=["contiguous", "compressed"])
def folder(request, tmp_path):
    """With the file of the page's example, and a second adapter and module in it; and the same made portable."""
    tensors = {"layers.0.lora_A": A, "layers.0.lora_B": B, "layers.1.lora_A": -A, "layers.1.lora_B": B}
    state = AdapterState("mine", {}, tensors, {"layers.0": RECORD, "layers.1": RECORD})
    other = AdapterState("other", {}, tensors, {"layers.0": RECORD, "layers.1": RECORD})
    stores = {"hdf5": Hdf5Store(compression=request.param)}
    write_adapters(tmp_path / "adapter.h5", [state, other], stores=stores)
    write_adapters(tmp_path / "portable.h5", [portable(state)], stores=stores)
    return tmp_path


def run(folder, *command):
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.loadtxt(folder / "delta.txt"), WANT, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(shutil.which("octave") is None, reason="Octave is not installed (Debian: octave)")
def test_octave(folder):
    (code,) = blocks("octave")
    (folder / "reader.m").write_text(code + '\ndlmwrite("delta.txt", delta, "delimiter", " ", "precision", 17);\n')
    run(folder, "octave", "--no-gui", "--quiet", "--norc", "reader.m")


@pytest.mark.skipif(shutil.which("octave") is None, reason="Octave is not installed (Debian: octave)")
def test_octave_with_hdf5oct(folder):
    has = subprocess.run(["octave", "--no-gui", "--quiet", "--eval", "pkg load hdf5oct"], capture_output=True, check=False).returncode == 0
    if not has:
        pytest.skip("Octave has no package hdf5oct, which reads attributes")
    (code,) = blocks("matlab")
    (folder / "reader.m").write_text("pkg load hdf5oct\n" + code + '\ndlmwrite("delta.txt", delta, "delimiter", " ", "precision", 17);\n')
    run(folder, "octave", "--no-gui", "--quiet", "--norc", "reader.m")


@pytest.mark.parametrize("package", ["rhdf5", "hdf5r"])
@pytest.mark.skipif(shutil.which("Rscript") is None, reason="R is not installed (Debian: r-base-core)")
def test_r(folder, package):
    found = subprocess.run(["Rscript", "-e", f"stopifnot(requireNamespace('{package}'))"], capture_output=True, check=False)
    if found.returncode:
        pytest.skip(f"R has no package {package} (Debian: r-bioc-rhdf5, r-cran-hdf5r)")
    (code,) = [code for code in blocks("r") if package in code]
    (folder / "reader.R").write_text(
        code + '\nwrite.table(format(delta, digits = 17), "delta.txt", quote = FALSE, row.names = FALSE, col.names = FALSE)\n'
    )
    run(folder, "Rscript", "--vanilla", "reader.R")


@pytest.mark.parametrize("language", ["matlab", "octave", "r", "julia"])
def test_each_reader_has_five_lines(language):
    for code in blocks(language):
        assert len(code.splitlines()) <= 5
