"""Each method against its paper's formula written in NumPy, and what it is known for."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel
from loratk.exchange import projection as projections
from loratk.exchange.projection import gain, projection
from loratk.lora.methods.lokr import factorization
from loratk.nn import Conv2d, Linear, Sequential

RNG = np.random.default_rng(0)


def change(module, **config):
    """A layer's adapter with random values: its parameters, and what merging adds to the weight, as (d, k)."""
    model = LoraModel.adapt(module, LoraConfig(targets="*", **config))
    for parameter in model.trainable():
        parameter.assign(RNG.standard_normal(parameter.shape).astype(parameter.dtype))
    before, after = model.base_state()["weight"], model.merged_state()["weight"]
    k = before.shape[-1]
    return {name.partition(".")[2]: array for name, array in model.state().items()}, (after - before).reshape(-1, k), before.reshape(-1, k)


def close(got, want):
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-9 * np.abs(want).max())


def linear(d=12, k=10):
    return Linear(d, k, rng=1, dtype=np.float64)


def test_loha_is_a_product_entry_by_entry_of_rank_r_squared():
    held, delta, _ = change(linear(), rank=2, alpha=3.0, method="loha")
    close(delta, 1.5 * (held["loha_A1"] @ held["loha_B1"]) * (held["loha_A2"] @ held["loha_B2"]))
    assert np.linalg.matrix_rank(delta) == 4


def test_lokr_is_a_kronecker_product():
    held, delta, _ = change(linear(), rank=1, alpha=0.5, method="lokr")
    assert {name: array.shape for name, array in held.items()} == {"lokr_W1": (3, 2), "lokr_A2": (4, 1), "lokr_B2": (1, 5)}
    close(delta, 0.5 * np.kron(held["lokr_W1"], held["lokr_A2"] @ held["lokr_B2"]))
    held, delta, _ = change(linear(), rank=9, alpha=9, method="lokr", options={"factor": 2})
    assert {name: array.shape for name, array in held.items()} == {"lokr_W1": (2, 2), "lokr_W2": (6, 5)}
    close(delta, np.kron(held["lokr_W1"], held["lokr_W2"]))


@pytest.mark.parametrize(
    ("rank", "options", "want"),
    [
        (2, {}, {"lokr_W1", "lokr_A2", "lokr_B2"}),  # below half of 5, the longer side of W2 (4, 5)
        (3, {}, {"lokr_W1", "lokr_W2"}),
        (1, {"decompose_both": True}, {"lokr_A1", "lokr_B1", "lokr_A2", "lokr_B2"}),  # below half of 3, that of W1 (3, 2)
        (2, {"decompose_both": True}, {"lokr_W1", "lokr_A2", "lokr_B2"}),
        (1, {"full_matrix": True, "decompose_both": True}, {"lokr_W1", "lokr_W2"}),
    ],
)
def test_factors_of_lokr_are_whole_from_half_of_their_longer_side_up(rank, options, want):
    assert set(change(linear(), rank=rank, method="lokr", options=options)[0]) == want


def test_lokr_of_a_convolution_leaves_the_window_to_its_second_factor():
    held, delta, _ = change(Conv2d(4, 6, (2, 3), rng=1, dtype=np.float64), rank=9, alpha=9, method="lokr", options={"factor": 2})
    assert {name: array.shape for name, array in held.items()} == {"lokr_W1": (2, 2), "lokr_W2": (2, 3, 2, 3)}
    want = np.stack([np.kron(held["lokr_W1"], held["lokr_W2"][i, j]) for i in range(2) for j in range(3)])
    close(delta, want.reshape(-1, 6))


@pytest.mark.parametrize(
    ("size", "factor", "want"),
    [
        (128, -1, (8, 16)),
        (128, 2, (2, 64)),
        (250, 8, (5, 50)),
        (360, 16, (15, 24)),
        (127, 4, (1, 127)),
        (1024, 16, (16, 64)),
        (12, 6, (2, 6)),
    ],
)
def test_sizes_are_factored_as_by_lycoris(size, factor, want):
    assert factorization(size, factor) == want


def test_ia3_scales_outputs_with_their_bias_or_inputs_by_channel():
    module = Conv2d(3, 5, 2, rng=1, dtype=np.float64)
    held, delta, weight = change(module, method="ia3", options={"side": "inputs"})
    close(delta, weight * (np.tile(held["ia3_inputs"], 4) - 1)[:, None])
    held, delta, weight = change(linear(), method="ia3")
    close(delta, weight * (held["ia3_outputs"] - 1))
    model = LoraModel.adapt(linear(), LoraConfig(targets="*", method="ia3"))
    factors = RNG.standard_normal(10)
    model.load_state({"root.ia3_outputs": factors})
    x = RNG.standard_normal((4, 12))
    close(model(x).numpy(), factors * linear()(x).numpy())
    close(model.merged_state()["bias"], factors * model.base_state()["bias"])


def test_vera_is_two_vectors_around_matrices_from_a_seed():
    held, delta, _ = change(linear(), rank=30, method="vera", options={"seed": 5})
    assert {name: array.shape for name, array in held.items()} == {"vera_d": (30,), "vera_b": (10,), "vera_seed": ()}
    assert held["vera_seed"] == 5
    rows = (np.float32(2) * np.random.default_rng([5, 0]).random((12, 30), np.float32) - np.float32(1)) * np.float32(3**0.5)
    columns = (np.float32(2) * np.random.default_rng([5, 1]).random((10, 30), np.float32) - np.float32(1)) * np.float32(3**0.5)
    close(delta, rows.astype(np.float64) @ np.diag(held["vera_d"] * 2 / (12 * 30) ** 0.5) @ columns.T @ np.diag(held["vera_b"]))


def test_veras_matrices_are_the_corner_of_one_stream_and_stand_in_memory_once():
    projections._streams.clear()
    small = [x.copy() for x in projection(1, 6, 5, 8, np.float32)]
    large = projection(1, 600, 500, 8, np.float32)
    again = projection(1, 6, 5, 8, np.float32)
    for one, two, three, axis in zip(small, large, again, (0, 1), strict=True):
        assert np.array_equal(one, three)
        assert np.array_equal(np.take(two, np.arange(one.shape[axis]), axis), one)
        assert np.shares_memory(two, three)
    assert not large[0].flags.writeable
    assert large[0].mean() == pytest.approx(0, abs=0.05)
    assert large[0].var() == pytest.approx(1, abs=0.05)
    assert gain(600, 8) == pytest.approx((2 / 600) ** 0.5 * (2 / 8) ** 0.5)


def test_vera_layers_share_and_their_file_has_vectors_alone(tmp_path):
    base = Sequential(Linear(64, 64, rng=0), Linear(64, 64, rng=1))
    model = LoraModel.adapt(base, LoraConfig(rank=256, method="vera"))
    sizes = [array.size for array in model.state().values()]
    assert sum(sizes) == 2 * (256 + 64 + 1)
    assert model.count(trainable=True) == 2 * (256 + 64)
    model.save(tmp_path / "x.npz")
    assert (tmp_path / "x.npz").stat().st_size < 10_000


def test_sparse_changes_the_largest_entries_or_any_and_no_others():
    held, delta, weight = change(linear(), rank=2, method="sparse")
    count = 2 * (12 + 10)
    assert held["sparse_index"].shape == (count,)
    assert held["sparse_index"].dtype == np.int32
    kept = np.zeros(120, bool)
    kept[held["sparse_index"]] = True
    assert np.abs(weight.ravel()[kept]).min() >= np.abs(weight.ravel()[~kept]).max()
    close(delta.ravel()[kept], held["sparse_values"])
    assert not delta.ravel()[~kept].any()
    held, _, _ = change(linear(), method="sparse", options={"choose": "random", "density": 0.25})
    assert held["sparse_index"].shape == (30,)
    assert (np.diff(held["sparse_index"]) > 0).all()


def test_sparse_takes_the_first_of_equal_entries():
    module = Linear.from_arrays(np.ones((4, 5), np.float32), None)
    model = LoraModel.adapt(module, LoraConfig(1, targets="*", method="sparse"))
    assert model.state()["root.sparse_index"].tolist() == list(range(9))


def test_a_sparse_file_is_no_larger_than_a_lora_file_of_twice_the_numbers(tmp_path):
    for method in ("lora", "sparse"):
        model = LoraModel.adapt(Linear(784, 512, rng=0), LoraConfig(8, targets="*", method=method))
        model.save(tmp_path / f"{method}.safetensors", format="safetensors")
    lora, sparse = ((tmp_path / f"{method}.safetensors").stat().st_size for method in ("lora", "sparse"))
    assert sparse < 2.05 * lora < 784 * 512 * 4 / 2
