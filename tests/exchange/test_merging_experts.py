"""Stacks of experts merged into bases that hold them as one array, of either order, or each in an array of its own."""

import numpy as np
import pytest

from loratk import AdapterState, save_adapter
from loratk.convert import export_merged
from loratk.errors import FormatError
from loratk.io import SafetensorsStore, write_safetensors

E, D, K, R = 3, 4, 6, 2
RNG = np.random.default_rng(0)
WEIGHTS = RNG.standard_normal((E, D, K)).astype(np.float32)


def stack(module, method="lora", d=D, k=K, **more):
    """An adapter of one stack."""
    held = {"lora_A": RNG.standard_normal((E, d, R)), "lora_B": RNG.standard_normal((E, R, k))} | more
    if method == "dora":
        held["magnitude"] = RNG.uniform(1, 2, (E, k))
    record = {"method": method, "layer_type": "linear", "shape": [d, k], "rank": R, "alpha": 6.0, "scaling": 3.0, "experts": E}
    return AdapterState("default", {}, {f"{module}.{key}": array.astype(np.float32) for key, array in held.items()}, {module: record})


def merged(tmp_path, state, base, **more):
    """The arrays of a base with a state folded in."""
    save_adapter(tmp_path / "x.h5", state)
    write_safetensors(tmp_path / "base.safetensors", base, {})
    export_merged(tmp_path / "x.h5", tmp_path / "base.safetensors", tmp_path / "merged.safetensors", force=True, **more)
    return SafetensorsStore().read(tmp_path / "merged.safetensors").arrays


def expected(state, weights=WEIGHTS):
    """What becomes of the weights (E, d, k), in float64."""
    (held,) = ({key: array.astype(np.float64) for key, array in found.items()} for found in state.parameters().values())
    want = weights + 3.0 * held["lora_A"] @ held["lora_B"]
    if "magnitude" in held:
        want *= (held["magnitude"] / np.linalg.norm(want, axis=1))[:, None]
    return want


def turned(array):
    return np.ascontiguousarray(np.swapaxes(array, 1, 2))


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize(
    ("module", "name", "order", "lies"),
    [
        ("mlp.switch_mlp.up_proj", "mlp.switch_mlp.up_proj.weight", None, turned),
        ("mlp.switch_mlp.up_proj", "mlp.switch_mlp.up_proj.weight", "input-first", np.array),
        ("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", None, np.array),
        ("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", None, turned),
        ("mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj", "input-first", turned),
    ],
)
def test_one_array_for_all(module, name, order, lies, method, tmp_path):
    state = stack(module, method)
    got = merged(tmp_path, state, {name: lies(WEIGHTS), "other.weight": WEIGHTS[0]}, order=order)
    np.testing.assert_allclose(got[name], lies(expected(state)), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(got["other.weight"], WEIGHTS[0])


@pytest.mark.parametrize("method", ["lora", "dora"])
@pytest.mark.parametrize("module", ["mlp.experts.up_proj", "mlp.switch_mlp.up_proj"])
def test_an_array_for_each(module, method, tmp_path):
    state = stack(module, method)
    base = {f"mlp.experts.{number}.up_proj.weight": WEIGHTS[number].T.copy() for number in range(E)}
    got = merged(tmp_path, state, base)
    want = expected(state)
    for number in range(E):
        np.testing.assert_allclose(got[f"mlp.experts.{number}.up_proj.weight"], want[number].T, rtol=1e-6, atol=1e-6)


def test_biases_of_an_array_for_each(tmp_path):
    state = stack("experts.up", bias=RNG.standard_normal((E, K)))
    base = {f"experts.{number}.up.weight": WEIGHTS[number].T.copy() for number in range(E)}
    base |= {f"experts.{number}.up.bias": np.ones(K, np.float32) for number in range(E)}
    got = merged(tmp_path, state, base)
    for number in range(E):
        np.testing.assert_allclose(got[f"experts.{number}.up.bias"], 1 + state.tensors["experts.up.bias"][number], rtol=1e-6)


def test_a_square_weight_follows_the_order_of_the_base(tmp_path):
    state, weights = stack("switch_mlp.up", d=D, k=D), RNG.standard_normal((E, D, D)).astype(np.float32)
    for order, lies in ((None, turned), ("input-first", np.array)):
        got = merged(tmp_path, state, {"switch_mlp.up.weight": lies(weights)}, order=order)
        np.testing.assert_allclose(got["switch_mlp.up.weight"], lies(expected(state, weights)), rtol=1e-6, atol=1e-6)


SQUARE = stack("experts.down", d=D, k=D)
UP = stack("experts.up")
EACH = {f"experts.{number}.up.weight": WEIGHTS[number].T.copy() for number in range(E)}
MISFITS = {
    "square parameters": (SQUARE, {"experts.down": WEIGHTS[:, :, :D].copy()}, "loratk cannot tell the axis of the input from the other"),
    "fewer": (UP, {"experts.up": WEIGHTS[:2]}, r"it is a stack of 3 experts .* has the shape \[2, 4, 6\]"),
    "other sizes": (UP, {"experts.up": WEIGHTS[:, :3].copy()}, r"for weights of shape \[4, 6\], 'experts.up' has the shape \[3, 3, 6\]"),
    "another order": (UP, {"experts.up.weight": WEIGHTS}, r"those of 'experts.up.weight' act as \[6, 4\], taken output first"),
    "whole numbers": (UP, {"experts.up": WEIGHTS.astype(np.int32)}, "must be an array of floating-point numbers"),
    "none": (UP, {"a.weight": WEIGHTS[0]}, "neither an array 'experts.up' of 3 axes, or of its weight, nor 'experts.0.up.weight'"),
    "one of them": (UP, dict(list(EACH.items())[:2]), "nor 'experts.2.up.weight'"),
    "one more": (UP, EACH | {"experts.3.up.weight": WEIGHTS[0]}, "the base has more: 'experts.3.up.weight'"),
    "one of another shape": (UP, EACH | {"experts.1.up.weight": WEIGHTS[0]}, r"made for a weight of shape \[4, 6\]"),
    "biases": (stack("experts.up", bias=np.ones((E, K))), {"experts.up": WEIGHTS}, "does not know where 'bias' would go"),
    "a bias alone": (stack("experts.up", bias=np.ones(K)), EACH, "each parameter of a stack of 3 experts must have as many entries"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "base", "said"), MISFITS.values(), ids=MISFITS)
def test_what_does_not_fit(state, base, said, tmp_path):
    with pytest.raises(FormatError, match=said):
        merged(tmp_path, state, base)
    assert not (tmp_path / "merged.safetensors").exists()
