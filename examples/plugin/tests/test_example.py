"""The contract of each kind ships with loratk; what is left to test is what is this plugin's own."""

import numpy as np
from loratk_example import Conv1d, Conv1dType, HiRA, JsonLinesStore, ListingFormat, Median, Signs

from loratk import AdapterState, LoraConfig, LoraModel, combine, ops
from loratk.nn import Adam
from loratk.plugins import default_registry
from loratk.testing import check_format, check_init, check_layer_type, check_merge_rule, check_method, check_store


def test_layer_type():
    """Under every method that is installed, HiRA and DoRA among them."""
    assert {"lora", "dora", "hira"} <= set(default_registry().methods)
    check_layer_type(
        Conv1dType(),
        lambda dtype: Conv1d(2, 3, 3, rng=0, dtype=dtype),
        lambda dtype: np.random.default_rng(1).standard_normal((2, 6, 2)).astype(dtype),
    )


def test_conv1d_is_its_formula():
    layer, x = Conv1d(2, 3, 3, rng=0), np.random.default_rng(1).standard_normal((2, 6, 2)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x, 3, axis=1)  # (n, t', c, size)
    want = np.einsum("ntcs,sck->ntk", windows, layer.weight.numpy()) + layer.bias.numpy()
    np.testing.assert_allclose(layer(x).numpy(), want, rtol=1e-5, atol=1e-6)


def test_method():
    check_method(HiRA())


def test_method_has_more_rank_than_its_factors():
    rng, method = np.random.default_rng(0), HiRA()
    parameters = {name: rng.standard_normal(shape) for name, shape in method.shapes(12, 10, 2).items()}
    K = LoraModel(Conv1d(1, 1, 1, rng=0)).backend
    assert np.linalg.matrix_rank(K.numpy(method.delta(K, rng.standard_normal((12, 10)), parameters, 1.0))) == 10


def test_init():
    check_init(Signs())


def test_all_entries_have_one_size():
    state = LoraModel.adapt(Conv1d(2, 3, 3, rng=0), LoraConfig(2, targets="*", init="signs")).state()
    assert np.allclose(np.abs(state["root.lora_A"]), 6**-0.5)


def test_store(tmp_path):
    check_store(JsonLinesStore(), tmp_path)


def test_format(tmp_path):
    check_format(ListingFormat(), tmp_path)


def test_merge_rule():
    check_merge_rule(Median())


def test_an_adapter_that_is_far_off_does_not_count():
    record = {"method": "lora", "layer_type": "linear", "shape": [6, 4], "rank": 2, "alpha": 2.0, "scaling": 1.0}
    rng = np.random.default_rng(0)
    held = {"fc.lora_A": rng.standard_normal((6, 2)), "fc.lora_B": rng.standard_normal((2, 4))}
    states = [AdapterState(name, {}, held, {"fc": record}) for name in ("one", "two", "far off")]
    merged = combine(states, [1.0, 1.0, 1000.0], rule="median").state
    np.testing.assert_allclose(merged.tensors["fc.lora_A"] @ merged.tensors["fc.lora_B"], held["fc.lora_A"] @ held["fc.lora_B"])


def test_all_three_together(tmp_path):
    """A HiRA adapter on a Conv1d learns, goes to a file of JSON lines, and comes back the same."""
    x = np.random.default_rng(0).standard_normal((16, 8, 2)).astype(np.float32)
    y = Conv1d(2, 3, 3, rng=5)(x).numpy()
    model = LoraModel.adapt(Conv1d(2, 3, 3, rng=0), LoraConfig(3, targets="*", method="hira", bias="all"))
    optimizer = Adam(model.trainable(), lr=0.05)
    losses = []
    for _ in range(200):
        loss = ops.mse(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    model.save(tmp_path / "adapter.lora.jsonl")
    again = LoraModel.from_file(Conv1d(2, 3, 3, rng=0), tmp_path / "adapter.lora.jsonl")
    assert np.array_equal(again(x).numpy(), model(x).numpy())
