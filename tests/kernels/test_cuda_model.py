"""Whole models on the cuda backend compute and train what they do on the reference; on Numba's simulator where there is no GPU."""

import os

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, Tensor, Trainer, get_backend, ops
from loratk.errors import BackendError
from loratk.nn import MLP, AdamW

pytestmark = pytest.mark.kernels


@pytest.fixture(scope="module", autouse=True)
def cuda():
    if os.environ.get("NUMBA_DISABLE_JIT") == "1":
        pytest.skip("the CUDA kernels cannot run with the JIT off")
    try:
        return get_backend("cuda")
    except BackendError as error:
        pytest.skip(str(error))


def make(method, backend):
    """A small classifier with an adapter whose B is not zero."""
    model = LoraModel.from_sizes([6, 5, 4], LoraConfig(rank=2, alpha=4, method=method, bias="all"), rng=0, dtype=np.float64)
    rng = np.random.default_rng(1)
    model.load_state({name: array + 0.1 * rng.standard_normal(array.shape) for name, array in model.state().items()})
    return model.to(backend)


rng = np.random.default_rng(2)
x, y = rng.standard_normal((6, 6)), np.array([0, 1, 2, 3, 0, 1])


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_training_an_adapter(method, tmp_path):
    models = [make(method, backend) for backend in ("reference", "cuda")]
    for model in models:
        history = Trainer(model, AdamW(model.trainable(), lr=0.05), ops.cross_entropy, seed=3).fit((x, y), epochs=2, batch_size=4)
        assert np.isfinite(history.epochs[-1]["loss"])
        assert model.backend is get_backend(model.backend.name)
    want, got = (model.state() for model in models)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-9, atol=1e-12, err_msg=name)
    models[1].save(tmp_path / "cuda.h5")
    again = make(method, "reference")
    again.remove_adapter("default")
    assert again.load(tmp_path / "cuda.h5") == ["default"]


def test_switching_and_merging():
    model = make("lora", "cuda")
    on = model(x).numpy()
    with model.disabled():
        off = model(x).numpy()
    model.merge()
    np.testing.assert_allclose(model(x).numpy(), on, rtol=1e-10)
    model.unmerge()
    with model.disabled():
        np.testing.assert_array_equal(model(x).numpy(), off)
    np.testing.assert_allclose(model.to("cpu")(x).numpy(), on, rtol=1e-10)


def test_tensors_of_two_backends_do_not_mix():
    with pytest.raises(BackendError, match="'cuda' and 'cpu'"):
        Tensor(x, backend="cuda") + Tensor(x)


def test_a_base_can_train_too():
    model = MLP([6, 4], rng=0, dtype=np.float64).to("cuda")
    ops.cross_entropy(model(x), y).backward()
    want = MLP([6, 4], rng=0, dtype=np.float64).to("reference")
    ops.cross_entropy(want(x), y).backward()
    for name, parameter in model.named_parameters():
        grad = model.backend.numpy(parameter.grad)
        np.testing.assert_allclose(grad, dict(want.named_parameters())[name].grad, rtol=1e-10, atol=1e-14)
