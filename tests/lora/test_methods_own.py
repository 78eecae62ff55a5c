"""LoHa, LoKr, IA3, VeRA and the sparse delta: their options, first values, files, dropout, and what they refuse."""

import numpy as np
import pytest
from layer_examples import LAYERS

from loratk import LoraConfig, LoraModel, load_adapter, ops
from loratk.errors import ConfigError, FormatError
from loratk.exchange import save_adapter
from loratk.lora import LoraAdapter
from loratk.lora.files import adapter_state
from loratk.nn import Adam, Conv2d, Embedding, Linear, Module
from loratk.plugins import default_registry
from loratk.testing import check_method
from loratk.testing.layer_type import check_pair

REGISTRY = default_registry()
OPTIONS = [
    ("lokr", {"factor": 2}, (12, 10, 2)),
    ("lokr", {"factor": 2, "decompose_both": True}, (12, 10, 1)),
    ("lokr", {"full_matrix": True}, (12, 10, 1)),
    ("lokr", {"split": [3, 5], "decompose_both": True}, (12, 10, 4)),
    ("lokr", {}, (12, 10, 1)),
    ("ia3", {"side": "inputs"}, (6, 5, 2)),
    ("ia3", {"side": "products"}, (6, 5, 2)),
    ("vera", {"shared": "kept", "seed": 4}, (6, 5, 9)),
    ("vera", {"seed": 7, "d_initial": -0.3}, (6, 5, 9)),
    ("sparse", {"choose": "random"}, (6, 5, 2)),
    ("sparse", {"density": 0.3}, (6, 5, 99)),
    ("loha", {}, (64, 48, 1)),  # through its factors
    ("loha", {}, (6, 5, 5)),
]


@pytest.mark.parametrize(("method", "options", "sizes"), OPTIONS, ids=lambda value: str(value))
def test_the_contract_with_options(method, options, sizes):
    check_method(REGISTRY.method(method), options=options, sizes=sizes)


class Net(Module):
    def __init__(self, rng=0):
        rng = np.random.default_rng(rng)
        self.embedding, self.conv = Embedding(11, 6, rng=rng), Conv2d(6, 4, (2, 3), rng=rng)
        self.block, self.head = Linear(4, 8, rng=rng), Linear(8, 6, rng=rng)

    def forward(self, index):
        return self.head(ops.tanh(self.block(self.conv(self.embedding(index)))))


INDEX = np.random.default_rng(1).integers(0, 11, (2, 4, 5))
ALL = {"targets": ["embedding", "conv", "block", "head"]}
CONFIGS = {
    "loha": {"rank": 2, "alpha": 3},
    "lokr": {"rank": 1, "alpha": 3, "options": {"factor": 2}, "layer_pattern": {"conv": {"options": {"full_matrix": True}}}},
    "ia3": {"options": {"side": "inputs"}, "layer_pattern": {"head": {"options": {"side": "outputs"}}}},
    "vera": {"rank": 20},
    "sparse": {"rank": 1, "layer_pattern": {"head": {"options": {"choose": "random"}}}},
}
each = pytest.mark.parametrize("method", CONFIGS)


def adapted(method, seed=5, **changes):
    model = LoraModel.adapt(Net(), LoraConfig(**{**ALL, **CONFIGS[method], "method": method, **changes}))
    rng = np.random.default_rng(seed)
    for parameter in model.trainable():
        parameter.assign(parameter.numpy() + (0.3 * rng.standard_normal(parameter.shape)).astype(np.float32))
    return model


@each
@pytest.mark.parametrize("store", ["hdf5", "npz", "safetensors"])
def test_files_come_back_the_same(method, store, tmp_path):
    model = adapted(method)
    model.save(tmp_path / "x", format=store)
    again = LoraModel.from_file(Net(), tmp_path / "x")
    assert again.adapters == model.adapters
    assert np.array_equal(again(INDEX).numpy(), model(INDEX).numpy())
    for name, array in model.state().items():
        assert np.array_equal(again.state()[name], array)


@each
def test_merged_is_adapted_and_one_seed_gives_one_model(method):
    model = adapted(method)
    want = model(INDEX).numpy()
    model.merge()
    np.testing.assert_allclose(model(INDEX).numpy(), want, rtol=1e-5, atol=1e-5)
    first, second = (LoraModel.adapt(Net(), LoraConfig(**ALL, **CONFIGS[method], method=method)).state() for _ in range(2))
    assert all(np.array_equal(first[name], second[name]) for name in first)


@each
def test_it_learns_as_an_update_and_leaves_the_base(method):
    model, x = LoraModel.adapt(Net(), LoraConfig(**ALL, **CONFIGS[method], method=method)), INDEX
    base = {name: array.copy() for name, array in model.base_state().items()}
    target = Net(rng=3)(x).numpy()
    losses, optimizer = [], Adam(model.trainable(), lr=0.02)
    for _ in range(60):
        loss = ops.mse(model(x), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert all(np.array_equal(array, base[name]) for name, array in model.base_state().items())


@each
def test_every_kind_of_dropout_acts_or_is_refused(method):
    """Input dropout as the contracts have it; module dropout leaves the layer out; rank dropout only where there are ranks."""
    layer_type = REGISTRY.layer_type(Linear(2, 2, rng=0))
    make_module, make_input = LAYERS[Linear]
    check_pair(layer_type, REGISTRY.method(method), make_module(np.float64), make_input(np.float64))
    model = adapted(method, module_dropout=0.999)
    model.train()
    with model.disabled():
        want = model(INDEX).numpy()
    assert np.array_equal(model(INDEX).numpy(), want)
    if method == "vera":
        noisy = adapted(method, rank_dropout=0.5).train()
        assert not np.array_equal(noisy(INDEX).numpy(), noisy(INDEX).numpy())
    else:
        with pytest.raises(ConfigError, match="no ranks that rank_dropout could drop"):
            adapted(method, rank_dropout=0.5)


@pytest.mark.parametrize("method", ["ia3", "vera", "sparse"])
def test_alpha_does_not_concern_them(method):
    one, two = (adapted(method, alpha=alpha)(INDEX).numpy() for alpha in (1, 50))
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"method": "lokr", "options": {"factor": 0}}, "factor must be an integer of at least 1, or -1, found 0"),
        ({"method": "lokr", "options": {"decompose_both": 1}}, "decompose_both must be True or False, found 1"),
        ({"method": "lokr", "options": {"split": [2]}}, r"split must be two integers \[d1, k1\]"),
        ({"method": "lokr", "options": {"rank": 2}}, "no option 'rank'; its options: 'decompose_both', 'factor'"),
        ({"method": "ia3", "options": {"side": "left"}}, "side must be one of 'inputs', 'outputs', 'products', found 'left'"),
        ({"method": "vera", "options": {"d_initial": 0}}, "d_initial must be a finite number other than 0"),
        ({"method": "vera", "options": {"seed": -1}}, r"seed must be an integer in \[0, 2\*\*63\), found -1"),
        ({"method": "vera", "options": {"shared": "both"}}, "shared must be one of 'drawn', 'kept', found 'both'"),
        (
            {"method": "sparse", "options": {"choose": "largest"}},
            "choose must be one of 'gradient', 'magnitude', 'random', 'snip', found 'largest'",
        ),
        ({"method": "sparse", "options": {"density": 0}}, r"density must be a number in \(0, 1\], or None, found 0"),
        ({"method": "loha", "init": "gaussian"}, "has first values of its own and takes no init"),
        ({"method": "ia3", "max_norm": 1.0}, "cannot be scaled down"),
    ],
)
def test_options_that_make_no_sense_are_refused(config, said):
    with pytest.raises(ConfigError, match=said):
        LoraConfig(**config)


def test_ranks_that_make_no_sense_are_refused_and_any_other_is_taken():
    with pytest.raises(ConfigError, match=r"Rank 5 is above min\(d, k\) = 4 of the \(4, 8\) weight of 'block'"):
        LoraModel.adapt(Net(), LoraConfig(5, targets="block", method="loha"))
    with pytest.raises(ConfigError, match=r"Rank 9 is above 3, the most that 'sparse' can use of the \(4, 8\) weight"):
        LoraModel.adapt(Net(), LoraConfig(9, targets="block", method="sparse"))
    for method in ("vera", "lokr", "ia3"):
        LoraModel.adapt(Net(), LoraConfig(99, targets="block", method=method))
    with pytest.raises(ConfigError, match=r"split \[3, 1\] must divide 4 inputs and 8 outputs"):
        LoraModel.adapt(Net(), LoraConfig(1, targets="block", method="lokr", options={"split": [3, 1]}))


@pytest.mark.parametrize(
    ("method", "change", "said"),
    [
        ("sparse", {"sparse_index": lambda x: x[::-1]}, "must rise from 0 up to at most 31, each place once"),
        ("sparse", {"sparse_index": lambda x: x + 32}, "must rise from 0 up to at most 31"),
        ("sparse", {"sparse_index": lambda x: np.zeros_like(x)}, "each place once"),
        ("vera", {"vera_seed": lambda x: np.asarray(x - 1)}, "vera_seed must be an integer of at least 0, found int64 -1"),
    ],
)
def test_damaged_integers_in_a_file_are_found(method, change, said, tmp_path):
    model = adapted(method, targets="block", layer_pattern={})
    (state,) = [adapter_state(model, "default")]
    tensors = {name: change.get(name.rpartition(".")[2], np.asarray)(array) for name, array in state.tensors.items()}
    bad = type(state)(state.name, state.config, tensors, state.modules)
    save_adapter(tmp_path / "x.h5", bad)
    with pytest.raises(FormatError, match=said):
        LoraModel.from_file(Net(), tmp_path / "x.h5")
    assert load_adapter(tmp_path / "x.h5").states


def test_one_adapter_on_one_matrix_stands_alone():
    """Without a layer: the update of x W for a matrix that is not at hand."""
    adapter = LoraAdapter.blank(6, 4, LoraConfig(2, method="loha"))
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    assert not adapter(x).numpy().any()
    adapter.loha_B2.assign(np.ones((2, 4), np.float32))
    np.testing.assert_allclose(adapter(x).numpy(), x @ adapter.delta(np.zeros((6, 4), np.float32)), rtol=1e-5, atol=1e-6)
