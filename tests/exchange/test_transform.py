"""Adapters with other modules, names and dtypes, and as the simplest reader takes them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from states import dense, module, state

from loratk.errors import ConfigError
from loratk.exchange import portable
from loratk.exchange.transform import cast, rename, round_bfloat16, select
from loratk.io.bfloat16 import to_bits, to_float32

CONFIG = {"rank": 2, "alpha": 4.0, "targets": ["q", "v"], "dropout": 0.1, "seed": 3, "method": "lora"}


def adapter(**more):
    return state({f"layers.{block}.{kind}": module(block) for block in (0, 1) for kind in ("q", "v")}, config=CONFIG, **more)


def test_select_takes_modules_by_globs():
    (got,) = select([adapter()], ["layers.*.q", "layers.1.*"])
    assert sorted(got.modules) == ["layers.0.q", "layers.1.q", "layers.1.v"]
    assert sorted({key.rpartition(".")[0] for key in got.tensors}) == sorted(got.modules)
    assert got.config["targets"] == ["layers.0.q", "layers.1.q", "layers.1.v"]
    assert got.config["dropout"] == 0.1
    with pytest.raises(ConfigError, match=r"'x\.\*' matches no module\n.*'y' matches no module"):
        select([adapter()], ["x.*", "y", "*.q"])
    with pytest.raises(ConfigError, match="nothing is left of adapter 'other'"):
        select([adapter(), state({"z": module()}, "other")], ["layers.*"])


def test_rename_goes_by_dotted_beginnings_and_the_longest_counts():
    (got,) = rename([adapter()], {"layers": "model.h", "layers.1.q": "first"})
    assert sorted(got.modules) == ["first", "model.h.0.q", "model.h.0.v", "model.h.1.v"]
    (got,) = rename([adapter()], {"layers": ""})
    assert sorted(got.modules) == ["0.q", "0.v", "1.q", "1.v"]


@pytest.mark.parametrize(
    ("names", "want"),
    [
        ({"layer": "x"}, "'layer' is neither a module nor the beginning of one"),
        ({"layers.0": "layers.1"}, "'layers.0.q', 'layers.1.q' would all be named 'layers.1.q'"),
        ({"layers.0.q": ""}, "'layers.0.q' would have an empty name"),
    ],
)
def test_names_that_do_not_fit(names, want):
    with pytest.raises(ConfigError) as caught:
        rename([adapter()], names)
    assert want in str(caught.value)


def test_cast_keeps_what_the_config_says_and_marks_bfloat16():
    (half,) = cast([adapter()], "bfloat16")
    assert half.config == CONFIG
    assert {array.dtype.name for array in half.tensors.values()} == {"float32"}
    assert half.modules["layers.0.q"]["dtypes"] == {"lora_A": "bfloat16", "lora_B": "bfloat16"}
    (single,) = cast([half], "float32")
    assert "dtypes" not in single.modules["layers.0.q"]
    assert all(np.array_equal(single.tensors[key], half.tensors[key]) for key in half.tensors)


def test_cast_lists_what_is_too_large():
    big = state({"a": module(), "b": module()})
    big.tensors["a.lora_A"][0] = 1e6
    big.tensors["b.lora_B"][0] = -1e7
    with pytest.raises(ConfigError, match=r"'a\.lora_A' holds 1e\+06(.|\n)*'b\.lora_B' holds 1e\+07"):
        cast([big], "float16")
    with pytest.raises(ConfigError, match="found 'int8'"):
        cast([big], "int8")


@settings(max_examples=200, deadline=None)
@given(st.floats(width=64, allow_nan=False))
def test_rounding_to_bfloat16_is_to_the_nearest_once(number):
    got = float(round_bfloat16(np.array([number]))[0])
    bits = int(to_bits(np.array([got], np.float32))[0])
    around = [float(to_float32(np.array([bits + step], np.uint16))[0]) for step in (-1, 0, 1) if 0 <= bits + step < 1 << 16]
    near = [value for value in around if np.isfinite(value)]
    if np.isfinite(got):
        assert all(abs(got - number) <= abs(value - number) for value in near)


def test_float64_is_not_rounded_twice():
    low, high = (float(to_float32(np.array([bits], np.uint16))[0]) for bits in (0x3F80, 0x3F81))
    middle = (low + high) / 2
    assert round_bfloat16(np.array([middle * (1 + 1e-15), middle, middle * (1 - 1e-15)])).tolist() == [high, low, low]


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.lists(st.tuples(st.integers(1, 5), st.floats(-8, 8), st.booleans()), min_size=1, max_size=4),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
)
def test_portable_is_the_same_update_at_one_rank(ranks, dtype):
    modules = {f"m{i}": module(i, rank=rank, alpha=alpha, rslora=rs, dtype=dtype) for i, (rank, alpha, rs) in enumerate(ranks)}
    got = portable(state(modules))
    top = max(rank for rank, _, _ in ranks)
    for name, (record, held) in modules.items():
        new, arrays = got.modules[name], got.parameters()[name]
        assert (new["rank"], new["alpha"], new["scaling"]) == (top, float(top), 1.0)
        assert np.array_equal(arrays["lora_A"][:, : record["rank"]], held["lora_A"])
        np.testing.assert_allclose(dense(new, arrays), dense(record, held), rtol=1e-6, atol=1e-6)


def test_portable_groups_are_filled_up_each():
    modules = {"a": module(rank=4, k=8, groups=2), "b": module(rank=3)}
    got = portable(state(modules))
    for name, (record, held) in modules.items():
        np.testing.assert_allclose(dense(got.modules[name], got.parameters()[name]), dense(record, held), rtol=1e-12)
    assert [record["rank"] for record in got.modules.values()] == [4, 4]


def test_portable_keeps_half_precision_where_it_is_exact():
    record, held = module(dtype=np.float16, alpha=4.0)  # scaling 2
    got = portable(state({"a": (record, held)}))
    assert got.tensors["a.lora_B"].dtype == np.float16
    record, held = module(dtype=np.float16, alpha=3.3)
    got = portable(state({"a": (record, held)}))
    assert got.tensors["a.lora_B"].dtype == np.float32
    (half,) = cast([state({"a": module(alpha=3.3)})], "bfloat16")
    assert portable(half).modules["a"]["dtypes"] == {"lora_A": "bfloat16"}


def test_other_methods_cannot_be_made_portable():
    record = {"method": "loha", "rank": 2, "alpha": 1.0, "scaling": 0.5}
    with pytest.raises(ConfigError, match="cannot be made portable: 'loha', as in 'a'"):
        portable(state({"a": (record, {"w": np.ones(2)})}))
