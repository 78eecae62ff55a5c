"""Initialisations from data hold what they say of the data: variance, outputs, and the steps of full fine-tuning."""

import numpy as np
import pytest
from learning_problems import adapted, classifier, delta, digits, part, tail

from loratk.nn import SGD, CrossEntropyLoss


@pytest.fixture(scope="module")
def layer():
    """The inputs (n, 64) of the classifier's first layer, sideways digits, and its weight (64, 256), float64."""
    return digits()[2].train[0].astype(np.float64), digits()[0]["0.weight"].astype(np.float64)


def explained(x, model):
    """The share of the inputs' variance that lies in the columns of A."""
    q, _ = np.linalg.qr(part(model, "0").lora_A.numpy().astype(np.float64))
    centred = x - x.mean(axis=0)
    return np.sum((centred @ q) ** 2) / np.sum(centred**2)


@pytest.mark.parametrize("rank", [2, 8])
def test_evas_a_explains_the_most_variance_that_its_rank_can(layer, rank):
    """Paischer et al. 2024, section 3: from two columns of 64 on a quarter of it, where columns drawn at random have a 30th."""
    x, _ = layer
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
    best = np.sum(values[:rank]) / np.sum(values)
    got = explained(x, adapted(rank=rank, init={"name": "eva", "rho": 1}, targets="0"))
    assert got == pytest.approx(best, rel=1e-4)
    assert got > 3 * explained(x, adapted(rank=rank))


def taken_off(**config):
    """The matrix (64, 256) that an init takes off the first layer's weight to train it."""
    return part(adapted(targets="0", **config), "0").offset().astype(np.float64)


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_cordas_ipm_holds_what_the_inputs_see_of_the_weight(layer, rank):
    """Yang et al. 2024, section 3.1: what is left without its part errs little on the data, and much less than without plain SVD's."""
    x, w = layer
    corda, plain = (np.sum((x @ (w - taken_off(rank=rank, init=init))) ** 2) for init in ("corda", "pissa"))
    best = tail(x @ w, rank)
    assert best < corda < 1.1 * best
    assert corda < 0.4 * plain


def test_cordas_kpm_trains_what_the_inputs_do_not_see(layer):
    """Section 3.2 there: for its size its part does next to nothing to the outputs, unlike the smallest part of plain SVD."""
    x, w = layer
    kpm = taken_off(init={"name": "corda", "mode": "kpm"})
    u, s, v = np.linalg.svd(w, full_matrices=False)
    smallest = (u[:, -4:] * s[-4:]) @ v[-4:]
    effects = [np.linalg.norm(x @ matrix) / np.linalg.norm(matrix) for matrix in (kpm, smallest)]
    assert effects[0] < 0.1 * effects[1]


def descend(net, *, steps, lr=1e-3):
    """Steps of plain descent on all sideways digits."""
    (x, y), optimizer = digits()[2].train, SGD(net.trainable(), lr=lr)
    for _ in range(steps):
        CrossEntropyLoss()(net(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


def moved_fully(steps):
    """Where full fine-tuning takes every weight, by layer."""
    net = classifier()
    before = net.state_dict()
    descend(net, steps=steps)
    return {name.partition(".")[0]: array - before[name] for name, array in net.state_dict().items() if name.endswith("weight")}


def cosine(one, two):
    return float(np.sum(one * two) / np.linalg.norm(one) / np.linalg.norm(two))


def test_lora_gas_first_step_is_the_best_of_twice_its_rank_that_full_fine_tuning_has():
    """Wang et al. 2024, theorem 3.1: A holds the first r directions of the gradient and B the next, and each lets the other move."""
    model = adapted(rank=2, init={"name": "lora_ga", "niter": None})
    descend(model, steps=1)
    for name, full in moved_fully(1).items():
        u, s, v = np.linalg.svd(full.astype(np.float64), full_matrices=False)
        assert cosine(delta(model, name), (u[:, :4] * s[:4]) @ v[:4]) > 0.9999


def test_lora_gas_first_twenty_steps_go_the_way_of_full_fine_tuning():
    """Section 3 there: every weight of a deep net moves in the direction in which full fine-tuning moves it."""
    full, cosines = moved_fully(20), {}
    for init in ("lora_ga", None, "gaussian", "orthogonal"):
        model = adapted(init=init)
        descend(model, steps=20)
        cosines[init] = [cosine(delta(model, name), matrix) for name, matrix in full.items()]
    assert min(cosines.pop("lora_ga")) > 0.95 > 0.6 > max(map(max, cosines.values()))
