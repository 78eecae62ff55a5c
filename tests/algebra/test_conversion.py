"""Methods as plain LoRA, against their dense updates."""

from pathlib import Path

import numpy as np
import pytest
from algebra_states import beside, module, state, update

import loratk
from loratk.algebra import Rule, add, lora_of
from loratk.errors import ConfigError
from loratk.exchange import Checkpoint, load_adapter
from loratk.exchange.hub import state_faults
from loratk.io import write_safetensors
from loratk.plugins import default_registry

PEFT = Path(__file__).parent.parent / "data" / "peft"
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 6)).astype(np.float32)


@pytest.fixture
def base(tmp_path):
    write_safetensors(tmp_path / "base.safetensors", {"x.weight": WEIGHT, "x.bias": np.ones(4, np.float32)}, {})
    return tmp_path / "base.safetensors"


def dora(seed=1):
    pair = beside(module(seed), magnitude=RNG.uniform(1, 2, 4), lora_bias=np.ones(4))
    return pair[0] | {"method": "dora"}, pair[1]


def dora_delta(held, scaling):
    w = WEIGHT.T.astype(float)
    moved = w + scaling * held["lora_A"] @ held["lora_B"]
    return moved * held["magnitude"] / np.linalg.norm(moved, axis=0) - w


def test_dora_becomes_the_nearest_lora_of_its_rank_or_of_a_rule(base):
    record, held = dora()
    adapter = state({"x": (record, held)})
    want = dora_delta(held, 2.0)
    values = np.linalg.svd(want, compute_uv=False)
    for rule, rank in (({}, 2), ({"rank": 3}, 3), ({"energy": 1.0}, 4)):
        done = lora_of(adapter, base=base, **rule)
        assert done.state.modules["x"]["rank"] == rank
        assert done.state.modules["x"]["method"] == "lora"
        lost = np.linalg.norm(want - update(done.state, "x"))
        assert lost == pytest.approx(np.linalg.norm(values[rank:]), abs=1e-10)
        assert done.certificate.modules["x"].error == pytest.approx(lost / np.linalg.norm(want), abs=1e-10)
        np.testing.assert_allclose(done.state.tensors["x.lora_bias"], 2)
        assert not list(state_faults([done.state]))


def test_what_was_converted_can_be_added(base):
    adapter = state({"x": dora()}, "d")
    with pytest.raises(ConfigError, match="not linear"):
        add([adapter, adapter])
    done = lora_of(adapter, base=base, energy=1.0).state
    np.testing.assert_allclose(update(add([done, done]).state, "x"), 2 * dora_delta(adapter.parameters()["x"], 2.0), atol=1e-10)


@pytest.mark.parametrize("name", ["loha", "lokr", "adalora", "vera"])
def test_products_of_factors_are_exact_without_a_base(name):
    (adapter,) = load_adapter(PEFT / name).states
    done = lora_of(adapter)
    assert done.certificate.error < 1e-6
    assert {record["method"] for record in done.state.modules.values()} == {"lora"}
    (left,) = [one for one in loratk.diff(adapter, done.state).modules if one.name == "lin"]
    assert left.relative < 1e-6
    small = lora_of(adapter, rank=1)
    assert small.state.modules["lin"]["rank"] == 1


def test_ia3_needs_the_base_and_a_rank():
    (adapter,) = load_adapter(PEFT / "ia3").states
    with pytest.raises(ConfigError, match=r"cannot be made plain LoRA:\n.*module 'lin' \(ia3\): .*give the base"):
        lora_of(adapter, rank=2)


def test_a_whole_module_becomes_a_difference_when_asked(base):
    new = WEIGHT + 1
    adapter = state({"x": ({"method": "full", "orientation": "torch"}, {"weight": new, "bias": np.full(4, 3.0, np.float32)})})
    assert lora_of(adapter, base=base).state.modules["x"]["method"] == "full"
    done = lora_of(adapter, base=base, differences=True).state
    assert done.modules["x"] == {"method": "diff", "orientation": "torch"}
    np.testing.assert_allclose(done.tensors["x.weight"], new - WEIGHT, atol=1e-6)
    np.testing.assert_allclose(done.tensors["x.bias"], 2)
    np.testing.assert_allclose(add([done, done]).state.tensors["x.bias"], 4)
    with pytest.raises(ConfigError, match="give the base"):
        lora_of(adapter, differences=True)


def test_lora_stays_bit_by_bit_and_patterns_choose(base):
    adapter = state({"x": dora(), "y": module(3), "z": dora(4)})
    done = lora_of(adapter, base=base, patterns={"z": None}).state
    np.testing.assert_array_equal(done.tensors["y.lora_A"], adapter.tensors["y.lora_A"])
    assert done.modules["y"] == adapter.modules["y"]
    assert [done.modules[path]["method"] for path in "xyz"] == ["lora", "lora", "dora"]
    with pytest.raises(ConfigError, match="module 'z'"):  # the base lacks it
        lora_of(adapter, base=base)
    with pytest.raises(ConfigError, match="'w' matches no module"):
        lora_of(adapter, base=base, patterns={"w": Rule(rank=1)})
    with Checkpoint(base, default_registry().stores) as opened:
        assert lora_of(state({"x": dora()}), base=opened).state.modules["x"]["method"] == "lora"
