"""Each method learns a change that its form can hold to the last digits, where a form of as many numbers cannot.

The loss is the squared distance from the wanted weight, so that what any form leaves over is known beforehand.
"""

import numpy as np
import pytest
from learning_problems import delta, learn, one_layer, part, tail, weight, whitened, with_values

from loratk.nn import SGD

D, K = 24, 16
X, W = whitened(D), weight(D, K)
CHANGE = with_values(D, K, [3.0, 2.0, 1.0])


def lora_leaves(change, rank):
    """What LoRA of a rank leaves of a change, and how many numbers it trained."""
    d, k = change.shape
    model = one_layer(weight(d, k), rank=rank, alpha=rank)
    x = whitened(d)
    return learn(model, x, x @ (weight(d, k) + change))[-1], model.count(trainable=True)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_lora_learns_the_best_approximation_of_its_rank_and_all_once_the_rank_is_enough(rank):
    """Full fine-tuning reaches a loss of 0: so does LoRA from the rank of the needed change on (Hu et al. 2021, section 4.1)."""
    model = one_layer(W, rank=rank, alpha=rank)
    losses = learn(model, X, X @ (W + CHANGE), steps=600)
    assert losses[-1] == pytest.approx(tail(CHANGE, rank), rel=1e-6, abs=1e-12)
    assert min(losses) > (1 - 1e-9) * tail(CHANGE, rank) - 1e-12


@pytest.mark.parametrize("corrected", [False, True])
def test_lora_fa_learns_what_its_fixed_a_reaches_with_b_alone(corrected):
    """Zhang et al. 2023: the update stays in the column space of A, which is drawn once; of the change that part is learned."""
    change = with_values(D, K, np.linspace(2, 0.5, K))
    model = one_layer(W, rank=6, alpha=6, options={"freeze_A": True, "corrected": corrected})
    a = part(model).lora_A.numpy().copy()
    q, _ = np.linalg.qr(a)
    losses = learn(model, X, X @ (W + change), lr=0.1)
    assert losses[-1] == pytest.approx(np.sum((change - q @ (q.T @ change)) ** 2), rel=1e-9)
    assert np.array_equal(part(model).lora_A.numpy(), a)
    assert model.count(trainable=True) == 6 * K


def test_lora_fa_learns_any_change_once_its_rank_is_that_of_the_inputs():
    """With its corrected gradient in the steps of full fine-tuning, each of which leaves a quarter of the loss here."""
    x, w, change = whitened(16), weight(16, D), with_values(16, D, np.linspace(2, 0.5, 16))
    model = one_layer(w, rank=16, alpha=4, options={"freeze_A": True, "corrected": True})
    losses = learn(model, x, x @ (w + change), steps=15, optimizer=SGD(model.trainable(), lr=0.25))
    assert losses == pytest.approx(losses[0] * 0.25 ** np.arange(16), rel=0.01)


def test_mica_learns_what_writes_where_the_weight_is_least_and_nothing_else():
    """All of the change that lies in the last r right singular vectors of W; what W does in the others stays, exactly."""
    change = with_values(D, K, np.linspace(2, 0.5, K))
    _, _, v = np.linalg.svd(W)
    last = v[-4:]
    model = one_layer(W, rank=4, alpha=4, init="mica")
    losses = learn(model, X, X @ (W + change), lr=0.1)
    assert losses[-1] == pytest.approx(np.sum((change - change @ last.T @ last) ** 2), rel=1e-9)
    assert np.abs(delta(model) @ v[:-4].T).max() < 1e-12 < 0.5 < np.linalg.norm(delta(model))
    assert model.count(trainable=True) == 4 * D


def test_dora_changes_norms_of_columns_without_their_directions():
    """Every column of the wanted weight is one of W, longer or shorter: magnitudes alone. LoRA needs full rank for it."""
    change = W * (np.linspace(0.5, 2, K) - 1)
    model = one_layer(W, rank=1, alpha=1, method="dora")
    left = learn(model, X, X @ (W + change))[-1]
    assert left < 1e-4 * lora_leaves(change, 1)[0]
    moved = W + delta(model)
    cosines = np.sum(moved * W, axis=0) / np.linalg.norm(moved, axis=0) / np.linalg.norm(W, axis=0)
    assert cosines.min() > 0.9999
    assert part(model).magnitude.numpy() == pytest.approx(np.linalg.norm(W + change, axis=0), rel=1e-3)


def test_dora_turns_columns_without_changing_their_norms():
    """Liu et al. 2024, eq. 5, the other way round: magnitudes end as they were, and A B does it all, of rank 1."""
    norms, turned = np.linalg.norm(W, axis=0), W + with_values(D, K, [3.0])
    wanted = turned * norms / np.linalg.norm(turned, axis=0)
    model = one_layer(W, rank=1, alpha=1, method="dora")
    left = learn(model, X, X @ wanted, steps=600)[-1]
    assert left < 1e-4 * lora_leaves(wanted - W, 1)[0]
    assert part(model).magnitude.numpy() == pytest.approx(norms, rel=1e-3)


def test_loha_learns_rank_r_squared_with_the_numbers_of_rank_2r():
    """Hyeon-Woo et al. 2022, proposition 1: 16 equal singular values at rank 4, of which LoRA of as many numbers has half."""
    places = np.arange(64)
    change = (places[:, None] % 16 == places % 16) / 4
    change = change[np.random.default_rng(0).permutation(64)][:, np.random.default_rng(1).permutation(64)]
    x, w = whitened(64), weight(64, 64)
    model = one_layer(w, rank=4, alpha=4, method="loha", seed=1)
    left = learn(model, x, x @ (w + change), lr=0.03)[-1]
    theirs, count = lora_leaves(change, 8)
    assert model.count(trainable=True) == count == 1024
    assert np.linalg.matrix_rank(change) == 16
    assert left < 0.01 < 7.9 < theirs


def test_lokr_learns_a_kronecker_product_with_fewest_numbers():
    """Edalati et al. 2022: 40 numbers for a change of rank 16, as many as LoRA of rank 1 has."""
    rng = np.random.default_rng(5)
    change = np.kron(rng.standard_normal((4, 4)), rng.standard_normal((6, 4)))
    change *= 3 / np.linalg.norm(change)
    model = one_layer(W, rank=8, alpha=8, method="lokr", options={"full_matrix": True})
    left = learn(model, X, X @ (W + change), lr=0.03)[-1]
    theirs, count = lora_leaves(change, 1)
    assert model.count(trainable=True) == count == 40
    assert np.linalg.matrix_rank(change) == 16
    assert left < 1e-9 < 4 < theirs


@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_ia3_learns_a_rescaling_with_one_number_for_each(side):
    """Liu et al. 2022, section 3.3; of the outputs with the bias."""
    bias, size = np.linspace(-1, 1, K), K if side == "outputs" else D
    factors = np.linspace(-0.5, 2, size)
    target = (X @ W + bias) * factors if side == "outputs" else (X * factors) @ W + bias
    model = one_layer(W, bias, method="ia3", options={"side": side})
    left = learn(model, X, target, lr=0.1)[-1]
    assert left < 1e-9
    assert model.count(trainable=True) == size
    assert vars(part(model))[f"ia3_{side}"].numpy() == pytest.approx(factors, abs=1e-4)
    assert lora_leaves(W * (factors - 1 if side == "outputs" else (factors - 1)[:, None]), 1)[0] > 1


def test_sparse_finds_every_entry_of_a_sparse_change(tmp_path):
    """40 entries of 384, those where W is largest: to the last digits, in a file of two short arrays; LoRA of 40 numbers leaves most."""
    places = np.sort(np.argsort(-np.abs(W).ravel())[: D + K])
    values = np.random.default_rng(6).standard_normal(D + K)
    change = np.zeros(D * K)
    change[places] = values
    change = change.reshape(D, K)
    model = one_layer(W, rank=1, method="sparse")
    left = learn(model, X, X @ (W + change), lr=0.1)[-1]
    theirs, count = lora_leaves(change, 1)
    assert model.count(trainable=True) == count == D + K
    assert left < 1e-8 < 0.5 * np.sum(change**2) < theirs
    assert np.array_equal(part(model).sparse_index.numpy(), places)
    assert part(model).sparse_values.numpy() == pytest.approx(values, abs=1e-4)
    model.save(tmp_path / "a.npz")
    one_layer(W, rank=D // 2, method="lora").save(tmp_path / "half.npz")
    assert (tmp_path / "a.npz").stat().st_size < 0.5 * (tmp_path / "half.npz").stat().st_size
