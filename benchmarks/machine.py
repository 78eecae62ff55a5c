"""What the figures were taken with: versions, NumPy's BLAS and its kernel, and the variables that change what a BLAS does."""

import ctypes
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

TELLING = ("OPENBLAS_", "MKL_", "OMP_", "GOTO_", "BLIS_", "KMP_", "LORATK_", "NUMBA_", "ONEDNN_")


def versions() -> str:
    found = []
    for package in ("loratk", "numpy", "numba", "torch", "peft"):
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return f"{platform.machine()}, python {platform.python_version()}, " + ", ".join(found)


def blas() -> str:
    """NumPy's BLAS and, where it can be asked, the kernel that it chose for this processor."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    name = f"{built.get('name')} {built.get('version')}"
    for file in (Path(np.__file__).parent.parent / "numpy.libs").glob("*openblas*"):
        library = ctypes.CDLL(str(file))
        for symbol in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
            if hasattr(library, symbol):
                ask = getattr(library, symbol)
                ask.restype = ctypes.c_char_p
                return f"{name}, kernel {ask().decode()}"
    return name


def header(threads: int) -> str:
    """Lines that go above the figures."""
    lines = [f"{versions()}; {threads} threads", f"NumPy's BLAS: {blas()}"]
    telling = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith(TELLING))
    if telling:
        lines.append(f"set in the environment, and part of what is measured: {', '.join(telling)}")
    return "\n".join(lines)
