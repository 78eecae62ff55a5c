"""kohya and LyCORIS files that are broken or hostile."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kohya_files import lora, normal, read, write

from loratk.errors import ConfigError, FormatError, LoratkError
from loratk.exchange import load_adapter, save_adapter
from loratk.io import write_safetensors

# Broken and hostile files.

GOOD = lora(dtype=np.float32)
BROKEN = {
    "no up": ({"lora_down.weight": GOOD["lora_down.weight"]}, "'lora_up.weight' is missing"),
    "no down": ({"lora_up.weight": GOOD["lora_up.weight"]}, "'lora_down.weight' is missing"),
    "ranks": (GOOD | {"lora_up.weight": normal(5, 3)}, r"'lora_up.weight' must have shape \(k, r = 2, ...\), found \(5, 3\)"),
    "axes": (GOOD | {"lora_up.weight": normal(5, 2, 1, 1)}, "both have 2 axes"),
    "one axis": (GOOD | {"lora_down.weight": normal(2)}, "'lora_down.weight' must have shape"),
    "six axes": (GOOD | {"lora_down.weight": normal(2, 1, 1, 1, 1, 1)}, "at most 5"),
    "rank 0": ({"lora_down.weight": np.zeros((0, 4)), "lora_up.weight": np.zeros((5, 0))}, "has no numbers"),
    "no inputs": ({"lora_down.weight": np.zeros((2, 0)), "lora_up.weight": normal(5, 2)}, "has no numbers"),
    "whole numbers": (GOOD | {"lora_down.weight": np.ones((2, 4), np.int64)}, "must be floating-point numbers, found int64"),
    "NaN as alpha": (GOOD | {"alpha": np.array(np.nan)}, "'alpha' must be one finite number"),
    "two alphas": (GOOD | {"alpha": np.ones(2)}, "'alpha' must be one finite number"),
    "infinite scalar": (GOOD | {"scalar": np.array(np.inf)}, "'scalar' must be one finite number"),
    "NaN inside": (GOOD | {"lora_up.weight": np.full((5, 2), np.nan)}, "NaN or infinite"),
    "part of a sparse part": (GOOD | {"bias_size": np.ones(2, np.int64)}, "'bias_indices' is missing"),
    "dora for nobody": (GOOD | {"dora_scale": np.ones((7, 1))}, "'dora_scale' must have shape"),
    "two methods": (GOOD | {"hada_w1_a": normal(5, 2)}, "'hada_w1_a' does not belong to lora"),
    "unknown": (GOOD | {"lora_down.bias": normal(2)}, r"'lora_unet_m.lora_down.bias' is none that loratk knows"),
    "half of loha": ({"hada_w1_a": normal(5, 2), "hada_w1_b": normal(2, 4), "hada_w2_a": normal(5, 2)}, "'hada_w2_b' is missing"),
    "half of a core": ({"hada_w1_a": normal(2, 5), "hada_w1_b": normal(2, 4), "hada_w2_a": normal(2, 5), "hada_w2_b": normal(2, 4),
                        "hada_t1": normal(2, 2, 3)}, "'hada_t2' is missing"),
    "cores of two windows": ({"hada_w1_a": normal(2, 5), "hada_w1_b": normal(2, 4), "hada_w2_a": normal(2, 5), "hada_w2_b": normal(2, 4),
                              "hada_t1": normal(2, 2, 3), "hada_t2": normal(2, 2, 4)}, "must have the window"),
    "half of lokr": ({"lokr_w1": normal(2, 2)}, "'lokr_w2' is missing"),
    "two first factors": ({"lokr_w1": normal(2, 2), "lokr_w1_a": normal(2, 1), "lokr_w1_b": normal(1, 2), "lokr_w2": normal(3, 3)},
                          "'lokr_w1' does not belong to lokr of this kind"),
    "glora": ({f"{name}.weight": normal(4, 2) for name in ("a1", "a2", "b1", "b2")}, "'a2.weight' must have shape"),
    "oft": ({"oft_blocks": normal(3, 2, 4)}, "must have shape"),
    "ia3": ({"weight": normal(4), "on_input": np.ones(2)}, "'on_input' must be one number"),
    "ia3 without its side": ({"weight": normal(4), "alpha": np.array(1.0)}, "no adapter"),
    "differences of two kinds": ({"diff": normal(4, 4), "w_norm": normal(4)}, "can have one"),
    "alpha alone": ({"alpha": np.array(1.0)}, "no adapter"),
}  # fmt: skip


@pytest.mark.parametrize(("tensors", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_module_is_refused(tmp_path, tensors, said):
    path = write(tmp_path / "x.safetensors", tensors)
    with pytest.raises(FormatError, match=said):
        load_adapter(path, format="kohya")


def test_all_faults_are_told_at_once(tmp_path):
    arrays = {"lora_unet_a.lora_down.weight": normal(2, 4), "lora_unet_b.hada_w1_a": normal(2, 2)}
    arrays |= {"lora_unet_c.lora_up.weight": normal(5, 2), "what": normal(1)}
    write_safetensors(tmp_path / "x.safetensors", arrays, {})
    with pytest.raises(FormatError) as caught:
        load_adapter(tmp_path / "x.safetensors")
    assert all(part in str(caught.value) for part in ("lora_unet_a", "lora_unet_b", "lora_unet_c", "'what'"))


@pytest.mark.parametrize("name", ["lora_unet_a\n", "lora_unet_\x1b[31m", "lora_unet_a..b", ".a"])
def test_names_that_no_module_has(tmp_path, name):
    path = write(tmp_path / "x.safetensors", GOOD, name=name)
    with pytest.raises(FormatError, match="name"):
        load_adapter(path, format="kohya")


def test_a_small_file_does_not_become_a_huge_one(tmp_path):
    """Kronecker and Tucker products of a few numbers may have more than a machine does."""
    for tensors in (
        {"lokr_w1": np.ones((1000, 1000), np.float32), "lokr_w2": np.ones((1000, 1000), np.float32)},
        {"lora_down.weight": np.ones((1, 30_000, 1), np.float32), "lora_up.weight": np.ones((1, 1, 1), np.float32),
         "lora_mid.weight": np.ones((1, 1, 30_000), np.float32)},
    ):  # fmt: skip
        path = write(tmp_path / "x.safetensors", tensors)
        with pytest.raises(ConfigError, match="above 268435456"):
            load_adapter(path, options={"factor": "yes"})


@pytest.mark.parametrize("factor", ["maybe", "0", "-1", "1" * 30, "²"])
def test_factor_is_yes_no_or_a_rank(tmp_path, factor):
    with pytest.raises(ConfigError, match="the option factor must be"):
        read(tmp_path, lora(), factor=factor)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(["lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "scalar", "dora_scale", "hada_w1_a", "hada_w1_b",
                         "hada_w2_a", "hada_w2_b", "lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "diff", "diff_b", "w_norm",
                         "on_input", "weight", "oft_blocks", "a1.weight", "a2.weight", "b1.weight", "b2.weight", "bm.weight"]),
        st.tuples(st.lists(st.integers(0, 3), max_size=6), st.sampled_from(["f2", "f4", "f8", "i4", "?"])),
        min_size=1, max_size=6,
    ),
    st.sampled_from(["no", "yes", "1"]),
)  # fmt: skip
def test_any_tensors_are_read_or_refused(tmp_path, shapes, factor):
    write(tmp_path / "x.safetensors", {key: np.ones(shape, dtype) for key, (shape, dtype) in shapes.items()})
    try:
        state = load_adapter(tmp_path / "x.safetensors", format="kohya", options={"factor": factor}).states[0]
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
        again = load_adapter(tmp_path / "y.safetensors", format="kohya").states[0]
    except LoratkError:
        return
    assert again.tensors.keys() == state.tensors.keys()
