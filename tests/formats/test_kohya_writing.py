"""kohya and LyCORIS files: round trips, what they cannot hold, and by what they are known."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kohya_files import M, plain, write

from loratk.convert import export_adapters
from loratk.errors import ConfigError
from loratk.exchange import AdapterState, detect_format, load_adapter, save_adapter
from loratk.io import open_safetensors, write_safetensors
from loratk.io.bfloat16 import to_bits, to_float32
from loratk.plugins import default_registry

# Round trips, and what a file cannot hold.

DTYPES = {"F16": np.float16, "BF16": np.float32, "F32": np.float32, "F64": np.float64}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.tuples(*[st.integers(1, 5)] * 3),
    window=st.sampled_from([(), (1,), (1, 1), (3, 3), (1, 3), (2, 1, 2)]),
    dtype=st.sampled_from(sorted(DTYPES)),
    alpha=st.one_of(st.none(), st.floats(-100, 100, width=16).filter(bool)),
    dora=st.booleans(),
    seed=st.integers(0, 99),
)
def test_round_trips_are_bit_equal(tmp_path, sizes, window, dtype, alpha, dora, seed):
    (k, c, r), rng, ones = sizes, np.random.default_rng(seed), [1] * len(window)
    tensors = {"lora_down.weight": rng.standard_normal((r, c, *window)), "lora_up.weight": rng.standard_normal((k, r, *ones))}
    tensors |= {"dora_scale": rng.random((k, 1, *ones)) + 0.5} if dora else {}
    tensors |= {} if alpha is None else {"alpha": np.array(alpha)}
    tensors = {key: array.astype(DTYPES[dtype]) for key, array in tensors.items()}
    if dtype == "BF16":
        tensors = {key: to_float32(to_bits(array)) for key, array in tensors.items()}
    path = write(tmp_path / "x.safetensors", tensors, bfloat16=tensors if dtype == "BF16" else ())
    export_adapters(path, tmp_path / "y.h5", force=True)
    export_adapters(tmp_path / "y.h5", tmp_path / "z.safetensors", to="kohya", force=True)
    with open_safetensors(tmp_path / "z.safetensors") as reader:
        assert {name.removeprefix(f"{M}.") for name in reader.names()} == tensors.keys() | {"alpha"}
        for key, array in tensors.items():
            assert (reader.dtype(f"{M}.{key}"), reader.array(f"{M}.{key}").tobytes()) == (dtype, array.tobytes())


REFUSED = {
    "an embedding": ({"layer_type": "embedding"}, {}, "embeddings"),
    "experts": ({"experts": 1}, {}, "stacks of experts"),
    "einsum": ({"layer_type": "einsum"}, {}, "EinsumDense"),
    "groups": ({"layer_type": "conv2d", "kernel": [2, 2], "groups": 2}, {}, "in groups"),
    "no window": ({"layer_type": "conv2d"}, {}, "must have its window"),
    "another method": ({"method": "vera"}, {}, "'vera' has no place"),
    "loha of loratk's order": ({"method": "loha"}, {"hada_w1_a": np.ones((5, 2))}, "as torch keeps them"),
    "a whole module": ({"method": "full"}, {"weight": np.ones((5, 4))}, "replaces a whole module"),
    "another parameter": ({}, {"more": np.ones(3)}, "'more' has no place"),
}


@pytest.mark.parametrize(("changes", "tensors", "said"), REFUSED.values(), ids=REFUSED.keys())
def test_what_a_file_cannot_hold(tmp_path, changes, tensors, said):
    record = {"method": "lora", "layer_type": "linear", "shape": [4, 5], "rank": 2, "alpha": 2.0, "scaling": 1.0} | changes
    stack = (1,) if "experts" in changes else ()
    factors = {"lora_A": np.ones((*stack, 4, 2)), "lora_B": np.ones((*stack, 2 // changes.get("groups", 1), 5))}
    held = ({} if changes.get("method") in ("full", "loha") else factors) | tensors
    state = AdapterState("a", {}, {f"x.{key}": array for key, array in held.items()}, {"x": record})
    with pytest.raises(ConfigError, match=said):
        save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    assert list(tmp_path.iterdir()) == []


def test_biases_are_written_as_differences(tmp_path):
    state = plain("unet.a", alpha=4.0, scaling=2.0)
    state.tensors["unet.a.lora_bias"], state.tensors["unet.a.bias"] = np.ones(5), np.full(5, 0.5)
    notes = save_adapter(tmp_path / "y.safetensors", state, format="kohya")
    assert any("lora_bias" in note for note in notes)
    got = load_adapter(tmp_path / "y.safetensors").states[0]
    assert got.tensors["lora_unet_a.bias"].tolist() == [2.5] * 5


def test_two_adapters_need_two_files(tmp_path):
    states = [plain("unet.a"), plain("unet.a")]
    states[1] = AdapterState("b", {}, states[1].tensors, states[1].modules)
    with pytest.raises(ConfigError, match="several adapters"):
        save_adapter(tmp_path / "y.safetensors", states, format="kohya")


def test_the_suffix_alone_does_not_choose(tmp_path):
    with pytest.raises(ConfigError, match=r"'kohya', 'safetensors'.*--to") as caught:
        save_adapter(tmp_path / "y.safetensors", plain("unet.a"))
    assert "use this suffix" in str(caught.value)


# Detection.


def detected(tmp_path, *keys, metadata=None):
    write_safetensors(tmp_path / "x.safetensors", {key: np.ones(1) for key in keys}, metadata or {})
    return detect_format(tmp_path / "x.safetensors").format.name


@pytest.mark.parametrize(
    "key",
    ["lora_unet_a.lora_down.weight", "a.b.lora_up.weight", "lycoris_a.hada_w1_a", "lora_te1_a.lokr_w1", "lora_unet_a.diff",
     "lora_unet_a.w_norm", "lora_te_a.on_input", "lora_unet_a.oft_blocks", "lora_unet_a.a1.weight"],
)  # fmt: skip
def test_it_is_known_by_its_tensors(tmp_path, key):
    assert detected(tmp_path, key) == "kohya"
    assert f"such as {key!r}" in detect_format(tmp_path / "x.safetensors").evidence


@pytest.mark.parametrize(
    ("keys", "metadata"),
    [
        (["a.b.weight", "a.b.bias"], {}),
        (["model.diff"], {}),
        (["base_model.model.a.hada_w1_a"], {}),
        (["a.lora_a", "a.lora_b"], {}),
        (["lora_unet_a.alpha"], {}),
        (["lora_unet_a.lora_down.weight"], {"format": "loratk-adapter"}),
    ],
)
def test_what_belongs_to_others(tmp_path, keys, metadata):
    write_safetensors(tmp_path / "x.safetensors", {key: np.ones(1) for key in keys}, metadata)
    assert default_registry().formats["kohya"].detect(tmp_path / "x.safetensors") is None
