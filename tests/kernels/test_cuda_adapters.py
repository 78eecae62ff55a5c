"""Every method on every layer type on the cuda backend; on Numba's simulator where there is no GPU."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from loratk import get_backend
from loratk.errors import BackendError
from loratk.plugins import default_registry
from loratk.testing.layer_type import check_pair

sys.path.insert(0, str(Path(__file__).parent.parent / "lora"))
from layer_examples import LAYERS

pytestmark = pytest.mark.kernels


@pytest.fixture(scope="module", autouse=True)
def cuda():
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("the CUDA kernels cannot run with the JIT off")
    try:
        return get_backend("cuda")
    except BackendError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("method", default_registry().methods.values(), ids=lambda method: method.name)
@pytest.mark.parametrize("kind", default_registry().layer_types.values(), ids=lambda kind: kind.name)
def test_pair(kind, method):
    make_module, make_input = LAYERS[kind.module]
    check_pair(kind, method, make_module(np.float64).to("cuda"), make_input(np.float64))
