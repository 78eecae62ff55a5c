"""Initialisations, learning rates and scalings that reach a loss in fewer steps than LoRA as it is, each at its best rate of several."""

from functools import cache

import numpy as np
import pytest
from learning_problems import adapted, classifier, digits, learn, one_layer, part, steps_to, teach, weight, whitened, with_values

from loratk import choose_alpha, lora_plus
from loratk.nn import SGD, Adam, AdamW, CrossEntropyLoss, cosine

SEEDS = (0, 2)


@cache
def least_steps(seed, init=None, ratio=1.0, rates=(1e-2, 2e-2)):
    """Steps to a loss of 1 on sideways digits, the least over the rates; the classifier begins at 17 to 20."""
    found = []
    for lr in rates:
        model = adapted(seed, init=init)
        optimizer = AdamW(lora_plus(model, lr, ratio=ratio), weight_decay=0.0)
        found.append(steps_to(1.0, teach(model, epochs=4, seed=seed, optimizer=optimizer)))
    return min(found)


@pytest.mark.parametrize(("init", "share"), [("pissa", 0.75), ("olora", 0.8), ("eva", 0.65), ("lora_ga", 0.65)])
def test_an_init_from_weight_or_data_needs_fewer_steps_than_chance(init, share):
    """Meng et al. 2024, figure 2; Buyukakyuz 2024, figure 1; Paischer et al. 2024, figure 2; Wang et al. 2024, figure 1."""
    for seed in SEEDS:
        assert least_steps(seed, init) < share * least_steps(seed)


def test_an_orthogonal_start_needs_fewer_steps_at_the_same_rate():
    """Both factors learn from the first step on, where LoRA's A waits for B: datta0 2024."""
    for seed in SEEDS:
        assert least_steps(seed, "orthogonal", rates=(1e-2,)) < 0.9 * least_steps(seed, rates=(1e-2,))
    gradients = {}
    for init in (None, "orthogonal"):
        model = adapted(init=init)
        x, y = digits()[2].train
        CrossEntropyLoss()(model(x), y).backward()
        gradients[init] = [np.abs(vars(part(model, name))["lora_A"].grad).max() for name in model.layers]
    assert max(gradients[None]) == 0 < min(gradients["orthogonal"])


def test_lora_plus_needs_fewer_steps_than_any_one_rate_for_both_factors():
    """Hayou et al. 2024, figure 2: the best pair of rates has a larger one for B, here 16 times; 2e-2 is the best of equal rates."""
    for seed in SEEDS:
        equal = least_steps(seed, rates=(5e-3, 1e-2, 2e-2, 4e-2))
        assert least_steps(seed, ratio=16.0, rates=(5e-3, 1e-2)) < 0.8 * equal


W, CHANGE = weight(24, 16), with_values(24, 16, [3.0, 2.0, 1.0])
X = whitened(24)
TARGET = X @ (W + CHANGE)


def steps_of(method, alpha):
    """Steps to a hundredth of the loss."""
    model = one_layer(W, rank=3, alpha=alpha, method=method)
    return len(learn(model, X, TARGET, optimizer=Adam(model.trainable(), lr=0.03), until=0.01 * np.sum(CHANGE**2)))


def test_a_trained_gain_makes_up_for_a_small_alpha():
    """Of a scaling a hundredth of what it should be LoRA needs five times the steps, with a gain less than three."""
    right, small = steps_of("lora", 3.0), steps_of("lora", 0.03)
    assert small > 4 * right
    assert steps_of("lora_gain", 0.03) < 0.65 * small
    assert steps_of("lora_gain", 3.0) <= right


def test_a_gain_alone_finds_the_scaling_that_is_missing():
    model = one_layer(W, rank=3, alpha=0.6, method="lora_gain")  # a fifth of what these factors need
    held, (u, s, v) = part(model), np.linalg.svd(CHANGE)
    held.lora_A.assign(u[:, :3] * s[:3])
    held.lora_B.assign(v[:3])
    losses = learn(model, X, TARGET, optimizer=Adam([held.gain], lr=0.2, schedule=cosine(400)))
    assert held.gain.numpy() == pytest.approx([5.0], rel=1e-4)
    assert losses[-1] < 1e-6


def test_a_chosen_alpha_learns_the_same_whatever_was_guessed_and_more_than_any_guess():
    """One rate of plain descent: a hundredth of LoRA's usual scaling learns nothing, 50 times it breaks, by the gradient all learn."""
    (x, y), loss = digits()[2].train, CrossEntropyLoss()
    scalings, reached = [], []
    for alpha in (0.08, 8.0, 400.0):
        model = adapted(alpha=alpha)
        chosen = choose_alpha(model, data=[(x, y)], loss=loss)
        scalings.append([choice.scaling for choice in chosen.layers])
        teach(model, epochs=3, optimizer=SGD(model.trainable(), lr=0.03))
        reached.append(loss(model(x), y).item())
    np.testing.assert_allclose(scalings[1:], [scalings[0]] * 2, rtol=1e-5)
    assert max(reached) < 1.01 * min(reached)
    start = loss(classifier()(x), y).item()
    guessed = {alpha: adapted(alpha=alpha) for alpha in (0.08, 8.0)}
    for model in guessed.values():
        teach(model, epochs=3, optimizer=SGD(model.trainable(), lr=0.03))
    assert loss(guessed[0.08](x), y).item() > 0.9 * start
    assert max(reached) < 0.9 * loss(guessed[8.0](x), y).item()
