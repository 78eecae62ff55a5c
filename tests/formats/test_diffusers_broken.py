"""diffusers files that are broken or hostile."""

import json
import re
import time

import numpy as np
import pytest
from diffusers_files import WEIGHTS, A, config, pair, read, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loratk_plugins.diffusers.config import Component

from loratk.errors import FormatError, LoratkError
from loratk.exchange import load_adapter, save_adapter

# Broken and hostile files.

BROKEN = {
    "no B": ({"unet.a.lora_A.weight": A}, {}, "'unet.a.lora_B.weight' missing"),
    "alpha alone": ({"unet.a.alpha": np.array(1.0)} | pair("unet.b"), {}, "module 'unet.a'"),
    "ranks": (pair(b=np.ones((5, 3))), {}, "disagree about the rank"),
    "rank 0": (pair(a=np.ones((0, 4)), b=np.ones((5, 0))), {}, "must be floating-point numbers"),
    "whole numbers": (pair(a=np.ones((2, 4), np.int64)), {}, "found int64"),
    "one axis": (pair(a=np.ones(2), b=np.ones(2)), {}, "must both have 2 axes"),
    "NaN as alpha": (pair() | {"unet.a.to_q.alpha": np.array(np.nan)}, {}, "one finite number"),
    "two alphas": (pair() | {"unet.a.to_q.alpha": np.ones(2)}, {}, "one finite number"),
    "magnitude": (pair() | {"unet.a.to_q.lora_magnitude_vector": np.ones(4)}, {}, "must have 5 numbers along one axis"),
    "unexpected": (pair() | {"unet.a.to_q.more": A, "what": A}, {}, "'unet.a.to_q.more' is none"),
    "kohya's": (pair() | {"lora_unet_b.lora_down.weight": A}, {}, "'lora_unet_b.lora_down.weight' is none"),
    "control characters": (pair("unet.a\x1b[2J"), {}, "characters that no name has"),
    "an endless name": (pair("unet." + "a." * 70 + "b"), {}, "more than a module has"),
    "another rank": (pair(), config(r=4), "the header gives it rank 4, its tensors have 2"),
    "a rank of no module": (pair(), config(r=2, rank_pattern={"to_v": 4}), "rank_pattern 'to_v' fits no module"),
    "an alpha of no module": (pair(), config(r=2, alpha_pattern={"q": 4}), "alpha_pattern 'q' fits no module"),
    "a target of no module": (pair(), config(r=2, target_modules=["to_q", "to_z"]), "its target 'to_z' is no module"),
    "an expression": (pair(), config(r=2, rank_pattern={"(a+)+$": 2}), "is an expression, which loratk does not run"),
    "no magnitude": (pair(), config(r=2, use_dora=True), "'unet.a.to_q.lora_magnitude_vector' is missing"),
    "no bias": (pair(), config(r=2, lora_bias=True), "'unet.a.to_q.lora_B.bias' is missing"),
    "a magnitude too many": (pair() | {"unet.a.to_q.lora_magnitude_vector": np.ones(5)}, config(r=2), "use_dora is not true"),
    "another component": (pair(), config("transformer", r=2), "has the component 'transformer', the tensors have not"),
    "no component": (pair(), {"lora_adapter_metadata": '{"r": 2}'}, "begins with no component"),
    "rank as text": (pair(), config(r="2"), "r must be a whole number from 1 up"),
    "rank as truth": (pair(), config(r=True), "r must be a whole number from 1 up"),
    "a negative rank": (pair(), config(rank_pattern={"to_q": -1}), "must be a whole number from 1 up"),
    "alpha as text": (pair(), config(lora_alpha="x"), "lora_alpha must be a number"),
    "a huge alpha": (pair(), {"lora_adapter_metadata": '{"unet.lora_alpha": 1' + "0" * 400 + "}"}, "lora_alpha must be a number"),
    "an infinite alpha": (pair(), {"lora_adapter_metadata": '{"unet.lora_alpha": 1e999}'}, "too large for a number"),
    "NaN": (pair(), {"lora_adapter_metadata": '{"unet.lora_alpha": NaN}'}, "NaN is not JSON"),
    "null in a pattern": (pair(), config(rank_pattern={"to_q": None}), "must be a number, found null"),
    "a pattern that is a list": (pair(), config(rank_pattern=[1]), "rank_pattern must be an object"),
    "a flag that is a text": (pair(), config(use_dora="yes"), "use_dora must be true or false"),
    "a key twice": (pair(), {"lora_adapter_metadata": '{"unet.r": 2, "unet.r": 2}'}, "given twice"),
    "no JSON": (pair(), {"lora_adapter_metadata": "{"}, "is not JSON"),
    "no object": (pair(), {"lora_adapter_metadata": "[]"}, "must be a JSON object"),
    "deep": (pair(), {"lora_adapter_metadata": "[" * 100_000}, "nested too deeply"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "metadata", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused(tmp_path, tensors, metadata, said):
    with pytest.raises(FormatError, match=re.escape(said)):
        read(tmp_path, tensors, metadata, format="diffusers")


def test_all_faults_are_told_at_once(tmp_path):
    with pytest.raises(FormatError) as caught:
        read(tmp_path, {"unet.a.lora_A.weight": A, "what": A} | pair("unet.b", b=np.ones((5, 3))), config(r=0))
    assert all(part in str(caught.value) for part in ("'unet.a.lora_B.weight'", "'what'", "'unet.b'", "r must be"))


def test_what_may_be_missing_by_name(tmp_path):
    tensors = pair("unet.b") | {"unet.a.lora_A.weight": A}
    state, notes = read(tmp_path, tensors, allow_missing=["unet.a.lora_B.weight"])
    assert list(state.modules) == ["unet.b"]
    assert any("'unet.a' is left out" in note for note in notes)
    state, _ = read(tmp_path, pair("unet.b"), config(r=2, use_dora=True), allow_missing=["unet.b.lora_magnitude_vector"])
    assert state.modules["unet.b"]["method"] == "lora"


def test_many_patterns_cost_no_more_than_their_number():
    """20,000 modules and as many patterns, compared one by one, would take minutes."""
    names, found = [f"a.b{number}" for number in range(20_000)], []
    start = time.perf_counter()
    component = Component("unet", {"r": 1, "alpha_pattern": dict.fromkeys(names, 2), "target_modules": names}, found)
    assert {component.module_alpha(name)[0] for name in names} == {2.0}
    component.finish(names)
    assert found == []
    assert time.perf_counter() - start < 10


PARTS = ("unet", "text_encoder", "a", "to_out", "processor", "to_q_lora", "lora", "lora_linear_layer", "down", "up", "weight", "lora_A",
         "lora_B", "alpha", "bias", "lora_magnitude_vector", "0", "_lora")  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "^a", "to_q", "(.*)"]), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.lists(st.sampled_from(PARTS), max_size=7).map(".".join),
        st.tuples(st.lists(st.integers(0, 3), max_size=5), st.sampled_from(["f2", "f4", "i4"])),
        min_size=1,
        max_size=6,
    ),
    VALUES,
    st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_dora", "target_modules"]),
)
def test_any_tensors_are_read_or_refused(tmp_path, shapes, value, field):
    tensors = {key: np.ones(shape, dtype) for key, (shape, dtype) in shapes.items()}
    write(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": json.dumps({f"unet.{field}": value})})
    try:
        state = load_adapter(tmp_path / "x.safetensors", format="diffusers").states[0]
        save_adapter(tmp_path / WEIGHTS, state, options={"component": "unet"})
        again = load_adapter(tmp_path / WEIGHTS).states[0]
    except LoratkError:
        return
    assert len(again.tensors) == len(state.tensors)
