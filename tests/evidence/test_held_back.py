"""What holds training back does what it says: dropout leaves the mean as it is, and a cap is never passed."""

import numpy as np
import pytest
from learning_problems import adapted, delta, learn, one_layer, teach, weight, whitened, with_values

from loratk.nn import SGD
from loratk.plugins import default_registry
from loratk.testing.layer_type import randomize

METHODS = default_registry().methods
D, K = 8, 6
BIAS = np.linspace(-1, 1, K)


def draws(count=20_000, method="lora", **dropout):
    """The outputs that a row gets in training, (count, k), and the one that it gets otherwise."""
    model = one_layer(weight(D, K), BIAS, rank=2, alpha=3, method=method, **dropout)
    randomize(model.layers["root"].adapters, 4)
    rows = np.tile(np.random.default_rng(3).standard_normal(D), (count, 1))
    return model.train()(rows).numpy(), model.eval()(rows[:1]).numpy()[0]


@pytest.mark.parametrize("method", METHODS)
def test_dropout_of_inputs_leaves_the_expected_output_as_it_is(method):
    got, want = draws(method=method, dropout=0.3)
    spread = got.std(axis=0)
    assert spread.max() > 0.05
    assert np.abs(got.mean(axis=0) - want).max() < 5 * spread.max() / len(got) ** 0.5


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.drops_ranks])
def test_dropout_of_ranks_leaves_the_expected_output_as_it_is(method):
    got, want = draws(method=method, rank_dropout=0.4)
    spread = got.std(axis=0)
    assert spread.max() > 0.05
    assert np.abs(got.mean(axis=0) - want).max() < 5 * spread.max() / len(got) ** 0.5


def test_dropout_of_modules_leaves_the_expected_update_that_often():
    """What stays is not scaled, as in kohya's sd-scripts: the mean over passes is the share of those with the adapter."""
    model = one_layer(weight(D, K), BIAS, rank=2, module_dropout=0.3)
    randomize(model.layers["root"].adapters, 4)
    row = np.random.default_rng(3).standard_normal((1, D))
    with model.disabled():
        base = model(row).numpy()
    full = model.eval()(row).numpy() - base
    model.train()
    mean = np.mean([model(row).numpy() - base for _ in range(3000)], axis=0)
    assert np.abs(mean / full - 0.7).max() < 5 * (0.7 * 0.3 / 3000) ** 0.5


@pytest.mark.parametrize("cap", [1.0, 2.0, 4.0])
def test_under_a_cap_the_nearest_update_of_that_norm_is_learned(cap):
    """A change of rank 1 and norm 3, so that cap/3 of it is left to be found, or all; no step ends above the cap."""
    x, w, change = whitened(24), weight(24, 16), with_values(24, 16, [3.0])
    model, norms = one_layer(w, rank=3, alpha=3, max_norm=cap), []
    optimizer = SGD(model.trainable(), lr=0.05)
    losses = learn(
        model, x, x @ (w + change), steps=300, optimizer=optimizer, after=lambda model: norms.append(np.linalg.norm(delta(model)))
    )
    assert max(norms) <= cap * (1 + 1e-12)
    assert losses[-1] == pytest.approx(max(3 - cap, 0) ** 2, rel=1e-6, abs=1e-9)
    assert np.all(np.diff(losses) <= 1e-9)


def test_under_a_cap_digits_are_learned_all_the_same():
    free, capped = adapted(), adapted(max_norm=3.0)
    losses = {model: teach(model) for model in (free, capped)}
    norms = {model: [np.linalg.norm(delta(model, name)) for name in model.layers] for model in losses}
    assert max(norms[free]) > 9
    assert max(norms[capped]) <= 3 * (1 + 1e-5)
    assert np.mean(losses[capped][-22:]) < 0.1 * losses[capped][0]
