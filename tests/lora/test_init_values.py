"""What initialisations from the weight and from chance start with, against their papers in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
from init_examples import INITS, SCALING, start, weight
from layer_examples import LAYERS

from loratk import LoraConfig, LoraModel, ops
from loratk.errors import ConfigError
from loratk.lora import Init, Started
from loratk.lora.inits.svd import svd
from loratk.nn import MLP, Linear
from loratk.plugins import default_registry, use_registry
from loratk.testing import check_init

TYPES = default_registry().layer_types


def given(init, x):
    """What a model with this init has to be given besides."""
    data = {"data": [(x, None)]} if init.needs else {}
    return data | ({"loss": lambda y, _: ops.mean(y * y)} if init.needs == "gradients" else {})


@pytest.mark.parametrize("init", INITS.values(), ids=lambda init: init.name)
def test_contract(init):
    check_init(init)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("init", INITS.values(), ids=lambda init: init.name)
@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_the_output_is_unchanged_at_first_on_every_layer_type(kind, init, dtype):
    make, make_input = LAYERS[kind]
    module, x = make(dtype), make_input(dtype)
    base = module(x).numpy()
    config = LoraConfig(rank=2 if init.name == "orthogonal" else 1, alpha=2.0, init=init.name, targets="*")
    model = LoraModel.adapt(module, config, **given(init, x))
    assert np.abs(model(x).numpy() - base).max() <= 4 * np.finfo(dtype).eps * np.abs(base).max()
    ops.mean(model(x) ** 2).backward()
    assert any(p.grad is not None and np.abs(p.grad).max() > 0 for p in model.trainable())  # and it learns


def test_pissa_trains_the_best_approximation_of_its_rank():
    w = weight()
    a, b = start("pissa", w)
    u, s, v = np.linalg.svd(w)
    assert np.allclose(SCALING * a @ b, (u[:, :2] * s[:2]) @ v[:2], atol=1e-12)
    assert np.allclose(a.T @ a, np.diag(s[:2] / SCALING), atol=1e-12)  # half of each singular value in each factor
    assert np.allclose(b @ b.T, np.diag(s[:2] / SCALING), atol=1e-12)


def test_randomised_pissa_comes_near_and_nearer_with_more_iterations():
    u, _, v = np.linalg.svd(weight(120, 90), full_matrices=False)
    w = (u * 0.93 ** np.arange(90)) @ v
    a, b = start("pissa", w, rank=4)
    exact, off = a @ b, []
    for niter in (0, 2, 8):
        a, b = start("pissa", w, rank=4, niter=niter)
        off.append(np.linalg.norm(a @ b - exact) / np.linalg.norm(exact))
    assert off[0] > 1e-3
    assert off[1] < 0.1 * off[0]
    assert off[2] < 1e-3 * off[0]


def test_ranks_without_a_singular_value_start_as_loras_do():
    w = np.zeros((6, 5))
    w[:, 0] = 1
    a, b = start("pissa", w, rank=3)
    assert np.allclose(SCALING * a @ b, w, atol=1e-12)
    assert np.abs(a).max(axis=0).min() > 0.1
    assert np.array_equal(b[1:], np.zeros((2, 5)))


def test_olora_is_the_qr_decomposition_of_the_transpose():
    w = weight()
    a, b = start("olora", w)
    q, r = np.linalg.qr(w.T)
    assert np.allclose(a, r[:2].T)
    assert np.allclose(b, q[:, :2].T)
    assert np.allclose(b @ b.T, np.eye(2))


def test_mica_writes_into_the_directions_that_are_used_least():
    w = weight()
    a, b = start("mica", w)
    _, s, _ = np.linalg.svd(w)
    assert not a.any()
    assert np.allclose(np.linalg.norm(w @ b.T, axis=0), s[-2:])
    model = LoraModel.adapt(Linear(9, 7, rng=0), LoraConfig(rank=2, init="mica", targets="*"))
    assert [p.shape for p in model.trainable()] == [(9, 2)]


def test_orthogonal_halves_the_rank():
    a, b = start("orthogonal", rank=4)
    assert np.allclose(a @ b, 0, atol=1e-15)
    assert a.any(axis=0).all()
    assert b.any(axis=1).all()
    assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == 2
    big, _ = start("orthogonal", weight(4000, 8), rank=8)
    assert big.std() == pytest.approx(0.1 * 0.5**0.5, rel=0.03)


def test_signs_are_settled():
    u, s, v = svd(weight(), 2)
    assert (u[np.abs(u).argmax(axis=0), np.arange(7)] > 0).all()
    assert np.allclose((u * s) @ v, weight())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"init": {"name": "pissa", "niter": -1}}, "niter of the init 'pissa' must be a whole number of at least 0, or None"),
        ({"init": {"name": "lora_ga", "direction": "up"}}, "direction of the init 'lora_ga' must be one of 'A2rBr', 'ArB2r'"),
        ({"init": {"name": "lora_ga", "gamma": 0}}, "gamma of the init 'lora_ga' must be a number above 0, found 0"),
        ({"init": {"name": "lora_ga", "norm_clip": 1}}, "norm_clip of the init 'lora_ga' must be True or False, found 1"),
        ({"init": {"name": "eva", "rho": 0.5}}, "rho of the init 'eva' must be a number from 1 up, found 0.5"),
        ({"init": {"name": "eva", "whiten": 1}}, "whiten of the init 'eva' must be True or False, found 1"),
        ({"init": {"name": "corda", "mode": "both"}}, "mode of the init 'corda' must be one of 'ipm', 'kpm', found 'both'"),
        ({"init": "mica", "options": {"freeze_A": True}}, "freezes one factor and init 'mica' the other: nothing would train"),
    ],
)
def test_options_that_make_no_sense(config, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(**config)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rank": 3, "init": "orthogonal"}, "'0': the init 'orthogonal' halves the rank, which must be even, found 3"),
        ({"alpha": 0, "init": "pissa"}, "'0': the init 'pissa' divides by the scaling, which is 0; give an alpha above 0"),
        ({"rank": 3, "init": "lora_ga"}, r"'0': the init 'lora_ga' takes 2 \* rank = 6 directions, and the weight \(6, 5\) has 5"),
    ],
)
def test_layers_that_cannot_start_are_all_named(config, said):
    with pytest.raises(ConfigError, match=said) as caught:
        LoraModel.adapt(MLP([6, 5, 5], rng=0), LoraConfig(**{"rank": 2, **config}))
    assert str(caught.value).count(f"the init {config['init']!r}") == 2


def test_an_init_that_gives_another_shape_is_refused():
    class Wide(Init):
        name = "kaiming"

        def start(self, start):
            return Started(np.zeros((9, 5)), np.zeros((5, 7)))

    registry = replace(default_registry(), inits={**INITS, "kaiming": Wide()})
    said = r"Layer 'root': the init 'kaiming' gave factors of shapes \(\(9, 5\), \(5, 7\)\)"
    with use_registry(registry), pytest.raises(ConfigError, match=said):
        LoraModel.adapt(Linear(9, 7, rng=0), LoraConfig(rank=2, init="kaiming", targets="*"))
