"""Every method on every layer type on the cuda backend; on Numba's simulator where there is no GPU."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor, get_backend
from loratk.errors import BackendError
from loratk.nn import MLP
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


def test_rows_with_adapters_of_their_own():
    x, names, found = np.random.default_rng(0).standard_normal((5, 4)), ["a", "b", None, "c", "a"], []
    for backend in ("cpu", "cuda"):
        model = LoraModel(MLP([4, 6, 3], rng=0, dtype=np.float64))
        for name, method in (("a", "lora"), ("b", "dora"), ("c", "loha")):
            model.add_adapter(name, LoraConfig(rank=2, method=method, bias="lora_only"))
            rng = np.random.default_rng(1)
            model.load_state({key: np.abs(rng.standard_normal(value.shape)) for key, value in model.state(name).items()}, name)
        model.to(backend)
        held = Tensor(x, requires_grad=True, backend=backend)
        y = model(held, adapter=names)
        y.backward(np.ones((5, 3)))
        grads = {name: model.backend.numpy(p.grad) for name, p in model.named_parameters() if p.grad is not None}
        found.append({"y": y.numpy(), "x": model.backend.numpy(held.grad), **grads})
    assert found[0].keys() == found[1].keys()
    for name, want in found[0].items():
        np.testing.assert_allclose(found[1][name], want, rtol=1e-9, atol=1e-9, err_msg=name)
