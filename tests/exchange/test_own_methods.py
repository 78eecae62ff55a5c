"""Adapters of loratk's LoHa, LoKr, IA3, VeRA and sparse delta as plain data: turned to torch's order, baked, merged, combined, compared."""

import numpy as np
import pytest

from loratk import LoraConfig, LoraModel, combine, diff, load_adapter, ops
from loratk.convert import export_adapters, merge
from loratk.exchange import save_adapter
from loratk.exchange.methods_layout import is_own, torch_state
from loratk.exchange.transform import cast, rename, select
from loratk.lora.files import adapter_state
from loratk.nn import Conv2d, Embedding, Linear, Module


class Net(Module):
    def __init__(self):
        rng = np.random.default_rng(0)
        self.embedding, self.conv = Embedding(11, 6, rng=rng), Conv2d(6, 4, (2, 3), rng=rng)
        self.block, self.head = Linear(4, 8, rng=rng), Linear(8, 6, rng=rng)

    def forward(self, index):
        return self.head(ops.tanh(self.block(self.conv(self.embedding(index)))))


INDEX = np.random.default_rng(1).integers(0, 11, (2, 4, 5))
CONFIGS = {
    "loha": {"rank": 2, "alpha": 3},
    "lokr": {"rank": 1, "alpha": 3, "options": {"factor": 2}, "layer_pattern": {"conv": {"options": {"full_matrix": True}}}},
    "ia3": {"options": {"side": "inputs"}, "layer_pattern": {"head": {"options": {"side": "outputs"}}}},
    "vera": {"rank": 20},
    "sparse": {"rank": 1},
}
each = pytest.mark.parametrize("method", CONFIGS)


def adapted(method, seed=5, targets=("embedding", "conv", "block", "head")):
    config = LoraConfig(targets=list(targets), method=method, **CONFIGS[method])
    model, rng = LoraModel.adapt(Net(), config), np.random.default_rng(seed)
    for parameter in model.trainable():
        parameter.assign(parameter.numpy() + (0.3 * rng.standard_normal(parameter.shape)).astype(np.float32))
    return model


@pytest.fixture
def base(tmp_path):
    np.savez(tmp_path / "base.npz", **adapted("loha").base_state())
    return tmp_path / "base.npz"


def close(got, want, tolerance=1e-5):
    assert got.keys() == want.keys()
    for key, array in want.items():
        np.testing.assert_allclose(got[key], array, rtol=tolerance, atol=tolerance)


def arrays(path):
    return {name: array for name, array in np.load(path).items() if not name.startswith("__")}


@each
def test_turned_to_torchs_order_and_back_every_bit_is_there(method, tmp_path):
    """VeRA's matrices go with it, and its gain into its vector; the rest are moves of axes."""
    targets = ["embedding", "block", "head"] + (["conv"] if method != "vera" else [])  # whose inputs are counted in another order
    model = adapted(method, targets=targets)
    state = adapter_state(model, "default")
    turned = torch_state(state)
    assert not any(is_own(record, turned.parameters()[module]) for module, record in turned.modules.items())
    numbers = [sorted(np.concatenate([array.ravel() for array in each.tensors.values()]).tolist()) for each in (state, turned)]
    assert (numbers[0] == numbers[1]) == (method in ("loha", "lokr", "ia3"))
    if method in ("loha", "lokr", "vera"):
        assert diff(state, turned, tolerance=1e-6).same
    if method == "sparse":  # which no other tool has
        return
    save_adapter(tmp_path / "foreign.npz", turned)
    np.testing.assert_allclose(
        LoraModel.from_file(Net(), tmp_path / "foreign.npz")(INDEX).numpy(), model(INDEX).numpy(), rtol=1e-5, atol=1e-5
    )


@each
def test_baked_it_is_plain_lora_with_the_same_update(method, base, tmp_path):
    model = adapted(method)
    model.save(tmp_path / "x.h5")
    rank = 11 if method == "sparse" else 6
    export_adapters(tmp_path / "x.h5", tmp_path / "plain.h5", bake=True, portable=True, bake_rank=rank, base=base)
    state = load_adapter(tmp_path / "plain.h5").states[0]
    assert {record["method"] for record in state.modules.values()} == {"lora"}
    plain = LoraModel.from_file(Net(), tmp_path / "plain.h5", check_base=False)
    close(plain.merged_state(), model.merged_state(), 2e-5)
    assert "options" not in state.modules["conv"]


@each
def test_merged_from_files_it_is_what_the_model_merges(method, base, tmp_path):
    model = adapted(method)
    model.save(tmp_path / "x.h5")
    merge(base, [tmp_path / "x.h5"], tmp_path / "merged.npz")
    close(arrays(tmp_path / "merged.npz"), model.merged_state(), 1e-6)


@each
def test_two_of_them_add_up(method, base, tmp_path):
    one, two = adapted(method), adapted(method, 6)
    start = one.base_state()
    states = [adapter_state(model, "default") for model in (one, two)]
    made = combine(states, [1.0, 1.0], base=base).state
    save_adapter(tmp_path / "sum.h5", made)
    merge(base, [tmp_path / "sum.h5"], tmp_path / "merged.npz", check_base=False)
    a, b = one.merged_state(), two.merged_state()
    close(arrays(tmp_path / "merged.npz"), {key: a[key] + b[key] - start[key] for key in a}, 1e-5)


@each
def test_a_part_of_it_keeps_its_options(method, tmp_path):
    model = adapted(method)
    (state,) = rename(select([adapter_state(model, "default")], ["conv", "head"]), {})
    save_adapter(tmp_path / "part.h5", state)
    part = LoraModel.from_file(Net(), tmp_path / "part.h5")
    assert part.layers.keys() == {"conv", "head"}
    close(part.state(), {key: array for key, array in model.state().items() if key.startswith(("conv.", "head."))}, 0)


def test_bfloat16_marks_go_with_the_parameters():
    (state,) = cast([adapter_state(adapted("loha"), "default")], "bfloat16")
    turned = torch_state(state)
    assert turned.modules["head"]["dtypes"] == dict.fromkeys(["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"], "bfloat16")
